//! OCI images: layers and manifests by content, and the push into a registry over its HTTP API (distribution
//! specification 1.1). The registry is one of ours on loopback, so the client is a few lines over a TCP stream.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One blob with its digest.
pub(crate) struct Blob {
    media_type: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: digest(&bytes), bytes }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// A one-layer image.
pub(crate) struct Image {
    layer: Blob,
    config: Blob,
    manifest: Blob,
}

impl Image {
    /// Packs a root file system and its container configuration (`Cmd`, `Env`, …). The same input gives the same
    /// digests: times are zero and names sorted.
    pub(crate) fn pack(root: &Path, container: &Value) -> Result<Self> {
        let tarball = archive(root)?;
        let diff = digest(&tarball);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tarball)?;
        let layer = Blob::new(LAYER, gzip.finish()?);
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z", "config": container,
            "rootfs": { "type": "layers", "diff_ids": [diff] },
        });
        let config = Blob::new(CONFIG, serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": [layer.descriptor()],
        });
        let manifest = Blob::new(MANIFEST, serde_json::to_vec(&manifest)?);
        Ok(Self { layer, config, manifest })
    }

    /// Uploads what the registry lacks and tags it.
    pub(crate) fn push(&self, registry: SocketAddr, name: &str, tags: &[&str]) -> Result<()> {
        for blob in [&self.layer, &self.config] {
            upload(registry, name, blob).with_context(|| format!("cannot push {name} to {registry}"))?;
        }
        for tag in tags {
            let path = format!("/v2/{name}/manifests/{tag}");
            let (status, _) = request(registry, "PUT", &path, MANIFEST, &self.manifest.bytes)?;
            expect(status, 201, &path)?;
        }
        Ok(())
    }
}

/// Whether the registry has a tag.
pub(crate) fn has(registry: SocketAddr, name: &str, tag: &str) -> bool {
    request(registry, "HEAD", &format!("/v2/{name}/manifests/{tag}"), MANIFEST, &[])
        .is_ok_and(|(status, _)| status == 200)
}

/// Whether a registry answers there.
pub(crate) fn answers(registry: SocketAddr) -> bool {
    request(registry, "GET", "/v2/", MANIFEST, &[]).is_ok_and(|(status, _)| status == 200)
}

/// `sha256:…` of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn upload(registry: SocketAddr, name: &str, blob: &Blob) -> Result<()> {
    let path = format!("/v2/{name}/blobs/{}", blob.digest);
    if request(registry, "HEAD", &path, "", &[])?.0 == 200 {
        return Ok(());
    }
    let start = format!("/v2/{name}/blobs/uploads/");
    let (status, location) = request(registry, "POST", &start, "", &[])?;
    expect(status, 202, &start)?;
    let location = location.context("the registry gave no upload location")?;
    let target = location.strip_prefix(&format!("http://{registry}")).unwrap_or(&location);
    let joint = if target.contains('?') { '&' } else { '?' };
    let target = format!("{target}{joint}digest={}", blob.digest);
    let (status, _) = request(registry, "PUT", &target, "application/octet-stream", &blob.bytes)?;
    expect(status, 201, &target)
}

fn expect(status: u16, wanted: u16, path: &str) -> Result<()> {
    if status != wanted {
        bail!("the registry answered {status} instead of {wanted} to {path}");
    }
    Ok(())
}

/// One HTTP/1.1 exchange: status and `Location`.
fn request(registry: SocketAddr, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<(u16, Option<String>)> {
    let mut stream = TcpStream::connect(registry)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {registry}\r\nConnection: close\r\nAccept: {MANIFEST}\r\n\
         Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    let mut location = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("location")) {
            let _ = name;
            location = Some(value.trim().to_owned());
        }
    }
    let _ = reader.read_to_end(&mut Vec::new());
    Ok((status, location))
}

fn archive(root: &Path) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, root, Path::new(""))?;
    Ok(tar.into_inner()?)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, root: &Path, inside: &Path) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(root.join(inside))?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = inside.join(entry.file_name());
        let meta = entry.path().symlink_metadata()?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(meta.permissions().mode() & 0o7777);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        if meta.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, &name, fs::read_link(entry.path())?)?;
        } else if meta.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, &name, std::io::empty())?;
            append(tar, root, &name)?;
        } else {
            let bytes = fs::read(entry.path())?;
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, &name, bytes.as_slice())?;
        }
    }
    Ok(())
}

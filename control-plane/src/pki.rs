//! The cluster's certificates and keys in one directory: made once, reused on every start.
//!
//! The server calls [`Pki::open`]; `leme up` and `leme init` issue node certificates through [`Authority`] and write
//! kubeconfigs. Keys are ECDSA P-256; private files are 0600. Never speaks to the network or the API.

mod subject;

use std::{
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};

const LEAF_DAYS: i64 = 365;
const AUTHORITY_DAYS: i64 = 3650;

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// A certificate authority that signs leaves.
pub struct Authority {
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Loads `<stem>.crt` and `<stem>.key` from `directory`, or makes them under the common name.
    pub fn open(directory: &Path, stem: &str, common_name: &str) -> Result<Self> {
        let identity = keep(directory, stem, || authority(common_name))?;
        Self::load(identity).with_context(|| format!("load {}/{stem}.crt", directory.display()))
    }

    fn load(identity: Identity) -> Result<Self> {
        let key = KeyPair::from_pem(&identity.key)?;
        let issuer = Issuer::from_ca_cert_pem(&identity.certificate, key)?;
        Ok(Self { certificate: identity.certificate, issuer })
    }

    /// A client certificate: the user's name is the CN, its group the O.
    pub fn issue_client(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = leaf(user, group)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// A serving certificate for names and addresses.
    pub fn issue_serving(&self, common_name: &str, group: Option<&str>, names: &[String]) -> Result<Identity> {
        let mut params = leaf(common_name, group)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        self.issue(params)
    }

    fn issue(&self, params: CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl std::fmt::Debug for Authority {
    /// Without its key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.issuer.fmt(f)
    }
}

impl leme_controllers::certificates::Signer for Authority {
    fn sign(&self, request: &[u8], usages: &[String], lifetime: Duration) -> Result<Vec<u8>> {
        let text = std::str::from_utf8(request).context("read a certificate request")?;
        let mut request = CertificateSigningRequestParams::from_pem(text).context("read a certificate request")?;
        let params = &mut request.params;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        (params.key_usages, params.extended_key_usages) = purposes(usages)?;
        let now = Timestamp::now();
        set_validity(params, now, self.until(now + SignedDuration::try_from(lifetime)?)?);
        let certificate = request.signed_by(&self.issuer)?;
        let whole = subject::replace(certificate.der(), &subject::of_request(text)?, self.issuer.key())?;
        Ok(subject::pem(&whole).into_bytes())
    }
}

impl Authority {
    /// No certificate outlives its authority.
    fn until(&self, wanted: Timestamp) -> Result<Timestamp> {
        let own = parse_leaf(&self.certificate, |certificate| certificate.validity().not_after.timestamp());
        let own = Timestamp::from_second(own.context("read the authority's certificate")?)?;
        Ok(wanted.min(own))
    }
}

/// Kubernetes' words for usages as a certificate has them.
fn purposes(usages: &[String]) -> Result<(Vec<KeyUsagePurpose>, Vec<ExtendedKeyUsagePurpose>)> {
    let (mut plain, mut extended) = (Vec::new(), Vec::new());
    for usage in usages {
        match usage.as_str() {
            "digital signature" | "signing" => plain.push(KeyUsagePurpose::DigitalSignature),
            "key encipherment" => plain.push(KeyUsagePurpose::KeyEncipherment),
            "client auth" => extended.push(ExtendedKeyUsagePurpose::ClientAuth),
            "server auth" => extended.push(ExtendedKeyUsagePurpose::ServerAuth),
            other => return Err(anyhow!("no signer of this cluster signs for {other:?}")),
        }
    }
    Ok((plain, extended))
}

/// What the API server needs, all of it under one directory (`<data-dir>/pki`).
pub struct Pki {
    pub directory: PathBuf,
    pub cluster: Authority,
    pub front_proxy: Authority,
    pub serving: Identity,
    pub kubelet_client: Identity,
    /// Signs service account tokens (PKCS#8 PEM, ECDSA P-256).
    pub service_account_key: String,
}

impl Pki {
    /// Loads everything, makes what is missing, and reissues a serving certificate that lacks one of `names`.
    pub fn open(directory: &Path, names: &[String]) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let cluster = Authority::open(directory, "ca", "kubernetes")?;
        let front_proxy = Authority::open(directory, "front-proxy-ca", "front-proxy-ca")?;
        let issue = || cluster.issue_serving("kube-apiserver", None, names);
        let mut serving = keep(directory, "apiserver", issue)?;
        if !covers(&serving.certificate, names) || expires_soon(&serving.certificate) {
            serving = issue()?;
            write_identity(directory, "apiserver", &serving)?;
        }
        let issue = || cluster.issue_client("kube-apiserver-kubelet-client", None);
        let mut kubelet_client = keep(directory, "apiserver-kubelet-client", issue)?;
        if expires_soon(&kubelet_client.certificate) {
            kubelet_client = issue()?;
            write_identity(directory, "apiserver-kubelet-client", &kubelet_client)?;
        }
        let service_account_key = service_account_key(directory)?;
        Ok(Self { directory: directory.to_owned(), cluster, front_proxy, serving, kubelet_client, service_account_key })
    }
}

/// What `--discovery-token-ca-cert-hash` names: SHA-256 of the public key of a certificate (DER), in hexadecimal.
pub fn public_key_hash(der: &[u8]) -> Result<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).context("read a certificate")?;
    let digest = Sha256::digest(certificate.public_key().raw);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The names an API server answers to.
pub fn apiserver_names(domain: &str, service_address: IpAddr, advertise: IpAddr, extra: &[String]) -> Vec<String> {
    let mut names: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1"].map(Into::into).into();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.push(service_address.to_string());
    names.push(advertise.to_string());
    names.extend(extra.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// The words that a kubeconfig uses for its cluster, user and context.
pub struct KubeconfigNames<'a> {
    pub cluster: &'a str,
    pub user: &'a str,
    pub context: &'a str,
}

/// A kubeconfig with everything inline.
pub fn kubeconfig(server: &str, authority: &str, identity: &Identity, names: &KubeconfigNames<'_>) -> String {
    let KubeconfigNames { cluster, user, context } = names;
    let encode = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {cluster}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: {context}\n  context:\n    cluster: {cluster}\n    user: {user}\n\
         current-context: {context}\npreferences: {{}}\n",
        encode(authority),
        encode(&identity.certificate),
        encode(&identity.key),
    )
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, contents: &str) -> Result<()> {
    write_whole(path, contents, 0o600)
}

fn write_whole(path: &Path, contents: &str, mode: u32) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || {
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(contents.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn write_identity(directory: &Path, stem: &str, identity: &Identity) -> Result<()> {
    write_private(&directory.join(format!("{stem}.key")), &identity.key)?;
    write_whole(&directory.join(format!("{stem}.crt")), &identity.certificate, 0o644)
}

/// The identity on disk, or a new one that is then on disk.
fn keep(directory: &Path, stem: &str, make: impl FnOnce() -> Result<Identity>) -> Result<Identity> {
    let (crt, key) = (directory.join(format!("{stem}.crt")), directory.join(format!("{stem}.key")));
    if crt.exists() && key.exists() {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        return Ok(Identity { certificate: read(&crt)?, key: read(&key)? });
    }
    let identity = make()?;
    write_identity(directory, stem, &identity)?;
    Ok(identity)
}

fn service_account_key(directory: &Path) -> Result<String> {
    let path = directory.join("sa.key");
    if path.exists() {
        return fs::read_to_string(&path).with_context(|| format!("read {}", path.display()));
    }
    let key = KeyPair::generate()?;
    write_private(&path, &key.serialize_pem())?;
    write_whole(&directory.join("sa.pub"), &key.public_key_pem(), 0o644)?;
    Ok(key.serialize_pem())
}

fn authority(common_name: &str) -> Result<Identity> {
    let mut params = validity(CertificateParams::default(), AUTHORITY_DAYS)?;
    params.distinguished_name = subject(common_name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    Ok(Identity { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

fn leaf(common_name: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = validity(CertificateParams::default(), LEAF_DAYS)?;
    params.distinguished_name = subject(common_name, group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Valid from five minutes ago: clocks of machines that join differ a little.
fn validity(mut params: CertificateParams, days: i64) -> Result<CertificateParams> {
    let now = Timestamp::now();
    set_validity(&mut params, now, now + SignedDuration::from_hours(24 * days));
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, until: Timestamp) {
    let at = |time: Timestamp| {
        let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8)
            + Duration::from_secs((time.as_second().rem_euclid(86_400)) as u64)
    };
    params.not_before = at(now - SignedDuration::from_mins(5));
    params.not_after = at(until);
}

fn subject(common_name: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn parse_leaf<T>(pem: &str, look: impl FnOnce(&x509_parser::certificate::X509Certificate<'_>) -> T) -> Option<T> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = block.parse_x509().ok()?;
    Some(look(&certificate))
}

fn covers(pem: &str, names: &[String]) -> bool {
    use x509_parser::extensions::GeneralName;
    let present = parse_leaf(pem, |certificate| {
        let extension = certificate.subject_alternative_name().ok().flatten();
        let names = extension.map(|e| e.value.general_names.as_slice()).unwrap_or_default();
        let text = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            &GeneralName::IPAddress(&[a, b, c, d]) => Some(IpAddr::from([a, b, c, d]).to_string()),
            GeneralName::IPAddress(bytes) => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        };
        names.iter().filter_map(text).collect::<Vec<_>>()
    });
    present.is_some_and(|present| names.iter().all(|name| present.contains(name)))
}

/// Less than a month left.
fn expires_soon(pem: &str) -> bool {
    let until = parse_leaf(pem, |certificate| certificate.validity().not_after.timestamp());
    until.is_none_or(|until| until - Timestamp::now().as_second() < 30 * 86_400)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use leme_controllers::certificates::Signer;
    use rcgen::PublicKeyData;
    use x509_parser::pem::parse_x509_pem;

    use super::*;

    fn names() -> Vec<String> {
        apiserver_names("cluster.local", [10, 96, 0, 1].into(), [192, 0, 2, 7].into(), &[])
    }

    #[test]
    fn everything_is_made_once_and_then_reused() {
        let directory = tempfile::tempdir().unwrap();
        let first = Pki::open(directory.path(), &names()).unwrap();
        let second = Pki::open(directory.path(), &names()).unwrap();
        assert_eq!(first.cluster.certificate, second.cluster.certificate);
        assert_eq!(first.serving.certificate, second.serving.certificate);
        assert_eq!(first.service_account_key, second.service_account_key);
    }

    #[test]
    fn a_new_name_reissues_the_serving_certificate_only() {
        let directory = tempfile::tempdir().unwrap();
        let first = Pki::open(directory.path(), &names()).unwrap();
        let mut more = names();
        more.push("api.example.com".into());
        let second = Pki::open(directory.path(), &more).unwrap();
        assert_eq!(first.cluster.certificate, second.cluster.certificate);
        assert_ne!(first.serving.certificate, second.serving.certificate);
        assert!(covers(&second.serving.certificate, &more));
    }

    #[test]
    fn private_keys_are_readable_by_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        Pki::open(directory.path(), &names()).unwrap();
        for file in ["ca.key", "apiserver.key", "sa.key", "apiserver-kubelet-client.key", "front-proxy-ca.key"] {
            let mode = fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    fn request(groups: &[&str]) -> (String, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (n, group) in groups.iter().enumerate() {
            // rcgen keeps one value of a kind.
            let kind = if n == 0 { DnType::OrganizationName } else { DnType::CustomDnType(vec![2, 5, 4, 10]) };
            params.distinguished_name.push(kind, *group);
        }
        params.distinguished_name.push(DnType::CommonName, "jane");
        params.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 1].into()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        (params.serialize_request(&key).unwrap().pem().unwrap(), key)
    }

    #[test]
    fn a_signed_request_keeps_its_whole_subject_and_gets_the_usages_it_asked_for_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path(), "ca", "kubernetes").unwrap();
        let (pem, key) = request(&["a", "b"]);
        let usages = ["client auth".to_owned(), "digital signature".to_owned()];
        let signed = authority.sign(pem.as_bytes(), &usages, Duration::from_secs(3600)).unwrap();
        let (_, block) = parse_x509_pem(&signed).unwrap();
        let certificate = block.parse_x509().unwrap();
        let (_, own) = parse_x509_pem(authority.certificate.as_bytes()).unwrap();
        certificate.verify_signature(Some(own.parse_x509().unwrap().public_key())).unwrap();
        assert_eq!(certificate.subject().to_string(), "O=a, O=b, CN=jane");
        assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
        assert!(!certificate.is_ca(), "whatever it asked for");
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && !extended.server_auth);
        assert!(covers(std::str::from_utf8(&signed).unwrap(), &["192.0.2.1".to_owned()]));
        let left = certificate.validity().not_after.timestamp() - Timestamp::now().as_second();
        assert!((3590..=3600).contains(&left), "{left}");
        let forever = authority.sign(pem.as_bytes(), &usages, Duration::from_secs(1 << 30)).unwrap();
        let until = |pem: &str| parse_leaf(pem, |c| c.validity().not_after.timestamp());
        assert_eq!(until(std::str::from_utf8(&forever).unwrap()), until(&authority.certificate));
    }
}

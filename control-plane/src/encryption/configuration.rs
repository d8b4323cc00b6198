//! Upstream's `EncryptionConfiguration`: which kinds are sealed, with which keys.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::{Keyring, Rule, cipher::Cipher};
use crate::resources::Resource;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EncryptionConfiguration {
    api_version: String,
    kind: String,
    resources: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

/// One of its fields is set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    secretbox: Option<Keys>,
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    identity: Option<Identity>,
    kms: Option<serde_norway::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    /// Base64.
    secret: String,
}

/// A file that seals secrets with a new key and still reads those in the clear.
pub fn generate() -> String {
    use aes_gcm::aead::{OsRng, rand_core::RngCore};
    let mut key = [0; 32];
    OsRng.fill_bytes(&mut key);
    let secret = BASE64_STANDARD.encode(key);
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers:\n  - secretbox:\n      keys:\n      - name: key1\n        secret: {secret}\n  - identity: {{}}\n"
    )
}

pub fn read(path: &Path, table: &[Resource]) -> Result<Keyring> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text, table).with_context(|| format!("{}", path.display()))
}

pub fn parse(text: &str, table: &[Resource]) -> Result<Keyring> {
    let file: EncryptionConfiguration = serde_norway::from_str(text)?;
    let known = file.kind == "EncryptionConfiguration" && file.api_version == "apiserver.config.k8s.io/v1";
    ensure!(known, "expected an EncryptionConfiguration of apiserver.config.k8s.io/v1");
    let rules = file.resources.iter().enumerate();
    let rules = rules.map(|(n, entry)| rule(entry, table).with_context(|| format!("resources[{n}]")));
    Ok(Keyring { rules: rules.collect::<Result<_>>()? })
}

fn rule(entry: &Entry, table: &[Resource]) -> Result<Rule> {
    ensure!(!entry.resources.is_empty(), "names no resources");
    let mut prefixes = Vec::new();
    for name in &entry.resources {
        let matching = table.iter().filter(|resource| !resource.is_virtual() && covers(name, resource));
        let before = prefixes.len();
        prefixes.extend(matching.map(|resource| format!("/registry/{}/", resource.storage).into_boxed_str()));
        ensure!(prefixes.len() > before, "this server serves no resource {name:?}");
    }
    let mut ciphers = Vec::new();
    for (n, provider) in entry.providers.iter().enumerate() {
        ciphers.extend(open(provider).with_context(|| format!("providers[{n}]"))?);
    }
    ensure!(!ciphers.is_empty(), "names no providers");
    let mut seen = HashSet::new();
    if let Some(twice) = ciphers.iter().find(|cipher| !seen.insert(&cipher.prefix)) {
        bail!("the key {:?} is there twice", twice.prefix);
    }
    Ok(Rule { prefixes, ciphers })
}

/// `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group) or `*.*`.
fn covers(name: &str, resource: &Resource) -> bool {
    match name.split_once('.') {
        Some(("*", "*")) => true,
        Some(("*", group)) => resource.group == group,
        Some((plural, group)) => resource.plural == plural && resource.group == group,
        None => resource.plural == name && resource.group.is_empty(),
    }
}

fn open(provider: &Provider) -> Result<Vec<Cipher>> {
    ensure!(provider.kms.is_none(), "kms is not supported; secretbox, aesgcm, aescbc and identity are");
    let named = [("secretbox", &provider.secretbox), ("aesgcm", &provider.aesgcm), ("aescbc", &provider.aescbc)];
    let mut set = named.iter().filter_map(|(name, keys)| Some((*name, keys.as_ref()?)));
    match (set.next(), set.next(), &provider.identity) {
        (None, None, Some(Identity {})) => Ok(vec![Cipher::identity()]),
        (Some((name, keys)), None, None) => {
            ensure!(!keys.keys.is_empty(), "{name} has no keys");
            keys.keys.iter().map(|key| cipher(name, key)).collect()
        }
        _ => bail!("expected one of secretbox, aesgcm, aescbc and identity"),
    }
}

fn cipher(provider: &str, key: &Key) -> Result<Cipher> {
    let sound = !key.name.is_empty() && !key.name.contains(':');
    ensure!(sound, "{:?} cannot be a key's name: it is empty or has a colon", key.name);
    let secret = BASE64_STANDARD.decode(&key.secret).ok().filter(|secret| !secret.is_empty());
    // Without the decoder's words: they quote what is secret.
    let secret = secret.with_context(|| format!("the secret of key {:?} is not base64", key.name))?;
    Cipher::new(provider, &key.name, &secret).with_context(|| format!("key {:?}", key.name))
}

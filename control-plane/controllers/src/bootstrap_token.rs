//! Bootstrap tokens: expired ones are deleted, and `cluster-info` carries a signature for each that may sign.
//!
//! A machine that knows a token can so tell the true `cluster-info` from another's without any certificate. The secret
//! part of a token never leaves this file but as a signature, and never into a log.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

use crate::{
    informer::{CLUSTER_INFO, Informers, ObjectKey, wake_self},
    objects::is_deleting,
    queue::{Next, Outcome, Queue, unless_gone},
};

const HOME: &str = "kube-system";
const PUBLIC: &str = "kube-public";
const SIGNATURE: &str = "jws-kubeconfig-";

/// Deletes tokens when they expire.
pub fn start_cleaner(
    client: Client,
    informers: Arc<Informers>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> {
    let queue = Queue::new();
    informers.bootstrap_tokens.on_change({
        let queue = queue.clone();
        wake_self(move |key: ObjectKey| queue.add(key))
    });
    async move {
        informers.bootstrap_tokens.wait_until_synced().await;
        let reconcile = move |key: ObjectKey| {
            let (client, informers) = (client.clone(), informers.clone());
            async move {
                match informers.bootstrap_tokens.get(&key).filter(|_| key.namespace == HOME) {
                    Some(token) => clean(&client, &token).await,
                    None => Ok(Next::Wait),
                }
            }
        };
        queue.run("token-cleaner", 1, shutdown, reconcile).await;
    }
}

async fn clean(client: &Client, token: &Secret) -> Outcome {
    match left(token, Timestamp::now()) {
        None => Ok(Next::Wait),
        Some(Duration::ZERO) => {
            let same = Preconditions { uid: token.uid(), ..Preconditions::default() };
            let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            let api: Api<Secret> = Api::namespaced(client.clone(), HOME);
            unless_gone(api.delete(&token.name_any(), &params).await)?;
            Ok(Next::Wait)
        }
        Some(left) => Ok(Next::After(left)),
    }
}

/// Keeps the signatures of `cluster-info` true.
pub fn start_signer(
    client: Client,
    informers: Arc<Informers>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> {
    let queue = Queue::new();
    let add = || {
        let queue = queue.clone();
        move |key: ObjectKey| {
            if [HOME, PUBLIC].contains(&key.namespace.as_str()) {
                queue.add(CLUSTER_INFO);
            }
        }
    };
    informers.bootstrap_tokens.on_change(wake_self(add()));
    informers.cluster_info.on_change(wake_self(add()));
    async move {
        informers.bootstrap_tokens.wait_until_synced().await;
        informers.cluster_info.wait_until_synced().await;
        let reconcile = move |_| {
            let (client, informers) = (client.clone(), informers.clone());
            async move { sign(&client, &informers).await }
        };
        queue.run("bootstrap-signer", 1, shutdown, reconcile).await;
    }
}

async fn sign(client: &Client, informers: &Informers) -> Outcome {
    let Some(info) = informers.cluster_info.get(&ObjectKey::new(PUBLIC, CLUSTER_INFO)) else { return Ok(Next::Wait) };
    let tokens = informers.bootstrap_tokens.in_namespace(HOME);
    if let Some(data) = signed(info.data.as_ref(), &tokens, Timestamp::now()) {
        let changed = ConfigMap { data: Some(data), ..ConfigMap::clone(&info) };
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), PUBLIC);
        unless_gone(api.replace(CLUSTER_INFO, &PostParams::default(), &changed).await)?;
    }
    Ok(Next::Wait)
}

type Data = BTreeMap<String, String>;

/// The data with a signature for each token that may sign and no other; `None` when that is what it has.
fn signed(data: Option<&Data>, tokens: &[Arc<Secret>], now: Timestamp) -> Option<Data> {
    let payload = data?.get("kubeconfig")?;
    let mut wanted = data?.clone();
    wanted.retain(|key, _| !key.starts_with(SIGNATURE));
    for token in tokens {
        if let Some((id, secret)) = signing_key(token, now) {
            wanted.insert(format!("{SIGNATURE}{id}"), signature(payload, &id, &secret));
        }
    }
    (Some(&wanted) != data).then_some(wanted)
}

/// Id and secret of a token that may sign now.
fn signing_key(token: &Secret, now: Timestamp) -> Option<(String, String)> {
    let (id, secret) = (text(token, "token-id"), text(token, "token-secret"));
    let fits = !secret.is_empty() && token.name_any() == format!("bootstrap-token-{id}");
    let may = text(token, "usage-bootstrap-signing") == "true" && left(token, now) != Some(Duration::ZERO);
    (fits && may && !is_deleting(token)).then_some((id, secret))
}

/// A detached JSON Web Signature (RFC 7515): header, nothing, signature.
pub fn signature(payload: &str, id: &str, secret: &str) -> String {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let header = encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#).as_bytes());
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{header}.{}", encode(payload.as_bytes())).as_bytes());
    format!("{header}..{}", encode(&mac.finalize().into_bytes()))
}

/// How long a token lasts: `None` is for ever, zero is over. A time that cannot be read is over.
fn left(token: &Secret, now: Timestamp) -> Option<Duration> {
    let expiration = text(token, "expiration");
    if expiration.is_empty() {
        return None;
    }
    let until = expiration.parse::<Timestamp>().unwrap_or(Timestamp::UNIX_EPOCH);
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

fn text(token: &Secret, key: &str) -> String {
    let bytes = token.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.clone());
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn token(id: &str, changes: &[(&str, &str)]) -> Arc<Secret> {
        let own = [("token-id", id), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-signing", "true")];
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
        let mut secret = Secret { data: Some(own.iter().chain(changes).map(entry).collect()), ..Secret::default() };
        secret.metadata.name = Some(format!("bootstrap-token-{id}"));
        Arc::new(secret)
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn cluster_info_carries_a_signature_of_each_token_that_may_sign() {
        let old = Data::from([("kubeconfig".into(), "k".into()), ("jws-kubeconfig-gone00".into(), "s".into())]);
        let tokens = [
            token("abcdef", &[]),
            token("silent", &[("usage-bootstrap-signing", "false")]),
            token("passed", &[("expiration", "2025-12-31T23:59:59Z")]),
            token("misled", &[("token-id", "abcdef")]),
        ];
        let new = signed(Some(&old), &tokens, now()).unwrap();
        assert_eq!(new.keys().collect::<Vec<_>>(), ["jws-kubeconfig-abcdef", "kubeconfig"]);
        assert_eq!(signed(Some(&new), &tokens, now()), None, "once is enough");
        assert_eq!(signed(Some(&Data::new()), &tokens, now()), None, "there is nothing to sign");
    }

    #[test]
    fn a_signature_is_the_one_that_others_compute() {
        // printf '%s.%s' "$header" "$(printf k | base64)" | openssl dgst -sha256 -hmac 0123456789abcdef
        let header = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9";
        assert_eq!(
            signature("k", "abcdef", "0123456789abcdef"),
            format!("{header}..deWVPwiKWZJXWjK8eZ88yOHLhioE0xMTJuYhxw_vdec")
        );
    }

    #[test]
    fn a_token_lasts_until_its_expiration() {
        let lasts = |text: &str| left(&token("abcdef", &[("expiration", text)]), now());
        assert_eq!(lasts(""), None);
        assert_eq!(lasts("2026-01-01T00:01:00Z"), Some(Duration::from_secs(60)));
        assert_eq!(lasts("2026-01-01T00:00:00Z"), Some(Duration::ZERO));
        assert_eq!(lasts("tomorrow"), Some(Duration::ZERO));
    }
}

//! Bootstrap tokens: `<id>.<secret>` from Secrets in kube-system, for machines that have no identity yet.
//!
//! [`super::authenticate`] asks here about tokens of this form. What such a token may do, RBAC says: read what joining
//! takes and ask for a kubelet's certificate.

use std::hint::black_box;

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::Value;

use super::User;
use crate::api::{object::text, registry::Registry};

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";
const NAMESPACE: &str = "kube-system";

/// Id and secret, if it is of a bootstrap token's form.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let fits =
        |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    token.split_once('.').filter(|(id, secret)| fits(id, 6) && fits(secret, 16))
}

/// The user that a token stands for.
///
/// # Errors
/// Why not, for the log; the client learns only that it is not welcome.
pub async fn authenticate(registry: &Registry, id: &str, secret: &str) -> Result<User, String> {
    let name = format!("bootstrap-token-{id}");
    let found = registry.builtin("secrets").get(NAMESPACE, &name).await.map_err(|failure| failure.message)?;
    let stored = found.ok_or_else(|| format!("no bootstrap token {id}"))?.value();
    judge(&stored, id, secret, Timestamp::now())
}

fn judge(stored: &Value, id: &str, secret: &str, now: Timestamp) -> Result<User, String> {
    let refuse = |why: &str| Err(format!("bootstrap token {id} {why}"));
    let of = |key: &str| data(stored, key);
    if stored["metadata"]["deletionTimestamp"].is_string() || text(stored, &["type"]) != TYPE {
        return refuse("is none any more");
    }
    if of("token-id") != id || !same(&of("token-secret"), secret) {
        return refuse("has another secret");
    }
    if has_expired(&of("expiration"), now) {
        return refuse("has expired");
    }
    if of("usage-bootstrap-authentication") != "true" {
        return refuse("is not for authentication");
    }
    let extra = of("auth-extra-groups");
    let mut groups = vec![GROUP.to_owned()];
    for group in extra.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        if !is_bootstrap_group(group) {
            return refuse("has a group that is none of bootstrappers");
        }
        groups.extend((!groups.iter().any(|known| known == group)).then(|| group.to_owned()));
    }
    Ok(User::authenticated(&format!("system:bootstrap:{id}"), groups))
}

fn data(secret: &Value, key: &str) -> String {
    let bytes = BASE64_STANDARD.decode(text(secret, &["data", key])).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// Takes as long for a secret that is nearly right as for one that is all wrong.
fn same(a: &str, b: &str) -> bool {
    let different = a.bytes().zip(b.bytes()).fold(0, |seen, (a, b)| black_box(seen | (a ^ b)));
    a.len() == b.len() && different == 0
}

/// A time that cannot be read is over.
fn has_expired(expiration: &str, now: Timestamp) -> bool {
    !expiration.is_empty() && !expiration.parse::<Timestamp>().is_ok_and(|until| now < until)
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`
fn is_bootstrap_group(group: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        (1..=256).contains(&rest.len())
            && rest.bytes().all(|byte| plain(byte) || matches!(byte, b':' | b'-'))
            && rest.bytes().last().is_some_and(plain)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(changes: &[(&str, &str)]) -> Value {
        let mut secret = json!({"type": TYPE, "metadata": {}, "data": {}});
        let own = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token"),
        ];
        for (key, value) in own.iter().chain(changes) {
            secret["data"][*key] = BASE64_STANDARD.encode(value).into();
        }
        secret
    }

    #[test]
    fn a_token_is_six_and_sixteen_of_a_small_alphabet() {
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for other in ["abcdef", "abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdef.x", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_token_is_taken_with_its_secret_while_it_lasts_and_for_what_it_is_meant() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let verdict = |changes: &[(&str, &str)]| {
            judge(&secret(changes), "abcdef", "0123456789abcdef", now)
                .map(|user| user.groups)
                .map_err(|mut why| why.split_off(23))
        };
        let group = "system:bootstrappers:kubeadm:default-node-token";
        assert_eq!(verdict(&[]).unwrap(), [GROUP, group, "system:authenticated"]);
        assert!(verdict(&[("expiration", "2026-01-01T00:00:01Z")]).is_ok());
        for (changes, why) in [
            (&[("expiration", "2026-01-01T00:00:00Z")][..], "has expired"),
            (&[("expiration", "tomorrow")], "has expired"),
            (&[("token-secret", "0123456789abcdee")], "has another secret"),
            (&[("token-secret", "")], "has another secret"),
            (&[("token-id", "fedcba")], "has another secret"),
            (&[("usage-bootstrap-authentication", "false")], "is not for authentication"),
            (&[("auth-extra-groups", "system:masters")], "has a group that is none of bootstrappers"),
            (&[("auth-extra-groups", "system:bootstrappers:")], "has a group that is none of bootstrappers"),
        ] {
            assert_eq!(verdict(changes).unwrap_err(), why, "{changes:?}");
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert!(judge(&other, "abcdef", "0123456789abcdef", now).is_err());
    }
}

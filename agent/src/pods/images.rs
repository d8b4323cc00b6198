//! Images: whether to pull, with which credentials, when to try again, and what to tell about it.
//!
//! One per agent, shared by the pods' actors: its back-offs outlive one container's attempts.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use jiff::Timestamp;
use k8s_cri::v1::{AuthConfig, Image, ImageSpec};
use k8s_openapi::api::core::v1 as core;

use super::backoff::Backoff;
use super::plan::Waiting;
use super::sandbox::{namespace, uid};
use crate::events::{Kind, Recorder};
use crate::objects::Objects;
use crate::runtime::Cri;

type Key = (String, String);

pub struct Images {
    cri: Cri,
    events: Recorder,
    objects: Objects,
    /// By pod and image, with the error that began the wait.
    failures: Mutex<HashMap<Key, (Backoff, Timestamp, String)>>,
}

/// Upstream's reasons, which people and dashboards match.
const PULL: &str = "ErrImagePull";
const BACK_OFF: &str = "ImagePullBackOff";
const NEVER: &str = "ErrImageNeverPull";
const INVALID: &str = "InvalidImageName";
const INSPECT: &str = "ImageInspectError";

impl Images {
    pub fn new(cri: Cri, events: Recorder, objects: Objects) -> Self {
        Self { cri, events, objects, failures: Mutex::default() }
    }

    /// The image, present on the node; or why not, and the time before which another attempt makes no sense.
    pub async fn ensure(
        &self,
        pod: &core::Pod,
        container: &core::Container,
    ) -> Result<Image, (Waiting, Option<Timestamp>)> {
        let name = container.image.as_deref().unwrap_or_default();
        let said =
            |kind, reason: &str, message: String| self.events.container(pod, &container.name, kind, reason, message);
        let Some(reference) = normalize(name) else {
            let message = format!(
                "Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: invalid reference format"
            );
            said(Kind::Warning, INVALID, message.clone());
            return Err((waiting(INVALID, message), Some(later())));
        };
        let spec = ImageSpec { image: reference.clone(), user_specified_image: name.into(), ..Default::default() };
        let present = self.cri.image_status(spec.clone()).await.map_err(|error| {
            let message = format!("Failed to inspect image {name:?}: {error}");
            said(Kind::Warning, "InspectFailed", message.clone());
            (waiting(INSPECT, message), Some(later()))
        })?;
        match (policy(container, &reference), present) {
            ("Never", None) => {
                said(
                    Kind::Warning,
                    NEVER,
                    format!("Container image {name:?} is not present with pull policy of Never"),
                );
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                Err((waiting(NEVER, message), Some(later())))
            }
            ("Never" | "IfNotPresent", Some(image)) => {
                let message =
                    format!("Container image {name:?} already present on machine and can be accessed by the pod");
                said(Kind::Normal, "Pulled", message);
                Ok(image)
            }
            _ => self.pull(pod, container, name, spec).await,
        }
    }

    async fn pull(
        &self,
        pod: &core::Pod,
        container: &core::Container,
        name: &str,
        spec: ImageSpec,
    ) -> Result<Image, (Waiting, Option<Timestamp>)> {
        let said =
            |kind, reason: &str, message: String| self.events.container(pod, &container.name, kind, reason, message);
        let key = (uid(pod).to_owned(), name.to_owned());
        if let Some((until, cause)) = self.held_back(&key) {
            let message = format!("Back-off pulling image {name:?}: {PULL}: {cause}");
            said(Kind::Normal, "BackOff", format!("Back-off pulling image {name:?}"));
            said(Kind::Warning, "Failed", format!("Error: {BACK_OFF}"));
            return Err((waiting(BACK_OFF, message), Some(until)));
        }
        said(Kind::Normal, "Pulling", format!("Pulling image {name:?}"));
        let begun = Instant::now();
        match self.fetch(pod, spec).await {
            Ok(image) => {
                self.failures.lock().expect("no holder panics").remove(&key);
                let took = go_duration(begun.elapsed());
                let size = image.size;
                let message = format!(
                    "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {size} bytes."
                );
                said(Kind::Normal, "Pulled", message);
                Ok(image)
            }
            Err(cause) => {
                said(Kind::Warning, "Failed", format!("Failed to pull image {name:?}: {cause}"));
                said(Kind::Warning, "Failed", format!("Error: {PULL}"));
                self.failed(key, cause.clone());
                Err((waiting(PULL, cause), Some(Timestamp::now())))
            }
        }
    }

    fn held_back(&self, key: &Key) -> Option<(Timestamp, String)> {
        let failures = self.failures.lock().expect("no holder panics");
        let (backoff, failed, cause) = failures.get(key)?;
        Some((backoff.until(*failed, Timestamp::now())?, cause.clone()))
    }

    fn failed(&self, key: Key, cause: String) {
        let now = Timestamp::now();
        let mut failures = self.failures.lock().expect("no holder panics");
        let entry = failures.entry(key).or_insert_with(|| (Backoff::default(), now, String::new()));
        entry.0.advance(now);
        (entry.1, entry.2) = (now, cause);
    }

    pub fn forget(&self, uid: &str) {
        self.failures.lock().expect("no holder panics").retain(|(other, _), _| other != uid);
    }

    /// Each credential that fits, then none; the last error counts.
    async fn fetch(&self, pod: &core::Pod, spec: ImageSpec) -> Result<Image, String> {
        let mut attempts: Vec<Option<AuthConfig>> =
            self.credentials(pod, &spec.image).await.into_iter().map(Some).collect();
        if attempts.is_empty() {
            attempts.push(None);
        }
        let mut cause = String::new();
        for auth in attempts {
            match self.cri.pull_image(spec.clone(), auth).await {
                Ok(reference) => {
                    let pulled = ImageSpec { image: reference, ..spec.clone() };
                    let image = self.cri.image_status(pulled).await.map_err(|error| error.to_string())?;
                    return image.ok_or_else(|| "the image vanished after it was pulled".into());
                }
                Err(error) => cause = error.to_string(),
            }
        }
        Err(cause)
    }

    async fn credentials(&self, pod: &core::Pod, image: &str) -> Vec<AuthConfig> {
        let secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let mut found = Vec::new();
        for reference in secrets {
            let secret = self.objects.secret(namespace(pod), &reference.name, Duration::from_secs(10)).await;
            if let Ok(Some(secret)) = secret {
                found.extend(
                    docker_config(&secret).into_iter().filter_map(|(host, auth)| fits(&host, image).then_some(auth)),
                );
            }
        }
        found
    }
}

fn waiting(reason: &str, message: String) -> Waiting {
    Waiting { reason: reason.into(), message }
}

/// What cannot change soon is looked at again after a while.
fn later() -> Timestamp {
    Timestamp::now() + Duration::from_secs(10)
}

/// `latest`, said or not, is pulled always.
fn policy<'a>(container: &'a core::Container, reference: &str) -> &'a str {
    match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        _ if reference.ends_with(":latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// The whole reference: registry, `library/`, `:latest`. None for what is no reference.
pub fn normalize(name: &str) -> Option<String> {
    let (rest, digest) = name.split_once('@').map_or((name, None), |(rest, digest)| (rest, Some(digest)));
    let (repository, tag) = match rest.rfind(':').filter(|&colon| !rest[colon..].contains('/')) {
        Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
        None => (rest, None),
    };
    let (domain, path) = match repository.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path.to_owned()),
        Some(_) => ("docker.io", repository.to_owned()),
        None => ("docker.io", format!("library/{repository}")),
    };
    let path_ok = path.split('/').all(|part| {
        !part.is_empty()
            && part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))
    });
    let tag_ok = tag.is_none_or(|tag| {
        (1..=128).contains(&tag.len())
            && !tag.starts_with(['.', '-'])
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    });
    let digest_ok = digest.is_none_or(|digest| {
        digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    });
    (path_ok && tag_ok && digest_ok && !domain.is_empty()).then(|| match (tag, digest) {
        (Some(tag), Some(digest)) => format!("{domain}/{path}:{tag}@{digest}"),
        (None, Some(digest)) => format!("{domain}/{path}@{digest}"),
        (tag, None) => format!("{domain}/{path}:{}", tag.unwrap_or("latest")),
    })
}

/// Both forms of a pull secret: host → credentials.
fn docker_config(secret: &core::Secret) -> Vec<(String, AuthConfig)> {
    let data = |key: &str| secret.data.as_ref()?.get(key).and_then(|data| serde_json::from_slice(&data.0).ok());
    let auths: Option<serde_json::Value> = data(".dockerconfigjson")
        .map(|mut config: serde_json::Value| config["auths"].take())
        .or_else(|| data(".dockercfg"));
    let Some(serde_json::Value::Object(auths)) = auths else { return Vec::new() };
    auths.into_iter().map(|(host, entry)| (host, auth(&entry))).collect()
}

fn auth(entry: &serde_json::Value) -> AuthConfig {
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).ok();
    let pair = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
    let (username, password) = pair.map_or((text("username"), text("password")), |(u, p)| (u.into(), p.into()));
    AuthConfig { username, password, identity_token: text("identitytoken"), ..Default::default() }
}

fn fits(host: &str, image: &str) -> bool {
    let bare = host.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.trim_end_matches("/v1").trim_end_matches("/v2").replace("index.docker.io", "docker.io");
    image == bare || image.strip_prefix(&bare).is_some_and(|rest| rest.starts_with(['/', ':']))
}

/// As Go prints durations: `1.234s`, `250ms`.
pub fn go_duration(duration: Duration) -> String {
    match duration {
        short if short < Duration::from_secs(1) => format!("{}ms", short.as_millis()),
        long if long < Duration::from_secs(60) => format!("{:.3}s", long.as_secs_f64()),
        long => format!(
            "{}m{:.3}s",
            long.as_secs() / 60,
            (long.as_secs() % 60) as f64 + f64::from(long.subsec_millis()) / 1e3
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_and_nonsense_is_refused() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, expected) in [
            ("nginx", Some("docker.io/library/nginx:latest".to_owned())),
            ("nginx:1.7.9", Some("docker.io/library/nginx:1.7.9".to_owned())),
            ("a/b", Some("docker.io/a/b:latest".to_owned())),
            ("localhost:5000/b:2", Some("localhost:5000/b:2".to_owned())),
            ("registry.k8s.io/pause:3.10", Some("registry.k8s.io/pause:3.10".to_owned())),
            (&format!("x@{digest}"), Some(format!("docker.io/library/x@{digest}"))),
            ("Nginx", None),
            ("nginx:", None),
            ("", None),
            ("a//b", None),
            ("x@sha256:12", None),
            ("some image", None),
        ] {
            assert_eq!(normalize(name), expected, "{name}");
        }
    }

    #[test]
    fn a_credential_fits_its_registry_only() {
        assert!(fits("https://index.docker.io/v1/", "docker.io/library/nginx:latest"));
        assert!(fits("localhost:5000", "localhost:5000/b:2"));
        assert!(!fits("localhost:500", "localhost:5000/b:2"));
    }
}

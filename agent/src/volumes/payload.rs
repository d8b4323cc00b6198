//! What the files of config map, secret, projected and downward volumes contain, and the tokens among them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::PostParams;

use super::atomic_writer::{File, Payload};
use super::{Setup, VolumeError, fs_group, namespace, uid};
use crate::pods::{fields, sandbox};

const DEFAULT_MODE: i32 = 0o644;
/// Upstream asks for another token after a day at the latest.
const MAX_TOKEN_AGE: SignedDuration = SignedDuration::from_hours(24);

/// The tokens in use, so that a refresh asks for a new one only when four fifths of its life are over.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, Token>>);

#[derive(Clone)]
struct Token {
    text: String,
    refresh_at: Timestamp,
}

impl Tokens {
    pub fn forget(&self, uid: &str) {
        self.0.lock().expect("no holder panics").retain(|key, _| !key.starts_with(uid));
    }

    async fn get(
        &self,
        setup: &Setup<'_>,
        pod: &core::Pod,
        source: &core::ServiceAccountTokenProjection,
    ) -> Result<String, VolumeError> {
        let audience = source.audience.clone().unwrap_or_default();
        let seconds = source.expiration_seconds.unwrap_or(3600);
        let key = format!("{}/{audience}/{seconds}", uid(pod));
        let known = self.0.lock().expect("no holder panics").get(&key).cloned();
        let now = Timestamp::now();
        if let Some(token) = known.as_ref().filter(|token| now < token.refresh_at) {
            return Ok(token.text.clone());
        }
        match (request(setup, pod, audience, seconds).await, known) {
            (Ok(token), _) => {
                let text = token.text.clone();
                self.0.lock().expect("no holder panics").insert(key, token);
                Ok(text)
            }
            // The old one has a fifth of its life left.
            (Err(_), Some(old)) => Ok(old.text),
            (Err(error), None) => Err(VolumeError::Token(error)),
        }
    }
}

async fn request(setup: &Setup<'_>, pod: &core::Pod, audience: String, seconds: i64) -> Result<Token, kube::Error> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let bound = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    };
    let body = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audience).filter(|audience| !audience.is_empty()).map(|audience| vec![audience]),
            bound_object_ref: Some(bound),
            expiration_seconds: Some(seconds),
        }),
        ..Default::default()
    };
    let api: Api<core::ServiceAccount> = Api::namespaced(setup.client.clone(), namespace(pod));
    let reply = api.create_token_request(account, &PostParams::default(), &body).await?;
    let status = reply.status.unwrap_or_default();
    let now = Timestamp::now();
    let life = status.expiration_timestamp.map_or(SignedDuration::from_secs(seconds), |end| end.0.duration_since(now));
    Ok(Token { text: status.token.unwrap_or_default(), refresh_at: now + (life * 4 / 5).min(MAX_TOKEN_AGE) })
}

/// All files of a volume, and the user that private ones belong to.
pub async fn collect(
    setup: &Setup<'_>,
    pod: &core::Pod,
    volume: &core::Volume,
) -> Result<(Payload, Option<u32>), VolumeError> {
    let mut payload = Payload::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        config_map(setup, pod, &source.name, source.items.as_deref(), source.optional, mode, &mut payload).await?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        secret(setup, pod, name, source.items.as_deref(), source.optional, mode, &mut payload).await?;
    } else if let Some(source) = &volume.downward_api {
        downward(setup, pod, source.items.iter().flatten(), source.default_mode.unwrap_or(DEFAULT_MODE), &mut payload)?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            projected(setup, pod, part, mode, &mut payload).await?;
        }
    }
    Ok((payload, common_user(pod)))
}

async fn projected(
    setup: &Setup<'_>,
    pod: &core::Pod,
    source: &core::VolumeProjection,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    if let Some(part) = &source.config_map {
        config_map(setup, pod, &part.name, part.items.as_deref(), part.optional, mode, payload).await
    } else if let Some(part) = &source.secret {
        secret(setup, pod, &part.name, part.items.as_deref(), part.optional, mode, payload).await
    } else if let Some(part) = &source.downward_api {
        downward(setup, pod, part.items.iter().flatten(), mode, payload)
    } else if let Some(part) = &source.service_account_token {
        let token = setup.tokens.get(setup, pod, part).await?;
        let closed = fs_group(pod).is_some() || common_user(pod).is_some();
        let mode = if closed { 0o600 } else { mode };
        payload.insert(part.path.clone(), file(token.into_bytes(), mode, true));
        Ok(())
    } else {
        Err(VolumeError::Unsupported)
    }
}

fn file(data: Vec<u8>, mode: i32, private: bool) -> File {
    File { data, mode: mode as u32 & 0o777, private }
}

/// The user that all containers run as, if they agree: upstream gives the tokens to it.
fn common_user(pod: &core::Pod) -> Option<u32> {
    let outer = pod.spec.as_ref()?.security_context.as_ref().and_then(|context| context.run_as_user);
    let user =
        |container: &core::Container| container.security_context.as_ref().and_then(|own| own.run_as_user).or(outer);
    let mut users = crate::pods::plan::containers(pod).map(|(_, container)| user(container));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

async fn config_map(
    setup: &Setup<'_>,
    pod: &core::Pod,
    name: &str,
    items: Option<&[core::KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    let found = setup.objects.config_map(sandbox::namespace(pod), name, setup.max_age).await?;
    let data = found.map(|map| {
        let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
        text.chain(binary).collect()
    });
    select("configmap", name, data, items, optional == Some(true), mode, payload)
}

async fn secret(
    setup: &Setup<'_>,
    pod: &core::Pod,
    name: &str,
    items: Option<&[core::KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    let found = setup.objects.secret(sandbox::namespace(pod), name, setup.max_age).await?;
    let data =
        found.map(|secret| secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect());
    select("secret", name, data, items, optional == Some(true), mode, payload)
}

/// All keys, or those that `items` names under the paths it gives.
fn select(
    kind: &'static str,
    name: &str,
    data: Option<BTreeMap<String, Vec<u8>>>,
    items: Option<&[core::KeyToPath]>,
    optional: bool,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    let mut data = match data {
        Some(data) => data,
        None if optional => return Ok(()),
        None => return Err(VolumeError::Absent { kind, name: name.into() }),
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        payload.extend(data.into_iter().map(|(key, value)| (key, file(value, mode, false))));
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(value) => {
                payload.insert(item.path.clone(), file(value, item.mode.unwrap_or(mode), false));
            }
            None if optional => {}
            None => return Err(VolumeError::Key { kind, key: item.key.clone() }),
        }
    }
    Ok(())
}

fn downward<'a>(
    setup: &Setup<'_>,
    pod: &core::Pod,
    items: impl Iterator<Item = &'a core::DownwardAPIVolumeFile>,
    mode: i32,
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::field(pod, &field.field_path, &setup.downward)?,
            (None, Some(resource)) => fields::resource(pod, &core::Container::default(), resource, &setup.downward)?,
            (None, None) => continue,
        };
        payload.insert(item.path.clone(), file(text.into_bytes(), item.mode.unwrap_or(mode), false));
    }
    Ok(())
}

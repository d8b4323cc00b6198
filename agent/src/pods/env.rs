//! A container's environment: literal values, references to other objects and to the pod itself, whole config maps,
//! the Services of its namespace, and `$(NAME)` expansion. Pure: the objects it needs are fetched by the caller.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1 as core;

use super::fields::{self, FieldError};

/// The objects that variables may name: absent ones are absent here too.
#[derive(Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, core::ConfigMap>,
    pub secrets: BTreeMap<String, core::Secret>,
    /// Made from Services, weakest of all.
    pub services: Vec<(String, String)>,
}

/// Upstream's messages for `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} {name:?} not found")]
    Object { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { kind: &'static str, namespace: String, name: String, key: String },
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// Names of the config maps and secrets that a container's environment mentions.
pub fn references(container: &core::Container) -> (Vec<&str>, Vec<&str>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.as_ref().map(|reference| reference.name.as_str()));
        secrets.extend(source.secret_ref.as_ref().map(|reference| reference.name.as_str()));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.as_ref().map(|key| key.name.as_str()));
        secrets.extend(source.secret_key_ref.as_ref().map(|key| key.name.as_str()));
    }
    (config_maps, secrets)
}

/// In order: later definitions win, and expansion sees what came before.
pub fn build(
    pod: &core::Pod,
    container: &core::Container,
    sources: &Sources,
    downward: &fields::Downward<'_>,
) -> Result<Vec<(String, String)>, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut result = Variables::default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        for (key, value) in whole(source, sources)? {
            result.set(format!("{prefix}{key}"), value);
        }
    }
    let services: BTreeMap<&str, &str> =
        sources.services.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => match referred(namespace, pod, container, source, sources, downward)? {
                Some(value) => value,
                None => continue,
            },
            (value, None) => expand(value.as_deref().unwrap_or_default(), |name| {
                result.get(name).or_else(|| services.get(name).copied())
            }),
        };
        result.set(variable.name.clone(), value);
    }
    for (name, value) in &sources.services {
        if result.get(name).is_none() {
            result.set(name.clone(), value.clone());
        }
    }
    Ok(result.0)
}

/// Few enough that a scan beats a map, and the order is kept.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

fn whole(source: &core::EnvFromSource, sources: &Sources) -> Result<Vec<(String, String)>, EnvError> {
    if let Some(reference) = &source.config_map_ref {
        let found = sources.config_maps.get(&reference.name);
        let Some(map) = present(found, reference.optional, "configmap", &reference.name)? else {
            return Ok(Vec::new());
        };
        return Ok(map.data.clone().unwrap_or_default().into_iter().collect());
    }
    if let Some(reference) = &source.secret_ref {
        let found = sources.secrets.get(&reference.name);
        let Some(secret) = present(found, reference.optional, "secret", &reference.name)? else {
            return Ok(Vec::new());
        };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        return Ok(secret.data.iter().flatten().map(|(key, value)| (key.clone(), text(&value.0))).collect());
    }
    Ok(Vec::new())
}

fn referred(
    namespace: &str,
    pod: &core::Pod,
    container: &core::Container,
    source: &core::EnvVarSource,
    sources: &Sources,
    downward: &fields::Downward<'_>,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return Ok(Some(fields::field(pod, &field.field_path, downward)?));
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(fields::resource(pod, container, resource, downward)?));
    }
    let missing = |kind, name: &str, key: &str| EnvError::Key {
        kind,
        namespace: namespace.into(),
        name: name.into(),
        key: key.into(),
    };
    if let Some(key) = &source.config_map_key_ref {
        let Some(map) = present(sources.config_maps.get(&key.name), key.optional, "configmap", &key.name)? else {
            return Ok(None);
        };
        let value = map.data.as_ref().and_then(|data| data.get(&key.key)).cloned();
        return or_optional(value, key.optional, || missing("ConfigMap", &key.name, &key.key));
    }
    if let Some(key) = &source.secret_key_ref {
        let Some(secret) = present(sources.secrets.get(&key.name), key.optional, "secret", &key.name)? else {
            return Ok(None);
        };
        let value = secret.data.as_ref().and_then(|data| data.get(&key.key));
        let value = value.map(|value| String::from_utf8_lossy(&value.0).into_owned());
        return or_optional(value, key.optional, || missing("Secret", &key.name, &key.key));
    }
    Ok(Some(String::new()))
}

fn present<'a, T>(
    found: Option<&'a T>,
    optional: Option<bool>,
    kind: &'static str,
    name: &str,
) -> Result<Option<&'a T>, EnvError> {
    or_optional(found, optional, || EnvError::Object { kind, name: name.into() })
}

fn or_optional<T>(
    found: Option<T>,
    optional: Option<bool>,
    error: impl FnOnce() -> EnvError,
) -> Result<Option<T>, EnvError> {
    match found {
        None if optional != Some(true) => Err(error()),
        found => Ok(found),
    }
}

/// `$(NAME)` becomes the value where there is one and stays where there is none; `$$` is one dollar.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// What a Service contributes to the environment of its namespace's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEnv {
    pub name: String,
    pub address: String,
    /// Name, port, protocol.
    pub ports: Vec<(Option<String>, i32, String)>,
}

impl ServiceEnv {
    /// `REDIS_SERVICE_HOST`, `REDIS_SERVICE_PORT`, and the forms that Docker's links had.
    pub fn variables(&self) -> Vec<(String, String)> {
        let Some((_, first_port, first_protocol)) = self.ports.first() else { return Vec::new() };
        let (name, address) = (variable(&self.name), &self.address);
        let url = |port: &i32, protocol: &str| format!("{}://{address}:{port}", protocol.to_lowercase());
        let mut all = vec![
            (format!("{name}_SERVICE_HOST"), address.clone()),
            (format!("{name}_SERVICE_PORT"), first_port.to_string()),
        ];
        for (port_name, port, _) in &self.ports {
            let suffix = port_name.as_deref().filter(|suffix| !suffix.is_empty());
            all.extend(suffix.map(|suffix| (format!("{name}_SERVICE_PORT_{}", variable(suffix)), port.to_string())));
        }
        all.push((format!("{name}_PORT"), url(first_port, first_protocol)));
        for (_, port, protocol) in &self.ports {
            let prefix = format!("{name}_PORT_{port}_{protocol}");
            all.push((prefix.clone(), url(port, protocol)));
            all.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            all.push((format!("{prefix}_PORT"), port.to_string()));
            all.push((format!("{prefix}_ADDR"), address.clone()));
        }
        all
    }
}

fn variable(name: &str) -> impl fmt::Display {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_expand_and_what_is_unknown_or_escaped_stays() {
        let lookup = |name: &str| (name == "A").then_some("1");
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y", "x1y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    fn build_from(container: serde_json::Value, sources: &Sources) -> Result<Vec<(String, String)>, EnvError> {
        let pod: core::Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [container]}
        }))
        .unwrap();
        let downward = fields::Downward::default();
        build(&pod, &pod.spec.as_ref().unwrap().containers[0], sources, &downward)
    }

    #[test]
    fn variables_win_over_whole_maps_and_services_lose_to_all() {
        let map = json!({"data": {"A": "map", "B": "map"}});
        let sources = Sources {
            config_maps: [("m".to_owned(), serde_json::from_value(map).unwrap())].into(),
            services: vec![("B".into(), "service".into()), ("C".into(), "service".into())],
            ..Default::default()
        };
        let built = build_from(
            json!({"name": "c", "envFrom": [{"prefix": "", "configMapRef": {"name": "m"}}],
                   "env": [{"name": "A", "value": "own"}, {"name": "D", "value": "$(A)-$(B)-$(C)-$(D)"}]}),
            &sources,
        );
        let expected = [("A", "own"), ("B", "map"), ("D", "own-map-service-$(D)"), ("C", "service")];
        assert_eq!(built.unwrap(), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_missing_is_an_error_unless_optional() {
        let reference = |optional: bool| {
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef":
                {"name": "m", "key": "k", "optional": optional}}}]})
        };
        let error = build_from(reference(false), &Sources::default()).unwrap_err();
        assert_eq!(error.to_string(), "configmap \"m\" not found");
        assert_eq!(build_from(reference(true), &Sources::default()).unwrap(), []);
    }

    #[test]
    fn a_service_shows_itself_in_the_forms_of_links() {
        let service = ServiceEnv {
            name: "redis-master".into(),
            address: "10.96.0.11".into(),
            ports: vec![(Some("main".into()), 6379, "TCP".into())],
        };
        let variables: BTreeMap<String, String> = service.variables().into_iter().collect();
        assert_eq!(variables["REDIS_MASTER_SERVICE_HOST"], "10.96.0.11");
        assert_eq!(variables["REDIS_MASTER_SERVICE_PORT_MAIN"], "6379");
        assert_eq!(variables["REDIS_MASTER_PORT"], "tcp://10.96.0.11:6379");
        assert_eq!(variables["REDIS_MASTER_PORT_6379_TCP_ADDR"], "10.96.0.11");
    }
}

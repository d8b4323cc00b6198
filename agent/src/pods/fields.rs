//! The downward API: a pod's own fields and its containers' resources as text, for variables and for files.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::quantity;

/// What a pod may ask for that is not in its object.
#[derive(Clone, Default)]
pub struct Downward<'a> {
    pub pod_ips: &'a [IpAddr],
    pub host_ip: Option<IpAddr>,
    pub node_name: &'a str,
    /// Stand in where a container sets no limit.
    pub allocatable_milli_cpu: i64,
    pub allocatable_memory: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
}

pub fn field(pod: &core::Pod, path: &str, downward: &Downward<'_>) -> Result<String, FieldError> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((kind, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match kind {
            "metadata.labels" => metadata.labels.as_ref(),
            "metadata.annotations" => metadata.annotations.as_ref(),
            _ => return Err(FieldError::Path(path.into())),
        };
        return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let host = downward.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(metadata.name.as_ref()),
        "metadata.namespace" => text(metadata.namespace.as_ref()),
        "metadata.uid" => text(metadata.uid.as_ref()),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => downward.node_name.to_owned(),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" | "status.hostIPs" => host,
        "status.podIP" => join(&downward.pod_ips[..downward.pod_ips.len().min(1)]),
        "status.podIPs" => join(downward.pod_ips),
        _ => return Err(FieldError::Path(path.into())),
    })
}

/// `key="value"` a line, sorted, the value quoted as Go does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value)));
    lines.collect::<Vec<_>>().join("\n")
}

fn quote(text: &str) -> String {
    // JSON's escapes are Go's for everything that labels and annotations usually hold.
    serde_json::to_string(text).expect("a string is always JSON")
}

pub fn resource(
    pod: &core::Pod,
    container: &core::Container,
    selector: &core::ResourceFieldSelector,
    downward: &Downward<'_>,
) -> Result<String, FieldError> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let named = name.and_then(|name| super::plan::containers(pod).find(|(_, other)| other.name == name));
    let resources = named.map_or(container, |(_, other)| other).resources.as_ref();
    let unsupported = || FieldError::Resource(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let values = match list {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => return Err(unsupported()),
    };
    let set = values.and_then(|values| values.get(resource)).and_then(|value| quantity::milli(&value.0));
    let divisor = selector.divisor.as_ref().and_then(|divisor| quantity::milli(&divisor.0)).filter(|&milli| milli > 0);
    let milli = match (resource, list, set) {
        ("cpu", "limits", None | Some(0)) => i128::from(downward.allocatable_milli_cpu),
        ("memory", "limits", None | Some(0)) => i128::from(downward.allocatable_memory) * 1000,
        ("cpu" | "memory" | "ephemeral-storage", _, set) => set.unwrap_or(0),
        (other, _, set) if other.starts_with("hugepages-") => set.unwrap_or(0),
        _ => return Err(unsupported()),
    };
    let divisor = divisor.unwrap_or(1000);
    Ok(((milli + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_read_as_the_api_shows_them() {
        let pod: core::Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"containers": []}
        }))
        .unwrap();
        let ips = ["10.244.0.5".parse().unwrap()];
        let downward = Downward { pod_ips: &ips, node_name: "n1", ..Default::default() };
        for (path, expected) in [
            ("metadata.labels['a']", "x\"y"),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("status.podIP", "10.244.0.5"),
            ("spec.nodeName", "n1"),
        ] {
            assert_eq!(field(&pod, path, &downward).unwrap(), expected, "{path}");
        }
        assert!(field(&pod, "spec.hostNetwork", &downward).is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up_and_limits_default_to_the_node() {
        let container: core::Container =
            serde_json::from_value(json!({"name": "c", "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}}))
                .unwrap();
        let downward = Downward { allocatable_milli_cpu: 2000, allocatable_memory: 1 << 30, ..Default::default() };
        for (resource_name, divisor, expected) in [
            ("requests.cpu", "1", "1"),
            ("requests.cpu", "1m", "250"),
            ("requests.memory", "1Mi", "64"),
            ("limits.cpu", "0", "2"),
            ("limits.memory", "1Mi", "1024"),
        ] {
            let selector = serde_json::from_value(json!({"resource": resource_name, "divisor": divisor})).unwrap();
            assert_eq!(resource(&core::Pod::default(), &container, &selector, &downward).unwrap(), expected);
        }
    }
}

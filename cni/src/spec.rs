//! The CNI specification, 0.3.1 to 1.1.0: environment and network configuration in, result and error documents out.
//!
//! Pure: `main.rs` hands in the environment and standard input and prints what comes back.

use std::net::Ipv4Addr;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Attachment, AttachmentId, Command, DEFAULT_SOCKET, Failure, PodRef, Request, RuntimeConfig,
    capabilities::{self, Written},
    code,
};

/// Every version of the specification that the plugin answers in, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the runtime asked: something for the agent, or which versions the plugin knows.
#[derive(Debug, PartialEq)]
pub enum Call {
    Version,
    Ask { socket: String, request: Request },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetConf {
    #[serde(default = "oldest")]
    cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(default = "default_socket")]
    socket: String,
    prev_result: Option<Value>,
    runtime_config: Option<Written>,
    #[serde(default, rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments")]
    valid: Vec<AttachmentId>,
}

fn oldest() -> String {
    "0.1.0".into()
}

fn default_socket() -> String {
    DEFAULT_SOCKET.into()
}

/// The `cniVersion` of a configuration, for answers to configurations that are otherwise unusable.
pub fn version_of(stdin: &[u8]) -> String {
    let named =
        serde_json::from_slice::<Value>(stdin).ok().and_then(|conf| Some(conf["cniVersion"].as_str()?.to_owned()));
    named.unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].into())
}

/// Reads one invocation. `env` looks up environment variables; unset and empty are the same.
pub fn parse(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Call, Failure> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let command = match env("CNI_COMMAND").as_deref() {
        Some("VERSION") => return Ok(Call::Version),
        Some("ADD") => Command::Add,
        Some("DEL") => Command::Del,
        Some("CHECK") => Command::Check,
        Some("STATUS") => Command::Status,
        Some("GC") => Command::Gc,
        Some(other) => return Err(environment(format!("CNI_COMMAND {other:?} is not a known command"))),
        None => return Err(environment("CNI_COMMAND is not set: this program is run by a container runtime")),
    };
    let conf = decode(stdin)?;
    let per_container = matches!(command, Command::Add | Command::Del | Command::Check);
    let required = |name: &str| env(name).ok_or_else(|| environment(format!("{name} is not set")));
    let attachment = match per_container {
        true => Some(identify(required("CNI_CONTAINERID")?, required("CNI_IFNAME")?)?),
        false => None,
    };
    let netns = match command {
        Command::Add | Command::Check => Some(required("CNI_NETNS")?),
        _ => env("CNI_NETNS"),
    };
    let expected = match (command, &conf.prev_result) {
        (Command::Check, None) => return Err(Failure::new(code::INVALID_CONFIG, "CHECK needs a prevResult", "")),
        (Command::Check, Some(previous)) => addresses(previous),
        _ => Vec::new(),
    };
    // What ADD was asked for is remembered by the agent; nothing in here may stand in the way of a DEL.
    let runtime = match command {
        Command::Add => capabilities::read(conf.runtime_config)?,
        _ => RuntimeConfig::default(),
    };
    let request = Request {
        command,
        network: conf.name,
        attachment,
        netns,
        pod: env("CNI_ARGS").map(|args| pod(&args)).unwrap_or_default(),
        runtime,
        expected,
        valid: conf.valid,
    };
    Ok(Call::Ask { socket: conf.socket, request })
}

fn decode(stdin: &[u8]) -> Result<NetConf, Failure> {
    let conf: NetConf = serde_json::from_slice(stdin)
        .map_err(|error| Failure::new(code::DECODE_FAILURE, "failed to decode the network configuration", error))?;
    if !VERSIONS.contains(&conf.cni_version.as_str()) {
        let details = format!("config is {:?}, plugin supports {VERSIONS:?}", conf.cni_version);
        return Err(Failure::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions", details));
    }
    if conf.name.is_empty() {
        return Err(Failure::new(code::INVALID_CONFIG, "the network configuration has no name", ""));
    }
    Ok(conf)
}

/// Both parts become file and interface names in the agent, so the specification's limits are enforced here.
fn identify(container_id: String, ifname: String) -> Result<AttachmentId, Failure> {
    let first = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !first || !container_id.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
        return Err(environment(format!("CNI_CONTAINERID {container_id:?} has characters that are not allowed")));
    }
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if ifname.len() > 15 || ifname == "." || ifname == ".." || ifname.contains(forbidden) {
        return Err(environment(format!("CNI_IFNAME {ifname:?} is not an interface name")));
    }
    Ok(AttachmentId { container_id, ifname })
}

fn environment(details: impl ToString) -> Failure {
    Failure::new(code::INVALID_ENVIRONMENT, "invalid environment variables", details)
}

fn pod(args: &str) -> PodRef {
    let mut pod = PodRef::default();
    for (key, value) in args.split(';').filter_map(|pair| pair.split_once('=')) {
        match key {
            "K8S_POD_NAMESPACE" => pod.namespace = value.into(),
            "K8S_POD_NAME" => pod.name = value.into(),
            "K8S_POD_UID" => pod.uid = value.into(),
            _ => {}
        }
    }
    pod
}

fn addresses(result: &Value) -> Vec<Ipv4Addr> {
    let listed = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    listed.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
}

/// The result document of ADD. Before 1.0.0 each address carries its `version`; from 1.1.0 interfaces say their MTU.
pub fn result(version: &str, made: &Attachment) -> Value {
    let mut ip = json!({"interface": 1, "address": format!("{}/32", made.address), "gateway": made.gateway});
    let mut host = json!({"name": made.host_ifname, "mac": made.host_mac});
    let mut container = json!({"name": made.ifname, "mac": made.mac, "sandbox": made.netns});
    match version {
        "0.3.1" | "0.4.0" => ip["version"] = json!("4"),
        "1.1.0" => [&mut host, &mut container].into_iter().for_each(|link| link["mtu"] = json!(made.mtu)),
        _ => {}
    }
    json!({
        "cniVersion": version,
        "interfaces": [host, container],
        "ips": [ip],
        "routes": [{"dst": "0.0.0.0/0", "gw": made.gateway}],
        "dns": {},
    })
}

pub fn error(version: &str, failure: &Failure) -> Value {
    let mut document = json!({"cniVersion": version, "code": failure.code, "msg": failure.msg});
    if !failure.details.is_empty() {
        document["details"] = json!(failure.details);
    }
    document
}

pub fn versions(version: &str) -> Value {
    json!({"cniVersion": version, "supportedVersions": VERSIONS})
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"{"cniVersion":"1.0.0","name":"leme","type":"leme-cni","socket":"/x.sock"}"#;

    fn call(vars: &[(&str, &str)], stdin: &str) -> Result<Call, Failure> {
        let vars = vars.to_vec();
        parse(
            move |name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()),
            stdin.as_bytes(),
        )
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u-1"),
    ];

    fn with(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        ADD.iter().copied().filter(|(key, _)| *key != name).chain([(name, value)]).collect()
    }

    #[test]
    fn an_add_carries_the_pod_and_the_socket() {
        let Call::Ask { socket, request } = call(&ADD, CONF).unwrap() else { panic!("VERSION") };
        assert_eq!(socket, "/x.sock");
        assert_eq!(request.command, Command::Add);
        assert_eq!(request.attachment.unwrap().container_id, "c1");
        assert_eq!(request.pod, PodRef { namespace: "ns".into(), name: "web".into(), uid: "u-1".into() });
    }

    #[test]
    fn bad_input_gets_the_code_of_the_specification() {
        let rows: &[(&[(&str, &str)], &str, u32)] = &[
            (&[], CONF, code::INVALID_ENVIRONMENT),
            (&with("CNI_COMMAND", "NOPE"), CONF, code::INVALID_ENVIRONMENT),
            (&with("CNI_CONTAINERID", ""), CONF, code::INVALID_ENVIRONMENT),
            (&with("CNI_CONTAINERID", "../etc"), CONF, code::INVALID_ENVIRONMENT),
            (&with("CNI_IFNAME", "a/b"), CONF, code::INVALID_ENVIRONMENT),
            (&with("CNI_IFNAME", "a-name-of-16-byte"), CONF, code::INVALID_ENVIRONMENT),
            (&with("CNI_NETNS", ""), CONF, code::INVALID_ENVIRONMENT),
            (&with("CNI_COMMAND", "CHECK"), CONF, code::INVALID_CONFIG),
            (&ADD, "not json", code::DECODE_FAILURE),
            (&ADD, r#"{"cniVersion":"0.2.0","name":"leme"}"#, code::INCOMPATIBLE_VERSION),
            (&ADD, r#"{"cniVersion":"9.0.0","name":"leme"}"#, code::INCOMPATIBLE_VERSION),
            (&ADD, r#"{"cniVersion":"1.0.0"}"#, code::INVALID_CONFIG),
        ];
        for (vars, stdin, expected) in rows {
            assert_eq!(call(vars, stdin).unwrap_err().code, *expected, "{vars:?} {stdin}");
        }
    }

    #[test]
    fn del_needs_no_namespace_and_status_no_container() {
        assert!(
            call(&with("CNI_COMMAND", "DEL").into_iter().filter(|v| v.0 != "CNI_NETNS").collect::<Vec<_>>(), CONF)
                .is_ok()
        );
        assert!(call(&[("CNI_COMMAND", "STATUS")], CONF).is_ok());
    }

    #[test]
    fn check_reads_addresses_and_gc_reads_attachments() {
        let conf = r#"{"cniVersion":"1.1.0","name":"leme","prevResult":{"ips":[{"address":"10.244.0.7/32"}]},
            "cni.dev/valid-attachments":[{"containerID":"c9","ifname":"eth0"}]}"#;
        let Call::Ask { request, .. } = call(&with("CNI_COMMAND", "CHECK"), conf).unwrap() else { panic!() };
        assert_eq!(request.expected, [Ipv4Addr::new(10, 244, 0, 7)]);
        let Call::Ask { request, .. } = call(&[("CNI_COMMAND", "GC")], conf).unwrap() else { panic!() };
        assert_eq!(request.valid[0].container_id, "c9");
    }

    #[test]
    fn results_follow_the_version() {
        let made = Attachment {
            address: Ipv4Addr::new(10, 244, 0, 7),
            gateway: Ipv4Addr::new(169, 254, 1, 1),
            mtu: 1450,
            host_ifname: "leme0".into(),
            host_mac: "02:00:00:00:00:01".into(),
            ifname: "eth0".into(),
            mac: "02:00:00:00:00:02".into(),
            netns: "/run/netns/a".into(),
        };
        assert_eq!(result("0.4.0", &made)["ips"][0]["version"], "4");
        assert!(result("1.0.0", &made)["ips"][0].get("version").is_none());
        assert!(result("1.0.0", &made)["interfaces"][1].get("mtu").is_none());
        assert_eq!(result("1.1.0", &made)["interfaces"][1]["mtu"], 1450);
        assert_eq!(result("1.1.0", &made)["interfaces"][1]["sandbox"], "/run/netns/a");
    }
}

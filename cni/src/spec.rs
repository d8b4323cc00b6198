//! The CNI specification, 0.3.1 to 1.1.0: environment and network configuration in, result and error documents out.
//!
//! Where the text leaves a choice, libcni's and upstream's plugins' behaviour is followed.
//! Pure: `main.rs` hands in the environment and standard input and prints what comes back.

use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::{
    Attachment, AttachmentId, Command, DEFAULT_SOCKET, Failure, PodRef, Request, RuntimeConfig, capabilities, code,
};

/// Every version of the specification that the plugin answers in, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the runtime asked: something for the agent, or which versions the plugin knows.
#[derive(Debug, PartialEq)]
pub enum Call {
    Version,
    Ask { socket: String, request: Box<Request> },
}

/// Fields that only one command needs stay undecoded for the others: nothing in them may stand in the way of a DEL.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetConf {
    #[serde(default = "unversioned")]
    cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(default = "default_socket")]
    socket: String,
    prev_result: Option<Value>,
    runtime_config: Option<Value>,
    /// `null`, Go's empty list, is a list; an absent one is none.
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "present")]
    valid: Option<Value>,
    /// The name that the specification's first text had by mistake; libcni sends both.
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "present")]
    attachments: Option<Value>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// What the specification takes a configuration without a version for.
fn unversioned() -> String {
    "0.1.0".into()
}

fn default_socket() -> String {
    DEFAULT_SOCKET.into()
}

/// The version to answer in: the configuration's, or the newest where that is none we speak.
pub fn version_of(stdin: &[u8]) -> String {
    let named = serde_json::from_slice::<Value>(stdin).ok();
    let named = named.as_ref().and_then(|conf| conf["cniVersion"].as_str());
    named.filter(|version| VERSIONS.contains(version)).unwrap_or(VERSIONS[VERSIONS.len() - 1]).into()
}

/// Reads one invocation. `env` looks up environment variables; unset and empty are the same.
pub fn parse(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Call, Failure> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let Some(command) = read_command(env("CNI_COMMAND").as_deref())? else { return Ok(Call::Version) };
    let conf = decode(stdin)?;
    demand_version(command, &conf.cni_version)?;
    if command == Command::Add && conf.prev_result.is_some() {
        return Err(invalid("leme-cni makes the pod's interface: it must be the first plugin of its list"));
    }
    let required = |name: &str| env(name).ok_or_else(|| environment(format!("{name} is not set")));
    let attachment = match command {
        Command::Add | Command::Del | Command::Check => {
            Some(identify(required("CNI_CONTAINERID")?, required("CNI_IFNAME")?)?)
        }
        Command::Status | Command::Gc => None,
    };
    let netns = match command {
        Command::Add | Command::Check => Some(required("CNI_NETNS")?),
        _ => env("CNI_NETNS"),
    };
    let mut request = Request {
        command,
        network: conf.name,
        attachment,
        netns,
        pod: env("CNI_ARGS").map(|args| pod(&args)).unwrap_or_default(),
        runtime: RuntimeConfig::default(),
        expected: Vec::new(),
        valid: Vec::new(),
    };
    match command {
        Command::Add => request.runtime = capabilities::read(conf.runtime_config)?,
        Command::Check => {
            request.expected = addresses(&conf.prev_result.ok_or_else(|| invalid("CHECK needs a prevResult"))?)
        }
        Command::Gc => request.valid = attachments(conf.valid.or(conf.attachments))?,
        Command::Del | Command::Status => {}
    }
    Ok(Call::Ask { socket: conf.socket, request: Box::new(request) })
}

/// None is VERSION.
fn read_command(name: Option<&str>) -> Result<Option<Command>, Failure> {
    Ok(Some(match name {
        Some("VERSION") => return Ok(None),
        Some("ADD") => Command::Add,
        Some("DEL") => Command::Del,
        Some("CHECK") => Command::Check,
        Some("STATUS") => Command::Status,
        Some("GC") => Command::Gc,
        Some(other) => return Err(environment(format!("CNI_COMMAND {other:?} is not a known command"))),
        None => return Err(environment("CNI_COMMAND is not set: this program is run by a container runtime")),
    }))
}

fn decode(stdin: &[u8]) -> Result<NetConf, Failure> {
    let conf: NetConf = serde_json::from_slice(stdin)
        .map_err(|error| Failure::new(code::DECODE_FAILURE, "failed to decode the network configuration", error))?;
    if !VERSIONS.contains(&conf.cni_version.as_str()) {
        let details = format!("config is {:?}, plugin supports {VERSIONS:?}", conf.cni_version);
        return Err(Failure::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions", details));
    }
    if !is_identifier(&conf.name) {
        return Err(invalid(format!("the network's name {:?} is none", conf.name)));
    }
    Ok(conf)
}

/// CHECK came with 0.4.0, STATUS and GC with 1.1.0.
fn demand_version(command: Command, version: &str) -> Result<(), Failure> {
    let since = match command {
        Command::Add | Command::Del => return Ok(()),
        Command::Check => "0.4.0",
        Command::Status | Command::Gc => "1.1.0",
    };
    let position = |wanted: &str| VERSIONS.iter().position(|version| *version == wanted);
    if position(version) >= position(since) {
        return Ok(());
    }
    let details = format!("config is {version}, {command:?} exists since {since}");
    Err(Failure::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions", details))
}

/// Both parts become file and interface names in the agent, so the specification's limits are enforced here.
fn identify(container_id: String, ifname: String) -> Result<AttachmentId, Failure> {
    if !is_identifier(&container_id) {
        return Err(environment(format!("CNI_CONTAINERID {container_id:?} has characters that are not allowed")));
    }
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if ifname.len() > 15 || ifname == "." || ifname == ".." || ifname.contains(forbidden) {
        return Err(environment(format!("CNI_IFNAME {ifname:?} is not an interface name")));
    }
    Ok(AttachmentId { container_id, ifname })
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`.
fn is_identifier(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// The specification wants the variable's name in the message itself.
fn environment(what: impl std::fmt::Display) -> Failure {
    Failure::new(code::INVALID_ENVIRONMENT, format!("invalid environment variables: {what}"), "")
}

fn invalid(what: impl std::fmt::Display) -> Failure {
    Failure::new(code::INVALID_CONFIG, format!("invalid network configuration: {what}"), "")
}

/// A GC that names nothing would be one that removes everything.
fn attachments(listed: Option<Value>) -> Result<Vec<AttachmentId>, Failure> {
    let listed = listed.ok_or_else(|| invalid("GC needs cni.dev/valid-attachments"))?;
    let decoded: Option<Vec<AttachmentId>> = serde_json::from_value(listed)
        .map_err(|error| invalid(format!("cni.dev/valid-attachments cannot be read: {error}")))?;
    Ok(decoded.unwrap_or_default())
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
        type Variables<'a> = &'a [(&'a str, &'a str)];
        let rows: &[(Variables<'_>, &str, u32)] = &[
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
            (&ADD, r#"{"name":"leme"}"#, code::INCOMPATIBLE_VERSION),
            (&ADD, r#"{"cniVersion":"1.0.0"}"#, code::INVALID_CONFIG),
            (&ADD, r#"{"cniVersion":"1.0.0","name":"../leme"}"#, code::INVALID_CONFIG),
            (&ADD, r#"{"cniVersion":"1.0.0","name":"leme","prevResult":{}}"#, code::INVALID_CONFIG),
            (&ADD, r#"{"cniVersion":"1.0.0","name":"leme","runtimeConfig":7}"#, code::INVALID_CONFIG),
            (&[("CNI_COMMAND", "GC")], r#"{"cniVersion":"1.1.0","name":"leme"}"#, code::INVALID_CONFIG),
            (
                &[("CNI_COMMAND", "GC")],
                r#"{"cniVersion":"1.1.0","name":"leme","cni.dev/attachments":7}"#,
                code::INVALID_CONFIG,
            ),
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
        assert!(call(&[("CNI_COMMAND", "STATUS")], r#"{"cniVersion":"1.1.0","name":"leme"}"#).is_ok());
    }

    #[test]
    fn commands_are_older_and_younger_than_versions() {
        for (command, since) in [("ADD", 0), ("DEL", 0), ("CHECK", 1), ("STATUS", 3), ("GC", 3)] {
            for (index, version) in VERSIONS.iter().enumerate() {
                let mut conf = json!({"cniVersion": version, "name": "leme", "cni.dev/valid-attachments": []});
                if command == "CHECK" {
                    conf["prevResult"] = json!({});
                }
                let called = call(&with("CNI_COMMAND", command), &conf.to_string());
                let refused = called.err().map(|failure| failure.code);
                assert_eq!(refused, (index < since).then_some(code::INCOMPATIBLE_VERSION), "{command} in {version}");
            }
        }
    }

    #[test]
    fn nothing_but_its_own_fields_stands_in_the_way_of_a_del() {
        let conf = r#"{"cniVersion":"1.1.0","name":"leme","runtimeConfig":{"portMappings":"x"},"prevResult":{"ips":7},
            "cni.dev/valid-attachments":7}"#;
        assert!(call(&with("CNI_COMMAND", "DEL"), conf).is_ok());
        assert_eq!(call(&ADD, conf).unwrap_err().code, code::INVALID_CONFIG);
    }

    #[test]
    fn answers_are_in_the_configurations_version_or_the_newest() {
        for (stdin, expected) in [(CONF, "1.0.0"), (r#"{"cniVersion":"9.0.0"}"#, "1.1.0"), ("garbage", "1.1.0")] {
            assert_eq!(version_of(stdin.as_bytes()), expected);
        }
    }

    /// libcni marshals an empty list as null, and sends the list under both of its names.
    #[test]
    fn gc_takes_the_lists_that_runtimes_send() {
        let one = json!([{"containerID": "c9", "ifname": "eth0"}]);
        for (conf, count) in [
            (json!({"cni.dev/valid-attachments": one, "cni.dev/attachments": one}), 1),
            (json!({"cni.dev/attachments": one}), 1),
            (json!({"cni.dev/valid-attachments": null, "cni.dev/attachments": null}), 0),
            (json!({"cni.dev/valid-attachments": []}), 0),
        ] {
            let mut conf = conf;
            (conf["cniVersion"], conf["name"]) = (json!("1.1.0"), json!("leme"));
            let Call::Ask { request, .. } = call(&[("CNI_COMMAND", "GC")], &conf.to_string()).unwrap() else {
                panic!()
            };
            assert_eq!(request.valid.len(), count, "{conf}");
        }
    }

    #[test]
    fn check_reads_addresses() {
        let conf = r#"{"cniVersion":"1.1.0","name":"leme","prevResult":{"ips":[{"address":"10.244.0.7/32"}]}}"#;
        let Call::Ask { request, .. } = call(&with("CNI_COMMAND", "CHECK"), conf).unwrap() else { panic!() };
        assert_eq!(request.expected, [Ipv4Addr::new(10, 244, 0, 7)]);
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

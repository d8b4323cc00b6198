//! The capabilities' part of a configuration, `runtimeConfig`, as runtimes write it.
//!
//! containerd names the fields as its Go structures do (`HostPort`), others as the CNI conventions do (`hostPort`): both
//! mean the same, as they do to Go's decoder. `spec` calls [`read`]; nothing here does IO.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::{Bandwidth, Failure, PortMapping, RuntimeConfig, Transport, code};

/// As it stands in the configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    port_mappings: Option<Vec<WrittenPort>>,
    bandwidth: Option<Bandwidth>,
}

#[derive(Debug, Deserialize)]
struct WrittenPort {
    #[serde(rename = "hostPort", alias = "HostPort", default)]
    host_port: i64,
    #[serde(rename = "containerPort", alias = "ContainerPort", default)]
    container_port: i64,
    #[serde(rename = "protocol", alias = "Protocol", default)]
    protocol: String,
    #[serde(rename = "hostIP", alias = "HostIP", alias = "hostIp", default)]
    host_ip: String,
}

pub(crate) fn read(written: Option<Value>) -> Result<RuntimeConfig, Failure> {
    let written = written.map(serde_json::from_value::<Written>).transpose();
    let written = written.map_err(|error| invalid(error.to_string()))?.unwrap_or_default();
    let ports = written.port_mappings.unwrap_or_default();
    // Runtimes also list ports that nobody asked to have on the node.
    let wanted = ports.into_iter().filter(|port| port.host_port != 0);
    let port_mappings = wanted.map(read_port).collect::<Result<_, _>>()?;
    let bandwidth = written.bandwidth.filter(|bandwidth| bandwidth.ingress_rate != 0 || bandwidth.egress_rate != 0);
    Ok(RuntimeConfig { port_mappings, bandwidth })
}

fn read_port(written: WrittenPort) -> Result<PortMapping, Failure> {
    let number = |name: &str, value: i64| {
        let number = u16::try_from(value).ok().filter(|number| *number != 0);
        number.ok_or_else(|| invalid(format!("{name} {value} is no port")))
    };
    Ok(PortMapping {
        host_port: number("hostPort", written.host_port)?,
        container_port: number("containerPort", written.container_port)?,
        protocol: read_transport(&written.protocol)?,
        host_ip: read_address(&written.host_ip)?,
    })
}

fn read_transport(name: &str) -> Result<Transport, Failure> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" | "" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        "sctp" => Ok(Transport::Sctp),
        _ => Err(invalid(format!("protocol {name:?} is none of tcp, udp and sctp"))),
    }
}

fn read_address(text: &str) -> Result<Option<IpAddr>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let address: IpAddr = text.parse().map_err(|_| invalid(format!("hostIP {text:?} is no address")))?;
    Ok((!address.is_unspecified()).then_some(address))
}

fn invalid(details: String) -> Failure {
    Failure::new(code::INVALID_CONFIG, "invalid runtimeConfig", details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ports(ports: Value) -> Result<Vec<PortMapping>, Failure> {
        read(Some(json!({ "portMappings": ports }))).map(|runtime| runtime.port_mappings)
    }

    #[test]
    fn both_spellings_mean_the_same_and_ports_nobody_wants_are_left_out() {
        let wanted = |host_ip: Option<&str>| PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Transport::Udp,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
        };
        let conventional = json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.7"},
            {"hostPort": 0, "containerPort": 81, "protocol": "tcp"}
        ]);
        assert_eq!(ports(conventional).unwrap(), [wanted(Some("192.0.2.7"))]);
        for unspecified in ["", "0.0.0.0", "::"] {
            let go = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "UDP", "HostIP": unspecified}]);
            assert_eq!(ports(go).unwrap(), [wanted(None)], "{unspecified:?}");
        }
        assert_eq!(ports(Value::Null).unwrap(), []);
    }

    #[test]
    fn a_bandwidth_has_its_two_spellings_and_none_is_none() {
        let read = |bandwidth: Value| read(Some(json!({ "bandwidth": bandwidth }))).unwrap().bandwidth;
        let wanted = Bandwidth { ingress_rate: 8000, ingress_burst: 80, egress_rate: 9000, egress_burst: 0 };
        assert_eq!(read(json!({"ingressRate": 8000, "ingressBurst": 80, "egressRate": 9000})), Some(wanted));
        assert_eq!(read(json!({"IngressRate": 8000, "IngressBurst": 80, "EgressRate": 9000})), Some(wanted));
        assert_eq!(read(json!({"ingressRate": 0, "ingressBurst": 80})), None);
        assert_eq!(read(Value::Null), None);
    }

    #[test]
    fn a_mapping_that_cannot_be_is_refused_by_name() {
        for (mapping, blamed) in [
            (json!({"hostPort": 70000, "containerPort": 80}), "hostPort 70000"),
            (json!({"hostPort": 80, "containerPort": 0}), "containerPort 0"),
            (json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}), "icmp"),
            (json!({"hostPort": 80, "containerPort": 80, "hostIP": "localhost"}), "localhost"),
        ] {
            let failure = ports(json!([mapping])).unwrap_err();
            assert_eq!(failure.code, code::INVALID_CONFIG);
            assert!(failure.details.contains(blamed), "{failure}");
        }
    }
}

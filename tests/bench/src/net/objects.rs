//! Made-up Services of which a few really answer: the first, the middle and the last. Each of those has a backend on the
//! client's node (port 80) and one on the other node (port 81), over both protocols, and NodePorts.

use std::net::{Ipv4Addr, SocketAddrV4};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::json;

use super::world::{FAR, NEAR, NODES, POD_RANGES};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) ports: Vec<Port>,
}

#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    /// With the node they are on.
    pub(crate) endpoints: Vec<(SocketAddrV4, &'static str)>,
}

/// Which of the Services is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    First,
    Middle,
    Last,
}

/// On which side of the wire the backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Near,
    Far,
}

pub(crate) const NAMESPACE: &str = "bench";
pub(crate) const BACKEND_PORT: u16 = 8080;

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    pub(crate) fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Position {
    pub(crate) const ALL: [Self; 3] = [Self::First, Self::Middle, Self::Last];

    fn index(self, count: u32) -> u32 {
        match self {
            Self::First => 0,
            Self::Middle => count / 2,
            Self::Last => count.saturating_sub(1),
        }
    }

    fn at(index: u32, count: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|position| position.index(count) == index)
    }

    fn node_port(self, side: Side) -> u16 {
        30_080 + 100 * self as u16 + side as u16
    }
}

impl Side {
    fn port(self) -> u16 {
        80 + self as u16
    }

    fn endpoint(self) -> (SocketAddrV4, &'static str) {
        let (address, node) = match self {
            Self::Near => (NEAR, NODES[0]),
            Self::Far => (FAR, NODES[1]),
        };
        (SocketAddrV4::new(address, BACKEND_PORT), node)
    }
}

/// The address a client in a pod asks.
pub(crate) fn cluster_address(count: u32, position: Position, side: Side) -> SocketAddrV4 {
    SocketAddrV4::new(address(position.index(count)), side.port())
}

/// The NodePort a client outside asks.
pub(crate) fn node_port(node: Ipv4Addr, count: u32, position: Position, side: Side) -> SocketAddrV4 {
    // Of few Services one is several: the first name counts.
    let position = Position::at(position.index(count), count).unwrap_or(position);
    SocketAddrV4::new(node, position.node_port(side))
}

/// `count` Services; those that nobody asks have `endpoints` endpoints each.
pub(crate) fn services(count: u32, endpoints: u32) -> Vec<Service> {
    (0..count).map(|index| service(index, count, endpoints)).collect()
}

fn service(index: u32, count: u32, endpoints: u32) -> Service {
    let ports = match Position::at(index, count) {
        Some(position) => answering_ports(position),
        None => vec![Port {
            name: "http",
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            endpoints: (0..endpoints).map(|n| (made_up(index * endpoints + n), "elsewhere")).collect(),
        }],
    };
    Service { name: format!("service-{index}"), address: address(index), ports }
}

fn answering_ports(position: Position) -> Vec<Port> {
    let port = |name, protocol, side: Side| Port {
        name,
        protocol,
        port: side.port(),
        node_port: Some(position.node_port(side)),
        endpoints: vec![side.endpoint()],
    };
    vec![
        port("near-tcp", Protocol::Tcp, Side::Near),
        port("near-udp", Protocol::Udp, Side::Near),
        port("far-tcp", Protocol::Tcp, Side::Far),
        port("far-udp", Protocol::Udp, Side::Far),
    ]
}

/// From 10.96.1.0 on.
fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + index)
}

/// From 10.129.0.0 on, behind the pod ranges of both nodes.
fn made_up(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 129, 0, 0)) + number), BACKEND_PORT)
}

impl Service {
    pub(crate) fn object(&self) -> core::Service {
        let port = |port: &Port| core::ServicePort {
            name: Some(port.name.into()),
            protocol: Some(port.protocol.name().into()),
            port: i32::from(port.port),
            node_port: port.node_port.map(i32::from),
            ..Default::default()
        };
        let kind = if self.ports.iter().any(|port| port.node_port.is_some()) { "NodePort" } else { "ClusterIP" };
        let mut object = core::Service::default();
        object.metadata.namespace = Some(NAMESPACE.into());
        object.metadata.name = Some(self.name.clone());
        object.spec = Some(core::ServiceSpec {
            type_: Some(kind.into()),
            cluster_ip: Some(self.address.to_string()),
            cluster_ips: Some(vec![self.address.to_string()]),
            ports: Some(self.ports.iter().map(port).collect()),
            ..Default::default()
        });
        object
    }

    /// One slice per port: their endpoints differ.
    pub(crate) fn slices(&self) -> Vec<discovery::EndpointSlice> {
        self.ports.iter().map(|port| self.slice(port)).collect()
    }

    fn slice(&self, port: &Port) -> discovery::EndpointSlice {
        let endpoint = |(address, node): &(SocketAddrV4, &str)| discovery::Endpoint {
            addresses: vec![address.ip().to_string()],
            node_name: Some((*node).into()),
            ..Default::default()
        };
        let mut slice = discovery::EndpointSlice::default();
        slice.metadata.namespace = Some(NAMESPACE.into());
        slice.metadata.name = Some(format!("{}-{}", self.name, port.name));
        slice.metadata.labels = Some([("kubernetes.io/service-name".to_owned(), self.name.clone())].into());
        slice.address_type = "IPv4".into();
        slice.ports = Some(vec![discovery::EndpointPort {
            name: Some(port.name.into()),
            protocol: Some(port.protocol.name().into()),
            port: port.endpoints.first().map(|(address, _)| i32::from(address.port())),
            ..Default::default()
        }]);
        slice.endpoints = port.endpoints.iter().map(endpoint).collect::<Vec<_>>().into();
        slice
    }
}

/// Both nodes, as the API would describe them.
pub(crate) fn nodes(addresses: [Ipv4Addr; 2]) -> Vec<core::Node> {
    let node = |(index, address): (usize, &Ipv4Addr)| {
        serde_json::from_value(json!({
            "metadata": { "name": NODES[index] },
            "spec": { "podCIDR": POD_RANGES[index], "podCIDRs": [POD_RANGES[index]] },
            "status": { "addresses": [{ "type": "InternalIP", "address": address.to_string() }] },
        }))
        .expect("a node")
    };
    addresses.iter().enumerate().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_the_middle_and_the_last_answer_on_addresses_of_their_own() {
        let made = services(1000, 2);
        let asked: Vec<_> = made.iter().enumerate().filter(|(_, it)| it.ports.len() == 4).map(|it| it.0).collect();
        assert_eq!(asked, [0, 500, 999]);
        let last = made.last().unwrap();
        assert_eq!(*cluster_address(1000, Position::Last, Side::Far).ip(), last.address);
        let ports: std::collections::BTreeSet<_> =
            made.iter().flat_map(|it| &it.ports).filter_map(|it| it.node_port).collect();
        assert_eq!(ports.len(), 6);
        let endpoints: Vec<_> = made[1..500].iter().flat_map(|it| &it.ports[0].endpoints).collect();
        assert_eq!(endpoints.iter().collect::<std::collections::BTreeSet<_>>().len(), endpoints.len());
    }

    #[test]
    fn a_single_service_is_first_middle_and_last() {
        let made = services(1, 2);
        assert_eq!(made[0].ports.len(), 4);
        let node = Ipv4Addr::LOCALHOST;
        let asked = Position::ALL.map(|position| node_port(node, 1, position, Side::Near).port());
        assert_eq!(asked.map(Some), [made[0].ports[0].node_port; 3]);
    }

    #[test]
    fn objects_name_each_other() {
        let service = &services(3, 2)[1];
        let slices = service.slices();
        assert_eq!(slices.len(), 4);
        let owner = slices[0].metadata.labels.as_ref().unwrap().get("kubernetes.io/service-name");
        assert_eq!(owner, service.object().metadata.name.as_ref());
        assert_eq!(slices[3].ports.as_ref().unwrap()[0].port, Some(8080));
    }
}

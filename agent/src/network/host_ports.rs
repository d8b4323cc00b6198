//! Which of the ports that a pod asks to have on the node can be given to it.
//!
//! Called by the network's `Endpoints`, for a new pod and for one that is adopted. A port of an address that is not this
//! node's would take away what belongs to somebody else: it is said, and left out, as with upstream's `portmap`.

use std::net::IpAddr;

use leme_cni::PortMapping;
use leme_datapath::HostPort;
use tracing::warn;

/// Addresses of every interface of the node.
pub fn own_addresses() -> std::io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| interface.address);
    Ok(addresses.filter_map(|address| address.as_sockaddr_in().map(|address| address.ip().into())).collect())
}

pub fn served(mappings: &[PortMapping], own: &[IpAddr]) -> Vec<HostPort> {
    mappings.iter().filter_map(|mapping| serve(mapping, own)).collect()
}

fn serve(mapping: &PortMapping, own: &[IpAddr]) -> Option<HostPort> {
    let foreign = mapping.host_ip.filter(|address| !address.is_loopback() && !own.contains(address));
    let protocol = leme_datapath::Protocol::from_number(mapping.protocol.number());
    match (foreign, protocol) {
        (None, Some(protocol)) => {
            Some(HostPort { addr: mapping.host_ip, port: mapping.host_port, protocol, target: mapping.container_port })
        }
        (Some(address), _) => {
            warn!(%address, port = mapping.host_port, "a pod wants a port of an address that is not this node's");
            None
        }
        (None, None) => {
            warn!(port = mapping.host_port, protocol = ?mapping.protocol, "a pod wants a port of an unknown protocol");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leme_cni::Transport;

    #[test]
    fn ports_of_foreign_addresses_are_left_out() {
        let own: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let mapping = |host_ip: Option<&str>| PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Transport::Tcp,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
        };
        let wanted = [None, Some("192.0.2.7"), Some("127.0.0.2"), Some("192.0.2.8")].map(mapping);
        let addresses: Vec<_> = served(&wanted, &own).into_iter().map(|port| port.addr).collect();
        assert_eq!(addresses, wanted[..3].iter().map(|mapping| mapping.host_ip).collect::<Vec<_>>());
    }

    #[test]
    fn the_nodes_loopback_address_is_its_own() {
        assert!(own_addresses().unwrap().iter().any(IpAddr::is_loopback));
    }
}

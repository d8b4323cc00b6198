//! On which of the nodes' addresses NodePorts answer: kube-proxy's `--nodeport-addresses`.

use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr};

/// Loopback as one address: NodePorts answer on all of 127.0.0.0/8 or on none of it.
pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePorts {
    /// Every address of every node, loopback on the node itself.
    #[default]
    Everywhere,
    /// Each node's first internal address.
    Primary,
    Within(Vec<IpNetwork>),
}

impl NodePorts {
    /// From the values of the flag: networks, or the one word `primary`.
    ///
    /// # Errors
    /// A message for whoever wrote the flag.
    pub fn parse(values: &[String]) -> Result<Self, String> {
        let values: Vec<&str> = values.iter().map(|value| value.trim()).filter(|value| !value.is_empty()).collect();
        if values == ["primary"] {
            return Ok(Self::Primary);
        }
        let networks = values.iter().map(|value| parse_network(value)).collect::<Result<Vec<_>, _>>()?;
        let own_family: Vec<IpNetwork> = networks.into_iter().filter(IpNetwork::is_ipv4).collect();
        let everywhere = own_family.is_empty() || own_family.iter().any(|network| network.prefix() == 0);
        Ok(if everywhere { Self::Everywhere } else { Self::Within(own_family) })
    }

    /// Whether they answer on an address of some node.
    pub(crate) fn include(&self, address: IpAddr, primary: bool) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Primary => primary,
            Self::Within(networks) => networks.iter().any(|network| network.contains(address)),
        }
    }

    /// Any network that touches 127.0.0.0/8 includes all of it.
    pub(crate) fn include_loopback(&self) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Primary => false,
            Self::Within(networks) => {
                networks.iter().any(|network| network.ip().is_loopback() || network.contains([127, 0, 0, 0].into()))
            }
        }
    }
}

fn parse_network(text: &str) -> Result<IpNetwork, String> {
    match text {
        "primary" => Err("`primary` stands alone".to_owned()),
        _ if !text.contains('/') => Err(format!("{text:?} is not a network like 10.0.0.0/8")),
        _ => text.parse().map_err(|_| format!("{text:?} is not a network like 10.0.0.0/8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<NodePorts, String> {
        NodePorts::parse(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_flag_takes_networks_or_primary() {
        assert_eq!(parse(&[]), Ok(NodePorts::Everywhere));
        assert_eq!(parse(&["10.0.0.0/8", "0.0.0.0/0"]), Ok(NodePorts::Everywhere));
        assert_eq!(parse(&["fd00::/8"]), Ok(NodePorts::Everywhere));
        assert_eq!(parse(&["primary"]), Ok(NodePorts::Primary));
        assert_eq!(parse(&["10.0.0.0/8"]), Ok(NodePorts::Within(vec!["10.0.0.0/8".parse().unwrap()])));
        assert!(parse(&["primary", "10.0.0.0/8"]).is_err());
        assert!(parse(&["10.0.0.1"]).is_err());
        assert!(parse(&["everything"]).is_err());
    }

    #[test]
    fn loopback_is_included_as_a_whole() {
        assert!(parse(&["127.0.0.1/32"]).unwrap().include_loopback());
        assert!(parse(&["126.0.0.0/7"]).unwrap().include_loopback());
        assert!(!parse(&["10.0.0.0/8"]).unwrap().include_loopback());
        assert!(!parse(&["primary"]).unwrap().include_loopback());
    }
}

//! Which rows of a table are shown.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use ipnetwork::IpNetwork;

#[derive(Args, Default)]
pub(crate) struct Filter {
    /// Only rows with this address, or with a prefix around it
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Only rows with this port
    #[arg(long)]
    port: Option<u16>,
    /// Only rows of this protocol (TCP, UDP, SCTP, ICMP)
    #[arg(long, value_name = "NAME")]
    protocol: Option<String>,
}

impl Filter {
    /// Whether a row has an entry for everything that is asked for: address and port in the same one.
    pub(crate) fn allows(&self, cells: &[String]) -> bool {
        let words = || cells.iter().flat_map(|cell| cell.split_whitespace());
        let place = (self.address.is_none() && self.port.is_none()) || words().any(|word| self.is_place(word));
        let protocol = |name: &String| {
            words().any(|word| word.rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(name)))
        };
        place && self.protocol.as_ref().is_none_or(protocol)
    }

    /// `10.96.0.1:443/TCP`, `*:30080/UDP`, `10.244.1.0/24`, `10.244.1.7`
    fn is_place(&self, word: &str) -> bool {
        if let Ok(prefix) = word.parse::<IpNetwork>() {
            return self.port.is_none() && self.address.is_some_and(|address| prefix.contains(address));
        }
        let word = word.split_once('/').map_or(word, |(place, _)| place);
        let (address, port) = match (word.parse::<SocketAddr>(), word.strip_prefix("*:")) {
            (Ok(place), _) => (Some(place.ip()), place.port()),
            (_, Some(port)) => match port.parse() {
                Ok(port) => (None, port),
                Err(_) => return false,
            },
            _ => return false,
        };
        // A NodePort is on any address.
        let same_address = |wanted: IpAddr| address.is_none_or(|address| address == wanted);
        self.address.is_none_or(same_address) && self.port.is_none_or(|wanted| wanted == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(address: &str, port: u16, protocol: &str, cells: &[&str]) -> bool {
        let filter = Filter {
            address: address.parse().ok(),
            port: (port != 0).then_some(port),
            protocol: (!protocol.is_empty()).then(|| protocol.to_owned()),
        };
        filter.allows(&cells.iter().map(|cell| cell.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn rows_are_found_by_address_port_and_protocol() {
        let service = ["3", "10.96.0.1:443/TCP\n*:30443/TCP", "10.244.1.2:6443\n10.244.2.2:6443"];
        assert!(allows("", 0, "", &service));
        assert!(allows("10.244.2.2", 0, "", &service));
        assert!(allows("", 30443, "tcp", &service));
        assert!(!allows("", 0, "udp", &service));
        assert!(!allows("10.244.2.2", 443, "", &service), "address and port belong together");
        assert!(!allows("10.244.2.20", 0, "", &["10.244.2.2:80"]));
    }

    #[test]
    fn an_address_finds_the_prefix_it_lies_in() {
        assert!(allows("10.244.1.7", 0, "", &["10.244.1.0/24", "10.89.0.3"]));
        assert!(allows("10.89.0.3", 0, "", &["10.244.1.0/24", "10.89.0.3"]));
        assert!(!allows("10.244.2.7", 0, "", &["10.244.1.0/24", "10.89.0.3"]));
        assert!(!allows("", 10, "", &["10", "10.244.1.0/24"]), "an id is no port");
    }
}

//! Others on the node: their programs and rules are found, and what they take away is put back.
#![expect(clippy::unwrap_used, reason = "tests may")]

use leme_datapath::{Foreign, Inspection};
use leme_tests_packets::{
    Node,
    foreign::{Xdp, come_first},
    in_namespace,
};
use std::{collections::BTreeSet, fs, process::Command};

fn inspect(node: &Node) -> Inspection {
    let attachments = node.datapath.attachments().unwrap();
    node.wait(leme_datapath::inspect(attachments)).unwrap()
}

#[test]
fn programs_that_were_taken_away_are_missed_and_put_back() {
    in_namespace(Vec::new(), |node| {
        assert!(inspect(node).detached.is_empty());
        let links = node.datapath.config().pin_dir.join("links");
        let pins: Vec<_> = fs::read_dir(&links).unwrap().map(|entry| entry.unwrap().path()).collect();
        let taken = |name: &str| pins.iter().find(|pin| pin.to_string_lossy().contains(name)).unwrap();
        for name in ["nic_ingress", "from_pod", "connect4"] {
            fs::remove_file(taken(name)).unwrap();
        }
        let detached = inspect(node).detached;
        let told: BTreeSet<String> = detached.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told.contains("nic_ingress on eth0") && told.contains("connect4 on the node's cgroup"), "{told:?}");
        node.datapath.reattach(&detached).unwrap();
        assert!(inspect(node).detached.is_empty());
    });
}

#[test]
fn a_pod_that_is_gone_is_not_attached_again() {
    in_namespace(Vec::new(), |node| {
        let attachments = node.datapath.attachments().unwrap();
        node.datapath.remove_endpoint("10.244.1.2".parse().unwrap()).unwrap();
        let detached = node.wait(leme_datapath::inspect(attachments)).unwrap().detached;
        assert_eq!(detached.len(), 2);
        node.datapath.reattach(&detached).unwrap();
        assert!(inspect(node).detached.is_empty());
        let links = fs::read_dir(node.datapath.config().pin_dir.join("links")).unwrap().count();
        assert_eq!(links, node.datapath.attachments().unwrap().len());
    });
}

#[test]
fn programs_that_come_before_ours_are_told_while_they_are_there() {
    in_namespace(Vec::new(), |node| {
        let (xdp, first) = (Xdp::attach("eth0").unwrap(), come_first(node, "eth0").unwrap());
        let hooks = |foreign: &BTreeSet<Foreign>| foreign.iter().map(|it| it.hook.clone()).collect::<Vec<_>>();
        let found = inspect(node).foreign;
        assert_eq!(hooks(&found), ["XDP", "tc ingress"], "{found:?}");
        assert!(found.iter().all(|it| it.device == "eth0"));
        assert!(found.iter().any(|it| it.program.starts_with("dropper (id ")), "{found:?}");
        drop((xdp, first));
        assert!(inspect(node).foreign.is_empty());
    });
}

#[test]
fn somebody_elses_socket_on_the_tunnels_port_is_named_as_the_reason() {
    in_namespace(Vec::new(), |node| {
        let config = node.datapath.config().clone();
        run("ip link del leme-vxlan");
        let taken = std::net::UdpSocket::bind("0.0.0.0:4789").unwrap();
        let error = node.wait(leme_datapath::keep_overlay(&config)).unwrap_err().to_string();
        assert!(error.contains("UDP port 4789") && error.contains("ss -ulpn"), "{error}");
        drop(taken);
        node.wait(leme_datapath::keep_overlay(&config)).unwrap();
    });
}

#[test]
fn asking_what_the_kernel_can_do_ends_nobodys_socket() {
    in_namespace(Vec::new(), |_| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:1").unwrap();
        socket.connect("127.0.0.1:1").unwrap();
        let _ = leme_datapath::kernel_lacks();
        socket.send(b"still there").unwrap();
        assert_eq!(socket.recv(&mut [0; 32]).unwrap(), 11);
    });
}

#[test]
fn devices_that_may_no_longer_forward_may_again() {
    in_namespace(Vec::new(), |node| {
        assert!(node.datapath.restore_forwarding().unwrap().is_empty());
        // What `sysctl net.ipv4.ip_forward=0` does to every device.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let restored = node.datapath.restore_forwarding().unwrap();
        assert!(restored.contains(&"leme-vxlan".to_owned()) && restored.contains(&"pod2".to_owned()), "{restored:?}");
        assert!(node.datapath.restore_forwarding().unwrap().is_empty());
    });
}

fn run(words: &str) {
    let (program, arguments) = words.split_once(' ').unwrap();
    let done =
        Command::new(program).args(arguments.split(' ')).status().expect("this test needs nft and iptables-legacy");
    assert!(done.success(), "{words}");
}

#[test]
fn chains_of_other_networks_are_found_in_both_packet_filters() {
    in_namespace(Vec::new(), |_| {
        let chains =
            || leme_datapath::chains().unwrap().into_iter().map(|it| (it.home, it.table, it.name)).collect::<Vec<_>>();
        let chain = |home: &'static str, table: &str, name: &str| (home, table.to_owned(), name.to_owned());
        assert_eq!(chains(), []);
        run("nft add table ip kube-proxy");
        run("nft add chain ip kube-proxy services");
        assert_eq!(chains(), [chain("nftables", "kube-proxy", "services")]);
        run("iptables-legacy -t nat -N KUBE-SERVICES");
        run("iptables-legacy -t nat -A KUBE-SERVICES -j RETURN");
        run("iptables-legacy -t nat -N DOCKER");
        let legacy = ["DOCKER", "KUBE-SERVICES"].map(|name| chain("iptables", "nat", name));
        assert_eq!(chains()[..2], legacy);
        run("nft flush ruleset");
        run("iptables-legacy -t nat -F");
        run("iptables-legacy -t nat -X");
        assert_eq!(chains(), []);
    });
}

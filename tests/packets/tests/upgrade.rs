//! Another version's maps: their entries go on in this one's, under traffic.
#![expect(clippy::unwrap_used, reason = "tests may")]

use leme_tests_packets::{
    Frame, Node, Row,
    bpf::{Layout, RawMap},
    check,
    frame::{ACK, SYN},
    in_namespace,
    node::service,
};
use std::{fs, path::PathBuf};

fn pin(node: &Node, map: &str) -> PathBuf {
    node.datapath.config().pin_dir.join(map)
}

fn put_aside(node: &Node) -> Vec<String> {
    let pins = fs::read_dir(&node.datapath.config().pin_dir).unwrap();
    pins.map(|pin| pin.unwrap().file_name().into_string().unwrap()).filter(|name| name.ends_with("-old")).collect()
}

fn inwards(flags: u8) -> Row {
    Row::inwards(30080, 8080, flags)
}

fn outwards(flags: u8) -> Row {
    Row::outwards(30080, 8080, flags)
}

#[test]
fn a_connection_survives_maps_of_an_older_layout() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a"), ("10.244.1.3", "a")]), |node| {
        // With two backends; whichever was chosen must stay chosen.
        let first =
            node.run("nic_ingress", "eth0", &Frame::tcp("198.51.100.2:5000", "10.89.0.11:30080", SYN)).1.facts();
        let before =
            (node.datapath.dump().unwrap(), leme_datapath::connections(&node.datapath.config().pin_dir).unwrap());
        // Reserved bytes at the end of a value were not there; a Service had no affinity.
        RawMap::relay(&pin(node, "conntrack"), |layout| Layout { value: layout.value - 4, ..layout }).unwrap();
        RawMap::relay(&pin(node, "nat"), |layout| Layout { value: layout.value - 3, ..layout }).unwrap();
        RawMap::relay(&pin(node, "services"), |layout| Layout { value: layout.value - 4, ..layout }).unwrap();
        RawMap::relay(&pin(node, "endpoints"), |layout| Layout { value: layout.value + 8, ..layout }).unwrap();
        node.restart();
        assert_eq!(put_aside(node), Vec::<String>::new());
        for map in ["conntrack", "nat", "services", "endpoints"] {
            let value = RawMap::open(&pin(node, map)).unwrap().layout.value;
            assert_eq!(
                value,
                match map {
                    "conntrack" => 64,
                    "nat" => 44,
                    "services" => 16,
                    _ => 24,
                },
                "{map}"
            );
        }
        let connections = leme_datapath::connections(&node.datapath.config().pin_dir).unwrap();
        assert_eq!(connections[0].original, before.1[0].original);
        assert_eq!(connections[0].packets, before.1[0].packets);
        assert_eq!(node.datapath.dump().unwrap().services, before.0.services);
        let next = node.run("nic_ingress", "eth0", &Frame::tcp("198.51.100.2:5000", "10.89.0.11:30080", ACK)).1.facts();
        assert_eq!(next.dst, first.dst, "the backend of the running connection");
    });
}

#[test]
fn what_the_old_programs_add_meanwhile_is_copied_too() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a")]), |node| {
        // An agent that died after it had put the old map aside: its programs go on with it.
        check(node, &[inwards(SYN)]);
        for map in ["conntrack", "nat"] {
            fs::rename(pin(node, map), pin(node, &format!("{map}-old"))).unwrap();
        }
        check(node, &[outwards(SYN | ACK), inwards(ACK)]);
        node.restart();
        assert_eq!(put_aside(node), Vec::<String>::new());
        check(node, &[outwards(ACK), inwards(ACK)]);
        let connections = leme_datapath::connections(&node.datapath.config().pin_dir).unwrap();
        assert_eq!((connections.len(), connections[0].packets), (1, [3, 2]));
    });
}

#[test]
fn a_map_that_is_to_be_larger_grows_and_one_that_may_be_smaller_stays() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a")]), |node| {
        check(node, &[inwards(SYN), outwards(SYN | ACK)]);
        let room = |node: &Node, map: &str| RawMap::open(&pin(node, map)).unwrap().layout.room;
        let wanted = room(node, "conntrack");
        RawMap::relay(&pin(node, "conntrack"), |layout| Layout { room: 64, ..layout }).unwrap();
        RawMap::relay(&pin(node, "nat"), |layout| Layout { room: layout.room * 2, ..layout }).unwrap();
        node.restart();
        assert_eq!(room(node, "conntrack"), wanted);
        assert_eq!(room(node, "nat"), wanted * 4);
        check(node, &[inwards(ACK), outwards(ACK)]);
    });
}

#[test]
fn without_a_list_the_old_programs_go_on_where_keys_have_changed() {
    in_namespace(service("web", "10.96.0.50", 30080, &[("10.244.1.2", "a")]), |node| {
        let ours = |node: &Node| fs::read_dir(pin(node, "links")).unwrap().count();
        let links = ours(node);
        // Entries of today have no place in a map with other keys: an empty one will do.
        let path = pin(node, "frontends");
        fs::remove_file(&path).unwrap();
        RawMap::make(&path, Layout { kind: 1, key: 24, value: 4, room: 131_072, flags: 1 }).unwrap();
        node.restart();
        assert_eq!(put_aside(node), ["frontends-old"]);
        assert!(node.datapath.dump().unwrap().services.is_empty());
        node.datapath.reconcile_all(&node.snapshot).unwrap();
        assert_eq!((put_aside(node), ours(node)), (Vec::new(), links));
        assert_eq!(node.datapath.dump().unwrap().services.len(), 2);
        check(node, &[inwards(SYN), outwards(SYN | ACK)]);
    });
}

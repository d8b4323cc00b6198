//! Hostile packets against the programs in the kernel: those that `tests/fuzz` makes up. A short run that is always the
//! same; `cargo xtask fuzz` makes a long one.

use leme_abi::DropReason;
use leme_tests_fuzz::{Generator, Hook};
use leme_tests_packets::{Frame, Node, Verdict, in_namespace, node::service};
use serde_json::Value;
use std::collections::BTreeMap;

/// What the generator's addresses mean, as far as this node can have it.
fn services() -> Vec<Value> {
    [
        service("both", "10.96.0.1", 30001, &[("10.244.1.2", "a"), ("10.244.2.9", "b")]),
        service("here", "10.96.0.2", 30002, &[("10.244.1.3", "a")]),
        service("node", "10.96.0.3", 30003, &[("10.89.0.11", "a")]),
        service("outside", "10.96.0.4", 30004, &[("192.0.2.77", "")]),
        service("none", "10.96.0.5", 30005, &[]),
    ]
    .concat()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Packets counted for whatever reason; who is told is counted under the reason and as a packet that leaves. What the
/// kernel's own stacks say in IPv6 meanwhile does not count.
fn counted(node: &Node) -> u64 {
    let counters: BTreeMap<String, u64> = node.counters();
    let apart = [DropReason::NoBackend, DropReason::NoServicePort, DropReason::TooBig, DropReason::NotIp];
    let is_apart = |name: &str| apart.iter().any(|reason| name.starts_with(&format!("{}/", reason.name())));
    counters.iter().filter(|(name, _)| !is_apart(name)).map(|(_, count)| count).sum()
}

#[test]
fn whatever_comes_is_counted_and_never_dropped_in_silence() {
    in_namespace(services(), |node| {
        let (inputs, seed) = (number("LEME_FUZZ_INPUTS", 5_000), number("LEME_FUZZ_SEED", 0));
        let mut generator = Generator::new(seed);
        let (mut dropped, mut run) = (0, 0);
        for n in 0..inputs {
            let (hook, frame) = generator.packet();
            let frame = Frame(frame.0);
            let device = match hook {
                Hook::FromPod(2) | Hook::ToPod => "pod2",
                Hook::FromPod(3) => "pod3",
                Hook::OverlayIngress | Hook::OverlayEgress => "leme-vxlan",
                _ => "eth0",
            };
            let (verdict, out) = node.run(hook.name(), device, &frame);
            run += 1;
            match verdict {
                Verdict::Drop => dropped += 1,
                _ => check(&mut generator, &frame, &out, n),
            }
        }
        assert_eq!(counted(node), run, "every packet is counted once");
        let forwarded: u64 =
            node.counters().iter().filter(|(name, _)| name.starts_with("forwarded/")).map(|(_, count)| count).sum();
        assert_eq!(run - forwarded, dropped, "every drop has its reason");
        assert!(forwarded > run / 10, "hardly anything gets through: {forwarded} of {run}");
    });
}

/// The IP header of what leaves has a checksum as right as that of what came, and what was no packet stays as it was.
fn check(generator: &mut Generator, came: &Frame, left: &Frame, n: u64) {
    let sum =
        |frame: &Frame| frame.0.get(14..34).is_some_and(|header| leme_tests_packets::frame::checksum(header) == 0);
    if sum(came) && came.0[14] == 0x45 {
        assert!(sum(left), "packet {n}: {:02x?} became {:02x?}", came.0, left.0);
    }
    if let Some(tuple) = left.tuple() {
        generator.note(tuple);
    }
}

//! Rates of pods: the schedule as arithmetic, and who is asked to keep it.

use super::fake::{Fake, addr, read, tcp};
use crate::{Next, Packet, charge, from_pod, may_receive, nic_ingress, to_pod};
use leme_abi::{Bucket, DropReason, Endpoint};

const SECOND: u64 = 1_000_000_000;

/// Bytes that get through in a time, of packets of a length that are offered without a pause.
fn through(bucket: Bucket, length: u32, pause: u64, time: u64) -> u64 {
    let mut bucket = bucket;
    let mut bytes = 0;
    for now in (10 * SECOND..10 * SECOND + time).step_by(pause as usize) {
        let charge = charge(bucket.rate, bucket.burst, bucket.ready, now, length);
        if charge.conforms {
            bytes += u64::from(length);
            bucket.ready = charge.restart.max(bucket.ready) + charge.cost;
        }
    }
    bytes
}

#[test]
fn over_time_the_rate_is_kept_and_the_burst_comes_on_top_once() {
    for (rate, burst, length) in
        [(125_000, 0, 1500), (1_250_000, SECOND / 10, 1500), (125_000_000, SECOND / 20, 65_000)]
    {
        let bucket = Bucket { rate, burst, ready: 0 };
        let allowed = rate * 2 + rate * burst / SECOND;
        let got = through(bucket, length, 10_000, 2 * SECOND);
        assert!(got >= allowed.min(2 * SECOND / 10_000 * u64::from(length)) * 99 / 100, "{got} of {allowed}");
        assert!(got <= allowed + 2 * u64::from(length), "{got} of {allowed}");
    }
}

#[test]
fn a_packet_longer_than_the_burst_passes_and_is_paid_for() {
    let bucket = Bucket { rate: 1000, burst: SECOND / 1000, ready: 0 };
    let first = charge(bucket.rate, bucket.burst, 0, 10 * SECOND, 64_000);
    assert!(first.conforms);
    let ready = first.restart + first.cost;
    assert!(!charge(bucket.rate, bucket.burst, ready, 73 * SECOND, 1).conforms);
    assert!(charge(bucket.rate, bucket.burst, ready, 74 * SECOND, 1).conforms);
}

#[test]
fn no_rate_is_no_limit() {
    assert_eq!(through(Bucket::default(), 1500, 1_000_000, SECOND), 1_500_000);
}

fn limited(flags: u32) -> Fake {
    let mut tables = Fake::new();
    tables.endpoints.insert(addr("10.244.1.2"), Endpoint { ifindex: 2, flags, ..Endpoint::default() });
    tables
}

#[test]
fn what_a_pod_sends_beyond_its_rate_is_dropped_and_opens_no_connection() {
    let tables = limited(Endpoint::EGRESS_RATE);
    tables.spent.set(true);
    let frame = tcp("10.244.1.2", 40000, "198.51.100.2", 443, Packet::SYN);
    let mut work = read(&tables, &frame).unwrap();
    assert_eq!((from_pod(&tables, &mut work, 2), work.reason), (Next::Drop, DropReason::RateLimited));
    assert!(tables.nat.borrow().is_empty());
    tables.spent.set(false);
    assert_eq!(from_pod(&tables, &mut read(&tables, &frame).unwrap(), 2), Next::Outside);
}

#[test]
fn what_is_sent_to_a_pod_beyond_its_rate_is_dropped_whoever_sends_it() {
    let tables = limited(Endpoint::INGRESS_RATE);
    tables.spent.set(true);
    let mut work = read(&tables, &tcp("10.244.1.3", 40000, "10.244.1.2", 80, Packet::SYN)).unwrap();
    assert_eq!(from_pod(&tables, &mut work, 3), Next::Pod);
    assert!(!may_receive(&tables, &work));
    let mut work = read(&tables, &tcp("10.89.0.11", 40000, "10.244.1.2", 80, Packet::SYN)).unwrap();
    assert_eq!((to_pod(&tables, &mut work), work.reason), (Next::Drop, DropReason::RateLimited));
    // Neither the other pod nor the other direction.
    let mut work = read(&tables, &tcp("10.244.1.2", 40000, "10.244.1.3", 80, Packet::SYN)).unwrap();
    assert_eq!(from_pod(&tables, &mut work, 2), Next::Pod);
    assert!(may_receive(&tables, &work));
    assert_eq!(
        nic_ingress(&tables, &mut read(&tables, &tcp("198.51.100.2", 1, "10.89.0.11", 22, 2)).unwrap()),
        Next::Pass
    );
}

//! The `bandwidth` capability, felt by real connections.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use leme_tests_cni::{Agent, Answer, Node, Pod};
use serde_json::{Value, json};

const PORT: u16 = 8000;
/// Bits per second: slow enough to be far from what the machine can do, fast enough for TCP.
const RATE: u64 = 40_000_000;
const TIME: Duration = Duration::from_secs(2);

fn on_node(test: impl FnOnce(&Node) + Send + 'static) {
    leme_tests_cni::on_node(env!("CARGO_BIN_EXE_leme-tests-cni"), "10.244.1.0/24", test);
}

fn address(added: &Answer) -> Ipv4Addr {
    added.address().trim_end_matches("/32").parse().unwrap()
}

/// Bytes that arrive within the time, of a sender that sends what it can.
fn transfer(sender: &Pod, receiver: &Pod, to: Ipv4Addr) -> u64 {
    let listener = receiver.inside(|| TcpListener::bind((to, PORT)).unwrap());
    let mut stream = sender.inside(|| TcpStream::connect((to, PORT)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let sending = thread::spawn(move || while stream.write_all(&[0; 16384]).is_ok() {});
    let (end, mut bytes, mut buffer) = (Instant::now() + TIME, 0, vec![0; 65536]);
    while Instant::now() < end {
        bytes += server.read(&mut buffer).map_or(0, |length| length as u64);
    }
    drop(server);
    sending.join().unwrap();
    bytes
}

fn measure(sender: Value, receiver: Value) -> u64 {
    let (tell, told) = std::sync::mpsc::channel();
    on_node(move |node| {
        let _agent = Agent::start(node);
        let clean = node.left();
        let (a, b) = (Pod::new(), Pod::new());
        let first = node.add_with_bandwidth(&a, sender).expect("the sender");
        let second = node.add_with_bandwidth(&b, receiver).expect("the receiver");
        node.check(&a, &first).expect("CHECK");
        tell.send(transfer(&a, &b, address(&second))).unwrap();
        [&a, &b].into_iter().for_each(|pod| drop(node.delete(pod).expect("DEL")));
        clean.expect_soon(node, "after the transfer");
    });
    told.recv().unwrap()
}

/// The burst, half a second's, comes on top; what is dropped, and TCP's pauses, are taken off.
fn expect_about_the_rate(bytes: u64) {
    let allowed = RATE / 8 * TIME.as_secs();
    let most = allowed + RATE / 16;
    assert!(bytes >= allowed / 2 && bytes <= most * 11 / 10, "{bytes} bytes arrived, {allowed} and a burst may");
}

#[test]
fn a_limited_sender_sends_about_as_fast_as_it_may() {
    expect_about_the_rate(measure(json!({ "egressRate": RATE }), json!({})));
}

#[test]
fn a_limited_receiver_receives_about_as_fast_as_it_may() {
    expect_about_the_rate(measure(json!({}), json!({ "ingressRate": RATE, "ingressBurst": u32::MAX })));
}

#[test]
fn without_a_limit_much_more_gets_through() {
    let bytes = measure(json!({}), json!({}));
    assert!(bytes > RATE / 8 * TIME.as_secs() * 4, "{bytes} bytes arrived");
}

//! Programs and maps are exchanged under traffic: no datagram is lost, no connection is reset or stands still.
#![expect(clippy::unwrap_used, reason = "tests may")]

use anyhow::{Context, Result, ensure};
use leme_datapath::Sizes;
use leme_tests_packets::{
    Network, Site,
    node::service,
    site::FAR,
    traffic::{PATIENCE, connect},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const OUTSIDE: &str = "198.51.100.2:443";
const ELSEWHERE: &str = "10.89.1.11:30080";
const HERE: &str = "10.89.1.11:30081";
/// Room for all connections of a test, so that none makes room for others; each exchange of maps doubles it.
const ROOM: u32 = 1 << 16;
const EXCHANGES: u32 = 4;
/// How far everything must come between two exchanges.
const ROUNDS: usize = 3;
/// Time for everybody on a small machine.
const PACE: Duration = Duration::from_millis(3);
/// Nobody collects here what is over, and all go to few addresses: there are ports for some minutes of this, however long
/// the programs take to load.
const PACE_OF_NEW: Duration = Duration::from_millis(25);

/// What goes on until it is over, and how far each of it has come. What fails has come to its end.
#[derive(Default)]
struct Traffic {
    over: Arc<AtomicBool>,
    flows: Vec<(String, Arc<AtomicUsize>, thread::JoinHandle<Result<()>>)>,
}

impl Traffic {
    /// Repeats something; another thing each time, if it counts.
    fn repeat(&mut self, name: String, pace: Duration, mut once: impl FnMut(usize) -> Result<()> + Send + 'static) {
        let rounds = Arc::new(AtomicUsize::new(0));
        let (counted, over) = (Arc::clone(&rounds), Arc::clone(&self.over));
        let work = move || {
            while !over.load(Ordering::Relaxed) {
                let round = counted.load(Ordering::Relaxed);
                once(round).with_context(|| format!("round {round}"))?;
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(pace);
            }
            Ok(())
        };
        self.flows.push((name, rounds, thread::spawn(work)));
    }

    /// Waits until all of it has come further.
    fn comes_further(&self) {
        let began = Instant::now();
        for (name, rounds, thread) in &self.flows {
            let before = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) < before + ROUNDS && !thread.is_finished() {
                assert!(began.elapsed() < 2 * PATIENCE, "{name} stands still");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Ends it; nothing may have failed.
    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        let join = |(name, _, thread): (String, _, thread::JoinHandle<Result<()>>)| {
            Some(format!("{name}: {:?}", thread.join().unwrap().err()?))
        };
        let failed: Vec<_> = self.flows.into_iter().filter_map(join).collect();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    /// Somebody who answers whatever is asked, over TCP and UDP.
    fn serve(&mut self, network: &Network, address: &str) {
        let listener = network.within(|| TcpListener::bind(address)).unwrap();
        thread::spawn(move || {
            listener.incoming().for_each(|stream| drop(thread::spawn(move || echo(stream.unwrap()))))
        });
        let socket = network.within(|| UdpSocket::bind(address)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..length], from).unwrap();
            }
        });
    }

    /// Connections from one to another over both protocols: those that last, and new ones all the time.
    fn between(&mut self, name: &str, client: &Network, target: &'static str) {
        let (tcp, udp) = (connect(client, None, target).unwrap(), connected(client, target).unwrap());
        self.repeat(format!("{name}, a lasting TCP connection"), PACE, move |round| ask(&tcp, round));
        self.repeat(format!("{name}, lasting UDP"), PACE, move |round| tell(&udp, round));
        let [one, other] = [client, client].map(|client| client.again().unwrap());
        self.repeat(format!("{name}, a new TCP connection"), PACE_OF_NEW, move |round| {
            ask(&connect(&one, None, target)?, round)
        });
        self.repeat(format!("{name}, new UDP"), PACE_OF_NEW, move |round| tell(&connected(&other, target)?, round));
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer)
        && stream.write_all(&buffer[..length]).is_ok()
    {}
}

fn connected(client: &Network, target: &str) -> Result<UdpSocket> {
    let socket = client.within(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.connect(target.parse::<SocketAddr>()?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn ask(mut stream: &TcpStream, round: usize) -> Result<()> {
    let (asked, mut answer) = ([round as u8; 1000], [0; 1000]);
    stream.write_all(&asked)?;
    stream.read_exact(&mut answer)?;
    ensure!(asked == answer, "another answer");
    Ok(())
}

/// One datagram and its answer: the loss of either is one that nobody makes good.
fn tell(socket: &UdpSocket, round: usize) -> Result<()> {
    let (told, mut answer) = (round.to_ne_bytes(), [0; 8]);
    socket.send(&told)?;
    socket.recv(&mut answer).context("a datagram or its answer is lost")?;
    ensure!(told == answer, "another answer");
    Ok(())
}

#[test]
fn nothing_is_lost_while_programs_are_exchanged() {
    exchange(|_| ROOM);
}

#[test]
fn nothing_is_lost_while_maps_are_exchanged_for_larger_ones() {
    exchange(|n| ROOM << n);
}

fn exchange(room: impl Fn(u32) -> u32) {
    let services = [
        service("elsewhere", "10.96.0.50", 30080, &[("10.244.2.2", "b"), ("10.244.2.3", "b")]),
        service("here", "10.96.0.51", 30081, &[("10.244.1.3", "a")]),
    ];
    let roomy =
        |room| move |config: &mut leme_datapath::Config| config.sizes = Sizes { connections: room, ..config.sizes };
    let mut site = Site::with(&services.concat(), roomy(ROOM)).unwrap();
    let mut traffic = Traffic::default();
    traffic.serve(&site.b.pods[0], "10.244.2.2:8080");
    traffic.serve(&site.b.pods[1], "10.244.2.3:8080");
    traffic.serve(&site.a.pods[1], "10.244.1.3:8080");
    traffic.serve(&site.far, OUTSIDE);
    assert!(OUTSIDE.starts_with(&FAR.to_string()));
    traffic.between("a pod to other nodes' pods", &site.a.pods[0], "10.96.0.50:80");
    traffic.between("a pod to its neighbour", &site.a.pods[0], "10.96.0.51:80");
    traffic.between("a pod to the outside", &site.a.pods[0], OUTSIDE);
    traffic.between("the outside to a pod elsewhere", &site.far, ELSEWHERE);
    traffic.between("the outside to a pod here", &site.far, HERE);
    for n in 1..=EXCHANGES {
        traffic.comes_further();
        site.a.restart_with(roomy(room(n))).unwrap();
    }
    traffic.comes_further();
    traffic.end();
}

//! The test binary as a client: `client [--enter PID] get|knock|hammer|hold …`, run in nodes and pods by `Place`.
//!
//! One connection per request, or one for all of them (`hold`), and never a second attempt: what fails is reported as
//! failed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::wait::eventually;
use crate::{Cluster, Place, command};

/// Long enough for a busy machine, too short for a lost packet's second chance to go unseen.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(3);
/// On a connection that is held.
const LONG_PAUSE: Duration = Duration::from_millis(250);
/// nginx ends a connection after a thousand requests: before that, minutes later, another takes its place.
const HELD: usize = 900;

/// Requests of a path, each over its own connection, all of which must succeed: bodies and how often each came.
pub fn ask(
    cluster: &Cluster,
    place: Place<'_>,
    target: SocketAddr,
    path: &str,
    times: usize,
) -> Result<BTreeMap<String, usize>> {
    let (target, times) = (target.to_string(), times.to_string());
    let mut command = place.client(cluster, &["get", &target, path, &times])?;
    let text = command::output(&mut command, Duration::from_secs(120))
        .with_context(|| format!("from {place} to {target}{path}"))?;
    Ok(serde_json::from_str(&text)?)
}

/// One request's body.
pub fn ask_once(cluster: &Cluster, place: Place<'_>, target: SocketAddr, path: &str) -> Result<String> {
    let answers = ask(cluster, place, target, path, 1)?;
    answers.into_keys().next().context("no answer")
}

/// What comes of one attempt to reach a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Knock {
    Answered(String),
    /// By a reset or an ICMP error: the client need not wait.
    Refused,
    /// Nothing came, for a moment that is long for a network.
    Silence,
}

/// One request over TCP, or one datagram, whatever comes of it.
pub fn knock(cluster: &Cluster, place: Place<'_>, protocol: &str, target: SocketAddr) -> Result<Knock> {
    let mut command = place.client(cluster, &["knock", protocol, &target.to_string()])?;
    let text = command::output(&mut command, Duration::from_secs(20))
        .with_context(|| format!("from {place} to {target}/{protocol}"))?;
    Ok(serde_json::from_str(&text)?)
}

/// Waits until connections from the machine are refused, not lost.
pub fn expect_refused(target: SocketAddr) -> Result<()> {
    eventually(Duration::from_secs(10), &format!("{target} refuses connections"), || {
        match TcpStream::connect_timeout(&target, Duration::from_secs(2)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error).context("not refused but"),
            Ok(_) => bail!("it is open"),
        }
    })
}

/// Runs as a client, if that is what the arguments say. The exit code.
pub fn main(arguments: &[String]) -> Option<i32> {
    let mut words: Vec<&str> = arguments.iter().map(String::as_str).skip(1).collect();
    if words.first() != Some(&"client") {
        return None;
    }
    words.remove(0);
    let said = enter_first(&mut words).and_then(|()| match words.as_slice() {
        ["get", target, path, times] => get(target, path, times),
        ["knock", "UDP", target] => outcome(ask_by_datagram(target.parse()?)),
        ["knock", _, target] => outcome(ask_by_stream(target.parse()?)),
        ["hammer", target, path] => hammer(&target.parse::<SocketAddr>()?.into(), path),
        ["hold", target, path] => hold(target.parse()?, path),
        ["hammer", name, port, path, "--dns", server] => {
            hammer(&Target::Name { name, port: port.parse()?, server: server.parse()? }, path)
        }
        other => bail!("no client of {other:?}"),
    });
    Some(match said {
        Ok(value) => {
            println!("{value}");
            0
        }
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    })
}

/// `--enter PID`: into a process's cgroup and network.
fn enter_first(words: &mut Vec<&str>) -> Result<()> {
    let ["--enter", process, ..] = words.as_slice() else { return Ok(()) };
    let cgroups = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup v2")?;
    fs::write(format!("{}{own}/cgroup.procs", unified()?), "0").with_context(|| format!("cannot join cgroup {own}"))?;
    let network = fs::File::open(format!("/proc/{process}/ns/net"))?;
    setns(network.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the network")?;
    words.drain(..2);
    Ok(())
}

/// Where cgroup v2 is mounted.
fn unified() -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("no cgroup v2 is mounted")?;
    Ok(line.split(' ').nth(4).context("a mount without a place")?.to_owned())
}

fn get(target: &str, path: &str, times: &str) -> Result<Value> {
    let target = target.parse()?;
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..times.parse()? {
        *answers.entry(fetch(target, path)?).or_default() += 1;
    }
    Ok(json!(answers))
}

/// One request over one connection: the body of a 200.
pub fn fetch(target: SocketAddr, path: &str) -> Result<String> {
    let answer = request(target, path)?;
    ensure!(answer.status == 200, "status {}", answer.status);
    Ok(answer.body)
}

/// What a web server says.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

/// One request from the machine, over one connection, whatever is answered.
pub fn request(target: SocketAddr, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {target}\r\n\r\n").as_bytes()).context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer cut off")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.trim().to_owned() })
}

/// How long silence is.
const MOMENT: Duration = Duration::from_millis(700);

fn ask_by_stream(target: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, MOMENT)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Connected, so that only the one that was asked may answer.
fn ask_by_datagram(target: SocketAddr) -> std::io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(MOMENT))?;
    socket.connect(target)?;
    socket.send(b"who?")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn outcome(outcome: std::io::Result<String>) -> Result<Value> {
    let knock = match outcome {
        Ok(answer) => Knock::Answered(answer),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Knock::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Knock::Silence,
            _ => return Err(error.into()),
        },
    };
    Ok(serde_json::to_value(knock)?)
}

/// What to hammer: an address, or a name that is asked for each time.
enum Target<'a> {
    Address(SocketAddr),
    Name { name: &'a str, port: u16, server: SocketAddr },
}

impl From<SocketAddr> for Target<'_> {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl Target<'_> {
    fn address(&self) -> Result<SocketAddr> {
        match self {
            Self::Address(address) => Ok(*address),
            Self::Name { name, port, server } => {
                Ok(SocketAddr::from((resolve(name, *server).context("resolve")?, *port)))
            }
        }
    }
}

/// One connection per request.
fn hammer(target: &Target<'_>, path: &str) -> Result<Value> {
    until_told(PAUSE, || target.address().and_then(|address| fetch(address, path)).map(drop))
}

/// One connection for as many requests as it may carry: once it breaks, all the others fail.
fn hold(target: SocketAddr, path: &str) -> Result<Value> {
    let (mut stream, mut asked) = (connect(target)?, 0);
    until_told(LONG_PAUSE, || {
        if asked == HELD {
            (stream, asked) = (connect(target)?, 0);
        }
        asked += 1;
        exchange(&mut stream, path)
    })
}

fn connect(target: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

/// One request and its whole answer over a connection that stays.
fn exchange(stream: &mut BufReader<TcpStream>, path: &str) -> Result<()> {
    write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: held\r\n\r\n").context("send")?;
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line).context("receive")? > 0, "the server ended the connection");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.trim_end().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("receive")
}

/// Requests until standard input ends; says how many there were and which failed, when and how.
fn until_told(pause: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<Value> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        seen.store(true, Ordering::Relaxed);
    });
    let (began, mut requests, mut failures, mut slowest) = (Instant::now(), 0_u64, Vec::new(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        requests += 1;
        if let Err(error) = attempt() {
            let day = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() % 86_400.0;
            let after = began.elapsed().as_secs_f64();
            failures.push(format!("after {after:.3} s (second {day:.3} of the day, UTC): {error:#}"));
        }
        slowest = slowest.max(start.elapsed());
        thread::sleep(pause);
    }
    Ok(json!({ "requests": requests, "failures": failures, "slowest_ms": slowest.as_millis() as u64 }))
}

/// Asks a name server for an A record, once, over UDP.
fn resolve(name: &str, server: SocketAddr) -> Result<Ipv4Addr> {
    let mut question = vec![0x1e, 0x3e, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    socket.send(&question)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    ensure!(length > question.len() + 15 && answer[7] > 0, "no address for {name}");
    let data: [u8; 4] = answer[question.len() + 12..question.len() + 16].try_into()?;
    Ok(data.into())
}

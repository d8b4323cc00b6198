//! `logs`, `exec`, `cp` and `port-forward`: what runs through the API server to a node.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::cluster::expect_all;
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Place, client};

/// A kubectl that goes on until it is dropped, and its lines as they come.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Result<Self> {
        let mut child = cluster.kubectl_command(arguments).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|it| sender.send(it)));
        Ok(Self { child, lines })
    }

    /// The next line that holds something.
    fn wait_for(&self, part: &str) -> Result<String> {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(20));
            let line = line.with_context(|| format!("no line with {part:?}"))?;
            if line.contains(part) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn logs_are_shown_and_followed(cluster: &Cluster) -> Result<()> {
    let pod = cluster.web(3)?.remove(0);
    let place = Place::Node(&pod.node);
    let target = (pod.address, 80).into();
    client::ask_once(cluster, place, target, "/who?first")?;
    eventually(Duration::from_secs(10), "the request is logged", || {
        expect_all(&cluster.kubectl(&["logs", &pod.name])?, &["GET /who?first"])
    })?;
    let follower = Running::start(cluster, &["logs", "-f", "--tail=0", &pod.name])?;
    // Nothing says when it has begun to follow, so ask until it shows.
    eventually(Duration::from_secs(20), "a new request is followed", || {
        client::ask_once(cluster, place, target, "/who?second")?;
        let line = follower.lines.recv_timeout(Duration::from_millis(500)).context("no line")?;
        expect_all(&line, &["GET /who?second"])
    })
}

pub(crate) fn commands_run_in_containers(cluster: &Cluster) -> Result<()> {
    let pod = cluster.web(3)?.remove(0);
    ensure!(cluster.exec(&pod.name, &["hostname"])?.trim() == pod.name, "another host name");
    let refusal = cluster.kubectl_refuses(&["exec", &pod.name, "--", "sh", "-c", "echo no >&2; exit 7"])?;
    expect_all(&refusal, &["no\n", "command terminated with exit code 7"])?;
    let mut cat = cluster
        .kubectl_command(&["exec", "-i", &pod.name, "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let sent = "line\n".repeat(50_000);
    let mut stdin = cat.stdin.take().context("no input")?;
    let text = sent.clone();
    let writer = thread::spawn(move || stdin.write_all(text.as_bytes()));
    let reader = cat.stdout.take().context("no output")?;
    let reader = thread::spawn(move || std::io::read_to_string(reader));
    eventually(Duration::from_secs(30), "the end of input arrives", || cat.try_wait()?.context("it goes on").map(drop))
        .inspect_err(|_| drop(cat.kill()))?;
    writer.join().expect("a writer")?;
    ensure!(reader.join().expect("a reader")? == sent, "something else came back");
    Ok(())
}

pub(crate) fn files_are_copied_both_ways(cluster: &Cluster) -> Result<()> {
    let pod = cluster.web(3)?.remove(0);
    let (here, back) = (cluster.path("copied"), cluster.path("copied-back"));
    fs::write(&here, "some text\n".repeat(10_000))?;
    let there = format!("{}:/tmp/copied", pod.name);
    cluster.kubectl(&["cp", &here.to_string_lossy(), &there])?;
    cluster.kubectl(&["cp", &there, &back.to_string_lossy()])?;
    ensure!(fs::read(&here)? == fs::read(&back)?, "something else came back");
    Ok(())
}

pub(crate) fn ports_are_forwarded(cluster: &Cluster) -> Result<()> {
    let pod = cluster.web(3)?.remove(0);
    let forward = Running::start(cluster, &["port-forward", &format!("pod/{}", pod.name), ":80"])?;
    let line = forward.wait_for("Forwarding from 127.0.0.1:")?;
    let port: u16 = line.split([':', ' ']).nth(3).context("no port")?.parse().with_context(|| line.clone())?;
    // Several connections through the one forward, two of them at a time.
    for _ in 0..5 {
        let (mut one, two) = (ask(port)?, ask(port)?);
        for stream in [&mut one, &mut { two }] {
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.trim().ends_with(&pod.name), "{answer}");
        }
    }
    Ok(())
}

fn ask(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /who HTTP/1.0\r\n\r\n")?;
    Ok(stream)
}

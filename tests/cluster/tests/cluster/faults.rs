//! Things die; what must go on goes on.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::hammer::Hammer;
use leme_tests_cluster::wait::{eventually, throughout};
use leme_tests_cluster::{Cluster, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

pub(crate) fn killing_the_agents_disturbs_nothing(cluster: &Cluster) -> Result<()> {
    let before = cluster.web(3)?;
    let tools = cluster.tools()?;
    let (address, port) = cluster.service("nginx")?;
    let node = &cluster.nodes[0];
    let hammers = vec![
        Hammer::start_by_name(cluster, Place::Pod(&tools[0]), "nginx.default.svc.cluster.local", 8000)?,
        Hammer::start(cluster, Place::Node(&node.name), (address, 8000).into())?,
        Hammer::start(cluster, Place::Machine, (node.address, port).into())?,
        Hammer::hold(cluster, Place::Pod(&tools[1]), (address, 8000).into())?,
        Hammer::hold(cluster, Place::Machine, (cluster.nodes[1].address, port).into())?,
    ];
    for _ in 0..3 {
        kill_agents(cluster)?;
    }
    hammers.into_iter().try_for_each(Hammer::stop_without_failure)?;
    ensure!(cluster.wait_for_pods("app=nginx", 3)? == before, "pods were touched");
    // The new agents do their work.
    cluster.web(4)?;
    leme_tests_cluster::tables::check(cluster)
}

/// All of them, and waits until others do their work.
fn kill_agents(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let old = cluster.process(&node.name, "agent")?;
        kill(Pid::from_raw(old), Signal::SIGKILL)?;
        eventually(Duration::from_secs(20), "the agent is started again", || {
            let new = cluster.process(&node.name, "agent")?;
            ensure!(new != old && kill(Pid::from_raw(new), None).is_ok(), "not yet");
            Ok(())
        })?;
    }
    throughout(Duration::from_secs(1), || {
        let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"])?;
        ensure!(!nodes.contains("NotReady"), "{nodes}");
        Ok(())
    })
}

pub(crate) fn killing_the_server_loses_no_acknowledged_write(cluster: &Cluster) -> Result<()> {
    let before = cluster.wait_for_pods("app=nginx", running(cluster)?)?;
    let proxy = Proxy::start(cluster)?;
    let list: Value = serde_json::from_str(&proxy.ask("GET", CONFIGMAPS, "")?.1)?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("no revision")?.to_owned();
    let acknowledged = write_while(&proxy, || kill_servers(cluster))?;
    ensure!(acknowledged.len() > 50, "only {} writes", acknowledged.len());
    let names = cluster.kubectl(&["get", "configmaps", "-o", "jsonpath={range .items[*]}{.metadata.name}\n{end}"])?;
    let there: BTreeSet<_> = names.lines().map(str::to_owned).collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    ensure!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), acknowledged.len());
    let watched = proxy.watch(&revision)?;
    let missed: Vec<_> = acknowledged.difference(&watched).collect();
    ensure!(missed.is_empty(), "a watch from before misses {} of {}: {missed:?}", missed.len(), acknowledged.len());
    ensure!(cluster.wait_for_pods("app=nginx", before.len())? == before, "pods were touched");
    // One request: kubectl by itself sends one for each of them, and slowly.
    cluster.kubectl(&["delete", "--raw", &format!("{CONFIGMAPS}?labelSelector=test%3Dwrites")])?;
    // Whoever watched before watches again.
    let count = before.len() + 1;
    cluster.kubectl(&["scale", "deployment", "nginx", &format!("--replicas={count}")])?;
    cluster.wait_for_pods("app=nginx", count).map(drop)
}

/// Replicas of the deployment nginx, which is made if it is not there.
fn running(cluster: &Cluster) -> Result<usize> {
    if !cluster.try_kubectl(&["get", "deployment", "nginx"])?.success {
        cluster.kubectl(&["create", "deployment", "nginx", "--image=nginx", "--replicas=2"])?;
    }
    let text = cluster.kubectl(&["get", "deployment", "nginx", "-o", "jsonpath={.spec.replicas}"])?;
    Ok(text.parse()?)
}

/// Three times, each in the midst of writes.
fn kill_servers(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0].name;
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(700));
        let old = cluster.process(node, "server")?;
        kill(Pid::from_raw(old), Signal::SIGKILL)?;
        eventually(Duration::from_secs(30), "the API is back", || {
            ensure!(cluster.process(node, "server")? != old, "the same process");
            cluster.kubectl(&["get", "--raw", "/readyz"]).map(drop)
        })?;
    }
    Ok(())
}

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Several writers at a time, until the work is done; the names of what was acknowledged.
fn write_while(proxy: &Proxy, work: impl FnOnce() -> Result<()>) -> Result<BTreeSet<String>> {
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4).map(|writer| scope.spawn(move || write(proxy, writer, stop))).collect();
        let outcome = work();
        stop.store(true, Ordering::Relaxed);
        let written = writers.into_iter().flat_map(|it| it.join().expect("a writer does not panic")).collect();
        outcome.map(|()| written)
    })
}

/// Creates one object after another; the names of those the server said it has.
fn write(proxy: &Proxy, writer: usize, stop: &AtomicBool) -> Vec<String> {
    let mut written = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("write-{writer}-{number}");
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": { "test": "writes" } },
        });
        match proxy.ask("POST", CONFIGMAPS, &body.to_string()) {
            Ok((201, _)) => written.push(name),
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
    written
}

/// `kubectl proxy`: the API over plain HTTP, with the admin's credentials.
struct Proxy {
    child: Child,
    port: u16,
}

impl Proxy {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut child = cluster.kubectl_command(&["proxy", "--port=0"]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        match port {
            Some(port) => Ok(Self { child, port }),
            None => {
                let _ = child.kill();
                anyhow::bail!("kubectl proxy said {line:?}")
            }
        }
    }

    /// Status and body.
    fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}",
            body.len()
        );
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer cut off")?;
        Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
    }

    /// Names of everything added since a revision.
    fn watch(&self, revision: &str) -> Result<BTreeSet<String>> {
        let path = format!("{CONFIGMAPS}?watch=1&timeoutSeconds=3&resourceVersion={revision}");
        let (status, body) = self.ask("GET", &path, "")?;
        ensure!(status == 200, "status {status}: {body}");
        let events = body.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        if let Some(error) = events.iter().find(|event| event["type"] == "ERROR") {
            anyhow::bail!("the watch ended with {error}");
        }
        let added = events.iter().filter(|event| event["type"] == "ADDED");
        Ok(added.filter_map(|event| event["object"]["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn a_part_that_is_told_to_end_does(cluster: &Cluster) -> Result<()> {
    // What a supervisor blocks for itself its children would never hear: every part, and each container of theirs.
    for (node, part) in [(&cluster.nodes[1], "agent"), (&cluster.nodes[1], "containerd")] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.process(&node.name, part)?))?;
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap_or_default().trim();
        let blocked = u64::from_str_radix(blocked, 16)?;
        let terminate = 1 << (libc::SIGTERM - 1);
        ensure!(blocked & terminate == 0, "{part} of {} blocks SIGTERM: {blocked:x}", node.name);
    }
    Ok(())
}

//! Pods come and go in numbers: most as the runtime's calls of the CNI plugin alone, which is all that the network sees
//! of them (containerd would take minutes for as many), some of them whole.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Node};
use leme_tests_survival::scale;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::survive;

const WORKERS: usize = 4;

pub(crate) fn pods_that_come_and_go_fail_no_request(cluster: &Cluster) -> Result<()> {
    survive(cluster, || {
        let (attachments, whole) = (scale(960, 150), scale(40, 12));
        let next = &AtomicUsize::new(0);
        thread::scope(|scope| {
            let worker = || scope.spawn(move || attach_and_detach(cluster, next, attachments));
            let workers: Vec<_> = (0..WORKERS).map(|_| worker()).collect();
            let pods = create_and_delete(cluster, whole);
            let attached = workers.into_iter().try_for_each(|it| it.join().expect("a worker does not panic"));
            attached.and(pods)
        })
    })
}

/// In batches, each deleted while some of it is still starting.
fn create_and_delete(cluster: &Cluster, whole: usize) -> Result<()> {
    const BATCH: usize = 6;
    for batch in 0..whole.div_ceil(BATCH) {
        let items: Vec<Value> = (0..BATCH).map(|index| pod(&format!("churn-{batch}-{index}"))).collect();
        let file = cluster.path("churn.json");
        fs::write(&file, json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
        cluster.kubectl(&["create", "-f", &file.to_string_lossy()])?;
        // One of them at least has run.
        cluster.wait_for_pod(&format!("churn-{batch}-0"))?;
        cluster.kubectl(&["delete", "pods", "-l", "app=churn", "--wait=false"])?;
    }
    cluster.wait_until_gone("pods", "app=churn")
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "churn" } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "nginx", "image": "nginx", "imagePullPolicy": "IfNotPresent" }],
        },
    })
}

/// Takes numbers until there are none left. The thread makes the pods' namespaces: its own, one after the other.
fn attach_and_detach(cluster: &Cluster, next: &AtomicUsize, count: usize) -> Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return Ok(());
        }
        let node = &cluster.nodes[number % cluster.nodes.len()];
        thread::scope(|scope| {
            let pod = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let namespace = fs::File::open("/proc/thread-self/ns/net")?;
                let path =
                    format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&namespace.as_fd()));
                // Addresses rest after their use: "try again later" is what a runtime hears, and does.
                let added =
                    eventually(Duration::from_secs(60), "it is attached", || call(cluster, node, "ADD", number, &path));
                // As a runtime does, whatever came of ADD.
                call(cluster, node, "DEL", number, &path)?;
                added
            });
            pod.join().expect("a pod's thread does not panic")
        })
        .with_context(|| format!("attachment {number} on {}", node.name))?;
    }
}

/// The plugin as a runtime calls it.
fn call(cluster: &Cluster, node: &Node, verb: &str, number: usize, namespace: &str) -> Result<()> {
    let plugin = std::env::var_os("LEME_CNI_BIN").context("LEME_CNI_BIN is not set")?;
    let mut child = Command::new(plugin)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("survival{number:06}"))
        .env("CNI_NETNS", namespace)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/nowhere")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let socket = cluster.node_folder(&node.name).join("run/leme/cni.sock");
    let network = json!({ "cniVersion": "1.0.0", "name": "leme", "type": "leme-cni", "socket": socket });
    child.stdin.take().context("no input")?.write_all(network.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{verb}: {said}");
    Ok(())
}

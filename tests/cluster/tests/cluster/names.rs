//! Names, as pods and nodes ask for them.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::cluster::{expect_all, manifest};
use leme_tests_cluster::hammer::Hammer;
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Lines of `dig +short` in a pod.
fn dig(cluster: &Cluster, pod: &str, words: &[&str]) -> Result<BTreeSet<String>> {
    let text = cluster.exec(pod, &[&["dig", "+short", "+tries=1", "+time=5"], words].concat())?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

pub(crate) fn names_of_services_resolve(cluster: &Cluster) -> Result<()> {
    cluster.web(3)?;
    let address = cluster.service("nginx")?.0.to_string();
    for pod in cluster.tools()? {
        for (name, wanted) in [
            ("nginx", address.as_str()),
            ("nginx.default", &address),
            ("nginx.default.svc.cluster.local", &address),
            ("kubernetes.default", "10.96.0.1"),
            ("kube-dns.kube-system.svc", "10.96.0.10"),
        ] {
            let text = cluster.exec(&pod.name, &["nslookup", name])?;
            expect_all(&text, &["Server:\t\t10.96.0.10", &format!("Address: {wanted}")])
                .with_context(|| format!("nslookup {name} in {}", pod.name))?;
        }
        let page = cluster.exec(&pod.name, &["curl", "-sS", "--max-time", "5", "http://nginx:8000/"])?;
        ensure!(page.contains("Welcome to nginx"), "{page}");
        let tcp = dig(cluster, &pod.name, &["+tcp", "nginx.default.svc.cluster.local"])?;
        ensure!(tcp == set(&[&address]), "over TCP {tcp:?}");
    }
    let unknown = cluster.exec("tools-1", &["dig", "no-such-name.default.svc.cluster.local"])?;
    expect_all(&unknown, &["status: NXDOMAIN", "SOA"])?;
    let empty = cluster.exec("tools-1", &["dig", "nginx.default.svc.cluster.local", "AAAA"])?;
    expect_all(&empty, &["status: NOERROR", "ANSWER: 0"])
}

pub(crate) fn headless_services_name_their_pods(cluster: &Cluster) -> Result<()> {
    let pods = cluster.web(3)?;
    if !cluster.try_kubectl(&["get", "service", "each"])?.success {
        cluster.kubectl(&["create", "-f", &manifest("headless.yaml")])?;
    }
    let pod = cluster.tools()?.remove(0).name;
    let wanted: BTreeSet<_> = pods.iter().map(|pod| pod.address.to_string()).collect();
    eventually(Duration::from_secs(10), "the name stands for all pods", || {
        let found = dig(cluster, &pod, &["each.default.svc.cluster.local"])?;
        ensure!(found == wanted, "{found:?} instead of {wanted:?}");
        Ok(())
    })?;
    let records = dig(cluster, &pod, &["SRV", "_http._tcp.each.default.svc.cluster.local"])?;
    ensure!(records.len() == 3, "{records:?}");
    let mut targets = BTreeSet::new();
    for record in &records {
        let fields: Vec<_> = record.split(' ').collect();
        ensure!(fields.len() == 4 && fields[2] == "80", "{record}");
        targets.extend(dig(cluster, &pod, &[fields[3]])?);
    }
    ensure!(targets == wanted, "SRV targets are {targets:?}");
    Ok(())
}

pub(crate) fn addresses_resolve_to_names(cluster: &Cluster) -> Result<()> {
    cluster.web(3)?;
    let pod = cluster.tools()?.remove(0).name;
    let address = cluster.service("nginx")?.0.to_string();
    let names = dig(cluster, &pod, &["-x", &address])?;
    ensure!(names == set(&["nginx.default.svc.cluster.local."]), "{address} is {names:?}");
    let names = dig(cluster, &pod, &["-x", "10.96.0.1"])?;
    ensure!(names == set(&["kubernetes.default.svc.cluster.local."]), "10.96.0.1 is {names:?}");
    Ok(())
}

/// A UDP Service from the nodes: nothing in their own network has that address.
pub(crate) fn nodes_ask_the_name_service_too(cluster: &Cluster) -> Result<()> {
    cluster.web(3)?;
    let name = "nginx.default.svc.cluster.local";
    let start = |node: &str| Hammer::start_by_name(cluster, Place::Node(node), name, 8000);
    let hammers: Vec<_> = cluster.nodes.iter().map(|node| start(&node.name)).collect::<Result<_>>()?;
    thread::sleep(Duration::from_secs(3));
    hammers.into_iter().try_for_each(Hammer::stop_without_failure)
}

/// The first node's resolver becomes one of ours, and what it alone knows is known in a pod there.
pub(crate) fn names_outside_of_the_cluster_are_forwarded(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0].name;
    let socket = UdpSocket::bind((cluster.gateway(), 53)).context("cannot be a resolver")?;
    thread::spawn(move || serve(&socket));
    let folder = cluster.node_folder(node);
    fs::write(folder.join("resolv.conf"), format!("nameserver {}\n", cluster.gateway()))?;
    let server: i32 = fs::read_to_string(folder.join("run/leme/dns.pid"))?.trim().parse()?;
    // It reads its resolvers when it starts; the agent starts it again.
    kill(Pid::from_raw(server), Signal::SIGKILL)?;
    let pod = cluster.tools()?.remove(0).name;
    eventually(Duration::from_secs(20), "an outside name resolves", || {
        let found = dig(cluster, &pod, &["outside.example"])?;
        ensure!(found == set(&["192.0.2.7"]), "{found:?}");
        Ok(())
    })
}

/// Answers every question with 192.0.2.7.
fn serve(socket: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut question) {
        let Some(end) = question[12..length].iter().position(|byte| *byte == 0).map(|end| 12 + end + 5) else {
            continue;
        };
        let mut answer = question[..end.min(length)].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 7]);
        let _ = socket.send_to(&answer, client);
    }
}

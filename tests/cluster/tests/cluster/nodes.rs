//! What a person sees first: the cluster comes up, its nodes are there and say how they are.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use leme_tests_cluster::cluster::{binary, expect_all};
use leme_tests_cluster::{Cluster, command};

pub(crate) fn up_ends_with_how_to_use_the_cluster(cluster: &Cluster) -> Result<()> {
    let down = format!("leme down --name {}", cluster.name);
    expect_all(&cluster.greeting, &["is ready after", "kubectl get nodes", &down])?;
    ensure!(cluster.took < Duration::from_secs(60), "it took {:?}", cluster.took);
    let contexts = cluster.kubectl(&["config", "get-contexts", "-o", "name"])?;
    let context = format!("leme-{}", cluster.name);
    expect_all(&contexts, &["elsewhere", &context])?;
    ensure!(cluster.kubectl(&["config", "current-context"])?.trim() == context, "another context is current");
    Ok(())
}

pub(crate) fn kubectl_knows_the_server_and_where_things_are(cluster: &Cluster) -> Result<()> {
    expect_all(&cluster.kubectl(&["version"])?, &["Server Version: v1.36."])?;
    let server = format!("https://{}:6443", cluster.nodes[0].address);
    let info = cluster.kubectl(&["cluster-info"])?;
    expect_all(&info, &["Kubernetes control plane", &server, "services/kube-dns:dns/proxy"])
}

pub(crate) fn three_nodes_are_ready(cluster: &Cluster) -> Result<()> {
    let table = cluster.kubectl(&["get", "nodes", "-o", "wide", "--no-headers"])?;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows.len() == 3, "{table}");
    for (row, node) in rows.iter().zip(&cluster.nodes) {
        let role = if node == &cluster.nodes[0] { "control-plane" } else { "<none>" };
        ensure!(row[..3] == [node.name.as_str(), "Ready", role] && row[4].starts_with("v1.36."), "{table}");
        ensure!(row[5] == node.address.to_string() && table.contains("containerd://"), "{table}");
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    expect_all(&table, &[kernel.trim()])
}

pub(crate) fn a_node_is_described_whole(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let text = cluster.kubectl(&["describe", "node", &node.name])?;
        let hostname = format!("kubernetes.io/hostname={}", node.name);
        let parts = [
            &hostname,
            "kubernetes.io/os=linux",
            "kubernetes.io/arch=",
            "Taints:",
            "Unschedulable:",
            "Lease:",
            "MemoryPressure",
            "KubeletHasSufficientMemory",
            "DiskPressure",
            "KubeletHasNoDiskPressure",
            "PIDPressure",
            "KubeletHasSufficientPID",
            "KubeletReady",
            "InternalIP:",
            "Hostname:",
            "Capacity:",
            "Allocatable:",
            "cpu:",
            "memory:",
            "ephemeral-storage:",
            "pods:               110",
            "System Info:",
            "Machine ID:",
            "Boot ID:",
            "Kernel Version:",
            "OS Image:",
            "Container Runtime Version:",
            "containerd://",
            "Kubelet Version:",
            "v1.36.",
            "PodCIDR:",
            "Non-terminated Pods:",
            "Allocated resources:",
            "Events:",
            "RegisteredNode",
            "NodeReady",
        ];
        expect_all(&text, &parts)?;
    }
    Ok(())
}

pub(crate) fn a_node_keeps_a_part_for_itself(cluster: &Cluster) -> Result<()> {
    for node in cluster.get(&["nodes"])?["items"].as_array().into_iter().flatten() {
        let status = &node["status"];
        let (all, rest) = (&status["capacity"]["memory"], &status["allocatable"]["memory"]);
        ensure!(rest.is_string() && all != rest, "{rest} of {all} are for pods");
        ensure!(status["capacity"]["cpu"] == status["allocatable"]["cpu"], "{status}");
    }
    Ok(())
}

pub(crate) fn conditions_are_there_for_scripts(cluster: &Cluster) -> Result<()> {
    let path =
        "jsonpath={range .items[*]}{@.metadata.name}:{range @.status.conditions[*]}{@.type}={@.status};{end}\n{end}";
    let text = cluster.kubectl(&["get", "nodes", "-o", path])?;
    for node in &cluster.nodes {
        let line = text.lines().find(|line| line.starts_with(&format!("{}:", node.name))).unwrap_or_default();
        expect_all(line, &["Ready=True;", "MemoryPressure=False;", "DiskPressure=False;", "PIDPressure=False;"])?;
    }
    Ok(())
}

pub(crate) fn up_of_a_running_cluster_changes_nothing(cluster: &Cluster) -> Result<()> {
    let processes = || -> Result<Vec<i32>> {
        let agents = cluster.nodes.iter().map(|node| cluster.process(&node.name, "agent"));
        agents.chain([cluster.process(&cluster.nodes[0].name, "server")]).collect()
    };
    let before = processes()?;
    cluster.run_up()?;
    ensure!(processes()? == before, "processes were replaced");
    Ok(())
}

pub(crate) fn a_name_is_taken_once_on_the_machine(cluster: &Cluster) -> Result<()> {
    let elsewhere = cluster.path("elsewhere");
    let mut up = Command::new(binary());
    up.args(["up", "--name", &cluster.name, "--state-dir"]).arg(&elsewhere);
    up.env("PATH", cluster.path("bin")).env("HOME", cluster.path("home")).env("KUBECONFIG", cluster.kubeconfig());
    let outcome = command::run(&mut up, Duration::from_secs(60))?;
    ensure!(!outcome.success, "a second cluster of this name was made:\n{}", outcome.stdout);
    expect_all(&outcome.stderr, &["is taken", &cluster.path("clusters").to_string_lossy()])?;
    ensure!(!elsewhere.exists(), "the refused cluster left {}", elsewhere.display());
    three_nodes_are_ready(cluster)
}

/// The last one on its cluster: the others count three nodes.
pub(crate) fn up_of_a_running_cluster_adds_a_node(cluster: &Cluster) -> Result<()> {
    let up = |nodes: &str| command::run(cluster.leme("up").args(["--nodes", nodes]), Duration::from_secs(120));
    let kubeconfig = fs::read(cluster.kubeconfig())?;
    let outcome = up("4")?;
    ensure!(outcome.success, "{}{}", outcome.stdout, outcome.stderr);
    ensure!(fs::read(cluster.kubeconfig())? == kubeconfig, "the kubeconfig is another");
    let fourth = format!("{}-4", cluster.name);
    cluster.kubectl(&["wait", "--for=condition=Ready", "node", &fourth, "--timeout=30s"])?;
    let there = format!(r#"{{"spec":{{"nodeSelector":{{"kubernetes.io/hostname":"{fourth}"}}}}}}"#);
    cluster.kubectl(&["run", "fourth", "--image=nginx", "--overrides", &there])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/fourth", "--timeout=60s"])?;
    let outcome = up("2")?;
    ensure!(!outcome.success && outcome.stderr.contains("has 4 nodes"), "{}{}", outcome.stdout, outcome.stderr);
    Ok(())
}

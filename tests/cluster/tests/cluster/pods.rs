//! A pod's life, from `create` to `delete`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leme_tests_cluster::cluster::{expect_all, manifest};
use leme_tests_cluster::wait::eventually;
use leme_tests_cluster::{Cluster, Pod, command};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The pod of the manifest, made if it is not there.
fn nginx(cluster: &Cluster) -> Result<Pod> {
    if !cluster.try_kubectl(&["get", "pod", "nginx"])?.success {
        cluster.kubectl(&["create", "-f", &manifest("pod.yaml")])?;
    }
    cluster.wait_for_pod("nginx")
}

pub(crate) fn at_first_there_are_no_pods(cluster: &Cluster) -> Result<()> {
    let outcome = cluster.try_kubectl(&["get", "pods"])?;
    ensure!(outcome.success && outcome.stdout.is_empty(), "{outcome:?}");
    ensure!(outcome.stderr.trim() == "No resources found in default namespace.", "{outcome:?}");
    Ok(())
}

pub(crate) fn a_pod_is_created_and_runs(cluster: &Cluster) -> Result<()> {
    let said = cluster.kubectl(&["create", "-f", &manifest("pod.yaml")])?;
    ensure!(said == "pod/nginx created\n", "{said}");
    cluster.wait_for_pod("nginx")?;
    let row = cluster.kubectl(&["get", "pod", "nginx", "--no-headers"])?;
    ensure!(row.split_whitespace().collect::<Vec<_>>()[..4] == ["nginx", "1/1", "Running", "0"], "{row}");
    Ok(())
}

pub(crate) fn a_pod_is_described_whole(cluster: &Cluster) -> Result<()> {
    let pod = nginx(cluster)?;
    // Events are written behind the pod's back.
    eventually(Duration::from_secs(10), "the description is whole", || {
        let text = cluster.kubectl(&["describe", "pod", "nginx"])?;
        let node = format!("{}/", pod.node);
        let address = format!("IP:               {}", pod.address);
        let container = format!("Container ID:   containerd://{}", pod.container);
        let parts = [
            &node,
            &address,
            &container,
            "Service Account:  default",
            "Start Time:",
            "Image ID:",
            "@sha256:",
            "State:          Running",
            "Ready:          True",
            "Restart Count:  0",
            "PodReadyToStartContainers   True",
            "Initialized                 True",
            "ContainersReady             True",
            "PodScheduled                True",
            "kube-api-access-",
            "QoS Class:                   BestEffort",
            "node.kubernetes.io/not-ready:NoExecute op=Exists for 300s",
            "node.kubernetes.io/unreachable:NoExecute op=Exists for 300s",
            "Scheduled",
            "Successfully assigned default/nginx to",
        ];
        expect_all(&text, &parts)?;
        let reasons: BTreeSet<_> = cluster.events("nginx")?.into_iter().map(|(reason, _)| reason).collect();
        let wanted = ["Scheduled", "Pulled", "Created", "Started"].map(str::to_owned);
        ensure!(wanted.iter().all(|reason| reasons.contains(reason)), "{reasons:?}");
        expect_all(&text, &["Pulling image \"nginx:1.7.9\"", "Successfully pulled image \"nginx:1.7.9\""])
    })
}

pub(crate) fn the_runtime_of_its_node_has_the_container_and_its_sandbox(cluster: &Cluster) -> Result<()> {
    let pod = nginx(cluster)?;
    let list = |words: &[&str]| {
        let words = [&["ctr", "--namespace", "k8s.io"], words].concat();
        command::output(&mut cluster.on_node(&pod.node, &words), Duration::from_secs(20))
    };
    let tasks = list(&["tasks", "list"])?;
    let running = tasks.lines().filter(|line| line.contains("RUNNING")).count();
    ensure!(running >= 2 && tasks.contains(&pod.container), "{tasks}");
    let containers = list(&["containers", "list"])?;
    expect_all(&containers, &["nginx:1.7.9", "registry.k8s.io/pause:"])
}

pub(crate) fn a_container_whose_process_is_killed_starts_again(cluster: &Cluster) -> Result<()> {
    let before = nginx(cluster)?;
    kill(Pid::from_raw(before.process()?), Signal::SIGKILL)?;
    let after = eventually(Duration::from_secs(30), "the container is started again", || {
        let pod = Pod::running(&cluster.get(&["pod", "nginx"])?).context("it does not run")?;
        ensure!(pod.restarts == before.restarts + 1, "{} restarts", pod.restarts);
        Ok(pod)
    })?;
    ensure!(after.container != before.container, "the same container");
    ensure!((&after.node, after.address) == (&before.node, before.address), "another sandbox");
    let value = cluster.get(&["pod", "nginx"])?;
    let last = &value["status"]["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(last["exitCode"] == 137 && last["reason"] == "Error", "last state {last}");
    Ok(())
}

pub(crate) fn a_deleted_pod_is_gone(cluster: &Cluster) -> Result<()> {
    let pod = nginx(cluster)?;
    let said = cluster.kubectl(&["delete", "pod", "nginx"])?;
    ensure!(said.starts_with("pod \"nginx\" deleted"), "{said}");
    let refusal = cluster.kubectl_refuses(&["get", "pod", "nginx"])?;
    ensure!(refusal.trim() == "Error from server (NotFound): pods \"nginx\" not found", "{refusal}");
    ensure!(pod.process().is_err(), "its process is still there");
    Ok(())
}

pub(crate) fn replicas_are_on_different_nodes_with_unique_addresses(cluster: &Cluster) -> Result<()> {
    let said = cluster.kubectl(&["create", "deployment", "nginx", "--image=nginx", "--replicas", "3"])?;
    ensure!(said == "deployment.apps/nginx created\n", "{said}");
    let pods = cluster.wait_for_pods("app=nginx", 3)?;
    let nodes: BTreeSet<_> = pods.iter().map(|pod| &pod.node).collect();
    let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    ensure!(nodes.len() == 3, "only on {nodes:?}");
    ensure!(addresses.len() == 3, "only {addresses:?}");
    let table = cluster.kubectl(&["get", "pods", "-o", "wide"])?;
    for pod in &pods {
        expect_all(&table, &[&pod.name, &pod.node, &pod.address.to_string()])?;
    }
    Ok(())
}

//! A deployment changes while clients go on asking.

use anyhow::{Result, ensure};
use leme_tests_cluster::cluster::expect_all;
use leme_tests_cluster::hammer::Hammer;
use leme_tests_cluster::{Cluster, Place};

pub(crate) fn everything_is_listed(cluster: &Cluster) -> Result<()> {
    let pods = cluster.web(3)?;
    let all = cluster.kubectl(&["get", "all", "--all-namespaces"])?;
    expect_all(&all, &["service/kubernetes", "service/kube-dns", "deployment.apps/nginx", "replicaset.apps/nginx-"])?;
    pods.iter().try_for_each(|pod| expect_all(&all, &[&format!("pod/{}", pod.name)]))
}

pub(crate) fn no_request_fails_while_a_deployment_changes(cluster: &Cluster) -> Result<()> {
    cluster.web(3)?;
    let tools = cluster.tools()?;
    let (address, _) = cluster.service("nginx")?;
    let target = (address, 8000).into();
    let from_pod = Hammer::start(cluster, Place::Pod(&tools[0]), target)?;
    let from_node = Hammer::start(cluster, Place::Node(&cluster.nodes[0].name), target)?;
    scale(cluster, 10)?;
    set_image(cluster)?;
    let said = cluster.kubectl(&["rollout", "undo", "deployment/nginx"])?;
    ensure!(said == "deployment.apps/nginx rolled back\n", "{said}");
    status(cluster)?;
    expect_image(cluster, "nginx", 10)?;
    scale(cluster, 3)?;
    from_pod.stop_without_failure()?;
    from_node.stop_without_failure()
}

fn scale(cluster: &Cluster, replicas: usize) -> Result<()> {
    let said = cluster.kubectl(&["scale", "deployment", "nginx", &format!("--replicas={replicas}")])?;
    ensure!(said == "deployment.apps/nginx scaled\n", "{said}");
    cluster.wait_for_pods("app=nginx", replicas).map(drop)
}

fn set_image(cluster: &Cluster) -> Result<()> {
    let said = cluster.kubectl(&["set", "image", "deployment/nginx", "nginx=nginx:1.7.9"])?;
    ensure!(said == "deployment.apps/nginx image updated\n", "{said}");
    status(cluster)?;
    expect_image(cluster, "nginx:1.7.9", 10)
}

fn status(cluster: &Cluster) -> Result<()> {
    let said = cluster.kubectl(&["rollout", "status", "deployment/nginx", "--timeout=150s"])?;
    expect_all(&said, &["deployment \"nginx\" successfully rolled out"])
}

fn expect_image(cluster: &Cluster, image: &str, count: usize) -> Result<()> {
    cluster.wait_for_pods("app=nginx", count)?;
    let path = "jsonpath={range .items[*]}{.spec.containers[0].image}\n{end}";
    let images = cluster.kubectl(&["get", "pods", "-l", "app=nginx", "-o", path])?;
    ensure!(images.lines().count() == count && images.lines().all(|line| line == image), "{images}");
    Ok(())
}

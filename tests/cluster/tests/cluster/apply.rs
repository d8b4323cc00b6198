//! `kubectl apply`: what is the same stays, what differs changes, what this version does not know is refused.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use leme_tests_cluster::Cluster;
use leme_tests_cluster::cluster::{expect_all, manifest};
use leme_tests_cluster::wait::eventually;

fn apply(cluster: &Cluster, file: &str) -> Result<String> {
    cluster.kubectl(&["apply", "-f", file]).map(|said| said.trim().to_owned())
}

pub(crate) fn applying_twice_changes_nothing(cluster: &Cluster) -> Result<()> {
    let file = manifest("deployment.yaml");
    let said = apply(cluster, &file)?;
    ensure!(said == "deployment.apps/site created", "{said}");
    cluster.wait_for_pods("app=site", 2)?;
    let said = apply(cluster, &file)?;
    ensure!(said == "deployment.apps/site unchanged", "{said}");
    let changed = cluster.path("deployment.yaml");
    fs::write(&changed, fs::read_to_string(&file)?.replace("replicas: 2", "replicas: 3"))?;
    let said = apply(cluster, &changed.to_string_lossy())?;
    ensure!(said == "deployment.apps/site configured", "{said}");
    cluster.wait_for_pods("app=site", 3)?;
    apply(cluster, &file)?;
    cluster.wait_for_pods("app=site", 2).map(drop)
}

pub(crate) fn a_service_has_the_endpoints_of_its_pods(cluster: &Cluster) -> Result<()> {
    apply(cluster, &manifest("deployment.yaml"))?;
    let said = apply(cluster, &manifest("service.yaml"))?;
    ensure!(said == "service/site created", "{said}");
    let pods = cluster.wait_for_pods("app=site", 2)?;
    let wanted: BTreeSet<_> = pods.iter().map(|pod| pod.address.to_string()).collect();
    eventually(Duration::from_secs(10), "the slices name the pods", || {
        let selector = "kubernetes.io/service-name=site";
        let path = "jsonpath={range .items[*].endpoints[*]}{.addresses[0]}\n{end}";
        let text = cluster.kubectl(&["get", "endpointslices", "-l", selector, "-o", path])?;
        let found: BTreeSet<_> = text.lines().map(str::to_owned).collect();
        ensure!(found == wanted, "{found:?} instead of {wanted:?}");
        let table = cluster.kubectl(&["get", "endpointslices", "-l", selector, "--no-headers"])?;
        expect_all(&table, &["IPv4", "80"])?;
        wanted.iter().try_for_each(|address| expect_all(&table, &[address]))
    })?;
    cluster.kubectl(&["delete", "-f", &manifest("service.yaml"), "-f", &manifest("deployment.yaml")])?;
    cluster.wait_until_gone("pods", "app=site")
}

pub(crate) fn an_api_of_old_is_refused(cluster: &Cluster) -> Result<()> {
    let refusal = cluster.kubectl_refuses(&["apply", "-f", &manifest("deployment-of-old.yaml")])?;
    expect_all(&refusal, &["no matches for kind \"Deployment\" in version \"extensions/v1beta1\""])?;
    let left = cluster.try_kubectl(&["get", "deployments,pods", "-A", "-l", "app=relic"])?;
    ensure!(left.stderr.trim() == "No resources found", "{left:?}");
    expect_all(&cluster.kubectl_refuses(&["get", "deployment", "relic"])?, &["(NotFound)"])
}

//! The clients that go on all the time: what each asks must be answered.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use leme_tests_cluster::hammer::Hammer;
use leme_tests_cluster::{Cluster, Place, Pod};

/// Each client asks at least for so long.
const LEAST: Duration = Duration::from_secs(10);

pub struct Traffic {
    hammers: Vec<Hammer>,
    since: Instant,
}

/// The pods that answer: one on each of the first two nodes, behind the NodePort Service `steady`.
fn servers(cluster: &Cluster) -> Result<(Ipv4Addr, u16)> {
    if !cluster.try_kubectl(&["get", "service", "steady"])?.success {
        for (index, node) in cluster.nodes.iter().take(2).enumerate() {
            let name = format!("steady-{}", index + 1);
            let there = format!(r#"{{"spec":{{"nodeName":"{}"}}}}"#, node.name);
            cluster.kubectl(&["run", &name, "--image=nginx", "--labels=app=steady", "--overrides", &there])?;
        }
        cluster.kubectl(&["create", "service", "nodeport", "steady", "--tcp=8000:80"])?;
    }
    cluster.wait_for_pods("app=steady", 2)?;
    cluster.service("steady")
}

impl Traffic {
    /// Between the first two nodes, their pods and the outside; the third is free to suffer.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let tools = cluster.tools()?;
        let (address, port) = servers(cluster)?;
        let cluster_ip = SocketAddr::from((address, 8000));
        let node_port = |index: usize| SocketAddr::from((cluster.nodes[index].address, port));
        Self::wait_until_served(cluster, &tools, &[cluster_ip, node_port(0), node_port(1)])?;
        let hammers = vec![
            // Over UDP through a Service for the name, then over a new connection.
            Hammer::start_by_name(cluster, Place::Pod(&tools[0]), "steady.default.svc.cluster.local", 8000)?,
            Hammer::start(cluster, Place::Pod(&tools[1]), cluster_ip)?,
            Hammer::start(cluster, Place::Node(&cluster.nodes[0].name), cluster_ip)?,
            Hammer::start(cluster, Place::Machine, node_port(0))?,
            Hammer::hold(cluster, Place::Pod(&tools[0]), cluster_ip)?,
            Hammer::hold(cluster, Place::Pod(&tools[1]), cluster_ip)?,
            Hammer::hold(cluster, Place::Machine, node_port(1))?,
        ];
        Ok(Self { hammers, since: Instant::now() })
    }

    /// Endpoints arrive at every node in their own time; nothing has been promised before.
    fn wait_until_served(cluster: &Cluster, tools: &[Pod], targets: &[SocketAddr]) -> Result<()> {
        leme_tests_cluster::tables::check(cluster)?;
        let cluster_ip = targets[0];
        leme_tests_cluster::wait::eventually(Duration::from_secs(20), "the servers answer", || {
            leme_tests_cluster::client::ask(cluster, Place::Pod(&tools[0]), cluster_ip, "/", 10)?;
            targets[1..].iter().try_for_each(|target| leme_tests_cluster::client::fetch(*target, "/").map(drop))
        })
    }

    /// Ends it: not one request may have failed.
    pub fn stop_without_failure(self) -> Result<()> {
        thread::sleep(LEAST.saturating_sub(self.since.elapsed()));
        self.hammers.into_iter().try_for_each(Hammer::stop_without_failure)
    }
}

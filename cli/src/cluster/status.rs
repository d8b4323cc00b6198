//! `leme status`: the nodes of a local cluster, their processes, and what the API says of them.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::Api;
use serde::Serialize;
use tokio::time::timeout;

use super::{Cluster, Node, Which, nic, process, ready};
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    which: Which,
    /// Table or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// One node as seen from the machine and from the API.
#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
    address: String,
    role: &'static str,
    /// Empty when everything is as it should be.
    problems: Vec<String>,
    processes: Vec<String>,
    memory_mib: u64,
}

/// Succeeds only when everything is well, so that scripts can ask.
pub(crate) async fn run(options: &Options) -> Result<ExitCode> {
    let cluster = options.which.load()?;
    let (nodes, problem) = ask(&cluster).await;
    let mut rows = Vec::new();
    for node in &cluster.nodes {
        rows.push(look(&cluster, node, nodes.as_deref()).await?);
    }
    output::print(options.output, &["NODE", "ADDRESS", "ROLE", "STATUS", "PROCESSES", "MEMORY"], &rows, |row| {
        let status = if row.problems.is_empty() { "Ready".to_owned() } else { row.problems.join("; ") };
        vec![
            row.name.clone(),
            row.address.clone(),
            row.role.to_owned(),
            status,
            row.processes.join(","),
            format!("{} MiB", row.memory_mib),
        ]
    })?;
    if let Some(problem) = problem {
        eprintln!("{} {problem}", output::red("API server:"));
    }
    let well = nodes.is_some() && rows.iter().all(|row| row.problems.is_empty());
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ask(cluster: &Cluster) -> (Option<Vec<ApiNode>>, Option<String>) {
    let list =
        async { anyhow::Ok(Api::<ApiNode>::all(ready::client(cluster).await?).list(&Default::default()).await?.items) };
    match timeout(Duration::from_secs(3), list).await {
        Ok(Ok(nodes)) => (Some(nodes), None),
        Ok(Err(error)) => (None, Some(format!("{error:#}"))),
        Err(_) => (None, Some("no answer within three seconds".to_owned())),
    }
}

async fn look(cluster: &Cluster, node: &Node, nodes: Option<&[ApiNode]>) -> Result<Row> {
    let (mut problems, mut processes, mut memory) = (Vec::new(), Vec::new(), 0);
    if cluster.supervisor(node).is_none() {
        problems.push("stopped".to_owned());
    } else {
        let wanted = node.control_plane.then_some("server").into_iter().chain(["containerd", "agent"]);
        for name in wanted {
            let program = if name == "containerd" { "containerd" } else { "leme" };
            match process::running(&cluster.node_dir(node).join(format!("pids/{name}.pid")), program) {
                Some(pid) => {
                    memory += resident(pid.as_raw());
                    processes.push(name.to_owned());
                }
                None => problems.push(format!(
                    "{name} is down, see {}",
                    cluster.node_dir(node).join(format!("log/{name}.log")).display()
                )),
            }
        }
        if !nic::is_up(node).await? {
            problems.push("its link is down".to_owned());
        }
        problems.extend(nodes.and_then(|nodes| ready::why_not_ready(&node.name, nodes)));
    }
    let role = if node.control_plane { "control-plane" } else { "worker" };
    Ok(Row {
        name: node.name.clone(),
        address: node.address.to_string(),
        role,
        problems,
        processes,
        memory_mib: memory >> 20,
    })
}

/// Bytes of a process in memory.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

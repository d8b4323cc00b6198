//! `leme status`: the nodes of a local cluster, their processes, what the API and the nodes' own agents say of them, and
//! what to do about it. Without a local cluster: this machine's agent.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::Api;
use leme_agent::network::Health;
use leme_agent::network::findings::{Finding, Severity};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Cluster, Node, Which, nic, process, ready};
use crate::output::{self, Format};

#[derive(Args)]
#[command(after_help = "Examples:
  leme status              exits with 0 only when all is well
  leme status -o json      for tools")]
pub(crate) struct Options {
    #[command(flatten)]
    which: Which,
    /// Table or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// One node as seen from the machine, from the API and from its agent.
#[derive(Serialize)]
struct Row {
    name: String,
    address: String,
    role: &'static str,
    /// What is wrong and what to do, the worst first; empty when everything is as it should be.
    findings: Vec<Finding>,
    processes: Vec<String>,
    memory_mib: u64,
}

const PATIENCE: Duration = Duration::from_secs(4);
/// Where an agent tells of itself.
const AGENT: (&str, u16) = ("127.0.0.1", 10248);

/// Succeeds only when everything is well, so that scripts can ask.
pub(crate) async fn run(options: &Options) -> Result<ExitCode> {
    match Cluster::load(&options.which.folder())? {
        Some(cluster) => show_cluster(&cluster, options).await,
        None => match ask_agent().await {
            Ok(health) => show_agent(&health, options.output),
            // A sentence that there is no cluster.
            Err(_) => options.which.load().map(|_| ExitCode::FAILURE),
        },
    }
}

async fn show_cluster(cluster: &Cluster, options: &Options) -> Result<ExitCode> {
    let (format, arguments) = (options.output, options.which.arguments());
    let (nodes, problem) = ask_api(cluster).await;
    let mut rows = Vec::new();
    for node in &cluster.nodes {
        rows.push(look(cluster, node, nodes.as_deref(), &arguments).await?);
    }
    output::print(format, &["NODE", "ADDRESS", "ROLE", "STATUS", "PROCESSES", "MEMORY"], &rows, |row| {
        let memory = format!("{} MiB", row.memory_mib);
        let processes = row.processes.join(",");
        vec![row.name.clone(), row.address.clone(), row.role.to_owned(), summary(&row.findings), processes, memory]
    })?;
    if format == Format::Table {
        rows.iter().for_each(|row| explain(&row.name, &row.findings));
    }
    if let Some(problem) = problem {
        eprintln!("{} {problem}", output::red("API server:"));
    }
    Ok(code(nodes.is_some() && rows.iter().all(|row| is_well(&row.findings))))
}

fn show_agent(health: &Health, format: Format) -> Result<ExitCode> {
    let mut findings = health.findings.clone();
    findings.extend(health.not_ready.as_ref().map(|reason| not_ready(reason)));
    let row = [(&health.node, findings)];
    if format == Format::Json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!([{ "name": row[0].0, "findings": row[0].1 }]))?);
    } else {
        print!(
            "{}",
            output::table(&["NODE", "STATUS"], row.iter().map(|(name, it)| vec![(*name).clone(), summary(it)]))
        );
        explain(row[0].0, &row[0].1);
    }
    Ok(code(is_well(&row[0].1)))
}

fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity == Severity::Info)
}

/// A word or two; the sentences stand below the table.
fn summary(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let told = [(count(Severity::Error), "problem"), (count(Severity::Warning), "warning")];
    let told = told.into_iter().filter(|(count, _)| *count > 0);
    let told: Vec<_> =
        told.map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" })).collect();
    match (told.is_empty(), count(Severity::Error)) {
        (true, _) => "Ready".to_owned(),
        (false, 0) => format!("Ready, {}", told.join(", ")),
        _ => told.join(", "),
    }
}

fn explain(node: &str, findings: &[Finding]) {
    for Finding { id, severity, what, advice } in findings {
        let kind = format!("{}:", severity.name());
        let kind = if *severity == Severity::Info { kind } else { output::red(&kind) };
        println!("\n{node}: {kind} {what} ({id})\n  {advice}");
    }
}

async fn ask_api(cluster: &Cluster) -> (Option<Vec<ApiNode>>, Option<String>) {
    let list =
        async { anyhow::Ok(Api::<ApiNode>::all(ready::client(cluster).await?).list(&Default::default()).await?.items) };
    match timeout(Duration::from_secs(3), list).await {
        Ok(Ok(nodes)) => (Some(nodes), None),
        Ok(Err(error)) => (None, Some(blame(cluster, &output::causes(&error)).await)),
        Err(_) => (None, Some(blame(cluster, "no answer within three seconds").await)),
    }
}

/// Which part of the server is to blame, by what its health tells anybody.
async fn blame(cluster: &Cluster, failure: &str) -> String {
    let log = cluster.node_dir(cluster.control_plane()).join("log/server.log");
    let Ok(Ok(failed)) = timeout(PATIENCE, failed_checks(cluster)).await else {
        return format!("{failure}\n  {} does not tell its health either; see {}", cluster.server_url(), log.display());
    };
    match failed.as_slice() {
        [] => failure.to_owned(),
        names if names.iter().any(|name| name == "etcd") => format!(
            "{failure}: etcd at {} does not answer, and everything waits for it\n  start etcd again or mend the way to \
             it; the server goes on by itself",
            cluster.etcd_endpoints.join(", ")
        ),
        names => format!("{failure}: not ready ({})\n  see {}", names.join(", "), log.display()),
    }
}

/// The checks of `/readyz` that fail, by upstream's names.
async fn failed_checks(cluster: &Cluster) -> Result<Vec<String>> {
    let request = http::Request::get("/readyz?verbose").body(Vec::new().into())?;
    let answer = ready::client(cluster).await?.send(request).await?.into_body().collect_bytes().await?;
    let failed = |line: &str| Some(line.strip_prefix("[-]")?.split(' ').next()?.to_owned());
    Ok(String::from_utf8_lossy(&answer).lines().filter_map(failed).collect())
}

/// What the agent of this network namespace says.
async fn ask_agent() -> Result<Health> {
    let ask = async {
        let mut stream = TcpStream::connect(AGENT).await?;
        stream.write_all(b"GET /findings HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("the agent's answer is cut off")?;
        serde_json::from_str(body).context("the agent's answer is of another version")
    };
    timeout(PATIENCE, ask).await.context("the agent does not answer")?
}

async fn look(cluster: &Cluster, node: &Node, nodes: Option<&[ApiNode]>, arguments: &str) -> Result<Row> {
    let (mut findings, mut processes, mut memory) = (Vec::new(), Vec::new(), 0);
    if cluster.supervisor(node).is_none() {
        findings.push(problem(
            "node-stopped",
            "the node is switched off".into(),
            format!("leme node start{arguments} {}", node.name),
        ));
    } else {
        for Process { name, program, pid_file, log } in expected(cluster, node) {
            match process::running(&pid_file, program) {
                Some(pid) => {
                    memory += resident(pid.as_raw());
                    processes.push(name.to_owned());
                }
                None => findings.push(problem("process-down", format!("{name} is down"), restarts(name, &log))),
            }
        }
        if !nic::is_up(node).await? {
            let again = format!("leme up{arguments} makes it again");
            findings.push(problem("link-down", "the node's link is down".into(), again));
        }
        findings
            .extend(nodes.and_then(|nodes| ready::why_not_ready(&node.name, nodes)).map(|reason| not_ready(&reason)));
        if processes.iter().any(|name| name == "agent") {
            findings.extend(ask_node(cluster, node));
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let role = if node.control_plane { "control-plane" } else { "worker" };
    let (name, address) = (node.name.clone(), node.address.to_string());
    Ok(Row { name, address, role, findings, processes, memory_mib: memory >> 20 })
}

/// The agent of a node, asked from within its network.
fn ask_node(cluster: &Cluster, node: &Node) -> Vec<Finding> {
    let asked = cluster
        .namespaces(node)
        .within(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(ask_agent()));
    match asked {
        Ok(health) => health.findings,
        Err(error) => vec![problem(
            "agent-silent",
            format!("the agent does not say how its network is: {error:#}"),
            format!("see {}", cluster.node_dir(node).join("log/agent.log").display()),
        )],
    }
}

/// One process of a node and where it leaves its traces.
struct Process {
    name: &'static str,
    program: &'static str,
    pid_file: PathBuf,
    log: PathBuf,
}

fn expected(cluster: &Cluster, node: &Node) -> Vec<Process> {
    let folder = cluster.node_dir(node);
    let wanted = node.control_plane.then_some("server").into_iter().chain(["containerd", "agent"]);
    let supervised = wanted.map(|name| Process {
        name,
        program: if name == "containerd" { "containerd" } else { "leme" },
        pid_file: folder.join(format!("pids/{name}.pid")),
        log: folder.join(format!("log/{name}.log")),
    });
    let (pid_file, log) = (folder.join("run/leme/dns.pid"), folder.join("run/leme/dns.log"));
    supervised.chain([Process { name: "dns", program: "leme", pid_file, log }]).collect()
}

fn restarts(name: &str, log: &std::path::Path) -> String {
    let keeper = if name == "dns" { "the agent" } else { "the node's supervisor" };
    format!("{keeper} starts it again; if it stays away, see {}", log.display())
}

fn problem(id: &str, what: String, advice: String) -> Finding {
    Finding { id: id.into(), severity: Severity::Error, what, advice }
}

fn not_ready(reason: &str) -> Finding {
    problem("node-not-ready", reason.to_owned(), "what it names must be mended; the agent tries again by itself".into())
}

/// Bytes of a process in memory.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_what_is_wrong() {
        let finding = |severity| Finding { id: "x".into(), severity, what: "x".into(), advice: "y".into() };
        let (info, warning, error) = (finding(Severity::Info), finding(Severity::Warning), finding(Severity::Error));
        assert_eq!(summary(std::slice::from_ref(&info)), "Ready");
        assert_eq!(summary(&[warning.clone(), warning.clone()]), "Ready, 2 warnings");
        assert_eq!(summary(&[error, warning, info]), "1 problem, 1 warning");
    }
}

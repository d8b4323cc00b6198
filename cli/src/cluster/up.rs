//! `leme up`: looks at what there is of the cluster, makes what is missing, and waits until it can be used.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use ipnetwork::Ipv4Network;
use leme_control_plane::pki::{self, Authority, KubeconfigNames, Pki};
use nix::mount::{MsFlags, mount};

use super::claim::Claim;
use super::file::File;
use super::steps::Steps;
use super::{
    BPFFS, Cluster, Node, Traces, Which, containerd, etcd, kubeconfig, machine, namespace, nic, ready, require_root,
    valid_url,
};
use crate::output::{bold, say};

#[derive(Args)]
#[command(after_help = "Examples:
  leme up --nodes 3
  leme up --config kind.yaml
  leme up --nodes 5                     two more nodes for a cluster of three
  leme up --registry-mirror docker.io=http://127.0.0.1:5000
  leme up --etcd-endpoints https://127.0.0.1:2379 --etcd-cafile ca.crt")]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) which: Which,
    /// How many nodes; the first one also runs the control plane [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    nodes: Option<u8>,
    /// A file that describes the cluster: kind's Cluster, or ours (apiVersion leme.dev/v1alpha1)
    #[arg(long, value_name = "FILE", conflicts_with = "nodes")]
    config: Option<PathBuf>,
    /// Pull a registry's images from a mirror; one on this machine's loopback is reachable too
    #[arg(long, value_name = "HOST=URL", value_parser = mirror)]
    registry_mirror: Vec<(String, String)>,
    #[command(flatten)]
    etcd: etcd::Flags,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    require_root("a local cluster")?;
    containerd::check_programs()?;
    super::cgroup::unified()?;
    options.etcd.check()?;
    let file = options.config.as_deref().map(File::read).transpose()?;
    let mut which = options.which.clone();
    if let Some(name) = file.as_ref().and_then(|file| file.name.clone()).filter(|_| which.is_default()) {
        which.name = name;
    }
    let mut claim = Claim::hold(&which.name)?;
    let steps = Steps::begin();
    let mut cluster = plan(&options, &which, file.as_ref(), &mut claim).await?;
    install_binaries(&cluster)?;
    prepare_machine(&mut cluster)?;
    let authority = issue_certificates(&cluster)?;
    for node in &cluster.nodes {
        machine::clear(&cluster, node).await.with_context(|| format!("cannot clear what is left of {}", node.name))?;
        machine::prepare(&cluster, node, &authority)?;
    }
    steps.done("Certificates and configuration");
    start_nodes(&mut cluster, &steps).await?;
    wait(&cluster, &steps).await?;
    let census = claim.census()?;
    cluster.traces.kubeconfig = Some(kubeconfig::merge(&cluster)?);
    drop(census);
    cluster.save()?;
    explain(&cluster, &which.arguments(), &steps);
    Ok(())
}

/// The cluster as it is, with what the options add; or a new one. Saved before anything is made, and before anybody else
/// chooses a network.
async fn plan(options: &Options, which: &Which, file: Option<&File>, claim: &mut Claim) -> Result<Cluster> {
    claim.expect_owner(&which.folder())?;
    let _census = claim.census()?;
    let others = claim.others();
    let mut cluster = match Cluster::load(&which.folder())? {
        Some(cluster) => cluster,
        None => create(which, file, &others).await?,
    };
    expect_own_network(&cluster, &others)?;
    expect_what_stays(&cluster, options, file)?;
    let before = cluster.nodes.len();
    add_nodes(&mut cluster, wanted_nodes(before, options, file), file)?;
    expect_free_names(&cluster.nodes[before..], claim).await?;
    expect_apart(&cluster)?;
    cluster.mirrors.extend(file.iter().flat_map(|file| file.registry_mirrors.clone()));
    cluster.mirrors.extend(options.registry_mirror.iter().cloned());
    if before == 0 {
        cluster.etcd_endpoints.clone_from(&options.etcd.endpoints);
        cluster.etcd_files = options.etcd.files();
    }
    etcd::await_answer(&cluster.etcd_endpoints, &cluster.etcd_files)?;
    for field in file.iter().flat_map(|file| file.ignored()) {
        eprintln!("{} {field} means nothing to leme and is ignored", bold("note:"));
    }
    let elsewhere = || format!("cannot create {}; another place is --state-dir", cluster.folder.display());
    fs::create_dir_all(&cluster.folder).with_context(elsewhere)?;
    cluster.save()?;
    claim.record(&cluster.folder)?;
    Ok(cluster)
}

async fn create(which: &Which, file: Option<&File>, others: &[Cluster]) -> Result<Cluster> {
    let networking = file.map(|file| &file.networking);
    let constant = |text: &str| text.parse::<Ipv4Network>().expect("a constant network");
    let mut folders: Vec<_> =
        which.state_dir.ancestors().take_while(|folder| !folder.is_dir()).map(Path::to_path_buf).collect();
    folders.reverse();
    Ok(Cluster {
        name: which.name.clone(),
        folder: which.folder(),
        subnet: free_subnet(&which.state_dir, others).await?,
        pod_subnet: networking.and_then(|it| it.pod_subnet).unwrap_or_else(|| constant("10.244.0.0/16")),
        service_subnet: networking.and_then(|it| it.service_subnet).unwrap_or_else(|| constant("10.96.0.0/16")),
        nodes: Vec::new(),
        mirrors: BTreeMap::new(),
        etcd_endpoints: Vec::new(),
        etcd_files: etcd::Files::default(),
        traces: Traces { folders, ..Traces::default() },
    })
}

/// The first of 10.89.0.0/24, 10.89.1.0/24 … that neither the machine nor another cluster uses, stopped ones included.
async fn free_subnet(state_dir: &Path, others: &[Cluster]) -> Result<Ipv4Network> {
    let folders = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let neighbours = folders.filter_map(|entry| Cluster::load(&entry.path()).ok().flatten()).map(|it| it.subnet);
    let taken: Vec<_> = neighbours.chain(others.iter().map(|it| it.subnet)).collect();
    for third in 0..=255 {
        let subnet = Ipv4Network::new([10, 89, third, 0].into(), 24)?;
        if !taken.contains(&subnet) && nic::is_free(subnet).await? {
            return Ok(subnet);
        }
    }
    bail!("all of 10.89.0.0/16 is in use on this machine")
}

/// A cluster that lay still may find its network in use when it is to come back.
pub(super) fn expect_own_network(cluster: &Cluster, others: &[Cluster]) -> Result<()> {
    let Some(other) = others.iter().find(|other| other.subnet == cluster.subnet) else { return Ok(()) };
    bail!(
        "cluster {} cannot come back: its network {} is that of cluster {} in {} now; remove one of the two with `leme down`",
        cluster.name,
        cluster.subnet,
        other.name,
        other.folder.display()
    )
}

/// What has a new node's name must be left over from a cluster of that name.
async fn expect_free_names(nodes: &[Node], claim: &Claim) -> Result<()> {
    for node in nodes.iter().filter(|_| !claim.is_known()) {
        let taken = match (namespace::is_pinned(&node.name), nic::exists(&node.name).await?) {
            (true, _) => "network namespace",
            (false, true) => "network link",
            (false, false) => continue,
        };
        bail!(
            "a {taken} {} is there already and is no local cluster's: choose another --name, or remove it",
            node.name
        );
    }
    Ok(())
}

/// What a cluster was made with and cannot change under its objects.
fn expect_what_stays(cluster: &Cluster, options: &Options, file: Option<&File>) -> Result<()> {
    if cluster.nodes.is_empty() {
        return Ok(());
    }
    let networking = file.map(|file| &file.networking);
    let ranges = [
        ("pod subnet", cluster.pod_subnet, networking.and_then(|it| it.pod_subnet)),
        ("service subnet", cluster.service_subnet, networking.and_then(|it| it.service_subnet)),
    ];
    let range = ranges.into_iter().find(|(_, has, wanted)| wanted.is_some_and(|wanted| wanted != *has));
    if let Some((what, has, wanted)) = range {
        let wanted = wanted.map(|it| it.to_string()).unwrap_or_default();
        bail!("cluster {} has the {what} {has}, which cannot become {wanted}: make it anew", cluster.name);
    }
    if !options.etcd.endpoints.is_empty() && options.etcd.endpoints != cluster.etcd_endpoints {
        let has = match cluster.etcd_endpoints.as_slice() {
            [] => "in the embedded store".to_owned(),
            endpoints => format!("in etcd at {}", endpoints.join(",")),
        };
        bail!("cluster {} keeps its state {has}, which cannot move: make it anew", cluster.name);
    }
    Ok(())
}

/// Three ranges of addresses that must not meet: nodes', pods', Services'.
fn expect_apart(cluster: &Cluster) -> Result<()> {
    let ranges = [("nodes", cluster.subnet), ("pods", cluster.pod_subnet), ("Services", cluster.service_subnet)];
    for (index, (one, range)) in ranges.iter().enumerate() {
        if let Some((other, met)) = ranges[index + 1..].iter().find(|(_, it)| it.overlaps(*range)) {
            bail!("the range of the {one}, {range}, and that of the {other}, {met}, overlap");
        }
    }
    let share = 1_u64 << (24 - cluster.pod_subnet.prefix().min(24));
    if cluster.nodes.len() as u64 > share {
        bail!("the pods' range {} has room for {share} nodes of a /24 each", cluster.pod_subnet);
    }
    Ok(())
}

fn wanted_nodes(existing: usize, options: &Options, file: Option<&File>) -> usize {
    match (file, options.nodes) {
        (Some(file), _) => file.nodes.len().max(1),
        (None, Some(nodes)) => nodes.into(),
        (None, None) if existing == 0 => 3,
        (None, None) => existing,
    }
}

fn add_nodes(cluster: &mut Cluster, count: usize, file: Option<&File>) -> Result<()> {
    if count < cluster.nodes.len() {
        bail!(
            "cluster {} has {} nodes; remove it with `leme down` to make a smaller one",
            cluster.name,
            cluster.nodes.len()
        );
    }
    let described = file.map(File::ordered).unwrap_or_default();
    for index in cluster.nodes.len()..count {
        cluster.nodes.push(Node {
            name: format!("{}-{}", cluster.name, index + 1),
            address: cluster.subnet.nth(u32::try_from(index + 2)?).context("the subnet is full")?,
            control_plane: index == 0,
            labels: described.get(index).map(|node| node.labels.clone()).unwrap_or_default(),
        });
    }
    Ok(())
}

/// Links or copies this binary and the plugin beside it into the cluster's directory.
fn install_binaries(cluster: &Cluster) -> Result<()> {
    let this = std::env::current_exe().context("cannot find this binary")?;
    let plugin = this.with_file_name("leme-cni");
    if !plugin.exists() {
        bail!("{} is missing: it belongs beside {}", plugin.display(), this.display());
    }
    for (from, name) in [(&this, "leme"), (&plugin, "leme-cni")] {
        let to = cluster.binary(name);
        if *from == to {
            continue;
        }
        fs::create_dir_all(cluster.folder.join("bin"))?;
        let _ = fs::remove_file(&to);
        fs::hard_link(from, &to)
            .or_else(|_| fs::copy(from, &to).map(drop))
            .with_context(|| format!("cannot install {}", to.display()))?;
    }
    Ok(())
}

/// What the machine itself must have: a BPF file system.
fn prepare_machine(cluster: &mut Cluster) -> Result<()> {
    if !namespace::is_mount(Path::new(BPFFS)) {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("cannot mount the BPF file system")?;
        cluster.traces.mounted_bpffs = true;
        cluster.save()?;
    }
    Ok(())
}

/// The cluster's authority and the admin's kubeconfig; the server finds its own certificates made.
fn issue_certificates(cluster: &Cluster) -> Result<Authority> {
    let server = cluster.control_plane();
    let service = cluster.service_subnet.nth(1).context("a service range without addresses")?;
    let extra = [cluster.gateway().to_string(), server.name.clone()];
    let names = pki::apiserver_names("cluster.local", service.into(), server.address.into(), &extra);
    let authority = Pki::open(&cluster.server_dir().join("pki"), &names)?.cluster;
    if !cluster.admin_kubeconfig().exists() {
        let admin = authority.issue_client("kubernetes-admin", Some("system:masters"))?;
        let context = cluster.context();
        let names = KubeconfigNames { cluster: &context, user: &context, context: &context };
        let text = pki::kubeconfig(&cluster.server_url(), &authority.certificate, &admin, &names);
        pki::write_private(&cluster.admin_kubeconfig(), &text)?;
    }
    Ok(authority)
}

async fn start_nodes(cluster: &mut Cluster, steps: &Steps) -> Result<()> {
    for node in cluster.nodes.clone() {
        let made = machine::start(cluster, &node).await.with_context(|| format!("cannot start node {}", node.name))?;
        if !made.is_empty() {
            cluster.traces.folders.extend(made);
            cluster.save()?;
        }
    }
    let names = cluster.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
    steps.done(&format!("Nodes started: {names}"));
    Ok(())
}

async fn wait(cluster: &Cluster, steps: &Steps) -> Result<()> {
    let logs = || format!("see the logs in {}", cluster.folder.join("nodes/*/log").display());
    let doing = |what| {
        steps.doing(what);
        move |why: &str| steps.waiting(what, why)
    };
    ready::server(cluster, &doing("Waiting for the API server")).await.with_context(logs)?;
    steps.done("API server ready");
    ready::nodes(cluster, &doing("Waiting for the nodes")).await.with_context(logs)?;
    steps.done("Nodes ready");
    ready::names(cluster, &doing("Waiting for names")).await.with_context(logs)?;
    steps.done("Names resolve");
    Ok(())
}

fn explain(cluster: &Cluster, which: &str, steps: &Steps) {
    let seconds = steps.finish();
    say(format_args!(
        "Cluster {} is ready after {seconds:.1} s; kubectl's context is {}.\n",
        bold(&cluster.name),
        bold(&cluster.context())
    ));
    say(format_args!(
        "  kubectl get nodes -o wide\n  leme status{which}\n  leme node exec{which} {} -- bash\n  leme down{which}",
        cluster.nodes[0].name
    ));
}

fn mirror(text: &str) -> Result<(String, String), String> {
    let is_host = |host: &str| !host.is_empty() && !host.contains('/');
    let parts = text.split_once('=').filter(|(host, address)| is_host(host) && valid_url(address).is_ok());
    parts
        .map(|(host, url)| (host.to_owned(), url.to_owned()))
        .ok_or_else(|| "expected HOST=URL, like docker.io=http://127.0.0.1:5000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_a_host_and_a_url() {
        assert!(mirror("docker.io=http://127.0.0.1:5000").is_ok());
        assert!(mirror("docker.io").is_err());
        for bad in
            ["=http://x", "docker.io=127.0.0.1:5000", "docker.io=ftp://x", "docker.io/library=http://x", "a=http://"]
        {
            assert!(mirror(bad).is_err(), "{bad}");
        }
    }
}

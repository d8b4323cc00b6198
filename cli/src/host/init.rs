//! `leme init`: this machine becomes the first of a cluster. Every step makes what is missing, so the command can be
//! given again after it was cut short.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use leme_control_plane::pki::{self, Identity, KubeconfigNames, Pki};
use serde::Deserialize;
use serde_json::json;

use super::token::{self, Token, lifetime};
use super::{ADMIN, CRI_SOCKET, ControlPlane, Host, KUBELET, PKI, node_name, preflight, services};
use crate::cluster::steps::Steps;
use crate::output::{bold, say};

const SERVER_LIMIT: Duration = Duration::from_secs(60);
const NODE_LIMIT: Duration = Duration::from_secs(180);

#[derive(Args)]
#[command(after_help = "Examples:
  leme init
  leme init --pod-network-cidr 10.100.0.0/16 --service-cidr 10.101.0.0/16
  leme init --config cluster.yaml --dry-run")]
pub(crate) struct Options {
    #[command(flatten)]
    settings: Settings,
    /// The same settings from a YAML file, by the flags' names in camelCase; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Go on although these checks fail; all: whichever do
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    ignore_preflight_errors: Vec<String>,
    /// Check, say what would be done, change nothing
    #[arg(long)]
    dry_run: bool,
    /// The first token with which machines join [default: a new one]
    #[arg(long)]
    token: Option<Token>,
    /// How long that token lasts; 0: for ever
    #[arg(long, default_value = "24h", value_parser = lifetime)]
    token_ttl: Duration,
}

#[derive(Args, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Settings {
    /// Range of pod addresses; each node gets a /24 of it [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pod_network_cidr: Option<Ipv4Network>,
    /// Range of Service addresses [default: 10.96.0.0/16]
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<Ipv4Network>,
    /// Address under which others reach this machine [default: that of the default route]
    #[arg(long, value_name = "ADDRESS")]
    apiserver_advertise_address: Option<IpAddr>,
    /// Port of the API server [default: 6443]
    #[arg(long, value_name = "PORT")]
    apiserver_bind_port: Option<u16>,
    /// Further names and addresses for the API server's certificate
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    apiserver_cert_extra_sans: Vec<String>,
    /// Name of this node [default: this host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The container runtime's socket [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET")]
    cri_socket: Option<PathBuf>,
    /// cgroup below which pods run [default: /leme/ and the node's name]
    #[arg(long, value_name = "PATH")]
    cgroup_root: Option<String>,
}

impl Settings {
    /// These where they say something, the others' words else.
    fn over(self, other: Self) -> Self {
        let names = match self.apiserver_cert_extra_sans.is_empty() {
            true => other.apiserver_cert_extra_sans,
            false => self.apiserver_cert_extra_sans,
        };
        Self {
            pod_network_cidr: self.pod_network_cidr.or(other.pod_network_cidr),
            service_cidr: self.service_cidr.or(other.service_cidr),
            apiserver_advertise_address: self.apiserver_advertise_address.or(other.apiserver_advertise_address),
            apiserver_bind_port: self.apiserver_bind_port.or(other.apiserver_bind_port),
            apiserver_cert_extra_sans: names,
            node_name: self.node_name.or(other.node_name),
            cri_socket: self.cri_socket.or(other.cri_socket),
            cgroup_root: self.cgroup_root.or(other.cgroup_root),
        }
    }

    fn host(self) -> Result<Host> {
        let address = match self.apiserver_advertise_address {
            Some(address) => address,
            None => crate::server::default_address().context("no default route: say --apiserver-advertise-address")?,
        };
        if !address.is_ipv4() {
            bail!("{address} is not IPv4");
        }
        preflight::expect_own(address)?;
        let port = self.apiserver_bind_port.unwrap_or(6443);
        let name = self.node_name.map_or_else(super::host_name, Ok)?;
        let constant = |text: &str| text.parse::<Ipv4Network>().expect("a constant network");
        Ok(Host {
            control_plane: Some(ControlPlane { port, extra_names: self.apiserver_cert_extra_sans }),
            cgroup_root: self.cgroup_root.unwrap_or_else(|| super::cgroup_of(&name)),
            node_name: node_name(&name).map_err(|why| anyhow::anyhow!("--node-name {name:?}: {why}"))?,
            address,
            server: format!("https://{}", SocketAddr::new(address, port)),
            pod_cidr: network(self.pod_network_cidr.unwrap_or_else(|| constant("10.244.0.0/16")))?,
            service_cidr: network(self.service_cidr.unwrap_or_else(|| constant("10.96.0.0/16")))?,
            cri_socket: socket(self.cri_socket),
            made: BTreeSet::new(),
            found: BTreeSet::new(),
            mounted_bpffs: false,
        })
    }
}

fn network(range: Ipv4Network) -> Result<Ipv4Network> {
    if range.ip() != range.network() {
        bail!("{range} is no network: did you mean {}/{}?", range.network(), range.prefix());
    }
    Ok(range)
}

pub(super) fn socket(given: Option<PathBuf>) -> PathBuf {
    let path = given.unwrap_or_else(|| CRI_SOCKET.into());
    path.to_str().and_then(|text| text.strip_prefix("unix://")).map(PathBuf::from).unwrap_or(path)
}

pub(crate) async fn run(options: Options) -> Result<()> {
    super::require_root("init")?;
    let file = options.config.as_deref().map(read).transpose()?.unwrap_or_default();
    let wanted = options.settings.over(file).host()?;
    let before = Host::load()?;
    if let Some(before) = before.as_ref().filter(|before| !before.wants_the_same(&wanted)) {
        bail!(
            "this machine is {} of {} already, with other settings: repeat them, or take it out first with leme reset",
            before.role(),
            before.server
        );
    }
    let ignored = options.ignore_preflight_errors.iter().map(|name| name.to_lowercase()).collect();
    preflight::check(&wanted, before.is_some(), &ignored).await?;
    if options.dry_run {
        return explain(&wanted);
    }
    let token = options.token.map_or_else(Token::generate, Ok)?;
    make(before.unwrap_or(wanted), &token, options.token_ttl).await
}

fn read(path: &Path) -> Result<Settings> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_norway::from_str(&text).with_context(|| format!("{} cannot be used", path.display()))
}

fn explain(host: &Host) -> Result<()> {
    say(format_args!("Nothing was changed. leme init would write {PKI}, {ADMIN}, {KUBELET} and start:"));
    for (_, command) in host.commands()? {
        say(format_args!("  {}", command.join(" ")));
    }
    Ok(())
}

async fn make(mut host: Host, token: &Token, ttl: Duration) -> Result<()> {
    let steps = Steps::begin();
    host.make_directories()?;
    host.mount_bpffs()?;
    write_identities(&host)?;
    steps.done("Certificates and kubeconfigs");
    services::start()?;
    let client = super::client_of(ADMIN).await?;
    super::until(SERVER_LIMIT, &steps, "Waiting for the API server", "server", async || {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        client.request_text(request).await.map(drop).context("it does not answer")
    })
    .await?;
    steps.done("API server ready");
    token::store_default(&client, token, ttl).await?;
    super::until(NODE_LIMIT, &steps, "Waiting for this node", "agent", async || {
        label(&client, &host.node_name).await?;
        super::expect_ready(&client, &host.node_name).await
    })
    .await?;
    steps.done("Node ready");
    let seconds = steps.finish();
    tell(&host, token, seconds).await
}

async fn label(client: &kube::Client, name: &str) -> Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}));
    let api: Api<Node> = Api::all(client.clone());
    match api.patch_metadata(name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => bail!("node {name} has not registered"),
        outcome => outcome.map(drop).context("the API server does not answer"),
    }
}

/// The authorities, the administrator's kubeconfig and this node's; what is there stays.
fn write_identities(host: &Host) -> Result<()> {
    let extra = host.control_plane.as_ref().map(|it| it.extra_names.clone()).unwrap_or_default();
    let extra: Vec<_> = std::iter::once(host.node_name.clone()).chain(extra).collect();
    let service = host.service_cidr.nth(1).context("a service range without addresses")?;
    let names = pki::apiserver_names("cluster.local", service.into(), host.address, &extra);
    let authority = Pki::open(Path::new(PKI), &names)?.cluster;
    let user = format!("system:node:{}", host.node_name);
    let write = |file: &str, user: &str, identity: Identity| {
        let context = format!("{user}@kubernetes");
        let names = KubeconfigNames { cluster: "kubernetes", user, context: &context };
        pki::write_private(Path::new(file), &pki::kubeconfig(&host.server, &authority.certificate, &identity, &names))
    };
    if !Path::new(ADMIN).exists() {
        write(ADMIN, "kubernetes-admin", authority.issue_client("kubernetes-admin", Some("system:masters"))?)?;
    }
    if !Path::new(KUBELET).exists() {
        write(KUBELET, &user, authority.issue_client(&user, Some("system:nodes"))?)?;
    }
    Ok(())
}

async fn tell(host: &Host, token: &Token, seconds: f32) -> Result<()> {
    let text = kube::config::Kubeconfig::read_from(ADMIN)?;
    let config = kube::Config::from_custom_kubeconfig(text, &Default::default()).await?;
    say(format_args!(
        "The cluster is ready after {seconds:.1} s, and {} is its control plane.\n\n  export KUBECONFIG={ADMIN}\n  \
         kubectl get nodes\n\nOther machines join it as root with\n\n  {}",
        bold(&host.node_name),
        token::join_command(&config, token)?
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_refused_with_the_name_and_line_of_what_it_does_not_know() {
        let good: Settings = serde_norway::from_str("podNetworkCidr: 10.1.0.0/16\nnodeName: a\n").unwrap();
        assert_eq!(good.node_name.as_deref(), Some("a"));
        let error =
            serde_norway::from_str::<Settings>("nodeName: a\npodCidr: 10.1.0.0/16\n").err().unwrap().to_string();
        assert!(error.contains("podCidr") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let flag = Settings { node_name: Some("flag".into()), ..Settings::default() };
        let file = Settings { node_name: Some("file".into()), apiserver_bind_port: Some(7443), ..Settings::default() };
        let both = flag.over(file);
        assert_eq!((both.node_name.as_deref(), both.apiserver_bind_port), (Some("flag"), Some(7443)));
    }

    #[test]
    fn a_range_begins_where_its_network_begins() {
        assert!(network("10.1.0.0/16".parse().unwrap()).is_ok());
        let error = network("10.1.2.3/16".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("10.1.0.0/16"), "{error}");
    }
}

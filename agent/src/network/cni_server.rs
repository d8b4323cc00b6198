//! The agent's end of the CNI plugin: one request and one reply per connection on a unix socket.
//!
//! Composed by `network::start`. Requests for one attachment go one after the other, others side by side. ADD reserves,
//! makes the link, registers the endpoint; DEL goes the other way and starts over whenever it is repeated, so every
//! step may find its work done. ADD of what is there already and whole gives the same answer and touches nothing. A
//! request is carried to its end even when the plugin is killed meanwhile; each step of it is an event of the target
//! [`STEPS`], and the agent may be killed after any: what follows (DEL, ADD again, an agent's start) ends clean.

use std::{
    collections::{HashMap, HashSet},
    fs::Permissions,
    io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use anyhow::ensure;
use async_trait::async_trait;
use leme_cni::{Attachment, AttachmentId, Command, Failure, MAX_MESSAGE, Reply, Request, RuntimeConfig, code};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Mutex as Turn, OwnedMutexGuard},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, trace, warn};

use super::{
    ipam::{self, Ipam, Reservation, Wanted},
    metrics::Metrics,
    veth::{self, GATEWAY, Links, Veth, mac_text},
};

/// Target of the events between the steps of a request; the tests kill an agent at each of them.
pub const STEPS: &str = "leme_cni_step";
/// The plugin writes its request in one go.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// Where pods' interfaces become part of the datapath.
#[async_trait]
pub trait Endpoints: Send + Sync {
    /// Attaches the programs to the pod's node end, makes its address known and does what else it asked for. Repeating
    /// it changes nothing.
    async fn add(&self, veth: &Veth, ifindex: u32, netns: &str, runtime: &RuntimeConfig) -> anyhow::Result<()>;
    /// Makes an address unknown, with all that leads to it; one that is unknown is done.
    async fn remove(&self, address: Ipv4Addr) -> anyhow::Result<()>;
    /// Every address that is known.
    async fn known(&self) -> anyhow::Result<Vec<Ipv4Addr>>;
    /// What is not as `add` made it, in words.
    async fn check(&self, veth: &Veth, ifindex: u32, runtime: &RuntimeConfig) -> anyhow::Result<Vec<String>>;
    /// What keeps the node's pods from having all of their network, in words.
    async fn check_node(&self) -> anyhow::Result<Vec<String>>;
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {action} the CNI socket {path}")]
    Socket { action: &'static str, path: PathBuf, source: io::Error },
}

/// What every pod of the node has in common.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What its device takes, and what it sends at most.
    pub mtu: u32,
    pub route_mtu: u32,
    /// The node's own address in its pod range: the source of the node's packets to its pods.
    pub router: Ipv4Addr,
}

pub struct CniServer {
    ipam: Mutex<Ipam>,
    links: Links,
    endpoints: Arc<dyn Endpoints>,
    shape: Shape,
    metrics: Arc<Metrics>,
    turns: Mutex<HashMap<AttachmentId, Arc<Turn<()>>>>,
}

impl CniServer {
    pub fn new(ipam: Ipam, links: Links, endpoints: Arc<dyn Endpoints>, shape: Shape, metrics: Arc<Metrics>) -> Self {
        Self { ipam: Mutex::new(ipam), links, endpoints, shape, metrics, turns: Mutex::default() }
    }

    /// Registers every pod that an earlier agent attached, and removes links and endpoints that belong to nobody.
    pub async fn adopt(&self) -> anyhow::Result<()> {
        let held: Vec<Reservation> = self.ipam().reservations().cloned().collect();
        for reservation in &held {
            let veth = self.veth(reservation);
            match self.links.index(&veth.host_ifname).await? {
                Some(ifindex) => self.endpoints.add(&veth, ifindex, &reservation.netns, &reservation.runtime).await?,
                // The pod's namespace is gone; its address stays reserved until the runtime says DEL.
                None => self.endpoints.remove(veth.address).await?,
            }
        }
        self.remove_strays().await
    }

    /// Makes the links of attached pods what they were, where somebody has switched one off or removed it: its route and
    /// neighbour go with the first, the pod's end too with the second. Goes on after failures and reports them together.
    pub async fn mend(&self) -> anyhow::Result<()> {
        let held: Vec<Reservation> = self.ipam().reservations().cloned().collect();
        let pairs: Vec<Veth> = held.iter().map(|reservation| self.veth(reservation)).collect();
        let mut failures = Vec::new();
        for (pair, _) in self.links.find_broken(&pairs).await? {
            let reservation = held.iter().find(|reservation| reservation.address == pair.address);
            let reservation = reservation.expect("each pair was made from one");
            if let Err(error) = self.mend_one(&reservation.attachment, pair).await {
                failures.push(format!("{}: {error:#}", pair.host_ifname));
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }

    /// Between two requests for the attachment, which may have changed everything: so it looks again.
    async fn mend_one(&self, id: &AttachmentId, pair: &Veth) -> anyhow::Result<()> {
        let _turn = self.turn(id).await;
        let Some(held) = self.ipam().get(id).cloned() else { return Ok(()) };
        let (pairs, there) = ([pair.clone()], veth::is_namespace(&held.netns));
        match self.links.find_broken(&pairs).await?.first() {
            Some((_, Some(_))) => {
                let ifindex = self.links.configure_host(pair, self.shape.router).await?;
                self.endpoints.add(pair, ifindex, &held.netns, &held.runtime).await?;
            }
            Some((_, None)) if there => self.attach(pair, &held.netns, &held.runtime).await?,
            // It is whole again, or the pod's end is gone because the pod is.
            _ => return Ok(()),
        }
        warn!(link = pair.host_ifname, address = %pair.address, "a pod's link was off or gone; it is as it was");
        Ok(())
    }

    /// Listens until `shutdown`; the socket replaces an older agent's in one step.
    pub async fn serve(self: Arc<Self>, path: &Path, shutdown: CancellationToken) -> Result<(), Error> {
        let listener = listen(path)?;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => drop(tokio::spawn(Arc::clone(&self).converse(stream))),
                    Err(error) => {
                        warn!(%error, "failed to accept a CNI request");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }

    async fn converse(self: Arc<Self>, mut stream: UnixStream) {
        let reply = match read(&mut stream).await {
            Ok(request) => {
                let (command, started) = (request.command, Instant::now());
                let reply = self.answer(request).await;
                self.metrics.cni(command, &reply, started.elapsed());
                reply
            }
            Err(error) => Reply::Failed(Failure::new(code::IO_FAILURE, "failed to read the plugin's request", error)),
        };
        let bytes = serde_json::to_vec(&reply).expect("a reply is plain data");
        if let Err(error) = stream.write_all(&bytes).await {
            // The runtime repeats what it did not hear the end of.
            debug!(%error, "the CNI plugin went away before its reply");
        }
    }

    /// Carries out one request.
    pub async fn answer(&self, request: Request) -> Reply {
        let command = request.command;
        let result = match (command, request.attachment.clone()) {
            (Command::Status, _) => self.status().await,
            (Command::Gc, _) => self.collect(&request).await,
            (Command::Add, Some(id)) => self.add(id, request).await,
            (Command::Del, Some(id)) => self.delete(&id).await,
            (Command::Check, Some(id)) => self.check(&id, &request).await,
            (_, None) => Err(Failure::new(code::INVALID_ENVIRONMENT, "the request names no container", "")),
        };
        result.unwrap_or_else(|failure| {
            warn!(?command, code = failure.code, "{failure}");
            Reply::Failed(failure)
        })
    }

    /// Whoever reads this has an agent that serves ADD; the pods it has may miss something all the same.
    async fn status(&self) -> Result<Reply, Failure> {
        let limited = |details: String| {
            Failure::new(code::LIMITED_CONNECTIVITY, "the node's pods do not have all of their network", details)
        };
        let faults = self.endpoints.check_node().await.map_err(|error| limited(chain(&error)))?;
        if faults.is_empty() { Ok(Reply::Done) } else { Err(limited(faults.join("; "))) }
    }

    async fn add(&self, id: AttachmentId, request: Request) -> Result<Reply, Failure> {
        let _turn = self.turn(&id).await;
        let netns = request.netns.unwrap_or_default();
        let Request { network, pod, runtime, .. } = request;
        let wanted = Wanted { attachment: id.clone(), network, netns: netns.clone(), pod, runtime };
        let repeated = self.ipam().get(&id).is_some();
        let reservation = self.ipam().reserve(wanted, SystemTime::now()).map_err(no_address)?;
        step("the address is reserved");
        let veth = self.veth(&reservation);
        match self.attach(&veth, &netns, &reservation.runtime).await {
            Ok(()) => Ok(Reply::Attached(self.attachment(&veth, netns))),
            Err(error) => {
                if let Err(failure) = self.undo(&id, repeated).await {
                    warn!(%failure, "failed to undo an attachment; it goes with DEL or GC");
                }
                Err(not_attached(error))
            }
        }
    }

    async fn attach(&self, veth: &Veth, netns: &str, runtime: &RuntimeConfig) -> anyhow::Result<()> {
        if let Ok(ifindex) = self.links.check(veth, netns).await {
            return self.endpoints.add(veth, ifindex, netns, runtime).await;
        }
        // What an interrupted ADD left goes first: it hangs on a link that is about to be replaced.
        self.endpoints.remove(veth.address).await?;
        self.links.remove(&veth.host_ifname).await?;
        step("what was there is gone");
        self.links.make_pair(veth, netns).await?;
        step("the pair is made");
        self.links.configure_pod(veth, netns).await?;
        step("the pod end is configured");
        let ifindex = self.links.configure_host(veth, self.shape.router).await?;
        step("the node end is configured");
        self.endpoints.add(veth, ifindex, netns, runtime).await?;
        step("the endpoint is known");
        Ok(())
    }

    /// An address that nobody has been told need not rest.
    async fn undo(&self, id: &AttachmentId, told: bool) -> Result<(), Failure> {
        self.take_down(id).await?;
        let done = if told { self.ipam().release(id, SystemTime::now()) } else { self.ipam().forget(id) };
        done.map_err(|error| not_detached(error.into()))
    }

    fn attachment(&self, veth: &Veth, netns: String) -> Attachment {
        Attachment {
            address: veth.address,
            gateway: GATEWAY,
            mtu: veth.mtu,
            host_ifname: veth.host_ifname.clone(),
            host_mac: mac_text(&veth.host_mac),
            ifname: veth.ifname.clone(),
            mac: mac_text(&veth.mac),
            netns,
        }
    }

    async fn delete(&self, id: &AttachmentId) -> Result<Reply, Failure> {
        let _turn = self.turn(id).await;
        self.detach(id).await.map(|()| Reply::Done)
    }

    /// The reservation goes last: until then a repeated DEL finds what is left to do.
    async fn detach(&self, id: &AttachmentId) -> Result<(), Failure> {
        self.take_down(id).await?;
        self.ipam().release(id, SystemTime::now()).map_err(|error| not_detached(error.into()))?;
        step("the address is released");
        Ok(())
    }

    async fn take_down(&self, id: &AttachmentId) -> Result<(), Failure> {
        let address = self.ipam().get(id).map(|held| held.address);
        if let Some(address) = address {
            self.endpoints.remove(address).await.map_err(not_detached)?;
            step("the endpoint is unknown");
        }
        self.links.remove(&veth::host_ifname(id)).await.map_err(|error| not_detached(error.into()))?;
        step("the pair is gone");
        Ok(())
    }

    async fn check(&self, id: &AttachmentId, request: &Request) -> Result<Reply, Failure> {
        let _turn = self.turn(id).await;
        let held = self.ipam().get(id).cloned();
        let unknown = || Failure::new(code::UNKNOWN_CONTAINER, "the container is not attached", &id.container_id);
        let held = held.ok_or_else(unknown)?;
        if !request.expected.contains(&held.address) {
            let details = format!("the runtime says {:?}, the agent {}", request.expected, held.address);
            return Err(Failure::new(code::CHECK_FAILED, "the container's address is another", details));
        }
        let netns = request.netns.as_deref().unwrap_or(&held.netns);
        let veth = self.veth(&held);
        let different = |details: String| {
            Failure::new(code::CHECK_FAILED, "the container's interface is not as it was made", details)
        };
        let checked = async {
            let ifindex = self.links.check(&veth, netns).await?;
            self.endpoints.check(&veth, ifindex, &held.runtime).await
        };
        match checked.await {
            Ok(faults) if faults.is_empty() => Ok(Reply::Done),
            Ok(faults) => Err(different(faults.join("; "))),
            Err(error) if is_unknown(&error) => Err(unknown()),
            Err(error) => Err(different(chain(&error))),
        }
    }

    /// Releases everything of the network that is not in use any more, except what is being attached right now.
    async fn collect(&self, request: &Request) -> Result<Reply, Failure> {
        let valid: HashSet<&AttachmentId> = request.valid.iter().collect();
        let stale: Vec<AttachmentId> = self
            .ipam()
            .reservations()
            .filter(|held| held.network == request.network && !valid.contains(&held.attachment))
            .map(|held| held.attachment.clone())
            .collect();
        for id in stale.iter().filter(|id| !self.is_busy(id)) {
            info!(container = id.container_id, ifname = id.ifname, "collecting an attachment that is not in use");
            self.delete(id).await?;
        }
        self.remove_strays().await.map_err(not_detached)?;
        Ok(Reply::Done)
    }

    async fn remove_strays(&self) -> anyhow::Result<()> {
        for address in self.endpoints.known().await? {
            let owned = self.ipam().reservations().any(|held| held.address == address);
            if !owned {
                info!(%address, "removing an endpoint that no container owns");
                self.endpoints.remove(address).await?;
            }
        }
        for (name, index) in self.links.host_ends().await? {
            let owned = self.ipam().reservations().any(|held| veth::host_ifname(&held.attachment) == name);
            if !owned {
                info!(link = name, "removing a pod link that no container owns");
                self.links.remove_index(index, &name).await?;
            }
        }
        Ok(())
    }

    fn veth(&self, reservation: &Reservation) -> Veth {
        Veth::new(&reservation.attachment, reservation.address, self.shape.mtu, self.shape.route_mtu)
    }

    /// Addresses in use and addresses that exist.
    pub fn usage(&self) -> (usize, usize) {
        self.ipam().usage()
    }

    /// A panic elsewhere leaves the reservations whole: each change is one map operation after its file's rename.
    fn ipam(&self) -> MutexGuard<'_, Ipam> {
        self.ipam.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<AttachmentId, Arc<Turn<()>>>> {
        self.turns.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn turn(&self, id: &AttachmentId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(id.clone()).or_default())
        };
        turn.lock_owned().await
    }

    fn is_busy(&self, id: &AttachmentId) -> bool {
        self.turns().get(id).is_some_and(|turn| turn.try_lock().is_err())
    }
}

fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |action| move |source| Error::Socket { action, path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed("create the directory of"))?;
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed("bind"))?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    std::fs::rename(&fresh, path).map_err(failed("publish"))?;
    Ok(listener)
}

async fn read(stream: &mut UnixStream) -> io::Result<Request> {
    let mut bytes = Vec::new();
    tokio::time::timeout(REQUEST_WITHIN, stream.take(MAX_MESSAGE as u64).read_to_end(&mut bytes)).await??;
    Ok(serde_json::from_slice(&bytes)?)
}

fn no_address(error: ipam::Error) -> Failure {
    let code = match error {
        ipam::Error::Exhausted { .. } => code::ADDRESSES_EXHAUSTED,
        ipam::Error::Resting { .. } => code::TRY_AGAIN_LATER,
        ipam::Error::File { .. } => code::IO_FAILURE,
    };
    Failure::new(code, "no address for the pod", chain(&error.into()))
}

fn not_attached(error: anyhow::Error) -> Failure {
    let code = match error.downcast_ref() {
        Some(veth::Error::NoNamespace { .. }) => code::UNKNOWN_CONTAINER,
        Some(veth::Error::NotPods { .. }) => {
            let msg = format!("invalid environment variables: CNI_NETNS: {}", chain(&error));
            return Failure::new(code::INVALID_ENVIRONMENT, msg, "");
        }
        _ => code::ATTACH_FAILED,
    };
    Failure::new(code, "failed to attach the pod to the network", chain(&error))
}

fn is_unknown(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(veth::Error::NoNamespace { .. }))
}

fn step(reached: &'static str) {
    trace!(target: STEPS, reached);
}

fn not_detached(error: anyhow::Error) -> Failure {
    Failure::new(code::ATTACH_FAILED, "failed to detach the pod from the network", chain(&error))
}

fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

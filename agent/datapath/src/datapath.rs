//! The kernel side as one object: opened once per agent, one writer.

use crate::{
    Change, Config, CounterRow, Dump, Error, Limits, MapFill, Nic, ObjectKey, Result, Snapshot,
    attach::{Attacher, Attachment, Place},
    config::SocketLb,
    connections::Connections,
    device::{Devices, allow_forwarding, interface_name, may_forward, netns_cookie},
    dump::{counters, dump, endpoints, frontend},
    fill::fill,
    host_port::{HostPort, HostPorts, owner},
    ledger::{Found, Ledger, Operations, Retired, ServiceMaps},
    migration::Migration,
    namespaces::Namespaces,
    plan::{NodeTables, RouteTo, node_port_flags, plan_nodes, plan_service, route_key},
    programs::{self, Programs},
    sockets::{ServiceSocket, Sockets},
    table::Table,
};
use aya::programs::TcAttachType;
use leme_abi::{
    Addr, Backend, Endpoint, FrontendKey, MemberKey, NodeAddress, Rates, Route, RouteKey, Service, Settings, SlotKey,
    SourceKey, option, transition,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

/// Target of events between the steps of a change; tests kill an agent at each of them.
const STEPS: &str = "leme_cni_step";

fn step(reached: &'static str) {
    tracing::trace!(target: STEPS, reached);
}

/// Long after any packet that was being processed has left.
const GRACE: Duration = Duration::from_secs(1);

/// Ingress and egress programs of each kind of device.
const OVERLAY: [&str; 2] = ["overlay_ingress", "overlay_egress"];
const NIC: [&str; 2] = ["nic_ingress", "nic_egress"];
const POD: [&str; 2] = ["from_pod", "to_pod"];

/// A pod on this node, as the CNI server made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub addr: IpAddr,
    /// Host side of the veth pair, in the node's namespace.
    pub ifindex: u32,
    /// MAC of the pod's side.
    pub mac: [u8; 6],
    /// MAC of the host side.
    pub host_mac: [u8; 6],
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
}

/// What a reconciliation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub services: usize,
    pub operations: usize,
    /// UDP sockets may have been deserted by their backend: look for them ([`Datapath::sockets`]).
    pub deserted: bool,
}

/// What a garbage collection of connections found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    pub live: usize,
    pub removed: usize,
    /// Room in the connection map.
    pub capacity: usize,
}

/// The maps this object writes.
struct Tables {
    frontends: Table<FrontendKey, u32>,
    services: Table<u32, Service>,
    slots: Table<SlotKey, u32>,
    backends: Table<u32, Backend>,
    sources: Table<SourceKey, u32>,
    members: Table<MemberKey, u32>,
    endpoints: Table<Addr, Endpoint>,
    rates: Table<Addr, Rates>,
    routes: Table<RouteKey, Route>,
    node_addresses: Table<Addr, u32>,
}

/// The node's datapath. Dropping it changes nothing in the kernel: programs, links and maps stay pinned.
pub struct Datapath {
    config: Config,
    programs: Programs,
    attacher: Attacher,
    tables: Tables,
    ledger: Ledger,
    host_ports: HostPorts,
    nodes: NodeTables,
    /// As the API has them, without this node's own.
    planned_nodes: NodeTables,
    connections: Connections,
    namespaces: Namespaces,
    retired: Vec<(Instant, Retired)>,
    /// A complete list has been seen: what it lacks may go.
    complete: bool,
    /// The ledger was read back from the maps since: it does not know whose the entries are.
    unclaimed: bool,
    mtu: u32,
    /// The VXLAN device.
    overlay: u32,
    /// Until the programs have been exchanged.
    migration: Option<Migration>,
}

impl Datapath {
    /// Loads the programs, adopting pinned maps and links of an earlier agent; attaches socket hooks and the NICs in
    /// `config.nics`; creates the VXLAN device and the route of the pod range. Works in the caller's network namespace.
    pub async fn open(config: Config) -> Result<Self> {
        config.check()?;
        let devices = Devices::connect()?;
        let (overlay, mtu) = devices.ensure_overlay(&config).await?;
        let migration = Migration::begin(&config.pin_dir, &config.sizes)?;
        let programs = Programs::load(&config.pin_dir, programs::NODE, settings(&config, overlay, mtu), &config.sizes)?;
        migration.copy()?;
        let tables = Tables::open(&config.pin_dir)?;
        let nodes = tables.nodes()?;
        let (ledger, leftovers) = Ledger::adopt(tables.services()?);
        let mut datapath = Self {
            attacher: Attacher::new(&config.pin_dir)?,
            connections: Connections::open(&config.pin_dir)?,
            namespaces: Namespaces::open(&config.pin_dir)?,
            retired: Vec::new(),
            complete: false,
            unclaimed: true,
            config,
            programs,
            tables,
            ledger,
            host_ports: HostPorts::default(),
            nodes,
            planned_nodes: NodeTables::default(),
            mtu,
            overlay,
            migration: Some(migration),
        };
        datapath.apply(leftovers)?;
        datapath.apply_nodes()?;
        datapath.apply_exclusions()?;
        if !datapath.waits()? {
            datapath.exchange()?;
        }
        Ok(datapath)
    }

    /// Whether programs of another version must go on until there is a list to write this one's tables from.
    fn waits(&self) -> Result<bool> {
        self.migration.as_ref().map_or(Ok(false), Migration::lost_a_list)
    }

    /// What is not masqueraded follows the configuration alone.
    fn apply_exclusions(&self) -> Result<()> {
        let table = Table::<RouteKey, u32>::open(&self.config.pin_dir, "masquerade_exclusions")?;
        let wanted: BTreeMap<_, _> =
            self.config.non_masquerade_cidrs.iter().map(|network| (route_key(*network), 1)).collect();
        let found: BTreeMap<_, _> = table.entries()?.into_iter().collect();
        table.put_all(&missing(&wanted, &found).collect::<Vec<_>>())?;
        table.delete_all(&missing(&found, &wanted).map(|(key, _)| key).collect::<Vec<_>>())
    }

    /// From the programs that were attached, if there were any, to those of this version.
    fn exchange(&mut self) -> Result<()> {
        let Some(migration) = self.migration.take() else { return self.attach_all() };
        match self.go_over(&migration) {
            Ok(()) => migration.finish(),
            Err(error) => {
                self.migration = Some(migration);
                Err(error)
            }
        }
    }

    fn go_over(&mut self, migration: &Migration) -> Result<()> {
        // What has come while the tables were read; the less is missing when the first program has been exchanged, the
        // fewer connections meet one that does not know them.
        migration.copy()?;
        if migration.has_transition()? {
            if !migration.has_copied_connections() {
                self.attach_transition(transition::OLD)?;
                migration.copy_connections()?;
            }
            self.attach_transition(transition::NEW)?;
            self.programs.pin_all()?;
        }
        self.attach_all()
    }

    /// Programs that read one table of connections and write both, everywhere.
    fn attach_transition(&mut self, transition: u32) -> Result<()> {
        let settings = Settings { transition, ..settings(&self.config, self.overlay, self.mtu) };
        let between = Programs::load(&self.config.pin_dir, programs::NODE, settings, &self.config.sizes)?;
        let own = mem::replace(&mut self.programs, between);
        let attached = self.attach_all();
        self.programs = own;
        attached
    }

    fn attach_all(&mut self) -> Result<()> {
        self.attach_pair(OVERLAY, self.overlay)?;
        for ifindex in self.config.nics.clone() {
            self.attach_nic(ifindex)?;
        }
        for endpoint in self.endpoints()? {
            if nix::net::if_::if_indextoname(endpoint.ifindex).is_ok() {
                self.add_endpoint(&endpoint)?;
            } else {
                self.remove_endpoint(endpoint.addr)?;
            }
        }
        self.detach_strays()?;
        self.attacher.attach_cgroup(&self.programs, &self.config.cgroup)
    }

    /// Links of devices that no endpoint has: what a kill in the midst of its removal leaves.
    fn detach_strays(&self) -> Result<()> {
        let own: BTreeSet<u32> = self.endpoints()?.iter().map(|endpoint| endpoint.ifindex).collect();
        self.attacher.detach_others(&POD, |ifindex| own.contains(&ifindex))
    }

    fn attach(&self, program: &'static str, ifindex: u32, side: TcAttachType) -> Result<()> {
        self.attacher.attach_device(&self.programs, program, ifindex, side)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// MTU for pods: the first NIC's less the tunnel header.
    pub fn pod_mtu(&self) -> u32 {
        self.mtu
    }

    /// Ingress and egress of a device.
    fn attach_pair(&self, [ingress, egress]: [&'static str; 2], ifindex: u32) -> Result<()> {
        self.attach(ingress, ifindex, TcAttachType::Ingress)?;
        self.attach(egress, ifindex, TcAttachType::Egress)
    }

    /// Attaches the `nic` hooks to a device; done is done.
    pub fn attach_nic(&mut self, ifindex: u32) -> Result<()> {
        self.attach_pair(NIC, ifindex)
    }

    /// Goes on with the devices that the node has now: programs on new ones, those of old ones forgotten, addresses of
    /// both in the tables. True if anything was different. Connections and what serves them stay.
    pub fn follow(&mut self, overlay: u32, nics: &[Nic]) -> Result<bool> {
        let indices: Vec<u32> = nics.iter().map(|nic| nic.index).collect();
        let mut addresses = vec![self.config.addresses[0]];
        addresses.extend(nics.iter().flat_map(|nic| &nic.addresses).filter(|it| **it != self.config.addresses[0]));
        if indices == self.config.nics && addresses == self.config.addresses && overlay == self.overlay {
            return Ok(false);
        }
        for gone in self.config.nics.iter().filter(|nic| !indices.contains(nic)) {
            self.attacher.detach_device(&NIC, *gone)?;
        }
        if overlay != self.overlay {
            self.attacher.detach_device(&OVERLAY, self.overlay)?;
        }
        let before = settings(&self.config, self.overlay, self.mtu);
        (self.config.nics, self.config.addresses, self.overlay) = (indices, addresses, overlay);
        let settings = settings(&self.config, overlay, self.mtu);
        if settings != before {
            // They are constants of the programs.
            self.programs = Programs::load(&self.config.pin_dir, programs::NODE, settings, &self.config.sizes)?;
        }
        if self.migration.is_none() {
            self.attach_all()?;
        }
        self.apply_nodes()?;
        Ok(true)
    }

    /// Every place where a program of this node belongs.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let pods = self.endpoints()?.into_iter().flat_map(|endpoint| self.pod_attachments(endpoint.ifindex));
        Ok(self.node_attachments().into_iter().chain(pods).collect())
    }

    /// Those of one pod's host end.
    pub fn pod_attachments(&self, ifindex: u32) -> [Attachment; 2] {
        self.places(POD, ifindex)
    }

    /// Those that no pod can do without.
    pub fn node_attachments(&self) -> Vec<Attachment> {
        let nics = self.config.nics.iter().flat_map(|nic| self.places(NIC, *nic));
        let overlay = self.places(OVERLAY, self.overlay).into_iter();
        overlay.chain(nics).chain(self.attacher.cgroup_places()).collect()
    }

    fn places(&self, [ingress, egress]: [&'static str; 2], ifindex: u32) -> [Attachment; 2] {
        [(ingress, TcAttachType::Ingress), (egress, TcAttachType::Egress)]
            .map(|(program, side)| self.attacher.device_place(program, ifindex, side))
    }

    /// Puts programs back that somebody has taken away, and tells which; those of pods that are gone by now stay away.
    pub fn reattach(&mut self, detached: &[Attachment]) -> Result<Vec<String>> {
        let still: BTreeSet<String> = self.attachments()?.iter().map(ToString::to_string).collect();
        let mut attached = Vec::new();
        for attachment in detached.iter().filter(|attachment| still.contains(&attachment.to_string())) {
            match attachment.place {
                Place::Cgroup => self.attacher.attach_cgroup(&self.programs, &self.config.cgroup)?,
                Place::Device { ifindex, side } => self.attach(attachment.program, ifindex, side)?,
            }
            attached.push(attachment.to_string());
        }
        Ok(attached)
    }

    /// Devices of ours on which somebody has switched off what the routing table needs to answer for them (writing to
    /// `ip_forward` does so for all); switched on again here.
    pub fn restore_forwarding(&self) -> Result<Vec<String>> {
        let pods = self.endpoints()?.into_iter().map(|endpoint| endpoint.ifindex);
        let mut restored = Vec::new();
        for ifindex in pods.chain([self.overlay]) {
            // One that is just going needs nothing.
            let Ok(device) = interface_name(ifindex) else { continue };
            if !may_forward(&device) {
                allow_forwarding(ifindex)?;
                restored.push(device);
            }
        }
        Ok(restored)
    }

    /// Makes a pod reachable and attaches its hooks; done is done. Whatever is attached has an endpoint by which it is
    /// found again, so the endpoint comes first.
    pub fn add_endpoint(&mut self, endpoint: &EndpointSpec) -> Result<()> {
        let ifindex = endpoint.ifindex;
        allow_forwarding(ifindex)?;
        self.limit(endpoint)?;
        self.tables.endpoints.put(&endpoint.addr.into(), &endpoint.entry())?;
        step("the endpoint is in its table");
        // A pod's old programs go on with the others' until all are exchanged.
        if self.migration.is_none() || !self.attacher.has_links(&POD, ifindex) {
            self.attach_pair(POD, ifindex)?;
            step("the programs are attached");
        }
        Ok(())
    }

    /// A limit that is there already goes on as it is, with its schedule.
    fn limit(&self, endpoint: &EndpointSpec) -> Result<()> {
        let key = endpoint.addr.into();
        let there = self.tables.rates.get(&key)?;
        match there.is_some_and(|rates| Limits::from_rates(&rates) == endpoint.limits) {
            true => Ok(()),
            false if endpoint.limits.is_none() => self.tables.rates.delete(&key),
            false => self.tables.rates.put(&key, &endpoint.limits.rates()),
        }
    }

    /// What is not as [`Self::add_endpoint`] and [`Self::set_host_ports`] wrote it, in words. Programs are another matter:
    /// see [`Self::pod_attachments`].
    pub fn check_endpoint(&self, endpoint: &EndpointSpec, ports: &[HostPort]) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        if self.tables.endpoints.get(&endpoint.addr.into())? != Some(endpoint.entry()) {
            faults.push(format!("the table of endpoints does not lead {} to its interface", endpoint.addr));
        }
        let rates = self.tables.rates.get(&endpoint.addr.into())?.unwrap_or_default();
        if Limits::from_rates(&rates) != endpoint.limits {
            faults.push(format!("the rates of {} are not those that were asked for", endpoint.addr));
        }
        for port in ports {
            if self.tables.frontends.get(&port.frontend())?.is_none() {
                faults.push(format!("{} is not served", frontend(&port.frontend())));
            }
        }
        Ok(faults)
    }

    /// The ports of the node that lead to a pod: these and no others. They go with its endpoint.
    pub fn set_host_ports(&mut self, pod: IpAddr, ports: &[HostPort]) -> Result<Report> {
        let pod = Addr::from(pod);
        self.host_ports.set(pod, ports);
        let mut operations = Operations::default();
        self.ledger.change(&owner(pod), self.host_ports.plans(pod), &mut operations);
        let report = Report { services: 0, operations: operations.len(), deserted: operations.deserted };
        self.apply(operations)?;
        Ok(report)
    }

    /// Tells in which network namespace a pod's sockets are, by a path to it: they are then known as the pod's. Where that
    /// is not told, or the kernel has no cookies for namespaces, what depends on the client is decided per packet.
    pub fn add_namespace(&mut self, addr: IpAddr, path: &Path) -> Result<()> {
        self.namespaces.add(addr, path)
    }

    /// Absent is done.
    pub fn remove_endpoint(&mut self, addr: IpAddr) -> Result<Report> {
        let report = self.set_host_ports(addr, &[])?;
        self.namespaces.remove(addr)?;
        let key = Addr::from(addr);
        match self.tables.endpoints.get(&key)? {
            None => self.detach_strays()?,
            Some(endpoint) => {
                self.tables.endpoints.delete(&key)?;
                self.tables.rates.delete(&key)?;
                step("the endpoint is out of its table");
                self.attacher.detach_device(&POD, endpoint.ifindex)?;
            }
        }
        Ok(report)
    }

    pub fn endpoints(&self) -> Result<Vec<EndpointSpec>> {
        endpoints(&self.config.pin_dir)
    }

    /// Brings the tables of the changed objects up to date. Nothing else is looked at, nothing is pruned, unless a
    /// failure has made the agent forget whose the entries are.
    pub fn reconcile(&mut self, snapshot: &Snapshot, changes: &BTreeSet<Change>) -> Result<Report> {
        if self.unclaimed { self.reconcile_all(snapshot) } else { self.reconcile_changes(snapshot, changes) }
    }

    fn reconcile_changes(&mut self, snapshot: &Snapshot, changes: &BTreeSet<Change>) -> Result<Report> {
        let mut operations = Operations::default();
        for change in changes {
            if let Change::Service(key) = change {
                self.ledger.change(key, &plan_service(snapshot, key), &mut operations);
            }
        }
        let mut report =
            Report { services: changes.len(), operations: operations.len(), deserted: operations.deserted };
        if changes.contains(&Change::Nodes) {
            report.services -= 1;
            self.planned_nodes = plan_nodes(snapshot);
            report.operations += self.apply_nodes()?;
        }
        self.apply(operations)?;
        Ok(report)
    }

    /// Everything, and removal of what the snapshot does not have. Only after the first complete list of Services,
    /// EndpointSlices and Nodes.
    pub fn reconcile_all(&mut self, snapshot: &Snapshot) -> Result<Report> {
        self.complete = true;
        self.unclaimed = false;
        let mut report = self.reconcile_changes(snapshot, &snapshot.all_changes())?;
        let mut operations = Operations::default();
        self.host_ports.iter().for_each(|(owner, plans)| self.ledger.change(&owner, plans, &mut operations));
        let wanted = |key: &ObjectKey| snapshot.services.contains_key(key) || self.host_ports.contains(key);
        self.ledger.prune(wanted, &mut operations);
        report.operations += operations.len();
        // What happened while nobody looked is not known.
        report.deserted = true;
        self.apply(operations)?;
        if self.migration.is_some() {
            self.exchange()?;
        }
        Ok(report)
    }

    /// The means to find UDP sockets that are connected through Services, here and in every pod whose namespace is known,
    /// and to end them: to be used without holding the datapath.
    pub fn sockets(&self) -> Result<Sockets> {
        Sockets::new(&self.config.pin_dir, self.namespaces.paths())
    }

    /// Those that their backend has deserted: what they asked for leads elsewhere or nowhere. Nobody is, as far as is known,
    /// before the first complete list.
    pub fn deserted(&self, mut sockets: Vec<ServiceSocket>) -> Vec<ServiceSocket> {
        sockets.retain(|socket| self.complete && !self.ledger.leads(socket.origin()));
        sockets
    }

    /// Carries out a difference. If the kernel refuses part of it, the ledger is read back from the maps, so that the
    /// next reconciliation starts from the truth.
    fn apply(&mut self, operations: Operations) -> Result<()> {
        let result = self.check_room().and_then(|()| operations.carry_out(&mut self.tables));
        if let Err(error) = result {
            self.unclaimed = true;
            (self.ledger, _) = Ledger::adopt(self.tables.services()?);
            return Err(error);
        }
        if !operations.retired.is_empty() {
            self.retired.push((Instant::now(), operations.retired));
        }
        self.bury()
    }

    /// Removes entries that no packet can be looking at any more.
    fn bury(&mut self) -> Result<()> {
        let buried = self.retired.iter().take_while(|(since, _)| since.elapsed() > GRACE).count();
        for (_, retired) in self.retired.drain(..buried) {
            retired.bury(&mut self.tables)?;
        }
        Ok(())
    }

    /// Two generations of slots exist during a change.
    fn check_room(&self) -> Result<()> {
        let [frontends, services, slots, backends, sources, members] = self.ledger.sizes();
        let rooms = [
            ("frontends", frontends, self.tables.frontends.capacity()),
            ("services", services, self.tables.services.capacity()),
            ("slots", slots, self.tables.slots.capacity()),
            ("backends", backends, self.tables.backends.capacity()),
            ("source_ranges", sources, self.tables.sources.capacity()),
            ("members", members, self.tables.members.capacity()),
        ];
        match rooms.into_iter().find(|(_, wanted, room)| *wanted > *room as usize) {
            Some((map, wanted, room)) => Err(Error::MapFull { map, wanted, room }),
            None => Ok(()),
        }
    }

    /// Routes and node addresses, with this node's own. What is not planned goes only after a complete list.
    fn apply_nodes(&mut self) -> Result<usize> {
        let mut planned = self.planned_nodes.clone();
        let own = NodeAddress::KNOWN | NodeAddress::LOCAL;
        let local = RouteTo { node: self.config.addresses[0].into(), flags: Route::LOCAL };
        planned
            .routes
            .insert(route_key(self.config.cluster_cidr), RouteTo { flags: Route::UNREACHABLE, ..RouteTo::default() });
        planned.routes.insert(route_key(self.config.pod_cidr), local);
        for (i, address) in self.config.addresses.iter().enumerate() {
            let ports = node_port_flags(&self.config.node_ports, *address, i == 0);
            planned.addresses.insert((*address).into(), own | ports);
        }
        let ports = node_port_flags(&self.config.node_ports, self.config.router(), false);
        planned.addresses.insert(self.config.router().into(), own | ports | NodeAddress::ROUTER);
        if !self.complete {
            planned.routes.extend(missing(&self.nodes.routes, &planned.routes));
            planned.addresses.extend(missing(&self.nodes.addresses, &planned.addresses));
        }
        let routes: Vec<_> = missing(&planned.routes, &BTreeMap::new())
            .filter(|(key, to)| self.nodes.routes.get(key) != Some(to))
            .map(|(key, to)| (key, Route::from(to)))
            .collect();
        let addresses: Vec<_> = planned
            .addresses
            .iter()
            .filter(|(key, flags)| self.nodes.addresses.get(key) != Some(flags))
            .map(|(k, v)| (*k, *v))
            .collect();
        self.tables.routes.put_all(&routes)?;
        self.tables.node_addresses.put_all(&addresses)?;
        let gone_routes: Vec<_> = missing(&self.nodes.routes, &planned.routes).map(|(key, _)| key).collect();
        let gone_addresses: Vec<_> = missing(&self.nodes.addresses, &planned.addresses).map(|(key, _)| key).collect();
        self.tables.routes.delete_all(&gone_routes)?;
        self.tables.node_addresses.delete_all(&gone_addresses)?;
        self.nodes = planned;
        Ok(routes.len() + addresses.len() + gone_routes.len() + gone_addresses.len())
    }

    /// Removes expired connections; call every few seconds.
    pub fn collect(&mut self) -> Result<Collected> {
        self.bury()?;
        self.connections.collect(|service, backend| self.ledger.uses(service, backend))
    }

    /// How full the maps are.
    pub fn fill(&self) -> Result<Vec<MapFill>> {
        fill(&self.config.pin_dir, &self.ledger, &self.connections)
    }

    pub fn counters(&self) -> Result<Vec<CounterRow>> {
        counters(&self.config.pin_dir)
    }

    pub fn dump(&self) -> Result<Dump> {
        dump(&self.config.pin_dir)
    }

    /// True while the kernel would send a new connection for the Service to this address (used to hold a pod's stop
    /// signal until its endpoint has left the tables).
    pub fn serves(&self, service: &ObjectKey, addr: IpAddr) -> bool {
        self.ledger.serves(service, addr.into())
    }
}

/// Entries of `from` whose key `other` lacks.
fn missing<'a, K: Ord + Copy + 'a, V: Copy + 'a>(
    from: &'a BTreeMap<K, V>,
    other: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> + use<'a, K, V> {
    let missing: Vec<(K, V)> = from.iter().filter(|(key, _)| !other.contains_key(key)).map(|(k, v)| (*k, *v)).collect();
    missing.into_iter()
}

fn settings(config: &Config, overlay: u32, mtu: u32) -> Settings {
    Settings {
        host_cookie: netns_cookie(),
        node: config.addresses[0].into(),
        router: config.router().into(),
        overlay,
        vni: config.vni,
        port_min: config.ports.0,
        port_max: config.ports.1,
        features: 0,
        uplink: config.nics.first().copied().unwrap_or(0),
        options: match config.socket_lb {
            SocketLb::All => 0,
            SocketLb::HostOnly => option::SOCKETS_OF_HOST_ONLY,
        },
        mtu,
        transition: transition::NONE,
    }
}

impl EndpointSpec {
    fn entry(&self) -> Endpoint {
        let Self { ifindex, mac, host_mac, limits, .. } = *self;
        Endpoint { ifindex, identity: 0, mac, host_mac, flags: limits.flags() }
    }

    pub(crate) fn new(addr: Addr, endpoint: Endpoint, rates: &Rates) -> Self {
        let Endpoint { ifindex, mac, host_mac, .. } = endpoint;
        Self { addr: addr.into(), ifindex, mac, host_mac, limits: Limits::from_rates(rates) }
    }
}

impl Tables {
    fn open(pins: &Path) -> Result<Self> {
        Ok(Self {
            frontends: Table::open(pins, "frontends")?,
            services: Table::open(pins, "services")?,
            slots: Table::open(pins, "slots")?,
            backends: Table::open(pins, "backends")?,
            sources: Table::open(pins, "source_ranges")?,
            members: Table::open(pins, "members")?,
            endpoints: Table::open(pins, "endpoints")?,
            rates: Table::open(pins, "rates")?,
            routes: Table::open(pins, "routes")?,
            node_addresses: Table::open(pins, "node_addresses")?,
        })
    }

    fn services(&self) -> Result<Found> {
        Ok(Found {
            frontends: self.frontends.entries()?,
            services: self.services.entries()?,
            slots: self.slots.entries()?,
            backends: self.backends.entries()?,
            sources: self.sources.entries()?,
            members: self.members.entries()?,
        })
    }

    fn nodes(&self) -> Result<NodeTables> {
        let routes = self.routes.entries()?.into_iter();
        let routes = routes.map(|(key, route)| (key, RouteTo { node: route.node, flags: route.flags }));
        Ok(NodeTables { routes: routes.collect(), addresses: self.node_addresses.entries()?.into_iter().collect() })
    }
}

impl ServiceMaps for Tables {
    type Error = Error;

    fn put_backends(&mut self, entries: &[(u32, Backend)]) -> Result<()> {
        self.backends.put_all(entries)
    }

    fn put_slots(&mut self, entries: &[(SlotKey, u32)]) -> Result<()> {
        self.slots.put_all(entries)
    }

    fn put_sources(&mut self, entries: &[(SourceKey, u32)]) -> Result<()> {
        self.sources.put_all(entries)
    }

    fn put_members(&mut self, entries: &[(MemberKey, u32)]) -> Result<()> {
        self.members.put_all(entries)
    }

    fn put_services(&mut self, entries: &[(u32, Service)]) -> Result<()> {
        self.services.put_all(entries)?;
        step("backends, slots and services are written");
        Ok(())
    }

    fn put_frontends(&mut self, entries: &[(FrontendKey, u32)]) -> Result<()> {
        self.frontends.put_all(entries)
    }

    fn delete_backends(&mut self, keys: &[u32]) -> Result<()> {
        self.backends.delete_all(keys)
    }

    fn delete_slots(&mut self, keys: &[SlotKey]) -> Result<()> {
        self.slots.delete_all(keys)
    }

    fn delete_sources(&mut self, keys: &[SourceKey]) -> Result<()> {
        self.sources.delete_all(keys)
    }

    fn delete_members(&mut self, keys: &[MemberKey]) -> Result<()> {
        self.members.delete_all(keys)?;
        step("frontends are written");
        Ok(())
    }

    fn delete_services(&mut self, keys: &[u32]) -> Result<()> {
        self.services.delete_all(keys)
    }

    fn delete_frontends(&mut self, keys: &[FrontendKey]) -> Result<()> {
        self.frontends.delete_all(keys)
    }
}

/// Removes every pin, link and device of a node, whether or not an agent ever ran. Absent is done.
pub async fn remove_all(config: &Config) -> Result<()> {
    let mut failures = Vec::new();
    // Pins go from the links down: nothing is attached any more when the maps go.
    for directory in ["links", "programs", ""] {
        if let Err(error) = remove_pins(&config.pin_dir.join(directory)) {
            failures.push(error);
        }
    }
    let devices = Devices::connect();
    let removed = match devices {
        Ok(devices) => devices.remove_overlay(&config.vxlan).await,
        Err(error) => Err(error),
    };
    failures.extend(removed.err());
    if failures.is_empty() { Ok(()) } else { Err(Error::Teardown(failures)) }
}

/// Every pin in a directory, and the directory.
pub(crate) fn remove_pins(directory: &Path) -> Result<()> {
    let failed = |source| Error::Pin { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        programs::remove_pin(&entry.map_err(failed)?.path())?;
    }
    std::fs::remove_dir(directory).map_err(failed)
}

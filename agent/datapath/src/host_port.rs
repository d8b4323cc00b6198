//! Ports of the node that lead to one of its pods (CNI `portMappings`, Kubernetes `hostPort`): Services of one backend
//! that only this node's own addresses serve.
//!
//! `datapath` keeps what is wanted in a [`HostPorts`], so that it can be claimed again whenever the ledger is read back
//! from the maps. Pure.

use crate::{ObjectKey, plan::ServicePlan};
use leme_abi::{Addr, Backend, FrontendKey, Port, Protocol, Scope, Service};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// One port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// None: every address of the node. A loopback address is served on the node's own localhost only.
    pub addr: Option<IpAddr>,
    pub port: u16,
    pub protocol: Protocol,
    /// The pod's port behind it.
    pub target: u16,
}

impl HostPort {
    pub(crate) fn frontend(&self) -> FrontendKey {
        FrontendKey {
            addr: self.addr.map_or(Addr::ANY, Addr::from),
            port: Port::new(self.port),
            proto: self.protocol.number(),
            scope: Scope::Cluster as u8,
        }
    }

    fn backend(&self, pod: Addr) -> Backend {
        Backend {
            addr: pod,
            port: Port::new(self.target),
            proto: self.protocol.number(),
            flags: Backend::LOCAL,
            ..Backend::default()
        }
    }

    fn plan(&self, pod: Addr) -> ServicePlan {
        ServicePlan {
            frontends: BTreeSet::from([self.frontend()]),
            backends: BTreeSet::from([self.backend(pod)]),
            flags: Service::HOST_PORT,
            ..ServicePlan::default()
        }
    }
}

/// What the pods of this node want, by pod.
#[derive(Debug, Default)]
pub(crate) struct HostPorts(BTreeMap<Addr, Vec<ServicePlan>>);

impl HostPorts {
    pub(crate) fn set(&mut self, pod: Addr, ports: &[HostPort]) {
        match ports.is_empty() {
            true => drop(self.0.remove(&pod)),
            false => drop(self.0.insert(pod, ports.iter().map(|port| port.plan(pod)).collect())),
        }
    }

    pub(crate) fn plans(&self, pod: Addr) -> &[ServicePlan] {
        self.0.get(&pod).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ObjectKey, &[ServicePlan])> {
        self.0.iter().map(|(pod, plans)| (owner(*pod), plans.as_slice()))
    }

    pub(crate) fn contains(&self, key: &ObjectKey) -> bool {
        key.namespace.is_empty() && self.0.keys().any(|pod| owner(*pod) == *key)
    }
}

/// Whose the entries are. Services have a namespace, pods' addresses have none.
pub(crate) fn owner(pod: Addr) -> ObjectKey {
    ObjectKey::new("", IpAddr::from(pod).to_string())
}

//! Planned tables as text, one line per entry: what scenarios compare and people read.

use crate::{
    NodeTables, ObjectKey, ServicePlan, Tables,
    dump::{frontend, prefix},
};
use leme_abi::{Addr, Backend, NodeAddress, Route, Service};
use std::{fmt, net::IpAddr};

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, plans) in &self.services {
            plans.iter().try_for_each(|plan| write_service(f, key, plan))?;
        }
        for (key, check) in &self.checks {
            writeln!(f, "check {key}: {} local endpoints on port {}", check.endpoints, check.port)?;
        }
        self.nodes.fmt(f)
    }
}

fn write_service(f: &mut fmt::Formatter<'_>, key: &ObjectKey, plan: &ServicePlan) -> fmt::Result {
    let mut frontends: Vec<String> = plan.frontends.iter().map(frontend).collect();
    frontends.sort();
    let backends: Vec<String> = sorted(plan.backends.iter().map(|b| (b.addr, b))).map(|(_, b)| backend(b)).collect();
    let flags = [
        (Service::EXTERNAL_LOCAL, " external-local"),
        (Service::INTERNAL_LOCAL, " internal-local"),
        (Service::GUARDED, " guarded"),
    ];
    let flags = flags.iter().filter(|(bit, _)| plan.flags & bit != 0).map(|(_, name)| *name).collect::<String>();
    let affinity = if plan.affinity > 0 { format!(" affinity={}", plan.affinity) } else { String::new() };
    let backends = match backends.is_empty() {
        true if plan.flags & Service::ELSEWHERE != 0 => "dropped".to_owned(),
        true => "refused".to_owned(),
        false => backends.join(", "),
    };
    let sources: Vec<String> = sorted(plan.sources.iter().map(|s| (s.addr, s))).map(|(_, s)| prefix(s)).collect();
    let sources = if sources.is_empty() { String::new() } else { format!(" sources={}", sources.join(",")) };
    writeln!(f, "service {key}{flags}{affinity}{sources}: {} -> {backends}", frontends.join(", "))
}

fn backend(backend: &Backend) -> String {
    let local = if backend.flags & Backend::LOCAL != 0 { " local" } else { "" };
    let state = if backend.state == Backend::TERMINATING { " terminating" } else { "" };
    format!("{}:{}{local}{state}", IpAddr::from(backend.addr), backend.port.number())
}

impl fmt::Display for NodeTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, (key, to)) in sorted(self.routes.iter().map(|route| (route.0.addr, route))) {
            match to.flags & Route::SERVICES {
                0 => writeln!(f, "route {} -> {}", prefix(key), IpAddr::from(to.node))?,
                _ => writeln!(f, "services {}", prefix(key))?,
            }
        }
        for (addr, flags) in sorted(self.addresses.iter().map(|(addr, flags)| (*addr, flags))) {
            let place = if flags & NodeAddress::LOCAL != 0 { " local" } else { "" };
            let router = if flags & NodeAddress::ROUTER != 0 { " router" } else { "" };
            let ports = if flags & NodeAddress::NO_NODE_PORTS != 0 { " without NodePorts" } else { "" };
            writeln!(f, "node {addr}{place}{router}{ports}")?;
        }
        Ok(())
    }
}

/// In the order of addresses as people count them, which is not that of their bytes in a map.
fn sorted<T>(entries: impl Iterator<Item = (Addr, T)>) -> impl Iterator<Item = (IpAddr, T)> {
    let mut entries: Vec<(IpAddr, T)> = entries.map(|(addr, entry)| (addr.into(), entry)).collect();
    entries.sort_by_key(|(addr, _)| *addr);
    entries.into_iter()
}

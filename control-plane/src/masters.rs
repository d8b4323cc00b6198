//! Which servers live: each leases its own address in the store, under upstream's keys
//! (`/registry/masterleases/<address>`, 15 seconds), and whoever sees a lease come or go writes the endpoints of the
//! `kubernetes` Service anew. A server that ends takes its address with it; one that dies is gone when its lease is.
//!
//! With the embedded store there is one server, and nothing to lease.

use std::{net::IpAddr, time::Duration};

use futures::StreamExt;
use leme_store::{Event, Key, Operation, Transaction};
use serde_json::{Value, json};

use crate::{
    api::{App, status::Outcome},
    bootstrap::{SERVICE_NAME, apply},
};

const PREFIX: &str = "/registry/masterleases/";
/// Seconds; renewed three times in two of them.
const LEASE: u32 = 15;
/// Servers that start together see each other after so many looks at the latest; the next upkeep looks again.
const LOOKS: usize = 5;
/// For saying goodbye: the store may be what is gone.
const GOODBYE: Duration = Duration::from_secs(1);

/// Renews this server's lease and brings the endpoints up to date, unless only its own machine could reach it.
pub async fn publish(app: &App, port: u16) -> Outcome<()> {
    let own = app.config.advertise;
    if own.is_loopback() {
        return Ok(());
    }
    if app.config.etcd.is_none() {
        return write(app, port, &[own]).await;
    }
    let value = json!({
        "kind": "Endpoints", "apiVersion": "v1", "metadata": {},
        "subsets": [{"addresses": [{"ip": own.to_string()}]}],
    });
    let put = Operation::Put { key: key(own), value: value.to_string().into(), lease: Some(LEASE) };
    app.registry.store.commit(Transaction { conditions: Vec::new(), operations: vec![put] }).await?;
    reconcile(app, port).await
}

/// Takes this server's address out of the endpoints. The last one stays: nobody is there to follow it.
pub async fn withdraw(app: &App, port: u16) {
    if app.config.etcd.is_none() || app.config.advertise.is_loopback() {
        return;
    }
    let goodbye = async {
        let delete = Operation::Delete { key: key(app.config.advertise) };
        app.registry.store.commit(Transaction { conditions: Vec::new(), operations: vec![delete] }).await?;
        reconcile(app, port).await
    };
    match tokio::time::timeout(GOODBYE, goodbye).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => tracing::debug!(%failure, "this server's address stays until its lease ends"),
        Err(_) => tracing::debug!("this server's address stays until its lease ends: the store does not answer"),
    }
}

/// Returns when a server has come or gone; never, with the embedded store.
pub async fn changed(app: &App) {
    if app.config.etcd.is_some() {
        let store = &app.registry.store;
        let Ok(revision) = store.revision().await else { return std::future::pending().await };
        let Ok(mut watch) = store.watch(PREFIX, revision).await else { return std::future::pending().await };
        while let Some(Ok(event)) = watch.next().await {
            match event {
                Event::Put { previous: None, .. } | Event::Delete { .. } => return,
                Event::Put { .. } | Event::Progress(_) => {}
            }
        }
    }
    std::future::pending().await
}

/// Until what was written is what is leased: servers do this at the same time.
async fn reconcile(app: &App, port: u16) -> Outcome<()> {
    let mut addresses = living(app).await?;
    for _ in 0..LOOKS {
        if addresses.is_empty() {
            break;
        }
        write(app, port, &addresses).await?;
        let now = living(app).await?;
        if now == addresses {
            break;
        }
        addresses = now;
    }
    Ok(())
}

/// In the order of addresses, as endpoints are.
async fn living(app: &App) -> Outcome<Vec<IpAddr>> {
    let page = app.registry.store.list(PREFIX, None, 0, None).await?;
    let named = page.records.iter().filter_map(|record| record.key.strip_prefix(PREFIX)?.parse().ok());
    let mut addresses: Vec<IpAddr> = named.collect();
    addresses.sort();
    Ok(addresses)
}

async fn write(app: &App, port: u16, addresses: &[IpAddr]) -> Outcome<()> {
    let listed: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": listed, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    apply(app, "endpoints", "default", endpoints, &["subsets"]).await?;
    let endpoint = |address: &IpAddr| json!({"addresses": [address.to_string()], "conditions": {"ready": true}});
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {SERVICE_NAME: "kubernetes"}},
        "addressType": if app.config.advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    apply(app, "endpointslices", "default", slice, &["endpoints", "ports"]).await
}

fn key(address: IpAddr) -> Key {
    format!("{PREFIX}{address}").into()
}

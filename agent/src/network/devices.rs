//! Keeps the programs on the node's devices as devices come, go and change their addresses: a NIC that is plugged in, a
//! VLAN, a bond, a default route that moves; and makes our own devices (the tunnel's, the pods' links) again what they
//! were if somebody removes them, switches them off or takes their routes away. Others' are left as they are.
//!
//! Started by the network. The kernel tells of changes by netlink: the first of a burst is looked into at once (what
//! arrives before a device has its programs passes them by), the rest of it (a pod's start is a dozen messages) together.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Kernel, cni_server::CniServer};

/// How long it must be quiet, and how long news may be held back.
const QUIET: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);
const GROUPS: [MulticastGroup; 3] = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];

/// For ever; whoever looks for disturbances is told when to look.
pub fn follow(kernel: Kernel, pods: Arc<CniServer>) -> watch::Receiver<()> {
    let (changed, watched) = watch::channel(());
    tokio::spawn(async move {
        loop {
            if let Err(error) = listen(&kernel, &pods, &changed).await {
                warn!("cannot listen for changes of devices: {error:#}; trying again");
            }
            // The socket overflowed, say: what was missed is looked for when it is made anew.
            tokio::time::sleep(PATIENCE).await;
        }
    });
    watched
}

async fn listen(kernel: &Kernel, pods: &CniServer, changed: &watch::Sender<()>) -> anyhow::Result<()> {
    let (connection, _handle, mut news) = new_multicast_connection(&GROUPS)?;
    tokio::spawn(connection);
    loop {
        try_adjust(kernel, pods).await;
        changed.send_replace(());
        if news.next().await.is_none() {
            return Ok(());
        }
        try_adjust(kernel, pods).await;
        let burst = async { while let Ok(Some(_)) = tokio::time::timeout(QUIET, news.next()).await {} };
        // A burst without end is looked into now and then.
        let _ = tokio::time::timeout(PATIENCE, burst).await;
    }
}

async fn try_adjust(kernel: &Kernel, pods: &CniServer) {
    if let Err(error) = adjust(kernel).await {
        warn!("cannot follow the node's devices: {error:#}; trying again with the next change");
    }
    if let Err(error) = pods.mend().await {
        warn!("cannot mend the links of pods: {error:#}; trying again with the next change");
    }
}

async fn adjust(kernel: &Kernel) -> anyhow::Result<()> {
    let config = kernel.with(|datapath| datapath.config().clone()).await;
    let overlay = leme_datapath::keep_overlay(&config).await?;
    let nics = leme_datapath::find_nics(config.addresses[0], &[&config.vxlan]).await?;
    let found = nics.clone();
    if kernel.with(move |datapath| datapath.follow(overlay, &found)).await? {
        let devices: Vec<_> = nics.iter().map(|nic| (nic.index, &nic.addresses)).collect();
        info!(?devices, "the node's devices have changed");
    }
    Ok(())
}

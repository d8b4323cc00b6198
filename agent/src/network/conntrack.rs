//! Collects expired connections from the kernel's tables, every few seconds, for as long as the agent lives.
//!
//! Spawned by the network. The kernel marks lifetimes; which entries go together is the datapath's knowledge.

use std::{sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::{Kernel, metrics::Metrics};

const INTERVAL: Duration = Duration::from_secs(5);

pub async fn collect_regularly(kernel: Kernel, metrics: Arc<Metrics>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        match kernel.with(|datapath| datapath.collect()).await {
            Ok(collected) => metrics.connections(collected),
            Err(error) => warn!(%error, "failed to collect expired connections"),
        }
    }
}

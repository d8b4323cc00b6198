//! Collects expired connections from the kernel's tables, every few seconds, for as long as the agent lives.
//!
//! Spawned by the network. The kernel marks lifetimes; which entries go together is the datapath's knowledge.

use std::{sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::{Kernel, metrics::Metrics};

const INTERVAL: Duration = Duration::from_secs(5);
/// From this fill on the promise that no live connection is lost is in danger.
const FULL_PERCENT: usize = 80;

pub async fn collect_regularly(kernel: Kernel, metrics: Arc<Metrics>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned = false;
    loop {
        interval.tick().await;
        match kernel.with(|datapath| datapath.collect()).await {
            Ok(collected) => {
                metrics.connections(collected);
                let full = collected.live * 100 > collected.capacity * FULL_PERCENT;
                if full && !warned {
                    let (live, capacity) = (collected.live, collected.capacity);
                    warn!(live, capacity, "the connection table is filling up");
                }
                warned = full;
            }
            Err(error) => warn!(%error, "failed to collect expired connections"),
        }
    }
}

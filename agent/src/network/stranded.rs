//! Ends UDP sockets whose backend has gone: their owner learns of it and connects anew, instead of talking to nobody.
//!
//! The kernel tells no hook about datagrams of a connected socket, so this is user space's. Woken when somebody stops
//! serving over UDP, a pod with a port of the node included; it looks at the sockets themselves and remembers nothing.

use std::{sync::Arc, time::Duration};

use leme_datapath::{Error, Result};
use tracing::{debug, info, warn};

use super::Kernel;

/// A socket that chose just before the change is connected by then.
const SETTLE: Duration = Duration::from_secs(1);

/// Looks each time it is woken, and once more for those that were being connected.
pub async fn end_when_woken(kernel: Kernel) {
    let mut told = false;
    loop {
        kernel.deserted.notified().await;
        report(end(&kernel).await, &mut told);
        tokio::time::sleep(SETTLE).await;
        report(end(&kernel).await, &mut told);
    }
}

async fn end(kernel: &Kernel) -> Result<usize> {
    let sockets = Arc::new(kernel.with(|datapath| datapath.sockets()).await?);
    let looking = Arc::clone(&sockets);
    let found = blocking(move || looking.connected()).await?;
    let deserted = kernel.with(move |datapath| datapath.deserted(found)).await;
    blocking(move || sockets.end(&deserted)).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("system calls do not panic and are not cancelled")
}

fn report(outcome: Result<usize>, told: &mut bool) {
    match outcome {
        Ok(0) => debug!("no UDP socket was left by its backend"),
        Ok(count) => info!(count, "ended UDP sockets whose backend has gone"),
        Err(Error::NoSocketDiag) if *told => {}
        Err(error @ Error::NoSocketDiag) => {
            *told = true;
            warn!("{error}: sockets that are connected to a Service go on talking to a backend that has gone");
        }
        Err(error) => warn!(%error, "failed to look for UDP sockets whose backend has gone"),
    }
}

//! Lifecycle hooks: what a container asks to be done right after it starts and right before it is stopped.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;

use super::{http, probes};
use crate::runtime::Cri;

const AGENT: &str = "kube-lifecycle/1.36";

/// Runs a hook to its end; the caller bounds the time. The error is the hook's own words.
pub async fn run(
    cri: &Cri,
    hook: &core::LifecycleHandler,
    container: &core::Container,
    id: &str,
    ip: IpAddr,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let reply = cri.exec_sync(id, command.clone(), Duration::ZERO).await.map_err(|error| error.to_string())?;
        let output = String::from_utf8_lossy(&[reply.stdout, reply.stderr].concat()).into_owned();
        return match reply.exit_code {
            0 => Ok(()),
            code => Err(format!("command '{}' exited with {code}: {output}", command.join(" "))),
        };
    }
    if let Some(action) = &hook.http_get {
        let address = probes::address(action.host.as_deref(), ip, &action.port, container)?;
        return http::get(action, address, AGENT).await.map(drop).map_err(|error| error.to_string());
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
    }
    Ok(())
}

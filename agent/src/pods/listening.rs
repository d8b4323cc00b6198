//! When a container serves that has no probe to say so: once something in its pod's network listens.
//!
//! Without this a Service would send clients to a process that has started and does not listen yet: the cluster is
//! quicker to tell every node of a new endpoint than most servers are to open their port.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::cgroups;

/// After this a container counts as ready whether it listens or not: it may serve what is not TCP. Long enough for a
/// server on a busy machine to open its port.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// The state LISTEN in `/proc/<pid>/net/tcp`.
const LISTEN: &str = "0A";

/// Ends when a TCP socket listens in the network of the container with this cgroup, or at the limit.
pub async fn wait(cgroup: String) {
    let _ = tokio::time::timeout(LIMIT, async {
        while !listens(&cgroup) {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await;
}

fn listens(cgroup: &str) -> bool {
    let processes = cgroups::unified_directory(cgroup).join("cgroup.procs");
    let processes = fs::read_to_string(processes).unwrap_or_default();
    let Some(process) = processes.lines().next() else { return false };
    ["tcp", "tcp6"].iter().any(|table| {
        let table = PathBuf::from(format!("/proc/{process}/net/{table}"));
        fs::read_to_string(table).is_ok_and(|text| has_listener(&text))
    })
}

fn has_listener(table: &str) -> bool {
    table.lines().skip(1).any(|line| line.split_whitespace().nth(3) == Some(LISTEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_listens_counts() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let listener =
            "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n";
        let client = "   1: 0200F40A:0050 0300F40A:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1\n";
        assert!(!has_listener(&[head, client].concat()));
        assert!(has_listener(&[head, client, listener].concat()));
    }
}

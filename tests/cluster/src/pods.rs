//! Pods as the API shows them, and as processes of this machine.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::Cluster;
use crate::wait::eventually;

/// A pod that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub node: String,
    pub address: Ipv4Addr,
    /// Of its first container, without the runtime's name.
    pub container: String,
    pub restarts: u64,
}

impl Pod {
    /// `None` while it is not Running, Ready and here to stay.
    pub fn running(value: &Value) -> Option<Self> {
        let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        let conditions = value["status"]["conditions"].as_array()?;
        Self::started(value).filter(|_| conditions.iter().any(ready))
    }

    /// `None` while it is not Running and here to stay; it need not be Ready.
    fn started(value: &Value) -> Option<Self> {
        let status = &value["status"];
        if status["phase"] != "Running" || !value["metadata"]["deletionTimestamp"].is_null() {
            return None;
        }
        let container = &status["containerStatuses"][0];
        Some(Self {
            name: value["metadata"]["name"].as_str()?.to_owned(),
            node: value["spec"]["nodeName"].as_str()?.to_owned(),
            address: status["podIP"].as_str()?.parse().ok()?,
            container: container["containerID"].as_str()?.strip_prefix("containerd://")?.to_owned(),
            restarts: container["restartCount"].as_u64()?,
        })
    }

    /// A process of its first container, found by its cgroup.
    pub fn process(&self) -> Result<i32> {
        processes_of(&self.container).first().copied().with_context(|| format!("{} has no process", self.name))
    }
}

/// Processes in cgroups that carry a name.
pub fn processes_of(cgroup: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let inside = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(cgroup));
    let mut found: Vec<i32> =
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(inside).collect();
    found.sort_unstable();
    found
}

impl Cluster {
    /// Waits until exactly so many pods of a label run and no others are left.
    pub fn wait_for_pods(&self, selector: &str, count: usize) -> Result<Vec<Pod>> {
        eventually(Duration::from_secs(90), &format!("{count} pods of {selector} run"), || {
            let list = self.get(&["pods", "-l", selector])?;
            let items = list["items"].as_array().context("no list")?;
            let pods: Vec<_> = items.iter().filter_map(Pod::running).collect();
            ensure!(items.len() == count && pods.len() == count, "{} run, {} there", pods.len(), items.len());
            Ok(pods)
        })
    }

    pub fn wait_for_pod(&self, name: &str) -> Result<Pod> {
        self.wait_for_pod_that(name, Pod::running)
    }

    /// The same of a pod that need not be Ready.
    pub fn wait_for_started_pod(&self, name: &str) -> Result<Pod> {
        self.wait_for_pod_that(name, Pod::started)
    }

    fn wait_for_pod_that(&self, name: &str, is: fn(&Value) -> Option<Pod>) -> Result<Pod> {
        eventually(Duration::from_secs(90), &format!("pod {name} runs"), || {
            let value = self.get(&["pod", name])?;
            is(&value).with_context(|| format!("it is {}", value["status"]))
        })
    }

    /// Waits until a kind has no object of a label left.
    pub fn wait_until_gone(&self, kinds: &str, selector: &str) -> Result<()> {
        eventually(Duration::from_secs(60), &format!("no {kinds} of {selector} left"), || {
            let list = self.get(&[kinds, "-l", selector])?;
            let left = list["items"].as_array().map_or(0, Vec::len);
            ensure!(left == 0, "{left} left");
            Ok(())
        })
    }

    /// A pod with tools on every node, made on first use: `tools-1` on the first node and so on.
    pub fn tools(&self) -> Result<Vec<Pod>> {
        if !self.try_kubectl(&["get", "pod", "tools-3"])?.success {
            for (index, node) in self.nodes.iter().enumerate() {
                self.kubectl(&["create", "-f", &self.tools_manifest(index + 1, &node.name)?])?;
            }
        }
        (1..=self.nodes.len()).map(|index| self.wait_for_pod(&format!("tools-{index}"))).collect()
    }

    fn tools_manifest(&self, index: usize, node: &str) -> Result<String> {
        let path = self.path(&format!("tools-{index}.yaml"));
        let text = fs::read_to_string(crate::cluster::manifest("tools.yaml"))?;
        fs::write(&path, text.replace("INDEX", &index.to_string()).replace("NODE", node))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// `kubectl exec POD -- …`
    pub fn exec(&self, pod: &str, words: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", pod, "--"], words].concat())
    }

    /// The deployment `nginx` with so many replicas behind the NodePort Service `nginx`, each of whose pods answers
    /// `/who` with its own name.
    pub fn web(&self, replicas: usize) -> Result<Vec<Pod>> {
        if !self.try_kubectl(&["get", "deployment", "nginx"])?.success {
            let count = replicas.to_string();
            self.kubectl(&["create", "deployment", "nginx", "--image=nginx", "--replicas", &count])?;
        }
        if !self.try_kubectl(&["get", "service", "nginx"])?.success {
            let ports = ["--port=8000", "--target-port=80", "--type=NodePort"];
            self.kubectl(&[&["expose", "deployment", "nginx"], &ports[..]].concat())?;
        }
        self.kubectl(&["scale", "deployment", "nginx", &format!("--replicas={replicas}")])?;
        let pods = self.wait_for_pods("app=nginx", replicas)?;
        for pod in &pods {
            self.exec(&pod.name, &["sh", "-c", "hostname > /usr/share/nginx/html/who"])?;
        }
        Ok(pods)
    }

    /// Cluster IP and first NodePort of a Service.
    pub fn service(&self, name: &str) -> Result<(Ipv4Addr, u16)> {
        let value = self.get(&["service", name])?;
        let address = value["spec"]["clusterIP"].as_str().context("no cluster IP")?.parse()?;
        match value["spec"]["ports"][0]["nodePort"].as_u64() {
            Some(port) => Ok((address, u16::try_from(port)?)),
            None => bail!("{name} has no NodePort"),
        }
    }
}

//! `--config FILE`: kind's `Cluster` and our own, which has the same shape and a few more fields.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use ipnetwork::Ipv4Network;
use serde::Deserialize;
use serde_norway::Value;

use super::valid_name;

const VERSIONS: [&str; 2] = ["kind.x-k8s.io/v1alpha4", "leme.dev/v1alpha1"];

/// Fields of kind's that mean nothing here. What is neither kind's nor ours is a mistake.
const OTHERS: [&str; 6] = [
    "containerdConfigPatches",
    "containerdConfigPatchesJSON6902",
    "featureGates",
    "kubeadmConfigPatches",
    "kubeadmConfigPatchesJSON6902",
    "runtimeConfig",
];
const NODE_OTHERS: [&str; 5] =
    ["extraMounts", "extraPortMappings", "image", "kubeadmConfigPatches", "kubeadmConfigPatchesJSON6902"];
const NETWORKING_OTHERS: [&str; 6] =
    ["apiServerAddress", "apiServerPort", "disableDefaultCNI", "dnsSearch", "ipFamily", "kubeProxyMode"];

/// What a file may ask for. Fields of kind's that mean nothing here are collected and reported, not obeyed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct File {
    kind: String,
    api_version: String,
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) nodes: Vec<FileNode>,
    #[serde(default)]
    pub(crate) networking: Networking,
    /// Registry host → URL.
    #[serde(default)]
    pub(crate) registry_mirrors: BTreeMap<String, String>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct FileNode {
    role: Option<String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Networking {
    pub(crate) pod_subnet: Option<Ipv4Network>,
    pub(crate) service_subnet: Option<Ipv4Network>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

impl Networking {
    fn check(&self) -> Result<()> {
        if let Some(family) = self.other.get("ipFamily").filter(|family| family.as_str() != Some("ipv4")) {
            bail!("networking.ipFamily {}: only ipv4 is possible yet", family.as_str().unwrap_or("of no name"));
        }
        // Every node takes a /24 of the pods' range; the tenth address of the Services' range is the name server's.
        let ranges = [("podSubnet", self.pod_subnet, 24), ("serviceSubnet", self.service_subnet, 28)];
        for (field, range, longest) in ranges.into_iter().filter_map(|(field, range, it)| Some((field, range?, it))) {
            if range.prefix() > longest || range.ip() != range.network() {
                bail!("networking.{field} {range}: expected a network of /{longest} or larger, like 10.1.0.0/16");
            }
        }
        Ok(())
    }
}

impl File {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no cluster configuration", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let file: Self = serde_norway::from_str(text)?;
        if let Some(name) = &file.name {
            valid_name(name).map_err(|error| anyhow!("name {name:?}: {error}"))?;
        }
        if file.kind != "Cluster" || !VERSIONS.contains(&file.api_version.as_str()) {
            bail!("expected kind Cluster of {}, found {} of {}", VERSIONS.join(" or "), file.kind, file.api_version);
        }
        file.check_fields()?;
        file.networking.check()?;
        let servers = file.nodes.iter().filter(|node| node.role.as_deref() == Some("control-plane")).count();
        if servers > 1 {
            bail!("{servers} control-plane nodes: only one is possible yet");
        }
        if let Some(role) = file
            .nodes
            .iter()
            .filter_map(|node| node.role.as_deref())
            .find(|role| !["control-plane", "worker"].contains(role))
        {
            bail!("unknown role {role}: control-plane and worker exist");
        }
        Ok(file)
    }

    fn check_fields(&self) -> Result<()> {
        let unknown = |prefix: &str, fields: &BTreeMap<String, Value>, known: &[&str]| {
            let field = fields.keys().find(|field| !known.contains(&field.as_str()))?;
            Some(format!("{prefix}{field}"))
        };
        let found = unknown("", &self.other, &OTHERS)
            .or_else(|| unknown("networking.", &self.networking.other, &NETWORKING_OTHERS))
            .or_else(|| self.nodes.iter().find_map(|node| unknown("nodes[].", &node.other, &NODE_OTHERS)));
        match found {
            Some(field) => bail!("unknown field {field}"),
            None => Ok(()),
        }
    }

    /// The nodes with the control plane first.
    pub(crate) fn ordered(&self) -> Vec<&FileNode> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|node| node.role.as_deref() != Some("control-plane"));
        nodes
    }

    /// Fields that change nothing here, for a warning.
    pub(crate) fn ignored(&self) -> Vec<String> {
        let nodes = self.nodes.iter().flat_map(|node| node.other.keys().map(|key| format!("nodes[].{key}")));
        let networking = self.networking.other.keys().map(|key| format!("networking.{key}"));
        let mut all: Vec<_> = self.other.keys().cloned().chain(nodes).chain(networking).collect();
        all.sort();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_kind_gives_its_nodes_with_the_control_plane_first() {
        let file = File::parse(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: worker\n- role: control-plane\n  labels: {a: b}\n",
        )
        .unwrap();
        assert_eq!(file.ordered()[0].labels["a"], "b");
        assert!(file.ignored().is_empty());
    }

    #[test]
    fn what_is_ignored_is_named() {
        let file = File::parse(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nfeatureGates: {X: true}\nnetworking: {apiServerPort: 1, podSubnet: 10.1.0.0/16}\n\
             nodes:\n- image: kindest/node\n",
        )
        .unwrap();
        assert_eq!(file.ignored(), ["featureGates", "networking.apiServerPort", "nodes[].image"]);
        assert_eq!(file.networking.pod_subnet.unwrap().to_string(), "10.1.0.0/16");
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        let parse = |rest: &str| {
            let file = File::parse(&format!("kind: Cluster\napiVersion: leme.dev/v1alpha1\n{rest}\n"));
            file.map(drop).map_err(|error| error.to_string())
        };
        for (rest, word) in [
            ("nodse: []", "nodse"),
            ("nodes: [{roll: worker}]", "nodes[].roll"),
            ("networking: {podsubnet: 10.1.0.0/16}", "networking.podsubnet"),
            ("networking: {podSubnet: 10.1.0.0}", "podSubnet"),
            ("networking: {podSubnet: 10.1.2.3/16}", "podSubnet"),
            ("networking: {serviceSubnet: 10.1.0.0/29}", "serviceSubnet"),
            ("networking: {ipFamily: dual}", "ipFamily"),
        ] {
            let error = parse(rest).unwrap_err();
            assert!(error.contains(word), "{rest}: {error}");
        }
        parse("networking: {ipFamily: ipv4, podSubnet: 10.1.0.0/16}").unwrap();
    }

    #[test]
    fn another_kind_and_two_control_planes_are_refused() {
        assert!(File::parse("kind: Pod\napiVersion: v1\n").is_err());
        let two =
            "kind: Cluster\napiVersion: leme.dev/v1alpha1\nnodes: [{role: control-plane}, {role: control-plane}]\n";
        assert!(File::parse(two).unwrap_err().to_string().contains("only one"));
    }
}

//! The plugin's binary, run as a container runtime runs it.

use std::{
    env,
    io::Write as _,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{Node, Pod};

/// One invocation; tests bend it before it runs.
#[derive(Clone)]
pub struct Call {
    environment: Vec<(&'static str, String)>,
    pub conf: Value,
    /// Instead of the configuration.
    stdin: Option<String>,
}

/// What came of it: an error's code, and the document, null where nothing was printed.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub code: Option<u64>,
    pub document: Value,
}

impl Answer {
    /// Message and details.
    pub fn words(&self) -> String {
        format!("{} {}", self.document["msg"].as_str().unwrap_or_default(), self.document["details"])
    }

    pub fn address(&self) -> &str {
        self.document["ips"][0]["address"].as_str().unwrap_or_else(|| panic!("no address in {self:?}"))
    }

    #[track_caller]
    pub fn expect(self, what: &str) -> Self {
        assert_eq!(self.code, None, "{what}: {}", self.document);
        self
    }
}

impl Call {
    pub fn new(node: &Node, command: &str, pod: &Pod) -> Self {
        Self::of_network(node, command)
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", &pod.path)
            .env("CNI_ARGS", &format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.container))
    }

    /// Without a container: STATUS, GC, VERSION.
    pub fn of_network(node: &Node, command: &str) -> Self {
        let conf = json!({"cniVersion": "1.1.0", "name": "leme", "type": "leme-cni", "socket": node.socket()});
        Self { environment: Vec::new(), conf, stdin: None }.env("CNI_COMMAND", command).env("CNI_PATH", "/opt/cni/bin")
    }

    /// An empty value unsets it.
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.environment.retain(|(other, _)| *other != name);
        if !value.is_empty() {
            self.environment.push((name, value.to_owned()));
        }
        self
    }

    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.conf[field] = value;
        self
    }

    /// Whatever the configuration says, this is what the plugin reads.
    pub fn reading(mut self, stdin: &str) -> Self {
        self.stdin = Some(stdin.to_owned());
        self
    }

    pub fn start(&self) -> Child {
        let binary = env::var_os("LEME_CNI_BIN").expect("LEME_CNI_BIN is set by `cargo xtask test cni`");
        let mut command = Command::new(binary);
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the plugin starts");
        let stdin = self.stdin.clone().unwrap_or_else(|| self.conf.to_string());
        // A plugin that fails early does not read it.
        let _ = child.stdin.take().expect("it is piped").write_all(stdin.as_bytes());
        child
    }

    pub fn run(&self) -> Answer {
        let output = self.start().wait_with_output().expect("the plugin ends");
        let document = match output.stdout.as_slice() {
            [] => Value::Null,
            bytes => serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {output:?}")),
        };
        let failed = !output.status.success();
        assert_eq!(failed, document["code"].is_u64(), "exit status and document agree: {output:?}");
        Answer { code: document["code"].as_u64(), document }
    }
}

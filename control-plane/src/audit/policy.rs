//! `audit.k8s.io/v1 Policy`: how much of which request is recorded. The first rule that matches counts.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::auth::attributes::Attributes;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    RequestReceived,
    /// Of requests that last: watches, execs, logs.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_norway::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What the policy wants of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }

    pub fn parse(text: &str) -> Result<Self> {
        let policy: Self = serde_norway::from_str(text)?;
        let known = policy.kind == "Policy" && policy.api_version == "audit.k8s.io/v1";
        ensure!(known, "expected a Policy of audit.k8s.io/v1");
        ensure!(!policy.rules.is_empty(), "has no rules: nothing would ever be recorded");
        for (n, rule) in policy.rules.iter().enumerate() {
            rule.check().with_context(|| format!("rules[{n}]"))?;
        }
        Ok(policy)
    }

    pub fn wish(&self, request: &Attributes<'_>) -> Wish {
        match self.rules.iter().find(|rule| rule.matches(request)) {
            None => Wish { level: Level::None, omit_stages: Vec::new(), omit_managed_fields: false },
            Some(rule) => Wish {
                level: rule.level,
                omit_stages: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
            },
        }
    }
}

impl Rule {
    fn check(&self) -> Result<()> {
        let about_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        ensure!(
            !about_resources || self.paths.is_empty(),
            "is about nonResourceURLs and resources: no request is both"
        );
        for path in &self.paths {
            let stem = path.strip_suffix('*').unwrap_or(path);
            let sound = path == "*" || (path.starts_with('/') && !stem.contains('*'));
            ensure!(sound, "{path:?} is no path: it starts with / and may end with *");
        }
        for group in &self.resources {
            if !group.resource_names.is_empty() && group.resources.is_empty() {
                bail!("resourceNames without resources match nothing");
            }
        }
        Ok(())
    }

    fn matches(&self, request: &Attributes<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.is_empty() || list.iter().any(|item| item == wanted);
        let in_group = self.user_groups.is_empty() || self.user_groups.iter().any(|group| request.user.in_group(group));
        if !has(&self.users, &request.user.name) || !in_group || !has(&self.verbs, request.verb) {
            return false;
        }
        if !self.resources.is_empty() || !self.namespaces.is_empty() {
            let resource = self.resources.is_empty() || self.resources.iter().any(|group| group.covers(request));
            return request.is_resource() && has(&self.namespaces, request.namespace) && resource;
        }
        self.paths.is_empty() || (!request.is_resource() && self.paths.iter().any(|path| reaches(path, request.path)))
    }
}

impl GroupResources {
    fn covers(&self, request: &Attributes<'_>) -> bool {
        let named = self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == request.name);
        let any = self.resources.is_empty() || (named && self.resources.iter().any(|pattern| fits(pattern, request)));
        self.group == request.group && any
    }
}

/// `pods`, `pods/log`, `pods/*`, `*/scale` or `*`, which here means subresources, too.
fn fits(pattern: &str, request: &Attributes<'_>) -> bool {
    match pattern.split_once('/') {
        None => pattern == "*" || (pattern == request.plural && request.subresource.is_empty()),
        Some(("*", subresource)) => !subresource.is_empty() && subresource == request.subresource,
        Some((plural, "*")) => plural == request.plural,
        Some((plural, subresource)) => plural == request.plural && subresource == request.subresource,
    }
}

fn reaches(pattern: &str, path: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == path, |stem| path.starts_with(stem))
}

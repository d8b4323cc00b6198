//! Who asks, and may they: authentication, authorization and the reviews that expose both.
//!
//! `api` calls [`authenticate::Authenticator`] once per request and [`authorize::Authorizer`] for every verb on every
//! resource. Nothing here changes an object.

pub mod attributes;
pub mod authenticate;
pub mod authorize;
pub mod bootstrap;
pub mod escalation;
pub mod impersonate;
pub mod node;
pub mod rbac;
pub mod reviews;
pub mod tokens;

use std::collections::BTreeMap;

pub const MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const NODES: &str = "system:nodes";

/// For tests of what does not depend on who asks.
#[cfg(test)]
pub static NOBODY: User = User { name: String::new(), uid: String::new(), groups: Vec::new(), extra: BTreeMap::new() };

/// An identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user that proved who it is; service accounts get their groups by name.
    pub fn authenticated(name: &str, groups: impl IntoIterator<Item = String>) -> Self {
        let mut user = Self { name: name.to_owned(), groups: groups.into_iter().collect(), ..Self::default() };
        if let Some((namespace, _)) = user.service_account() {
            let own = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            user.groups.extend(own);
        }
        if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        user
    }

    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that this user is, if it is an agent.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|_| self.in_group(NODES))
    }

    /// Namespace and name of the service account that this user is.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }
}

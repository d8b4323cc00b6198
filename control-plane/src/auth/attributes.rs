//! What is asked of authorization.

use http::Method;

use super::User;
use crate::api::path::Target;

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a User,
    pub verb: &'a str,
    pub group: &'a str,
    pub namespace: &'a str,
    pub plural: &'a str,
    pub subresource: &'a str,
    pub name: &'a str,
    /// Set, and nothing else but the verb, for a question about a path.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn resource(user: &'a User, target: &'a Target) -> Self {
        Self {
            user,
            verb: target.verb,
            group: &target.group,
            namespace: &target.namespace,
            plural: &target.plural,
            subresource: &target.subresource,
            name: &target.name,
            path: "",
        }
    }

    pub fn path(user: &'a User, method: &Method, path: &'a str) -> Self {
        let verb = match *method {
            Method::POST => "post",
            Method::PUT => "put",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            Method::HEAD => "head",
            _ => "get",
        };
        Self { user, verb, group: "", namespace: "", plural: "", subresource: "", name: "", path }
    }

    pub fn is_resource(&self) -> bool {
        self.path.is_empty()
    }
}

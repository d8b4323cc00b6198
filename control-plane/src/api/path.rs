//! What a request is about, read from its method and path alone: upstream's request info.
//!
//! `api` parses once; authorization, metrics and dispatch all use the same [`Target`].

use http::Method;
use percent_encoding::percent_decode_str;

/// A request for a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    /// "" for cluster scope (or all namespaces).
    pub namespace: String,
    pub plural: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource: the path behind a proxy.
    pub rest: String,
}

/// Reads `/api/v1/…` and `/apis/<group>/<version>/…`; `None` for every other path, discovery included.
pub fn parse(method: &Method, path: &str, watch: bool) -> Option<Target> {
    let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    let mut parts = path.trim_start_matches('/').splitn(9, '/').map(decode);
    let (group, version) = match parts.next()?.as_str() {
        "api" => (String::new(), parts.next()?),
        "apis" => (parts.next()?, parts.next()?),
        _ => return None,
    };
    let mut rest: Vec<String> = parts.collect();
    if rest.last().is_some_and(String::is_empty) && rest.len() < 5 {
        rest.pop();
    }
    let mut rest = rest.into_iter().peekable();
    let forced_watch = rest.next_if(|p| p == "watch").is_some();
    let mut target = Target { group, version, plural: rest.next().filter(|p| !p.is_empty())?, ..Target::default() };
    if target.plural == "namespaces"
        && let Some(namespace) = rest.next()
    {
        target.namespace = namespace.clone();
        match rest.next() {
            // `/namespaces/x/status` is about the namespace; `/namespaces/x/pods` about what is in it.
            Some(sub) if matches!(sub.as_str(), "status" | "finalize") => {
                (target.name, target.subresource) = (namespace, sub);
            }
            Some(plural) => {
                target.plural = plural;
                target.name = rest.next().unwrap_or_default();
            }
            None => target.name = namespace,
        }
    } else {
        target.name = rest.next().unwrap_or_default();
    }
    if target.subresource.is_empty() {
        target.subresource = rest.next().unwrap_or_default();
    }
    target.rest = rest.collect::<Vec<_>>().join("/");
    target.verb = verb(method, &target, watch || forced_watch)?;
    Some(target)
}

fn verb(method: &Method, target: &Target, watch: bool) -> Option<&'static str> {
    let collection = target.name.is_empty();
    Some(match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        Method::GET | Method::HEAD if collection && watch => "watch",
        Method::GET | Method::HEAD if watch && target.subresource.is_empty() => "watch",
        Method::GET | Method::HEAD if collection => "list",
        Method::GET | Method::HEAD => "get",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(method: Method, path: &str) -> (&'static str, String, String, String, String, String) {
        let t = parse(&method, path, false).unwrap();
        (t.verb, t.group, t.namespace, t.plural, t.name, t.subresource)
    }

    fn row(verb: &'static str, rest: [&str; 5]) -> (&'static str, String, String, String, String, String) {
        let [group, namespace, plural, name, subresource] = rest.map(str::to_owned);
        (verb, group, namespace, plural, name, subresource)
    }

    #[test]
    fn paths_name_verb_group_namespace_resource_name_and_subresource() {
        for (method, path, want) in [
            (Method::GET, "/api/v1/pods", row("list", ["", "", "pods", "", ""])),
            (Method::GET, "/api/v1/namespaces", row("list", ["", "", "namespaces", "", ""])),
            (Method::GET, "/api/v1/namespaces/a", row("get", ["", "a", "namespaces", "a", ""])),
            (Method::PUT, "/api/v1/namespaces/a/finalize", row("update", ["", "a", "namespaces", "a", "finalize"])),
            (Method::GET, "/api/v1/namespaces/a/pods/", row("list", ["", "a", "pods", "", ""])),
            (Method::GET, "/api/v1/namespaces/a/pods/b/log", row("get", ["", "a", "pods", "b", "log"])),
            (Method::GET, "/api/v1/watch/namespaces/a/pods", row("watch", ["", "a", "pods", "", ""])),
            (
                Method::POST,
                "/apis/apps/v1/namespaces/a/deployments",
                row("create", ["apps", "a", "deployments", "", ""]),
            ),
            (Method::DELETE, "/apis/apps/v1/deployments", row("deletecollection", ["apps", "", "deployments", "", ""])),
            (Method::PATCH, "/api/v1/nodes/n/status", row("patch", ["", "", "nodes", "n", "status"])),
        ] {
            assert_eq!(target(method, path), want, "{path}");
        }
    }

    #[test]
    fn a_proxy_keeps_the_path_behind_it() {
        let t = parse(&Method::GET, "/api/v1/namespaces/a/services/s/proxy/x/y/", false).unwrap();
        assert_eq!((t.subresource.as_str(), t.rest.as_str()), ("proxy", "x/y/"));
    }

    #[test]
    fn discovery_and_health_are_no_resources() {
        for path in ["/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz", "/", "/openapi/v3"] {
            assert_eq!(parse(&Method::GET, path, false), None, "{path}");
        }
    }
}

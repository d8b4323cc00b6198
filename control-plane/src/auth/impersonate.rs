//! `Impersonate-User` and its companions: somebody who may asks as somebody else.

use std::sync::Arc;

use http::HeaderMap;

use super::{AUTHENTICATED, UNAUTHENTICATED, User, attributes::Attributes};
use crate::api::{
    App,
    status::{Failure, Outcome},
};

const EXTRA: &str = "impersonate-extra-";

/// The user whose rights the request has.
pub async fn apply(app: &App, user: Arc<User>, headers: &HeaderMap) -> Outcome<Arc<User>> {
    let value = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let wanted = value("impersonate-user");
    let groups: Vec<&str> = headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).collect();
    if wanted.is_empty() {
        let alone = groups.is_empty() && value("impersonate-uid").is_empty();
        let message = "requested headers impersonate a group or uid without impersonating a user";
        return if alone { Ok(user) } else { Err(Failure::internal(message)) };
    }
    let mut questions = vec![match wanted.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':')) {
        Some((namespace, name)) => ("", "serviceaccounts", namespace, name, ""),
        None => ("", "users", "", wanted, ""),
    }];
    questions.extend(groups.iter().map(|group| ("", "groups", "", *group, "")));
    let extra: Vec<(String, String)> = extra(headers);
    questions.extend(
        extra.iter().map(|(key, value)| ("authentication.k8s.io", "userextras", "", value.as_str(), key.as_str())),
    );
    if !value("impersonate-uid").is_empty() {
        questions.push(("authentication.k8s.io", "uids", "", value("impersonate-uid"), ""));
    }
    for (group, plural, namespace, name, subresource) in questions {
        let question =
            Attributes { user: &user, verb: "impersonate", group, namespace, plural, subresource, name, path: "" };
        app.authorizer.require(&question).await?;
    }
    let mut other = match wanted {
        "system:anonymous" => User::anonymous(),
        name => User::authenticated(name, groups.iter().map(|g| (*g).to_owned())),
    };
    if other.in_group(UNAUTHENTICATED) {
        other.groups.retain(|g| g != AUTHENTICATED);
    }
    other.uid = value("impersonate-uid").to_owned();
    for (key, value) in extra {
        other.extra.entry(key).or_default().push(value);
    }
    Ok(Arc::new(other))
}

fn extra(headers: &HeaderMap) -> Vec<(String, String)> {
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let key = name.as_str().strip_prefix(EXTRA)?;
        let key = percent_encoding::percent_decode_str(key).decode_utf8().ok()?.into_owned();
        Some((key, value.to_str().ok()?.to_owned()))
    };
    headers.iter().filter_map(pair).collect()
}

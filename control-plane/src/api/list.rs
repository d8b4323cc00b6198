//! Get and list: reads at a revision, selectors, pages.

use axum::body::Body;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{Response, StatusCode};
use leme_store::{Key, Revision, cache::Snapshot};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

use super::{
    App, Call, namespace,
    object::{Item, Shared},
    registry::Kind,
    respond::{self, ListMeta},
    select::Selection,
    status::{Failure, Outcome},
};

/// How long a read waits for a revision that has not been reached.
const PATIENCE: Duration = Duration::from_secs(3);

pub async fn get(_app: &App, call: &Call, kind: &Kind) -> Outcome<Response<Body>> {
    let snapshot = at_least(kind, call.query.revision()?).await?;
    let key = kind.key(namespace(kind.resource, &call.target), &call.target.name);
    let item = snapshot.objects.get(&key).ok_or_else(|| Failure::not_found(kind.resource, &call.target.name))?;
    respond::object(call.accept, &call.query, kind.resource, item, StatusCode::OK)
}

/// A view that shows `wanted`: unset is "every acknowledged write", zero is "whatever is at hand".
pub async fn at_least(kind: &Kind, wanted: Option<Revision>) -> Outcome<Snapshot<Item>> {
    match wanted {
        None => Ok(kind.cache.current().await?),
        Some(Revision(0)) => Ok(kind.cache.snapshot()),
        Some(wanted) => {
            let snapshot = kind.cache.snapshot();
            if snapshot.revision >= wanted {
                return Ok(snapshot);
            }
            // The revision may belong to another kind's write: then this kind is current without moving.
            let newest = kind.cache.current().await?.revision;
            let store = tokio::time::timeout(PATIENCE, kind.reaches(wanted)).await;
            store.map_err(|_| Failure::too_large_version(wanted.0, newest.0))?
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: u64,
    start: String,
}

/// How the revision of a list is chosen.
enum Mode {
    Latest,
    Any,
    NotOlderThan(Revision),
    Exact(Revision),
}

pub async fn list(app: &App, call: &Call, kind: &Kind) -> Outcome<Response<Body>> {
    let selection = Selection::parse(kind.resource, &call.query, &call.target)?;
    let limit = call.query.number("limit")?.unwrap_or(0).max(0) as usize;
    let proceed = call.query.get("continue");
    let (items, meta) = if proceed.is_empty() {
        match mode(call)? {
            Mode::Exact(revision) => past(app, call, kind, &selection, limit, None, revision).await?,
            Mode::Latest => present(call, kind, &selection, limit, at_least(kind, None).await?),
            Mode::Any => present(call, kind, &selection, limit, at_least(kind, Some(Revision(0))).await?),
            Mode::NotOlderThan(r) => present(call, kind, &selection, limit, at_least(kind, Some(r)).await?),
        }
    } else {
        let (after, revision) = read_token(kind, call, proceed)?;
        past(app, call, kind, &selection, limit, Some(after), revision).await?
    };
    respond::list(call.accept, &call.query, kind.resource, items, &meta)
}

fn mode(call: &Call) -> Outcome<Mode> {
    let forbid = |why: &str| Failure::bad_request(why.to_owned());
    let revision = call.query.revision()?;
    if call.query.has("sendInitialEvents") {
        return Err(forbid("sendInitialEvents is forbidden for list"));
    }
    match (call.query.get("resourceVersionMatch"), revision) {
        ("", None) => Ok(Mode::Latest),
        ("" | "NotOlderThan", Some(Revision(0))) => Ok(Mode::Any),
        // With a limit and no match rule an exact page is meant: it may be continued at that revision.
        ("", Some(r)) if call.query.get("limit").parse::<u64>().is_ok_and(|n| n > 0) => Ok(Mode::Exact(r)),
        ("" | "NotOlderThan", Some(r)) => Ok(Mode::NotOlderThan(r)),
        ("Exact", Some(Revision(0))) => Err(forbid(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
        )),
        ("Exact", Some(r)) => Ok(Mode::Exact(r)),
        (_, None) => Err(forbid(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        )),
        (other, _) => Err(forbid(&format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
        ))),
    }
}

/// From the cache: items share their bytes with it.
fn present(
    call: &Call,
    kind: &Kind,
    selection: &Selection,
    limit: usize,
    view: Snapshot<Item>,
) -> (Vec<Shared>, ListMeta) {
    let prefix = kind.prefix(namespace(kind.resource, &call.target));
    let start: Key = prefix.as_str().into();
    let mut items = Vec::new();
    let mut meta = ListMeta { revision: view.revision.to_string(), ..ListMeta::default() };
    let mut rest = view.objects.range(start..).take_while(|(key, _)| key.starts_with(&prefix));
    let mut last: Option<Key> = None;
    for (key, item) in rest.by_ref() {
        if limit > 0 && items.len() == limit {
            meta.proceed = write_token(kind, view.revision, last.as_ref().unwrap_or(key));
            meta.remaining = selection.is_everything().then(|| 1 + rest.count() as u64);
            break;
        }
        if selection.matches(item) {
            items.push(item.clone());
            last = Some(key.clone());
        }
    }
    (items, meta)
}

/// From the store's history: a continued page, or an exact revision.
async fn past(
    app: &App,
    call: &Call,
    kind: &Kind,
    selection: &Selection,
    limit: usize,
    after: Option<String>,
    revision: Revision,
) -> Outcome<(Vec<Shared>, ListMeta)> {
    let continued = after.is_some();
    let prefix = kind.prefix(namespace(kind.resource, &call.target));
    let mut meta = ListMeta { revision: revision.to_string(), ..ListMeta::default() };
    let (mut items, mut after) = (Vec::new(), after);
    loop {
        let want = if limit == 0 { 0 } else { limit - items.len() };
        let page = app.registry.store.list(&prefix, after.as_deref(), want, Some(revision)).await;
        let page = page.map_err(|error| match error {
            leme_store::Error::Compacted { .. } if continued => Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
            ),
            other => other.into(),
        })?;
        after = page.records.last().map(|record| record.key.to_string());
        let decoded = page.records.iter().map(|record| Arc::new(Item::decode(kind.resource, record)));
        items.extend(decoded.filter(|item| selection.matches(item)));
        let full = limit > 0 && items.len() >= limit;
        let Some(last) = after.as_deref().filter(|_| page.remaining > 0) else { break };
        if full {
            meta.proceed = write_token(kind, revision, last);
            meta.remaining = selection.is_everything().then_some(page.remaining);
            break;
        }
    }
    Ok((items, meta))
}

/// The key below the kind's prefix, as upstream's tokens: they say nothing about where keys are kept.
fn write_token(kind: &Kind, revision: Revision, last: &str) -> String {
    let start = last.strip_prefix(&kind.prefix("")).unwrap_or(last);
    let token = Token { v: "meta.k8s.io/v1".into(), rv: revision.0, start: format!("{start}\0") };
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a token serializes"))
}

fn read_token(kind: &Kind, call: &Call, token: &str) -> Outcome<(String, Revision)> {
    let invalid = || Failure::bad_request("continue key is not valid: the token was not issued by this server");
    if call.query.revision()?.is_some_and(|r| r != Revision(0)) {
        return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| invalid())?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    let after = token.start.strip_suffix('\0').ok_or_else(invalid)?;
    Ok((format!("{}{after}", kind.prefix("")), Revision(token.rv)))
}

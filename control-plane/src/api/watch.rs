//! Watch: a stream of events from a revision on, over the cache's shared bytes.
//!
//! A watcher is a cursor; what falls behind is told `410 Expired` and starts anew. Selectors turn changes into
//! additions and deletions as an object comes into and goes out of the selection.

use std::{collections::VecDeque, time::Duration};

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{Response, StatusCode};
use leme_store::{
    Revision,
    cache::{CacheEvent, CacheWatch},
};
use serde_json::json;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::{
    App, Call,
    list::at_least,
    media::View,
    object::{Item, Shared},
    registry::Kind,
    respond,
    select::Selection,
    status::{Failure, Outcome},
    table,
};
use crate::resources::{FieldError, Resource};

const BOOKMARKS: Duration = Duration::from_secs(60);
/// Upstream's `--min-request-timeout`: a watch without a timeout lasts this long, up to twice.
const LONGEST: u64 = 1800;
/// Events that go out in one piece.
const PIECE: usize = 64;
const INITIAL_END: &str = "k8s.io/initial-events-end";

pub async fn watch(app: &App, call: &Call, kind: &Kind) -> Outcome<Response<Body>> {
    let selection = Selection::parse(kind.resource, &call.query, &call.target)?;
    let initial = initial_events(call)?;
    let wanted = call.query.revision()?;
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let mut ready = VecDeque::new();
    let from = match (wanted, initial) {
        (Some(revision), None) if revision.0 > 0 => revision,
        (_, Some(false)) => match wanted {
            Some(revision) if revision.0 > 0 => revision,
            _ => kind.cache.current().await?.revision,
        },
        _ => {
            let view = at_least(kind, wanted).await?;
            let all = view.objects.values().filter(|item| selection.matches(item));
            ready.extend(all.map(|item| Outgoing::Change("ADDED", item.clone())));
            if initial == Some(true) && bookmarks {
                ready.push_back(Outgoing::Bookmark(view.revision, true));
            }
            view.revision
        }
    };
    let (source, broken) = match kind.cache.watch_from(from) {
        Ok(source) => (Some(source), None),
        Err(error) => (None, Some(Failure::from(error))),
    };
    if let Some(failure) = broken {
        ready.push_back(Outgoing::Error(failure));
    }
    let seconds = match call.query.number("timeoutSeconds")?.filter(|n| *n > 0) {
        Some(seconds) => seconds as u64,
        None => fastrand::u64(LONGEST..2 * LONGEST),
    };
    let mut tick = interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watcher = Watcher {
        resource: kind.resource,
        selection,
        view: call.accept.view,
        include: call.query.get("includeObject").to_owned(),
        columns: true,
        ready,
        source,
        seen: from,
        told: from,
        bookmarks: bookmarks.then_some(tick),
        deadline: Instant::now() + Duration::from_secs(seconds),
        _guard: app.metrics.watcher(kind.resource),
    };
    let pieces = futures::stream::unfold(watcher, Watcher::piece);
    Ok(respond::with_type(Body::from_stream(pieces), StatusCode::OK, "application/json"))
}

fn initial_events(call: &Call) -> Outcome<Option<bool>> {
    let asked = call.query.optional_flag("sendInitialEvents");
    let rule = call.query.get("resourceVersionMatch");
    let refuse = |field: &str, reason, message: &str| {
        let error = FieldError { reason, field: field.into(), message: message.into() };
        Err(Failure::invalid("meta.k8s.io", "ListOptions", "", &[error]))
    };
    match (asked, rule) {
        (Some(_), "NotOlderThan") | (None, "") => Ok(asked),
        (Some(_), _) => refuse(
            "resourceVersionMatch",
            "FieldValueForbidden",
            "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (None, _) => refuse(
            "resourceVersionMatch",
            "FieldValueForbidden",
            "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
    }
}

enum Outgoing {
    Change(&'static str, Shared),
    /// The last state of an object that left the selection, at the revision at which it left.
    Gone(Shared, Revision),
    Bookmark(Revision, bool),
    Error(Failure),
}

struct Watcher {
    resource: &'static Resource,
    selection: Selection,
    view: View,
    include: String,
    /// The next table carries its columns.
    columns: bool,
    ready: VecDeque<Outgoing>,
    /// `None` after an error: what is ready goes out, then the stream ends.
    source: Option<CacheWatch<Item>>,
    seen: Revision,
    told: Revision,
    bookmarks: Option<Interval>,
    deadline: Instant,
    _guard: super::metrics::WatcherGuard,
}

impl Watcher {
    /// The next piece of the body: everything that is ready, at most [`PIECE`] events.
    async fn piece(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        while self.ready.is_empty() {
            if !self.wait().await {
                return None;
            }
        }
        let mut piece = BytesMut::new();
        for _ in 0..PIECE {
            let Some(outgoing) = self.ready.pop_front() else { break };
            self.write(&mut piece, outgoing);
        }
        Some((Ok(piece.freeze()), self))
    }

    /// Takes what the cache has next. `false`: the stream is over.
    async fn wait(&mut self) -> bool {
        let Some(source) = self.source.as_mut() else { return false };
        let tick = async {
            match self.bookmarks.as_mut() {
                Some(interval) => interval.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = source.next() => match event {
                Some(Ok(event)) => self.take(event),
                Some(Err(error)) => {
                    self.source = None;
                    self.ready.push_back(Outgoing::Error(error.into()));
                }
                None => return false,
            },
            _ = tick => {
                if self.seen > self.told {
                    self.ready.push_back(Outgoing::Bookmark(self.seen, false));
                }
            }
            () = tokio::time::sleep_until(self.deadline) => return false,
        }
        true
    }

    fn take(&mut self, event: CacheEvent<Item>) {
        self.seen = event.revision();
        let fits = |item: &Shared| self.selection.matches(item);
        let outgoing = match event {
            CacheEvent::Bookmark(_) => None,
            CacheEvent::Added { object, .. } => fits(&object).then_some(Outgoing::Change("ADDED", object)),
            CacheEvent::Deleted { object, previous, .. } => {
                let known = previous.as_ref().is_none_or(fits);
                (known && fits(&object)).then_some(Outgoing::Change("DELETED", object))
            }
            CacheEvent::Modified { revision, object, previous, .. } => match (previous.filter(fits), fits(&object)) {
                (Some(_), true) => Some(Outgoing::Change("MODIFIED", object)),
                (None, true) => Some(Outgoing::Change("ADDED", object)),
                (Some(previous), false) => Some(Outgoing::Gone(previous, revision)),
                (None, false) => None,
            },
        };
        self.ready.extend(outgoing);
    }

    fn write(&mut self, out: &mut BytesMut, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Change(kind, item) => {
                self.told = item.revision;
                self.event(out, kind, &item);
            }
            Outgoing::Gone(item, revision) => {
                self.told = revision;
                self.event(out, "DELETED", &item.at(self.resource, revision).into());
            }
            Outgoing::Bookmark(revision, end) => {
                self.told = revision;
                put(out, "BOOKMARK", self.bookmark(revision, end).as_bytes());
            }
            Outgoing::Error(failure) => {
                self.source = None;
                put(out, "ERROR", failure.status().to_string().as_bytes());
            }
        }
    }

    fn event(&mut self, out: &mut BytesMut, kind: &str, item: &Shared) {
        match self.view {
            View::Object => put(out, kind, &item.bytes),
            View::Metadata { v1 } => put(out, kind, item.partial(v1).as_bytes()),
            View::Table { v1 } => {
                let columns = std::mem::take(&mut self.columns);
                match table::event(self.resource, item, &self.include, v1, columns) {
                    Ok(table) => put(out, kind, table.as_bytes()),
                    Err(failure) => put(out, "ERROR", failure.status().to_string().as_bytes()),
                }
            }
        }
    }

    fn bookmark(&self, revision: Revision, end: bool) -> String {
        let (kind, version) = match self.view {
            View::Object => (self.resource.kind, self.resource.api_version()),
            View::Metadata { v1 } => ("PartialObjectMetadata", meta_version(v1)),
            View::Table { v1 } => ("Table", meta_version(v1)),
        };
        let mut object = json!({
            "kind": kind, "apiVersion": version,
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if end {
            object["metadata"]["annotations"] = json!({INITIAL_END: "true"});
        }
        if matches!(self.view, View::Table { .. }) {
            object["rows"] = json!([]);
        }
        object.to_string()
    }
}

fn meta_version(v1: bool) -> String {
    if v1 { "meta.k8s.io/v1".into() } else { "meta.k8s.io/v1beta1".into() }
}

fn put(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}

//! Delete: preconditions, grace, finalizers, and the removal itself.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    App, Call,
    create::{Writer, definition, timestamp},
    list::at_least,
    media, namespace,
    object::{Item, Shared, finalizers, set_meta, text},
    query::{DeleteOptions, FieldValidation, Propagation, Query, WriteOptions},
    registry::{Base, Kind, Written},
    respond::{self, ListMeta},
    select::Selection,
    status::{Failure, Outcome},
    update::held_by_namespace,
};
use crate::{admission, resources::Resource};

pub const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Kinds whose deletion answers with the object and not with a status.
const ANSWERED: &[&str] = &["pods", "services", "serviceaccounts"];

pub async fn delete(app: &App, mut call: Call, kind: &Kind) -> Outcome<Response<Body>> {
    let options = read_options(&mut call).await?;
    let scope = namespace(kind.resource, &call.target).to_owned();
    let write = write_options(&call.query, options.dry_run);
    let writer = Writer { app, user: &call.user, kind, options: &write };
    let (item, gone) = writer.delete(&scope, &call.target.name, &options).await?;
    if gone && !ANSWERED.contains(&kind.resource.plural) {
        return Ok(respond::value(call.accept, StatusCode::OK, &success(kind.resource, &item)));
    }
    respond::object(call.accept, &call.query, kind.resource, &item, StatusCode::OK)
}

pub async fn delete_collection(app: &App, mut call: Call, kind: &Kind) -> Outcome<Response<Body>> {
    let options = read_options(&mut call).await?;
    let selection = Selection::parse(kind.resource, &call.query, &call.target)?;
    let view = at_least(kind, None).await?;
    let write = write_options(&call.query, options.dry_run);
    let writer = Writer { app, user: &call.user, kind, options: &write };
    let mut items = Vec::new();
    for item in view.objects.values().filter(|item| selection.matches(item)) {
        match writer.delete(&item.namespace, &item.name, &options).await {
            Ok((item, _)) => items.push(item),
            Err(failure) if failure.code == 404 => {}
            Err(failure) => return Err(failure),
        }
    }
    let meta = ListMeta { revision: kind.cache.revision().to_string(), ..ListMeta::default() };
    respond::list(call.accept, &call.query, kind.resource, items, &meta)
}

pub async fn read_options(call: &mut Call) -> Outcome<DeleteOptions> {
    let format = media::body_format(call.headers());
    let body = call.body().await?;
    if body.is_empty() {
        return DeleteOptions::parse(&call.query, &Value::Null);
    }
    let parsed = match format? {
        media::Format::Json => serde_json::from_slice(&body).map_err(|e| e.to_string()),
        media::Format::Yaml => serde_norway::from_slice(&body).map_err(|e| e.to_string()),
        media::Format::Protobuf => leme_schema::decode_protobuf(definition(DELETE_OPTIONS)?, &body)
            .map(|decoded| decoded.value)
            .map_err(|e| e.to_string()),
    };
    DeleteOptions::parse(&call.query, &parsed.map_err(Failure::bad_request)?)
}

pub fn write_options(query: &Query, dry_run: bool) -> WriteOptions {
    let manager = query.get("fieldManager").to_owned();
    WriteOptions { dry_run, validation: FieldValidation::Ignore, manager, force: None }
}

fn success(resource: &Resource, item: &Item) -> Value {
    let mut details = json!({
        "name": &*item.name, "kind": resource.plural, "uid": text(&item.value(), &["metadata", "uid"]),
    });
    if !resource.group.is_empty() {
        details["group"] = resource.group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

impl Writer<'_> {
    /// Deletes, or marks as deleted what has grace or finalizers left. `true`: it is gone.
    pub async fn delete(&self, scope: &str, name: &str, options: &DeleteOptions) -> Outcome<(Shared, bool)> {
        loop {
            let item = self.kind.get(scope, name).await?;
            let item = item.ok_or_else(|| Failure::not_found(self.resource(), name))?;
            let base = item.value();
            self.check_preconditions(name, &base, options)?;
            admission::delete(self.user, self.resource(), &base)?;
            let (object, gone) = self.mark(&base, options);
            if self.options.dry_run {
                return Ok((Arc::new(Item::unsaved(self.resource(), &object)), gone));
            }
            if !gone && object == base {
                return Ok((item, false));
            }
            let written = if gone {
                let companions = self.allocate("", None, Some(&base)).await?;
                self.app.registry.remove(self.kind, &item, companions).await?
            } else {
                self.app.registry.put(self.kind, Base::Item(&item), object, Default::default()).await?
            };
            // Somebody changed it meanwhile: preconditions are asked again of what is there now.
            if let Written::Done(item) = written {
                return Ok((item, gone));
            }
        }
    }

    fn check_preconditions(&self, name: &str, base: &Value, options: &DeleteOptions) -> Outcome<()> {
        let conflict = |why: String| {
            let resource = self.resource();
            Err(Failure::conflict(resource.group, resource.kind, name, &why))
        };
        let uid = text(base, &["metadata", "uid"]);
        if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
            return conflict(format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
            ));
        }
        let version = text(base, &["metadata", "resourceVersion"]);
        if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
            return conflict(format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
            ));
        }
        Ok(())
    }

    /// The object as the deletion leaves it, and whether nothing holds it.
    fn mark(&self, base: &Value, options: &DeleteOptions) -> (Value, bool) {
        let mut object = base.clone();
        set_finalizers(&mut object, options.propagation);
        let grace = self.resource().strategy.grace_period(base, options.grace_seconds).max(0);
        let held = !finalizers(&object).is_empty() || held_by_namespace(self.resource(), &object);
        if grace == 0 && !held {
            return (object, true);
        }
        let now = Timestamp::now();
        let already = base["metadata"]["deletionTimestamp"].is_string();
        let left = base["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        // A second deletion can only shorten the grace.
        if !already || grace < left {
            set_meta(&mut object, "deletionTimestamp", timestamp(now + SignedDuration::from_secs(grace)).into());
            set_meta(&mut object, "deletionGracePeriodSeconds", grace.into());
            if let Some(generation) = base["metadata"]["generation"].as_i64().filter(|_| !already) {
                set_meta(&mut object, "generation", (generation + 1).into());
            }
        }
        if self.resource().plural == "namespaces" {
            // A namespace's contents go first, without a grace of its own.
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("deletionGracePeriodSeconds");
            }
            object["status"]["phase"] = "Terminating".into();
        }
        (object, false)
    }
}

/// The garbage collector's own finalizers follow the propagation policy.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let wanted = match propagation {
        Propagation::Orphan => Some(ORPHAN),
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Background => None,
    };
    let mut list: Vec<String> = finalizers(object)
        .into_iter()
        .filter(|f| !matches!(*f, ORPHAN | FOREGROUND) || Some(*f) == wanted)
        .map(str::to_owned)
        .collect();
    if let Some(wanted) = wanted.filter(|w| !list.iter().any(|f| f == w)) {
        list.push(wanted.to_owned());
    }
    if list.is_empty() {
        super::object::remove_meta(object, "finalizers");
    } else {
        set_meta(object, "finalizers", list.into());
    }
}

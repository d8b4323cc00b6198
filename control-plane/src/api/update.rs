//! Update and patch: read, change, admit, validate, commit if nobody was faster.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use leme_schema::{
    apply::same_but_times,
    patch::{PatchError, json_patch, merge_patch, strategic_merge},
};
use serde_json::Value;

use super::{
    App, Call, apply,
    create::{Writer, adopt_namespace, decode_body, definition, finish},
    media, namespace,
    object::{Item, Shared, finalizers, remove_meta, set_meta, text},
    query::WriteOptions,
    registry::{Base, Kind, Written},
    respond,
    status::{Failure, Outcome},
};
use crate::{
    admission,
    auth::escalation,
    resources::{self, Companions, Resource},
};

/// How often a change without a resource version is tried again on the newer object.
const ATTEMPTS: usize = 5;
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    apply::APPLY,
];
/// What an update may not take away or change.
const KEPT: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "namespace",
];

pub async fn update(app: &App, mut call: Call, kind: &Kind, subresource: &str) -> Outcome<Response<Body>> {
    let options = WriteOptions::parse(&call.query, "UpdateOptions", call.user_agent())?;
    let (mut object, mut warnings) = decode_body(&mut call, kind.resource, &options).await?;
    let scope = namespace(kind.resource, &call.target).to_owned();
    adopt_namespace(kind.resource, &scope, &mut object)?;
    let said = text(&object, &["metadata", "name"]);
    if said != call.target.name {
        let message =
            format!("the name of the object ({said}) does not match the name on the URL ({})", call.target.name);
        return Err(Failure::bad_request(message));
    }
    let writer = Writer { app, user: &call.user, kind, options: &options };
    let change = |old: &Value| {
        let mut object = object.clone();
        writer.track(subresource, Some(old), &mut object)?;
        Ok(object)
    };
    let item = writer.change(&scope, &call.target.name, subresource, change, &mut warnings).await?;
    let mut response = respond::object(call.accept, &call.query, kind.resource, &item, StatusCode::OK)?;
    respond::warn(&mut response, &warnings);
    Ok(response)
}

const OWNERS: &str = "managedFields";

fn without_owners(object: &Value) -> Value {
    let Some(fields) = object.as_object() else { return object.clone() };
    let copy = |(key, value): (&String, &Value)| match value.as_object() {
        Some(metadata) if key == "metadata" => {
            let kept = metadata.iter().filter(|(key, _)| *key != OWNERS);
            (key.clone(), Value::Object(kept.map(|(key, value)| (key.clone(), value.clone())).collect()))
        }
        _ => (key.clone(), value.clone()),
    };
    Value::Object(fields.iter().map(copy).collect())
}

/// A parsed patch; applying it is pure.
pub struct Patch {
    kind: &'static str,
    body: bytes::Bytes,
    value: Value,
    /// Few patches do; the others need not copy, read and check the longest part of many objects.
    speaks_of_owners: bool,
}

impl Patch {
    pub async fn read(call: &mut Call) -> Outcome<Self> {
        let asked = media::content_type(call.headers());
        let kind = PATCHES.iter().find(|p| **p == asked).ok_or_else(|| Failure::unsupported_media_type(PATCHES))?;
        let body = call.body().await?;
        let value = serde_json::from_slice(&body)
            .map_err(|error| Failure::bad_request(format!("error decoding patch: {error}")))?;
        let speaks_of_owners = body.windows(OWNERS.len()).any(|word| word == OWNERS.as_bytes());
        Ok(Self { kind, body, value, speaks_of_owners })
    }

    /// The patched document, not yet held against its schema.
    pub fn apply(&self, schema: &'static leme_schema::Definition, old: &Value) -> Outcome<Value> {
        let mut document = if self.speaks_of_owners { old.clone() } else { without_owners(old) };
        let applied = match self.kind {
            "application/json-patch+json" => json_patch(&mut document, &self.body),
            "application/merge-patch+json" => merge_patch(&mut document, &self.value),
            _ => strategic_merge(schema, &mut document, &self.value),
        };
        applied.map(|()| document).map_err(|error| match error {
            PatchError::Malformed(message) => Failure::bad_request(message),
            PatchError::Inapplicable(message) => Failure::new(422, "Invalid", message, Some(serde_json::json!({}))),
        })
    }
}

pub async fn patch(app: &App, mut call: Call, kind: &Kind, subresource: &str) -> Outcome<Response<Body>> {
    let options = WriteOptions::parse(&call.query, "PatchOptions", call.user_agent())?;
    if media::content_type(call.headers()) == apply::APPLY {
        return apply::patch(app, call, kind, subresource).await;
    }
    apply::check_options(&call.query, false)?;
    let patch = Patch::read(&mut call).await?;
    let schema = definition(kind.resource.schema)?;
    let scope = namespace(kind.resource, &call.target).to_owned();
    let writer = Writer { app, user: &call.user, kind, options: &options };
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let change = |old: &Value| {
        let (mut object, found) = finish(schema, leme_schema::conform(schema, patch.apply(schema, old)?), &options)?;
        problems = found;
        writer.track(subresource, Some(old), &mut object)?;
        Ok(object)
    };
    let item = writer.change(&scope, &call.target.name, subresource, change, &mut warnings).await?;
    problems.append(&mut warnings);
    let mut response = respond::object(call.accept, &call.query, kind.resource, &item, StatusCode::OK)?;
    respond::warn(&mut response, &problems);
    Ok(response)
}

impl Writer<'_> {
    /// Applies `change` to the newest state of an object; again if somebody was faster and the change does not insist
    /// on a version.
    pub async fn change(
        &self,
        scope: &str,
        name: &str,
        subresource: &str,
        mut change: impl FnMut(&Value) -> Outcome<Value>,
        warnings: &mut Vec<String>,
    ) -> Outcome<Shared> {
        for _ in 0..ATTEMPTS {
            let old = self.kind.get(scope, name).await?;
            let old = old.ok_or_else(|| Failure::not_found(self.resource(), name))?;
            let base = old.value();
            let mut object = change(&base)?;
            check_version(self.resource(), name, &object, &base)?;
            self.prepare_change(subresource, &mut object, &base, warnings).await?;
            if object == base || same_but_times(&object, &base) {
                return Ok(old);
            }
            match self.store_change(&old, object, &base, subresource).await? {
                Written::Done(item) => return Ok(item),
                Written::Raced | Written::CompanionTaken => {}
            }
        }
        Err(Failure::modified(self.resource(), name))
    }

    /// Everything before the commit; leaves the base's resource version in the object.
    async fn prepare_change(
        &self,
        subresource: &str,
        object: &mut Value,
        base: &Value,
        warnings: &mut Vec<String>,
    ) -> Outcome<()> {
        let resource = self.resource();
        keep(object, base);
        admission::update(self.app, self.user, resource, subresource, object, base).await?;
        escalation::check(self.app, self.user, resource, object, Some(base)).await?;
        if subresource == "binding" {
            // A binding is not an update by the user: it changes what an update may not.
            return Ok(());
        }
        let context = self.context(subresource);
        resource.strategy.prepare_update(&context, object, base);
        let mut errors = resources::validate_update(&context, object, base);
        errors.extend(resource.strategy.validate_update(&context, object, base));
        if !errors.is_empty() {
            let name = text(base, &["metadata", "name"]);
            return Err(Failure::invalid(resource.group, resource.kind, name, &errors));
        }
        *warnings = resource.strategy.warnings(&context, object);
        Ok(())
    }

    /// Commits a prepared change; an object whose last finalizer went is removed instead.
    pub async fn store_change(
        &self,
        old: &Shared,
        mut object: Value,
        base: &Value,
        subresource: &str,
    ) -> Outcome<Written> {
        let registry = &self.app.registry;
        let companions = self.allocate(subresource, Some(&mut object), Some(base)).await?;
        if self.options.dry_run {
            return Ok(Written::Done(Arc::new(Item::unsaved(self.resource(), &object))));
        }
        if released(self.resource(), &object) {
            let mut gone = self.allocate(subresource, None, Some(base)).await?;
            gone.create.clear();
            return match registry.remove(self.kind, old, gone).await? {
                Written::Done(item) => {
                    set_meta(&mut object, "resourceVersion", item.revision.to_string().into());
                    Ok(Written::Done(Arc::new(Item::unsaved(self.resource(), &object))))
                }
                race => Ok(race),
            };
        }
        registry.put(self.kind, Base::Item(old), object, companions).await
    }

    pub async fn allocate(
        &self,
        subresource: &str,
        object: Option<&mut Value>,
        base: Option<&Value>,
    ) -> Outcome<Companions> {
        let resource = self.resource();
        let name = base.map(|b| text(b, &["metadata", "name"]).to_owned()).unwrap_or_default();
        let context = self.context(subresource);
        let allocated = resource.strategy.allocate(&context, &*self.app.registry, object, base).await;
        allocated.map_err(|errors| Failure::invalid(resource.group, resource.kind, &name, &errors))
    }
}

/// A version or an identity in the object must be the base's.
fn check_version(resource: &Resource, name: &str, object: &Value, base: &Value) -> Outcome<()> {
    let (said, is) = (text(object, &["metadata", "resourceVersion"]), text(base, &["metadata", "resourceVersion"]));
    if !said.is_empty() && said != "0" && said != is {
        return Err(Failure::modified(resource, name));
    }
    let (said, is) = (text(object, &["metadata", "uid"]), text(base, &["metadata", "uid"]));
    if !said.is_empty() && said != is {
        let why = format!("Precondition failed: UID in precondition: {said}, UID in object meta: {is}");
        return Err(Failure::conflict(resource.group, resource.plural, name, &why));
    }
    Ok(())
}

/// Restores what belongs to the server.
fn keep(object: &mut Value, base: &Value) {
    for key in KEPT {
        match base["metadata"].get(key) {
            Some(value) => set_meta(object, key, value.clone()),
            None => remove_meta(object, key),
        }
    }
    set_meta(object, "resourceVersion", base["metadata"]["resourceVersion"].clone());
}

/// Deleted, and nothing holds it any more.
pub fn released(resource: &Resource, object: &Value) -> bool {
    let metadata = &object["metadata"];
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && finalizers(object).is_empty()
        && !held_by_namespace(resource, object)
}

/// Namespaces carry a second list of finalizers in their spec.
pub fn held_by_namespace(resource: &Resource, object: &Value) -> bool {
    resource.plural == "namespaces" && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

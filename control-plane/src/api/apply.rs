//! Server-side apply, and the ownership of fields that every other write leaves behind (`metadata.managedFields`).
//!
//! The rules are `leme_schema::apply`'s; here they meet requests, the registry and authorization.

use axum::body::Body;
use http::{Response, StatusCode};
use leme_schema::{
    Definition,
    apply::{Conflicts, Manager, apply, track_update},
};
use serde_json::{Value, json};

use super::{
    App, Call,
    create::{Writer, adopt_namespace, definition, finish, now},
    namespace,
    object::{Shared, text},
    query::{FieldValidation, Query, WriteOptions},
    registry::Kind,
    respond,
    status::{Failure, Outcome},
};
use crate::{
    auth::attributes::Attributes,
    resources::{FieldError, Resource},
};

pub const APPLY: &str = "application/apply-patch+yaml";
/// What upstream calls a client that does not say who it is.
const UNKNOWN: &str = "unknown";

impl Writer<'_> {
    /// Writes into a changed object who owns what.
    pub fn track(&self, subresource: &str, old: Option<&Value>, object: &mut Value) -> Outcome<()> {
        let version = respond::api_version(self.resource());
        let time = now();
        let manager = self.manager(subresource, &version, &time);
        track_update(definition(self.resource().schema)?, old, object, manager);
        Ok(())
    }

    /// A change of the scale is upstream's only one without a time.
    fn manager<'b>(&'b self, subresource: &'b str, version: &'b str, time: &'b str) -> Manager<'b> {
        let name = Some(self.options.manager.as_str()).filter(|name| !name.is_empty()).unwrap_or(UNKNOWN);
        let time = if subresource == "scale" { "" } else { time };
        Manager { name, api_version: version, subresource, time }
    }

    /// The live object with what was applied, fit for its schema.
    pub fn applied(&self, subresource: &str, live: Option<&Value>, wish: &Value) -> Outcome<Value> {
        let schema = definition(self.resource().schema)?;
        let version = respond::api_version(self.resource());
        let time = now();
        let manager = self.manager(subresource, &version, &time);
        let merged = apply(schema, live, wish, manager, self.options.force.unwrap_or(false)).map_err(refusal)?;
        Ok(finish(schema, leme_schema::conform(schema, merged), self.options)?.0)
    }
}

/// The apply patch in a request's body and the warnings that it deserves.
pub async fn read(
    call: &mut Call,
    schema: &'static Definition,
    options: &WriteOptions,
) -> Outcome<(Value, Vec<String>)> {
    let body = call.body().await?;
    let decoded =
        leme_schema::decode_applied(schema, &body).map_err(|error| Failure::bad_request(error.to_string()))?;
    let wish = decoded.value;
    if !wish["metadata"]["managedFields"].is_null() {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    let unknown =
        |problem: &String| problem.strip_prefix("unknown field ").map(|field| field.trim_matches('"').to_owned());
    if let Some(field) = decoded.problems.iter().find_map(unknown) {
        let (version, kind) = (text(&wish, &["apiVersion"]), text(&wish, &["kind"]));
        let (scope, name) = (text(&wish, &["metadata", "namespace"]), text(&wish, &["metadata", "name"]));
        let version = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
        let message = format!(
            "failed to create typed patch object ({scope}/{name}; {version}, Kind={kind}): .{field}: field not declared in schema"
        );
        return Err(Failure::new(500, "", message, None));
    }
    let warnings = match options.validation {
        FieldValidation::Strict if !decoded.problems.is_empty() => {
            let message = format!("error strict decoding YAML: {}", decoded.problems.join(", "));
            return Err(Failure::bad_request(message));
        }
        FieldValidation::Ignore => Vec::new(),
        _ => decoded.problems,
    };
    Ok((wish, warnings))
}

/// Creates the object if it is not there.
pub async fn patch(app: &App, mut call: Call, kind: &Kind, subresource: &str) -> Outcome<Response<Body>> {
    let options = WriteOptions::parse(&call.query, "PatchOptions", call.user_agent())?;
    check_options(&call.query, true)?;
    let resource = kind.resource;
    let (mut wish, mut problems) = read(&mut call, definition(resource.schema)?, &options).await?;
    let scope = namespace(resource, &call.target).to_owned();
    let name = call.target.name.clone();
    check_name(resource, &scope, &name, &mut wish)?;
    let writer = Writer { app, user: &call.user, kind, options: &options };
    let mut warnings = Vec::new();
    let absent = subresource.is_empty() && kind.get(&scope, &name).await?.is_none();
    let (item, code) = if absent {
        let mut target = call.target.clone();
        target.verb = "create";
        app.authorizer.require(&Attributes::resource(&call.user, &target)).await?;
        let object = writer.applied("", None, &wish)?;
        (writer.create(&scope, object, &mut warnings).await?, StatusCode::CREATED)
    } else {
        let change = |live: &Value| writer.applied(subresource, Some(live), &wish);
        (writer.change(&scope, &name, subresource, change, &mut warnings).await?, StatusCode::OK)
    };
    problems.append(&mut warnings);
    let mut response = respond::object(call.accept, &call.query, resource, &item, code)?;
    respond::warn(&mut response, &problems);
    Ok(response)
}

/// To apply a Scale is to apply the replicas of the object behind it.
pub async fn scale(app: &App, call: &mut Call, kind: &Kind, schema: &'static Definition) -> Outcome<Shared> {
    let options = WriteOptions::parse(&call.query, "PatchOptions", call.user_agent())?;
    check_options(&call.query, true)?;
    let (scale, _) = read(call, schema, &options).await?;
    let wish = match scale["spec"].get("replicas") {
        Some(replicas) => json!({"spec": {"replicas": replicas}}),
        None => json!({}),
    };
    let writer = Writer { app, user: &call.user, kind, options: &options };
    let change = |live: &Value| writer.applied("scale", Some(live), &wish);
    writer.change(&call.target.namespace, &call.target.name, "scale", change, &mut Vec::new()).await
}

/// What a patch's options may be depends on whether it is an apply.
pub fn check_options(query: &Query, is_apply: bool) -> Outcome<()> {
    let refuse = |reason, field: &str, message: &str| {
        let error = FieldError { reason, field: field.into(), message: message.into() };
        Err(Failure::invalid("meta.k8s.io", "PatchOptions", "", &[error]))
    };
    if is_apply && query.get("fieldManager").is_empty() {
        return refuse("FieldValueRequired", "fieldManager", "Required value: is required for apply patch");
    }
    if !is_apply && query.has("force") {
        return refuse("FieldValueForbidden", "force", "Forbidden: may not be specified for non-apply patch");
    }
    Ok(())
}

fn check_name(resource: &Resource, scope: &str, name: &str, wish: &mut Value) -> Outcome<()> {
    let said = text(wish, &["metadata", "name"]);
    if said.is_empty() {
        let why = "was undeterminable: name must be provided";
        return Err(Failure::bad_request(format!("the name of the object ({name} based on URL) {why}")));
    }
    if said != name {
        let message = format!("the name of the object ({said}) does not match the name on the URL ({name})");
        return Err(Failure::bad_request(message));
    }
    adopt_namespace(resource, scope, wish)
}

fn refusal(conflicts: Conflicts) -> Failure {
    let cause = |one: &leme_schema::apply::Conflict| {
        let message = format!("conflict with {}", one.manager);
        json!({"reason": "FieldManagerConflict", "message": message, "field": one.field})
    };
    let causes: Vec<Value> = conflicts.0.iter().map(cause).collect();
    Failure::new(409, "Conflict", conflicts.to_string(), Some(json!({"causes": causes})))
}

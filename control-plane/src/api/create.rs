//! Create: decode, fill in what the server owns, admit, validate, allocate, commit.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::Timestamp;
use leme_schema::Definition;
use serde_json::Value;

use super::{
    App, Call,
    media::{self, Format},
    namespace,
    object::{Item, Shared, remove_meta, set_meta, text},
    query::{FieldValidation, WriteOptions},
    registry::{Base, Kind, Written},
    respond,
    status::{Failure, Outcome},
};
use crate::{
    admission,
    auth::{User, escalation},
    resources::{self, Context, Resource},
};

/// Upstream's alphabet for generated names: no vowels, nothing that reads like another letter.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How often a generated name or an allocation may collide.
const ATTEMPTS: usize = 8;

pub async fn create(app: &App, mut call: Call, kind: &Kind) -> Outcome<Response<Body>> {
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.user_agent())?;
    let (mut object, mut warnings) = decode_body(&mut call, kind.resource, &options).await?;
    let scope = namespace(kind.resource, &call.target).to_owned();
    let writer = Writer { app, user: &call.user, kind, options: &options };
    writer.track("", None, &mut object)?;
    let item = writer.create(&scope, object, &mut warnings).await?;
    let mut response = respond::object(call.accept, &call.query, kind.resource, &item, StatusCode::CREATED)?;
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// The body as an object of the kind with its defaults, and the warnings that its fields deserve.
pub async fn decode_body(
    call: &mut Call,
    resource: &Resource,
    options: &WriteOptions,
) -> Outcome<(Value, Vec<String>)> {
    let format = media::body_format(call.headers())?;
    let body = call.body().await?;
    decode(definition(resource.schema)?, format, &body, options)
}

/// The same for any schema: subresources have bodies of other kinds.
pub fn decode(
    definition: &'static Definition,
    format: Format,
    body: &[u8],
    options: &WriteOptions,
) -> Outcome<(Value, Vec<String>)> {
    let decoded = match format {
        Format::Json => leme_schema::decode_json(definition, body),
        Format::Yaml => leme_schema::decode_yaml(definition, body),
        Format::Protobuf => leme_schema::decode_protobuf(definition, body),
    };
    finish(definition, decoded, options)
}

/// Defaults, and problems as errors, warnings or nothing.
pub fn finish(
    definition: &'static Definition,
    decoded: Result<leme_schema::Decoded, leme_schema::DecodeError>,
    options: &WriteOptions,
) -> Outcome<(Value, Vec<String>)> {
    let mut decoded = decoded.map_err(|error| Failure::bad_request(error.to_string()))?;
    if options.validation == FieldValidation::Strict && !decoded.problems.is_empty() {
        return Err(Failure::bad_request(leme_schema::decode::strict_error(definition, &decoded.problems).to_string()));
    }
    if options.validation == FieldValidation::Ignore {
        decoded.problems.clear();
    }
    leme_schema::set_defaults(definition, &mut decoded.value);
    Ok((decoded.value, decoded.problems))
}

pub fn definition(name: &str) -> Outcome<&'static Definition> {
    leme_schema::definition(name).ok_or_else(|| Failure::internal(format!("no schema {name}")))
}

/// One write: who, what kind, how.
pub struct Writer<'a> {
    pub app: &'a App,
    pub user: &'a User,
    pub kind: &'a Kind,
    pub options: &'a WriteOptions,
}

impl Writer<'_> {
    pub fn context<'b>(&'b self, subresource: &'b str) -> Context<'b> {
        Context {
            resource: self.kind.resource,
            user: self.user,
            now: Timestamp::now(),
            subresource: (!subresource.is_empty()).then_some(subresource),
        }
    }

    pub fn resource(&self) -> &'static Resource {
        self.kind.resource
    }

    /// Creates a decoded object in a namespace ("" for cluster-scoped kinds).
    pub async fn create(&self, scope: &str, mut object: Value, warnings: &mut Vec<String>) -> Outcome<Shared> {
        own(self.resource(), scope, &mut object)?;
        let prefix = text(&object, &["metadata", "generateName"]).to_owned();
        let generate = text(&object, &["metadata", "name"]).is_empty() && !prefix.is_empty();
        for attempt in 1.. {
            let mut candidate = object.clone();
            if generate {
                set_meta(&mut candidate, "name", generated(&prefix).into());
            }
            let name = text(&candidate, &["metadata", "name"]).to_owned();
            self.prepare(scope, &mut candidate, warnings).await?;
            let companions = {
                let context = self.context("");
                let allocated =
                    self.resource().strategy.allocate(&context, &*self.app.registry, Some(&mut candidate), None).await;
                allocated
                    .map_err(|errors| Failure::invalid(self.resource().group, self.resource().kind, &name, &errors))?
            };
            if self.options.dry_run {
                if self.kind.get(scope, &name).await?.is_some() {
                    return Err(Failure::already_exists(self.resource(), &name));
                }
                return Ok(Arc::new(Item::unsaved(self.resource(), &candidate)));
            }
            match self.app.registry.put(self.kind, Base::Absent, candidate, companions).await? {
                Written::Done(item) => return Ok(item),
                Written::Raced if generate && attempt < ATTEMPTS => {}
                Written::CompanionTaken if attempt < ATTEMPTS => {}
                Written::Raced => return Err(Failure::already_exists(self.resource(), &name)),
                Written::CompanionTaken => {
                    return Err(Failure::internal(
                        "what the object needs from a shared range was taken again and again",
                    ));
                }
            }
        }
        unreachable!("the loop returns")
    }

    /// Admission, strategy, validation: everything before the ranges.
    async fn prepare(&self, scope: &str, object: &mut Value, warnings: &mut Vec<String>) -> Outcome<()> {
        admission::create(self.app, self.user, self.resource(), scope, object).await?;
        escalation::check(self.app, self.user, self.resource(), object, None).await?;
        let context = self.context("");
        let strategy = self.resource().strategy;
        strategy.prepare_create(&context, object);
        let mut errors = resources::validate_create(&context, object);
        errors.extend(strategy.validate_create(&context, object));
        if !errors.is_empty() {
            let name = text(object, &["metadata", "name"]);
            return Err(Failure::invalid(self.resource().group, self.resource().kind, name, &errors));
        }
        for warning in strategy.warnings(&context, object) {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        Ok(())
    }
}

/// What only the server may say about a new object.
fn own(resource: &Resource, scope: &str, object: &mut Value) -> Outcome<()> {
    if !text(object, &["metadata", "resourceVersion"]).is_empty() {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    adopt_namespace(resource, scope, object)?;
    if !object["metadata"].is_object() {
        object["metadata"] = serde_json::json!({});
    }
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        remove_meta(object, key);
    }
    set_meta(object, "uid", uuid::Uuid::new_v4().to_string().into());
    set_meta(object, "creationTimestamp", now().into());
    Ok(())
}

/// An object's namespace is the request's; saying another one is an error.
pub fn adopt_namespace(resource: &Resource, scope: &str, object: &mut Value) -> Outcome<()> {
    let said = text(object, &["metadata", "namespace"]);
    if !said.is_empty() && said != scope {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Failure::bad_request(message));
    }
    if resource.namespaced && scope.is_empty() {
        return Err(Failure::bad_request("an empty namespace may not be set during creation"));
    }
    if resource.namespaced {
        set_meta(object, "namespace", scope.into());
    }
    Ok(())
}

/// Now, as `metadata` writes it: UTC, whole seconds.
pub fn now() -> String {
    timestamp(Timestamp::now())
}

pub fn timestamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The prefix, cut so that the name stays within 63 characters, and five random ones.
fn generated(prefix: &str) -> String {
    let mut name: String = prefix.chars().take(58).collect();
    name.extend(suffix());
    name
}

pub fn suffix() -> [char; 5] {
    std::array::from_fn(|_| char::from(SUFFIX[fastrand::usize(..SUFFIX.len())]))
}

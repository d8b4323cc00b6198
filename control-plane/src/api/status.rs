//! Failures as the wire shows them: `v1 Status` objects in upstream's words.
//!
//! Everything below `api`, `auth` and `admission` returns [`Failure`]; only the outermost handler turns one into a
//! response. Nothing here decides anything.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::resources::{FieldError, Resource};

/// One `Status` that is not a success.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Value>,
}

pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>, details: Option<Value>) -> Self {
        Self { code, reason, message: message.into(), details }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message, None)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized", None)
    }

    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} \"{name}\" not found", qualified(resource.group, resource.plural)),
            Some(details(resource.group, resource.plural, name)),
        )
    }

    /// A path that nothing serves.
    pub fn unknown_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource", Some(json!({})))
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message, Some(json!({})))
    }

    pub fn not_acceptable(offered: &[&str]) -> Self {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", offered.join(", "));
        Self::new(406, "NotAcceptable", message, Some(json!({})))
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message, None)
    }

    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(
            409,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", qualified(resource.group, resource.plural)),
            Some(details(resource.group, resource.plural, name)),
        )
    }

    pub fn conflict(group: &str, kind: &str, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, kind)),
            Some(details(group, kind, name)),
        )
    }

    pub fn modified(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource.group, resource.plural, name, why)
    }

    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let subject = match name {
            "" => qualified(group, plural),
            name => format!("{} \"{name}\"", qualified(group, plural)),
        };
        Self::new(403, "Forbidden", format!("{subject} is forbidden: {why}"), Some(details(group, plural, name)))
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let line = |e: &FieldError| match e.field.as_str() {
            "" => e.message.clone(),
            field => format!("{field}: {}", e.message),
        };
        let lines: Vec<String> = errors.iter().map(line).collect();
        let all = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut about = details(group, kind, name);
        about["causes"] =
            errors.iter().map(|e| json!({"reason": e.reason, "message": e.message, "field": e.field})).collect();
        let message = format!("{} \"{name}\" is invalid: {all}", qualified(group, kind));
        Self::new(422, "Invalid", message, Some(about))
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message, None)
    }

    pub fn too_large() -> Self {
        Self::new(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728", None)
    }

    pub fn internal(why: impl std::fmt::Display) -> Self {
        let details = json!({"causes": [{"message": why.to_string()}]});
        Self::new(500, "InternalError", format!("Internal error occurred: {why}"), Some(details))
    }

    pub fn unavailable(why: impl std::fmt::Display) -> Self {
        Self::new(503, "ServiceUnavailable", why.to_string(), None)
    }

    /// The object behind the message.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    pub fn respond(&self) -> Response<Body> {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::new(Body::from(self.status().to_string()));
        *response.status_mut() = code;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.details.as_ref().and_then(|d| d["retryAfterSeconds"].as_u64()) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<leme_store::Error> for Failure {
    fn from(error: leme_store::Error) -> Self {
        match error {
            leme_store::Error::Compacted { wanted, oldest } => {
                Self::expired(format!("too old resource version: {wanted} ({oldest})"))
            }
            leme_store::Error::Future { wanted, newest } => Self::too_large_version(wanted.0, newest.0),
            other => Self::unavailable(other),
        }
    }
}

impl Failure {
    /// A resource version from the future, after waiting for it in vain.
    pub fn too_large_version(wanted: u64, newest: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {newest}");
        let details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        });
        Self::new(504, "Timeout", message, Some(details))
    }
}

/// `deployments.apps`, or `pods` in the core group.
pub fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut details = json!({"kind": kind});
    for (key, value) in [("name", name), ("group", group)] {
        if !value.is_empty() {
            details[key] = value.into();
        }
    }
    details
}

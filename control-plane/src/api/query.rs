//! The options that travel in a request's query: list, watch, create, update, patch and delete options.

use std::collections::HashMap;

use leme_store::Revision;
use serde_json::Value;

use super::status::{Failure, Outcome};
use crate::resources::FieldError;

/// A decoded query string; the first value of a repeated key counts unless all are asked for.
#[derive(Clone, Debug, Default)]
pub struct Query(HashMap<String, Vec<String>>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let mut map = HashMap::<String, Vec<String>>::new();
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            map.entry(key.into_owned()).or_default().push(value.into_owned());
        }
        Self(map)
    }

    pub fn get(&self, key: &str) -> &str {
        self.0.get(key).and_then(|values| values.first()).map_or("", String::as_str)
    }

    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Upstream's reading of booleans: present and empty is true, `0` and `false` are not.
    pub fn flag(&self, key: &str) -> bool {
        self.has(key) && !matches!(self.get(key).to_ascii_lowercase().as_str(), "0" | "false")
    }

    pub fn optional_flag(&self, key: &str) -> Option<bool> {
        self.has(key).then(|| self.flag(key))
    }

    pub fn number(&self, key: &str) -> Outcome<Option<i64>> {
        match self.get(key) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Failure::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    }

    pub fn revision(&self) -> Outcome<Option<Revision>> {
        match self.get("resourceVersion") {
            "" => Ok(None),
            text => text.parse().map(|n| Some(Revision(n))).map_err(|_| {
                Failure::bad_request(format!(
                    "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }
}

/// How long a field manager's name may be, in bytes.
const MANAGER: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// What a write may ask for.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub validation: FieldValidation,
    /// Who owns the fields; the user agent's first word if the query does not say.
    pub manager: String,
    pub force: Option<bool>,
}

impl WriteOptions {
    /// `kind`: `CreateOptions`, `UpdateOptions` or `PatchOptions`, for the messages.
    pub fn parse(query: &Query, kind: &str, user_agent: &str) -> Outcome<Self> {
        let invalid = |field: &str, reason, message: String| {
            let error = FieldError { reason, field: field.into(), message };
            Failure::invalid("meta.k8s.io", kind, "", &[error])
        };
        let validation = match query.get("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let message =
                    format!("Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"");
                return Err(invalid("fieldValidation", "FieldValueNotSupported", message));
            }
        };
        let dry_run =
            dry_run(query.all("dryRun")).map_err(|message| invalid("dryRun", "FieldValueNotSupported", message))?;
        let manager = match query.get("fieldManager") {
            "" => agent(user_agent),
            name if name.len() > MANAGER => {
                let message = format!("Too long: may not be more than {MANAGER} bytes");
                return Err(invalid("fieldManager", "FieldValueTooLong", message));
            }
            name => name.to_owned(),
        };
        Ok(Self { dry_run, validation, manager, force: query.optional_flag("force") })
    }
}

/// The program's name, as far as it can be a manager's.
fn agent(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    let mut room = MANAGER;
    let fits = |letter: &char| room.checked_sub(letter.len_utf8()).map(|left| room = left).is_some();
    name.chars().filter(|letter| !letter.is_control()).take_while(fits).collect()
}

fn dry_run(values: &[String]) -> Result<bool, String> {
    match values {
        [] => Ok(false),
        [one] if one.is_empty() => Ok(false),
        all if all.iter().all(|v| v == "All") => Ok(true),
        all => Err(format!("Unsupported value: {all:?}: supported values: \"All\"")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `v1 DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    pub fn parse(query: &Query, body: &Value) -> Outcome<Self> {
        let words = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect()
        };
        let invalid = |field: &str, message: String| {
            let error = FieldError { reason: "FieldValueNotSupported", field: field.into(), message };
            Failure::invalid("meta.k8s.io", "DeleteOptions", "", &[error])
        };
        let asked = if body.is_null() { query.all("dryRun").to_vec() } else { words(&body["dryRun"]) };
        let policy = match body["propagationPolicy"].as_str() {
            Some(policy) => policy,
            None => query.get("propagationPolicy"),
        };
        let orphan = body["orphanDependents"].as_bool().or(query.optional_flag("orphanDependents"));
        let propagation = match (policy, orphan) {
            ("Orphan", _) | ("", Some(true)) => Some(Propagation::Orphan),
            ("Background", _) | ("", Some(false)) => Some(Propagation::Background),
            ("Foreground", _) => Some(Propagation::Foreground),
            ("", None) => None,
            (other, _) => {
                let supported = "supported values: \"Background\", \"Foreground\", \"Orphan\"";
                return Err(invalid("propagationPolicy", format!("Unsupported value: {other:?}: {supported}")));
            }
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(Self {
            dry_run: dry_run(&asked).map_err(|message| invalid("dryRun", message))?,
            grace_seconds: match body["gracePeriodSeconds"].as_i64() {
                Some(seconds) => Some(seconds),
                None => query.number("gracePeriodSeconds")?,
            },
            propagation,
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
        })
    }
}

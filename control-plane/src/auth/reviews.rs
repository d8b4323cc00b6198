//! Kinds that are answered and never stored: token, access and rules reviews.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{User, attributes::Attributes, authenticate::user_info, rbac::Rule};
use crate::{
    api::{
        App, Call,
        create::decode_body,
        object::text,
        query::WriteOptions,
        respond,
        status::{Failure, Outcome},
    },
    resources::{FieldError, Resource},
};

pub async fn answer(app: &App, mut call: Call, resource: &Resource) -> Outcome<Response<Body>> {
    if resource.kind == "Binding" {
        return crate::api::subresource::bind_by_collection(app, call).await;
    }
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.user_agent())?;
    let (mut object, warnings) = decode_body(&mut call, resource, &options).await?;
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let status = match resource.kind {
        "TokenReview" => token_review(app, &mut object, resource).await?,
        "SelfSubjectReview" => json!({"userInfo": user_info(&call.user)}),
        "SelfSubjectRulesReview" => rules_review(app, &call.user, &object)?,
        "SelfSubjectAccessReview" => access_review(app, &call.user, &object, resource).await?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let user = reviewed_user(&object);
            check_local(&call, resource, &object)?;
            access_review(app, &user, &object, resource).await?
        }
        _ => return Err(Failure::unknown_path()),
    };
    object["status"] = status;
    let mut response = respond::value(call.accept, StatusCode::CREATED, &object);
    respond::warn(&mut response, &warnings);
    Ok(response)
}

async fn token_review(app: &App, object: &mut Value, resource: &Resource) -> Outcome<Value> {
    let token = text(object, &["spec", "token"]);
    if token.is_empty() {
        return Err(Failure::bad_request("token is required for TokenReview in authentication"));
    }
    let words = |v: &Value| v.as_array().into_iter().flatten().filter_map(|a| a.as_str().map(Into::into)).collect();
    let mut audiences: Vec<String> = words(&object["spec"]["audiences"]);
    if audiences.is_empty() {
        audiences = app.authenticator.audiences.clone();
    }
    let _ = resource;
    Ok(match app.authenticator.token(token, &audiences).await {
        Ok((user, shared)) => json!({"authenticated": true, "user": user_info(&user), "audiences": shared}),
        Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
    })
}

async fn access_review(app: &App, user: &User, object: &Value, resource: &Resource) -> Outcome<Value> {
    let spec = &object["spec"];
    let (about, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if about.is_object() == path.is_object() {
        let (reason, message) = if about.is_object() {
            ("FieldValueInvalid", "Invalid value: cannot be specified in combination with resourceAttributes")
        } else {
            (
                "FieldValueInvalid",
                "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            )
        };
        let field = if about.is_object() { "spec.nonResourceAttributes" } else { "spec.resourceAttributes" };
        let error = FieldError { reason, field: field.into(), message: message.into() };
        return Err(Failure::invalid(resource.group, resource.kind, "", &[error]));
    }
    let of = |key: &str| text(about, &[key]);
    let question = if about.is_object() {
        Attributes {
            user,
            verb: of("verb"),
            group: of("group"),
            namespace: of("namespace"),
            plural: of("resource"),
            subresource: of("subresource"),
            name: of("name"),
            path: "",
        }
    } else {
        let (verb, path) = (text(path, &["verb"]), text(path, &["path"]));
        Attributes { user, verb, group: "", namespace: "", plural: "", subresource: "", name: "", path }
    };
    let decision = app.authorizer.decide(&question).await?;
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    Ok(status)
}

fn rules_review(app: &App, user: &User, object: &Value) -> Outcome<Value> {
    let namespace = text(object, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(Failure::bad_request("no namespace on request"));
    }
    let mut rules = app.authorizer.rbac.rules(user, namespace);
    if user.in_group(super::MASTERS) {
        let all = || vec!["*".to_owned()];
        rules.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
        rules.push(Rule { verbs: all(), paths: all(), ..Rule::default() });
    }
    let (resources, paths): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.paths.is_empty());
    let mut status = json!({"incomplete": false, "resourceRules": resources, "nonResourceRules": paths});
    if user.node().is_some() {
        status["incomplete"] = true.into();
        status["evaluationError"] = "node authorizer does not support user rule resolution".into();
    }
    Ok(status)
}

fn reviewed_user(object: &Value) -> User {
    let spec = &object["spec"];
    let words = |v: &Value| v.as_array().into_iter().flatten().filter_map(|a| a.as_str().map(Into::into)).collect();
    let extra = spec["extra"].as_object().into_iter().flatten().map(|(key, values)| (key.clone(), words(values)));
    User {
        name: text(spec, &["user"]).to_owned(),
        uid: text(spec, &["uid"]).to_owned(),
        groups: words(&spec["groups"]),
        extra: extra.collect(),
    }
}

/// A local review is about its own namespace.
fn check_local(call: &Call, resource: &Resource, object: &Value) -> Outcome<()> {
    let invalid = |field: &str, message: &str| {
        let error = FieldError { reason: "FieldValueInvalid", field: field.into(), message: message.into() };
        Err(Failure::invalid(resource.group, resource.kind, "", &[error]))
    };
    let spec = &object["spec"];
    if text(spec, &["user"]).is_empty() && spec["groups"].as_array().is_none_or(Vec::is_empty) {
        return invalid("spec.user", "Invalid value: \"\": at least one of user or group must be specified");
    }
    let said = text(spec, &["resourceAttributes", "namespace"]);
    if resource.kind == "LocalSubjectAccessReview" && said != call.target.namespace {
        return invalid(
            "spec.resourceAttributes.namespace",
            &format!("Invalid value: {said:?}: must match metadata.namespace"),
        );
    }
    Ok(())
}

//! Everything below an object: status, scale, binding, eviction, finalize, tokens, and what is answered elsewhere.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    App, Call, apply,
    create::{Writer, adopt_namespace, decode, definition, finish, timestamp},
    media,
    object::{Shared, text},
    proxy,
    query::{DeleteOptions, WriteOptions},
    registry::Kind,
    respond,
    status::{Failure, Outcome},
    update::{self, Patch},
};
use crate::{
    auth::tokens::{Bound, Reference},
    resources::{self, BindError, FieldError, Resource},
};

const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const BINDING: &str = "io.k8s.api.core.v1.Binding";
const EVICTION: &str = "io.k8s.api.policy.v1.Eviction";
const TOKEN_REQUEST: &str = "io.k8s.api.authentication.v1.TokenRequest";
/// A token lives at least this long, and at most this long.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);

pub async fn answer(app: &Arc<App>, call: Call, resource: &'static Resource) -> Outcome<Response<Body>> {
    let name = call.target.subresource.clone();
    let row = resource.subresources.iter().find(|s| s.name == name).ok_or_else(Failure::unknown_path)?;
    let streams = matches!(name.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
    if !row.verbs.contains(&call.target.verb) {
        return Err(Failure::method_not_allowed());
    }
    if streams {
        return if name == "proxy" { proxy::proxy(app, call).await } else { proxy::pod_stream(app, call).await };
    }
    let kind =
        app.registry.kind(resource.group, resource.version, resource.plural).ok_or_else(Failure::unknown_path)?;
    let kind: Arc<Kind> = kind.clone();
    match (name.as_str(), call.target.verb) {
        ("scale", verb) => scale(app, call, &kind, verb).await,
        ("binding", _) => binding(app, call, &kind).await,
        ("eviction", _) => eviction(app, call, &kind).await,
        ("token", _) => token(app, call, &kind).await,
        (_, "get") => super::list::get(app, &call, &kind).await,
        (_, "update") => update::update(app, call, &kind, &name).await,
        (_, "patch") => update::patch(app, call, &kind, &name).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

async fn find(call: &Call, kind: &Kind) -> Outcome<Shared> {
    let item = kind.get(super::namespace(kind.resource, &call.target), &call.target.name).await?;
    item.ok_or_else(|| Failure::not_found(kind.resource, &call.target.name))
}

async fn scale(app: &App, mut call: Call, kind: &Kind, verb: &str) -> Outcome<Response<Body>> {
    let item = match verb {
        "get" => find(&call, kind).await?,
        "patch" if media::content_type(call.headers()) == apply::APPLY => {
            apply::scale(app, &mut call, kind, definition(SCALE)?).await?
        }
        _ => {
            let (kind_name, patch) = match verb {
                "patch" => ("PatchOptions", Some(Patch::read(&mut call).await?)),
                _ => ("UpdateOptions", None),
            };
            let options = WriteOptions::parse(&call.query, kind_name, call.user_agent())?;
            let schema = definition(SCALE)?;
            let body = if patch.is_none() { call.body().await? } else { Default::default() };
            let format = if patch.is_none() { media::body_format(call.headers())? } else { media::Format::Json };
            let writer = Writer { app, user: &call.user, kind, options: &options };
            let change = |old: &Value| {
                let scale = match &patch {
                    Some(patch) => {
                        finish(
                            schema,
                            leme_schema::conform(schema, patch.apply(schema, &resources::scale_of(old))?),
                            &options,
                        )?
                        .0
                    }
                    None => decode(schema, format, &body, &options)?.0,
                };
                let mut object = old.clone();
                let version = scale["metadata"]["resourceVersion"].clone();
                if version.is_string() {
                    object["metadata"]["resourceVersion"] = version;
                }
                resources::apply_scale(&mut object, &scale)
                    .map_err(|errors| Failure::invalid("autoscaling", "Scale", &call.target.name, &errors))?;
                writer.track("scale", Some(old), &mut object)?;
                Ok(object)
            };
            writer.change(&call.target.namespace, &call.target.name, "scale", change, &mut Vec::new()).await?
        }
    };
    Ok(respond::value(call.accept, StatusCode::OK, &resources::scale_of(&item.value())))
}

/// `POST …/bindings`: the same as the subresource, the pod named by the body.
pub async fn bind_by_collection(app: &App, mut call: Call) -> Outcome<Response<Body>> {
    let kind = app.registry.builtin("pods").clone();
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.user_agent())?;
    let format = media::body_format(call.headers())?;
    let (binding, _) = decode(definition(BINDING)?, format, &call.body().await?, &options)?;
    bind(app, &call, &kind, &options, text(&binding, &["metadata", "name"]), &binding).await
}

async fn binding(app: &App, mut call: Call, kind: &Kind) -> Outcome<Response<Body>> {
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.user_agent())?;
    let format = media::body_format(call.headers())?;
    let (binding, _) = decode(definition(BINDING)?, format, &call.body().await?, &options)?;
    let said = text(&binding, &["metadata", "name"]);
    if !said.is_empty() && said != call.target.name {
        return Err(Failure::bad_request("name in URL does not match name in Binding object"));
    }
    let name = call.target.name.clone();
    bind(app, &call, kind, &options, &name, &binding).await
}

async fn bind(
    app: &App,
    call: &Call,
    kind: &Kind,
    options: &WriteOptions,
    name: &str,
    binding: &Value,
) -> Outcome<Response<Body>> {
    let writer = Writer { app, user: &call.user, kind, options };
    let change = |old: &Value| {
        let mut pod = old.clone();
        resources::bind(&mut pod, binding, Timestamp::now()).map_err(|error| match error {
            BindError::Invalid(errors) => Failure::invalid("", "Binding", name, &errors),
            BindError::Conflict(why) => Failure::conflict("", "pods/binding", name, &why),
        })?;
        Ok(pod)
    };
    writer.change(&call.target.namespace, name, "binding", change, &mut Vec::new()).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::value(call.accept, StatusCode::CREATED, &status))
}

/// Without disruption budgets an eviction is a deletion.
async fn eviction(app: &App, mut call: Call, kind: &Kind) -> Outcome<Response<Body>> {
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.user_agent())?;
    let format = media::body_format(call.headers())?;
    let (eviction, _) = decode(definition(EVICTION)?, format, &call.body().await?, &options)?;
    let mut delete = DeleteOptions::parse(&call.query, &eviction["deleteOptions"])?;
    delete.dry_run |= options.dry_run;
    let options = super::delete::write_options(&call.query, delete.dry_run);
    let writer = Writer { app, user: &call.user, kind, options: &options };
    writer.delete(&call.target.namespace, &call.target.name, &delete).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::value(call.accept, StatusCode::CREATED, &status))
}

/// `serviceaccounts/token`
async fn token(app: &App, mut call: Call, kind: &Kind) -> Outcome<Response<Body>> {
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.user_agent())?;
    let format = media::body_format(call.headers())?;
    let (mut request, _) = decode(definition(TOKEN_REQUEST)?, format, &call.body().await?, &options)?;
    let account = find(&call, kind).await?.value();
    adopt_namespace(kind.resource, &call.target.namespace, &mut request)?;
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
    let (least, most) = TOKEN_SECONDS;
    let refuse = |message: String| {
        let error = FieldError { reason: "FieldValueInvalid", field: "spec.expirationSeconds".into(), message };
        Failure::invalid("authentication.k8s.io", "TokenRequest", "", &[error])
    };
    if seconds < least {
        return Err(refuse(format!("Invalid value: {seconds}: may not specify a duration less than 10 minutes")));
    }
    if seconds > most {
        return Err(refuse(format!("Invalid value: {seconds}: may not specify a duration larger than 2^32 seconds")));
    }
    let uid = text(&account, &["metadata", "uid"]).to_owned();
    let mut bound = Bound {
        namespace: call.target.namespace.clone(),
        serviceaccount: Reference { name: call.target.name.clone(), uid },
        pod: None,
        secret: None,
        node: None,
        warnafter: None,
    };
    bind_token(app, &call, &request["spec"]["boundObjectRef"], &mut bound).await?;
    let words = request["spec"]["audiences"].as_array().into_iter().flatten();
    let mut audiences: Vec<String> = words.filter_map(|a| a.as_str().map(Into::into)).collect();
    if audiences.is_empty() {
        audiences = app.authenticator.audiences.clone();
    }
    request["spec"]["audiences"] = audiences.clone().into();
    request["spec"]["expirationSeconds"] = seconds.into();
    let (token, claims) = app.authenticator.tokens.issue(audiences, seconds, bound).map_err(Failure::internal)?;
    let expires = Timestamp::from_second(claims.exp).map_err(Failure::internal)?;
    request["metadata"]["name"] = call.target.name.as_str().into();
    request["metadata"]["creationTimestamp"] = super::create::now().into();
    request["status"] = json!({"token": token, "expirationTimestamp": timestamp(expires)});
    Ok(respond::value(call.accept, StatusCode::CREATED, &request))
}

/// Checks the object that the token shall live and die with, and writes it into the claims.
async fn bind_token(app: &App, call: &Call, reference: &Value, bound: &mut Bound) -> Outcome<()> {
    let agent = call.user.node();
    let (kind_name, name) = (text(reference, &["kind"]), text(reference, &["name"]));
    if agent.is_some() {
        let refuse = |why: &str| Err(Failure::forbidden("", "serviceaccounts", &call.target.name, why));
        if kind_name != "Pod" || text(reference, &["apiVersion"]) != "v1" || name.is_empty() {
            return refuse("node requested token not bound to a pod");
        }
        if text(reference, &["uid"]).is_empty() {
            return refuse("node requested token with a pod binding without a uid");
        }
    }
    if !reference.is_object() {
        return Ok(());
    }
    let (plural, namespace) = match kind_name {
        "Pod" => ("pods", bound.namespace.as_str()),
        "Secret" => ("secrets", bound.namespace.as_str()),
        "Node" => ("nodes", ""),
        other => return Err(Failure::bad_request(format!("cannot bind token for serviceaccount to a {other}"))),
    };
    let kind = app.registry.builtin(plural);
    let object = kind.get(namespace, name).await?.ok_or_else(|| Failure::not_found(kind.resource, name))?.value();
    let uid = text(&object, &["metadata", "uid"]).to_owned();
    let said = text(reference, &["uid"]);
    if !said.is_empty() && said != uid {
        let why = format!(
            "the UID in the bound object reference ({said}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Failure::conflict("", plural, name, &why));
    }
    let own = Reference { name: name.to_owned(), uid };
    match kind_name {
        "Pod" => {
            let account = text(&object, &["spec", "serviceAccountName"]);
            if account != bound.serviceaccount.name {
                return Err(Failure::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    bound.serviceaccount.name
                )));
            }
            let node = text(&object, &["spec", "nodeName"]);
            if agent.is_some_and(|agent| agent != node) {
                let why = "node requested token bound to a pod scheduled on a different node";
                return Err(Failure::forbidden("", "serviceaccounts", &call.target.name, why));
            }
            if !node.is_empty() {
                let uid = app.registry.builtin("nodes").peek("", node);
                let uid = uid.map(|n| text(&n.value(), &["metadata", "uid"]).to_owned()).unwrap_or_default();
                bound.node = Some(Reference { name: node.to_owned(), uid });
            }
            bound.pod = Some(own);
        }
        "Secret" => bound.secret = Some(own),
        _ => bound.node = Some(own),
    }
    Ok(())
}

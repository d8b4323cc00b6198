//! Who calls, and whether the API server lets them: certificates are judged here, tokens by TokenReview, permissions by
//! SubjectAccessReview on `nodes/<subresource>`, as the kubelet's. Answers are remembered for a moment.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::answer::Refusal;
use crate::tls::Judge;

const REMEMBER: Duration = Duration::from_secs(30);
/// A permission that was just granted is not refused for long.
const REMEMBER_NO: Duration = Duration::from_secs(2);
/// The group that upstream's authorizers never refuse.
const MASTERS: &str = "system:masters";

/// The TLS client of a connection, as yet unjudged.
#[derive(Clone, Default)]
pub(crate) struct Peer {
    pub(crate) certificates: Arc<[CertificateDer<'static>]>,
    pub(crate) judge: Judge,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct User {
    name: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

pub(crate) struct Auth {
    client: Client,
    node: String,
    tokens: Memory<String, User>,
    permissions: Memory<(User, &'static str, &'static str), ()>,
}

/// Lets through whom the API server lets.
pub(crate) async fn check(State(auth): State<Arc<Auth>>, request: Request, next: Next) -> Response {
    // Bodies cannot be shared between threads, so what is asked about a request leaves it.
    let (parts, body) = request.into_parts();
    let Some(user) = auth.authenticate(&parts).await else {
        return Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized").into_response();
    };
    match auth.authorize(&user, &parts.method, parts.uri.path()).await {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(refusal) => refusal.into_response(),
    }
}

impl Auth {
    pub(crate) fn new(client: Client, node: String) -> Self {
        Self { client, node, tokens: Memory::default(), permissions: Memory::default() }
    }

    async fn authenticate(&self, request: &Parts) -> Option<User> {
        if let Some(user) = request.extensions.get::<Peer>().and_then(Peer::user) {
            return Some(user);
        }
        let header = request.headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = header.split_once(' ')?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return None;
        }
        match self.tokens.recall(&token.to_owned()) {
            Some(user) => user,
            None => self.review(token).await,
        }
    }

    async fn review(&self, token: &str) -> Option<User> {
        let spec = TokenReviewSpec { token: token.to_owned(), ..Default::default() };
        let review = TokenReview { spec, ..Default::default() };
        let answer = Api::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = match answer {
            Ok(review) => review.status.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "a token could not be reviewed");
                return None;
            }
        };
        let user = status.authenticated.unwrap_or(false).then(|| status.user.unwrap_or_default()).map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        self.tokens.remember(token.to_owned(), user.clone());
        user
    }

    /// One of the subresources must be allowed; the narrow ones are asked for first.
    async fn authorize(&self, user: &User, method: &Method, path: &str) -> Result<(), Refusal> {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        let (verb, subresources) = (verb(method), subresources(path));
        for subresource in subresources {
            if self.may(user, verb, subresource).await? {
                return Ok(());
            }
        }
        let (name, asked) = (&user.name, subresources.join(" "));
        let message = format!("Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{asked}])");
        Err(Refusal::new(StatusCode::FORBIDDEN, message))
    }

    async fn may(&self, user: &User, verb: &'static str, subresource: &'static str) -> Result<bool, Refusal> {
        let key = (user.clone(), verb, subresource);
        if let Some(known) = self.permissions.recall(&key) {
            return Ok(known.is_some());
        }
        let review = SubjectAccessReview { spec: self.question(user, verb, subresource), ..Default::default() };
        let answer = Api::all(self.client.clone()).create(&PostParams::default(), &review).await.map_err(|error| {
            tracing::warn!(%error, "a permission could not be reviewed");
            Refusal::internal(format!("Authorization error (user={}, verb={verb}, resource=nodes)", user.name))
        })?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        self.permissions.remember(key, allowed.then_some(()));
        Ok(allowed)
    }

    fn question(&self, user: &User, verb: &str, subresource: &str) -> SubjectAccessReviewSpec {
        SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: user.uid.clone(),
            groups: Some(user.groups.clone()),
            extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(subresource.to_owned()),
                name: Some(self.node.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

impl Peer {
    /// The subject of a certificate that an authority vouches for, now.
    fn user(&self) -> Option<User> {
        let (certificate, intermediates) = self.certificates.split_first()?;
        self.judge.as_ref()?.verify_client_cert(certificate, intermediates, UnixTime::now()).ok()?;
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let subject = parsed.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned));
        let groups = groups.chain(["system:authenticated".to_owned()]).collect();
        Some(User { name, groups, ..Default::default() })
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// What a path needs, one of; `proxy` is the right to everything.
fn subresources(path: &str) -> &'static [&'static str] {
    match path.split('/').nth(1) {
        Some("stats") => &["stats"],
        Some("metrics") => &["metrics"],
        Some("pods") => &["pods", "proxy"],
        Some("healthz") => &["healthz", "proxy"],
        _ => &["proxy"],
    }
}

/// Answers, with `None` for no, for a while.
struct Memory<K, V>(Mutex<HashMap<K, (Instant, Option<V>)>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn recall(&self, key: &K) -> Option<Option<V>> {
        let answers = self.0.lock().expect("no holder panics");
        answers.get(key).filter(|answer| is_fresh(answer)).map(|(_, answer)| answer.clone())
    }

    fn remember(&self, key: K, answer: Option<V>) {
        let mut answers = self.0.lock().expect("no holder panics");
        answers.retain(|_, answer| is_fresh(answer));
        answers.insert(key, (Instant::now(), answer));
    }
}

fn is_fresh<V>((at, answer): &(Instant, Option<V>)) -> bool {
    at.elapsed() < if answer.is_some() { REMEMBER } else { REMEMBER_NO }
}

//! Who asks: the in-process identity, a client certificate, or a token: a service account's or a bootstrap token.
//!
//! A credential that is presented and bad is a 401, also where anonymous requests are welcome.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use http::{header, request::Parts};
use jiff::Timestamp;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    User, bootstrap,
    tokens::{Claims, Reference, Tokens},
};
use crate::{
    api::{
        registry::Registry,
        status::{Failure, Outcome},
    },
    server::Peer,
};

/// An identity that only code in this process can attach to a request: the wire makes its extensions anew.
#[derive(Clone, Debug)]
pub struct InProcess(pub Arc<User>);

pub struct Authenticator {
    clients: Arc<dyn ClientCertVerifier>,
    registry: Arc<Registry>,
    pub tokens: Arc<Tokens>,
    /// What a token must be meant for to be taken here.
    pub audiences: Vec<String>,
    /// Tokens whose signature was good, by hash.
    known: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// Verified tokens that are remembered.
const KNOWN: usize = 4096;

impl Authenticator {
    pub fn new(authority: &str, registry: Arc<Registry>, tokens: Arc<Tokens>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?;
        Ok(Self { clients, registry, audiences: vec![tokens.issuer.clone()], tokens, known: Mutex::default() })
    }

    /// `None`: no credential at all.
    pub async fn authenticate(&self, request: &Parts) -> Outcome<Option<Arc<User>>> {
        if let Some(InProcess(user)) = request.extensions.get() {
            return Ok(Some(user.clone()));
        }
        let certificate = self.by_certificate(request);
        if let Some(Ok(user)) = certificate {
            return Ok(Some(user));
        }
        match self.by_token(request).await {
            // A bad certificate does not spoil a good token, and no token does not excuse a bad certificate.
            Ok(None) => certificate.transpose(),
            other => other,
        }
    }

    fn by_certificate(&self, request: &Parts) -> Option<Outcome<Arc<User>>> {
        let peer = request.extensions.get::<Peer>().filter(|peer| !peer.certificates.is_empty())?;
        // Judged once for a connection: the certificate cannot change on it.
        Some(peer.identity.get_or_init(|| self.certificate(peer).map(Arc::new)).clone())
    }

    async fn by_token(&self, request: &Parts) -> Outcome<Option<Arc<User>>> {
        let authorization = request.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        match authorization.and_then(bearer).or_else(|| websocket_bearer(request)) {
            None if authorization.is_some() => Err(Failure::unauthorized()),
            None => Ok(None),
            Some(token) => {
                let (user, _) = self.token(&token, &self.audiences).await.map_err(|why| {
                    tracing::debug!(%why, "a token was refused");
                    Failure::unauthorized()
                })?;
                Ok(Some(Arc::new(user)))
            }
        }
    }

    fn certificate(&self, peer: &Peer) -> Outcome<User> {
        let refuse = |why: &dyn std::fmt::Display| {
            tracing::debug!(peer = %peer.address, %why, "a client certificate was refused");
            Failure::unauthorized()
        };
        let (leaf, intermediates) = peer.certificates.split_first().ok_or_else(Failure::unauthorized)?;
        self.clients.verify_client_cert(leaf, intermediates, UnixTime::now()).map_err(|e| refuse(&e))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|e| refuse(&e))?;
        let subject = certificate.subject();
        let texts = |attributes: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attributes.iter().filter_map(|a| a.as_str().ok().map(str::to_owned)).collect::<Vec<_>>()
        };
        let name = texts(subject.iter_common_name().collect()).into_iter().next();
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| refuse(&"the subject has no common name"))?;
        Ok(User::authenticated(&name, texts(subject.iter_organization().collect())))
    }

    /// Verifies a token and that everything it is bound to still lives. Returns the audiences that both sides share.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String> {
        if let Some((id, secret)) = bootstrap::parse(token) {
            let user = bootstrap::authenticate(&self.registry, id, secret).await?;
            let shared: Vec<String> = self.audiences.iter().filter(|a| audiences.contains(a)).cloned().collect();
            return if shared.is_empty() {
                Err("a bootstrap token is for this API alone".into())
            } else {
                Ok((user, shared))
            };
        }
        let claims = self.verified(token)?;
        let shared: Vec<String> = claims.aud.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if shared.is_empty() {
            return Err(format!("token audiences {:?} is invalid for the target audiences {audiences:?}", claims.aud));
        }
        self.alive(&claims).await?;
        Ok((user(&claims), shared))
    }

    /// The signature is checked once for a token; its times, every time.
    fn verified(&self, token: &str) -> Result<Arc<Claims>, String> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let now = Timestamp::now().as_second();
        if let Some(claims) = self.known.lock().expect("no panic holds the lock").get(&hash) {
            return if claims.exp > now { Ok(claims.clone()) } else { Err("the token has expired".into()) };
        }
        let claims = Arc::new(self.tokens.verify(token).map_err(|e| e.to_string())?);
        let mut known = self.known.lock().expect("no panic holds the lock");
        if known.len() >= KNOWN {
            known.retain(|_, claims| claims.exp > now);
        }
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(hash, claims.clone());
        Ok(claims)
    }

    async fn alive(&self, claims: &Claims) -> Result<(), String> {
        let bound = &claims.bound;
        let namespace = bound.namespace.as_str();
        self.lives("serviceaccounts", namespace, &bound.serviceaccount).await?;
        for (plural, namespace, reference) in [("pods", namespace, &bound.pod), ("secrets", namespace, &bound.secret)] {
            if let Some(reference) = reference {
                self.lives(plural, namespace, reference).await?;
            }
        }
        // A token of a pod carries its node for information only.
        match (&bound.node, &bound.pod) {
            (Some(node), None) => self.lives("nodes", "", node).await,
            _ => Ok(()),
        }
    }

    async fn lives(&self, plural: &str, namespace: &str, reference: &Reference) -> Result<(), String> {
        let gone = || format!("{plural} {:?} in {namespace:?} is gone", reference.name);
        let kind = self.registry.by_plural(plural).ok_or_else(gone)?;
        let item = kind.get(namespace, &reference.name).await.map_err(|e| e.message)?.ok_or_else(gone)?;
        let object = item.value();
        let same = reference.uid.is_empty() || object["metadata"]["uid"] == reference.uid.as_str();
        // Deleted for a minute and still there: finalizers keep the object, not the access.
        let deleted = object["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
        let fading = deleted.is_some_and(|t| Timestamp::now().as_second() - t.as_second() > 60);
        if same && !fading { Ok(()) } else { Err(gone()) }
    }
}

/// Upstream's user for a service account token.
pub fn user(claims: &Claims) -> User {
    let mut user = User::authenticated(&claims.sub, []);
    user.uid = claims.bound.serviceaccount.uid.clone();
    let mut extra = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    for (name, reference) in [("pod", &claims.bound.pod), ("node", &claims.bound.node)] {
        if let Some(reference) = reference {
            extra(&format!("{name}-name"), &reference.name);
            extra(&format!("{name}-uid"), &reference.uid);
        }
    }
    user
}

/// The user as reviews show it.
pub fn user_info(user: &User) -> Value {
    let mut info = serde_json::json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = serde_json::json!(user.extra);
    }
    info
}

fn bearer(authorization: &str) -> Option<String> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

/// Browsers cannot set headers on WebSockets: the token travels as a subprotocol.
fn websocket_bearer(request: &Parts) -> Option<String> {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let protocols = request.headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols.split(',').find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

//! Service account tokens: signed here, verified here, published as keys for others to verify.
//!
//! Claims are upstream's (`kubernetes.io` with namespace, service account and the object that the token is bound to).
//! Whether the bound objects still live is not decided here but in [`super::authenticate`].

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Reference {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    pub serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// From when on a client should have renewed the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    pub nbf: i64,
    pub sub: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("load the service account key: {0}")]
    Key(String),
    #[error("sign a token: {0}")]
    Sign(jsonwebtoken::errors::Error),
    #[error("verify a token: {0}")]
    Verify(jsonwebtoken::errors::Error),
}

/// Signs and verifies with one ECDSA P-256 key.
pub struct Tokens {
    pub issuer: String,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    jwks: Value,
}

impl Tokens {
    pub fn new(issuer: &str, key_pem: &str) -> Result<Self, Error> {
        let key = |e: &dyn std::fmt::Display| Error::Key(e.to_string());
        let pair = KeyPair::from_pem(key_pem).map_err(|e| key(&e))?;
        // Upstream's key id: the hash of the key's public DER form.
        let key_id = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(pair.subject_public_key_info()));
        let point = pair.public_key_raw();
        let half = |range: std::ops::Range<usize>| point.get(range).map(|b| BASE64_URL_SAFE_NO_PAD.encode(b));
        let (Some(x), Some(y)) = (half(1..33), half(33..65)) else {
            return Err(Error::Key("not an ECDSA P-256 key".into()));
        };
        let jwks = json!({"keys": [
            {"use": "sig", "kty": "EC", "kid": key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}
        ]});
        Ok(Self {
            issuer: issuer.to_owned(),
            key_id,
            signing: EncodingKey::from_ec_pem(key_pem.as_bytes()).map_err(|e| key(&e))?,
            verifying: DecodingKey::from_ec_components(&x, &y).map_err(|e| key(&e))?,
            jwks,
        })
    }

    /// A token for a service account and its claims.
    pub fn issue(&self, audiences: Vec<String>, seconds: i64, bound: Bound) -> Result<(String, Claims), Error> {
        let now = Timestamp::now().as_second();
        let claims = Claims {
            aud: audiences,
            exp: now + seconds,
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            bound,
            nbf: now,
        };
        let header = Header { typ: None, kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, &self.signing).map_err(Error::Sign)?;
        Ok((token, claims))
    }

    /// Signature, issuer and times; audiences are the caller's matter.
    pub fn verify(&self, token: &str) -> Result<Claims, Error> {
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_issuer(&[&self.issuer]);
        rules.validate_aud = false;
        rules.validate_nbf = true;
        rules.leeway = 0;
        jsonwebtoken::decode::<Claims>(token, &self.verifying, &rules).map(|d| d.claims).map_err(Error::Verify)
    }

    /// `/openid/v1/jwks`
    pub fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// `/.well-known/openid-configuration`
    pub fn configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::new("https://kubernetes.default.svc.cluster.local", &KeyPair::generate().unwrap().serialize_pem())
            .unwrap()
    }

    fn bound() -> Bound {
        let serviceaccount = Reference { name: "default".into(), uid: "u".into() };
        Bound { namespace: "a".into(), serviceaccount, pod: None, secret: None, node: None, warnafter: None }
    }

    #[test]
    fn a_token_verifies_until_it_expires() {
        let tokens = tokens();
        let (token, _) = tokens.issue(vec!["api".into()], 60, bound()).unwrap();
        assert_eq!(tokens.verify(&token).unwrap().sub, "system:serviceaccount:a:default");
        let (expired, _) = tokens.issue(vec!["api".into()], -1, bound()).unwrap();
        assert!(tokens.verify(&expired).is_err());
    }

    #[test]
    fn a_token_of_another_key_is_refused() {
        let (token, _) = tokens().issue(vec!["api".into()], 60, bound()).unwrap();
        assert!(tokens().verify(&token).is_err());
    }
}

//! The server's side of TLS: certificates read anew when their files change, clients' certificates kept for
//! authentication to judge, so that a bad one is a 401 and not a broken handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::Config;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("making a certificate for this run: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the serving certificate and its key: {0}")]
    Serving(#[from] rustls::Error),
    #[error("the authorities of clients in {path}: {source}")]
    Authorities { path: PathBuf, source: rustls::server::VerifierBuilderError },
}

/// Judges clients' certificates; none when there are no authorities.
pub(crate) type Judge = Option<Arc<dyn ClientCertVerifier>>;

/// One reading of the files.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) judge: Judge,
    changed: Vec<Option<SystemTime>>,
}

impl Tls {
    pub(crate) fn load(config: &Config) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let changed = changed(config);
        let (chain, key) = match (&config.tls_cert_file, &config.tls_private_key_file) {
            (Some(chain), Some(key)) => (read_chain(chain)?, read_key(key)?),
            _ => self_signed()?,
        };
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(AskOnly(provider.clone())))
            .with_single_cert(chain, key)?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let judge = config.client_ca_file.as_deref().map(|path| judge(path, provider)).transpose()?;
        Ok(Self { server: Arc::new(server), judge, changed })
    }

    /// The same again if a file has changed; a new one that does not load leaves the old in use.
    pub(crate) fn refresh(&mut self, config: &Config) {
        let changed = changed(config);
        if changed == self.changed {
            return;
        }
        match Self::load(config) {
            Ok(fresh) => *self = fresh,
            Err(error) => {
                tracing::warn!(%error, "new certificates do not load, the old ones stay in use");
                self.changed = changed;
            }
        }
    }
}

fn changed(config: &Config) -> Vec<Option<SystemTime>> {
    [&config.tls_cert_file, &config.tls_private_key_file, &config.client_ca_file]
        .into_iter()
        .map(|path| std::fs::metadata(path.as_ref()?).and_then(|file| file.modified()).ok())
        .collect()
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn self_signed() -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}

fn judge(path: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read_chain(path)?);
    WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .map_err(|source| TlsError::Authorities { path: path.to_owned(), source })
}

/// Wants a certificate, checks that the client holds its key, and leaves its worth to authentication.
#[derive(Debug)]
struct AskOnly(Arc<CryptoProvider>);

impl ClientCertVerifier for AskOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

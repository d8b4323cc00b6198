//! The ciphers that seal what is stored, in upstream's formats: a record begins with `k8s:enc:<cipher>:v1:<key>:`.

use std::fmt;

use aes::{Aes128, Aes192, Aes256};
use aes_gcm::{
    AeadCore, AesGcm, KeyInit, Nonce,
    aead::{Aead, OsRng, Payload, consts::U12, rand_core::RngCore},
};
use anyhow::{Result, bail};
use cbc::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, block_padding::Pkcs7};
use crypto_secretbox::XSalsa20Poly1305;

/// Everything sealed begins so.
pub const MARK: &[u8] = b"k8s:enc:";

/// One key of one provider, or none: `identity` stores in the clear.
pub struct Cipher {
    /// `k8s:enc:secretbox:v1:key1:`; empty for `identity`.
    pub prefix: Box<str>,
    kind: Kind,
}

enum Kind {
    Identity,
    SecretBox(Box<XSalsa20Poly1305>),
    AesGcm(Box<Gcm>),
    AesCbc(Box<[u8]>),
}

enum Gcm {
    Aes128(AesGcm<Aes128, U12>),
    Aes192(AesGcm<Aes192, U12>),
    Aes256(AesGcm<Aes256, U12>),
}

impl Cipher {
    pub fn identity() -> Self {
        Self { prefix: "".into(), kind: Kind::Identity }
    }

    /// `provider` as the configuration names it.
    pub fn new(provider: &str, name: &str, key: &[u8]) -> Result<Self> {
        let kind = match (provider, key.len()) {
            ("secretbox", 32) => Kind::SecretBox(Box::new(XSalsa20Poly1305::new(key.into()))),
            ("aesgcm", 16) => Kind::AesGcm(Box::new(Gcm::Aes128(AesGcm::new(key.into())))),
            ("aesgcm", 24) => Kind::AesGcm(Box::new(Gcm::Aes192(AesGcm::new(key.into())))),
            ("aesgcm", 32) => Kind::AesGcm(Box::new(Gcm::Aes256(AesGcm::new(key.into())))),
            ("aescbc", 16 | 24 | 32) => Kind::AesCbc(key.into()),
            ("secretbox", length) => bail!("a key of secretbox has 32 bytes, this one has {length}"),
            (_, length) => bail!("a key of {provider} has 16, 24 or 32 bytes, this one has {length}"),
        };
        Ok(Self { prefix: format!("k8s:enc:{provider}:v1:{name}:").into(), kind })
    }

    /// Whether it made this record. What is in the clear is nobody's but `identity`'s.
    pub fn made(&self, stored: &[u8]) -> bool {
        match self.kind {
            Kind::Identity => !stored.starts_with(MARK),
            _ => stored.starts_with(self.prefix.as_bytes()),
        }
    }

    /// `path`: the record's key in the store, which a sealed value may be bound to.
    pub fn seal(&self, path: &str, plain: &[u8]) -> Result<Vec<u8>, Broken> {
        let (nonce, sealed) = match &self.kind {
            Kind::Identity => return Ok(plain.to_vec()),
            Kind::SecretBox(cipher) => {
                let nonce = XSalsa20Poly1305::generate_nonce(&mut OsRng);
                (nonce.to_vec(), cipher.encrypt(&nonce, plain).map_err(|_| Broken)?)
            }
            Kind::AesGcm(cipher) => {
                let nonce = AesGcm::<Aes256, U12>::generate_nonce(&mut OsRng);
                (nonce.to_vec(), cipher.encrypt(&nonce, Payload { msg: plain, aad: path.as_bytes() })?)
            }
            Kind::AesCbc(key) => {
                let mut iv = [0; 16];
                OsRng.fill_bytes(&mut iv);
                (iv.to_vec(), cbc_encrypt(key, &iv, plain)?)
            }
        };
        Ok([self.prefix.as_bytes(), &nonce, &sealed].concat())
    }

    /// Of a record that this cipher [`made`](Self::made).
    pub fn open(&self, path: &str, stored: &[u8]) -> Result<Vec<u8>, Broken> {
        let body = stored.get(self.prefix.len()..).ok_or(Broken)?;
        let split = |length| body.split_at_checked(length).ok_or(Broken);
        match &self.kind {
            Kind::Identity => Ok(stored.to_vec()),
            Kind::SecretBox(cipher) => {
                let (nonce, sealed) = split(24)?;
                cipher.decrypt(nonce.into(), sealed).map_err(|_| Broken)
            }
            Kind::AesGcm(cipher) => {
                let (nonce, sealed) = split(12)?;
                cipher.decrypt(nonce.into(), Payload { msg: sealed, aad: path.as_bytes() })
            }
            Kind::AesCbc(key) => {
                let (iv, sealed) = split(16)?;
                cbc_decrypt(key, iv, sealed)
            }
        }
    }
}

impl Gcm {
    fn encrypt(&self, nonce: &Nonce<U12>, payload: Payload<'_, '_>) -> Result<Vec<u8>, Broken> {
        let sealed = match self {
            Self::Aes128(cipher) => cipher.encrypt(nonce, payload),
            Self::Aes192(cipher) => cipher.encrypt(nonce, payload),
            Self::Aes256(cipher) => cipher.encrypt(nonce, payload),
        };
        sealed.map_err(|_| Broken)
    }

    fn decrypt(&self, nonce: &Nonce<U12>, payload: Payload<'_, '_>) -> Result<Vec<u8>, Broken> {
        let plain = match self {
            Self::Aes128(cipher) => cipher.decrypt(nonce, payload),
            Self::Aes192(cipher) => cipher.decrypt(nonce, payload),
            Self::Aes256(cipher) => cipher.decrypt(nonce, payload),
        };
        plain.map_err(|_| Broken)
    }
}

fn cbc_encrypt(key: &[u8], iv: &[u8], plain: &[u8]) -> Result<Vec<u8>, Broken> {
    fn run<C: BlockEncryptMut + KeyIvInit>(key: &[u8], iv: &[u8], plain: &[u8]) -> Result<Vec<u8>, Broken> {
        Ok(C::new_from_slices(key, iv).map_err(|_| Broken)?.encrypt_padded_vec_mut::<Pkcs7>(plain))
    }
    match key.len() {
        16 => run::<cbc::Encryptor<Aes128>>(key, iv, plain),
        24 => run::<cbc::Encryptor<Aes192>>(key, iv, plain),
        _ => run::<cbc::Encryptor<Aes256>>(key, iv, plain),
    }
}

fn cbc_decrypt(key: &[u8], iv: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Broken> {
    fn run<C: BlockDecryptMut + KeyIvInit>(key: &[u8], iv: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Broken> {
        C::new_from_slices(key, iv).map_err(|_| Broken)?.decrypt_padded_vec_mut::<Pkcs7>(sealed).map_err(|_| Broken)
    }
    match key.len() {
        16 => run::<cbc::Decryptor<Aes128>>(key, iv, sealed),
        24 => run::<cbc::Decryptor<Aes192>>(key, iv, sealed),
        _ => run::<cbc::Decryptor<Aes256>>(key, iv, sealed),
    }
}

/// The record is not what this key sealed under this name.
#[derive(Debug, thiserror::Error)]
#[error("the record is damaged, or was sealed with another key of the same name")]
pub struct Broken;

impl fmt::Debug for Cipher {
    /// Without its key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cipher({})", self.prefix)
    }
}

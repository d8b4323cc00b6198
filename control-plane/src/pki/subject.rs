//! A request's subject as it is, byte for byte, in the certificate that answers it.
//!
//! rcgen keeps one value of each kind in a name, but a client certificate's organizations are its groups, and there may
//! be several. So the certificate is made with whatever subject rcgen understood, and the request's own is put in its
//! place before the authority signs again.

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{KeyPair, SigningKey};
use x509_parser::{certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer};

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// The DER form of a request's subject.
pub(super) fn of_request(pem: &str) -> Result<Vec<u8>> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).context("read a certificate request")?;
    let (_, request) = X509CertificationRequest::from_der(&block.contents).context("read a certificate request")?;
    Ok(request.certification_request_info.subject.as_raw().to_vec())
}

/// The certificate (DER) with another subject, signed with the key that signed it before.
pub(super) fn replace(certificate: &[u8], subject: &[u8], key: &KeyPair) -> Result<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("read the new certificate")?;
    let to_be_signed = parsed.tbs_certificate.as_ref();
    let body = contents(to_be_signed);
    let old = parsed.tbs_certificate.subject.as_raw();
    // Both are slices of the same certificate.
    let at = old.as_ptr() as usize - body.as_ptr() as usize;
    let body = [&body[..at], subject, &body[at + old.len()..]].concat();
    let to_be_signed = element(SEQUENCE, &body);
    // What stands between the two parts names the algorithm, which is the key's and stays.
    let whole = contents(certificate);
    let rest = &whole[parsed.tbs_certificate.as_ref().len()..];
    let algorithm = &rest[..header(rest) + length(rest)];
    let signature = key.sign(&to_be_signed)?;
    let signature = element(BIT_STRING, &[&[0], signature.as_slice()].concat());
    Ok(element(SEQUENCE, &[&to_be_signed, algorithm, &signature].concat()))
}

pub(super) fn pem(der: &[u8]) -> String {
    let encoded = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        encoded.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len();
    let bytes = length.to_be_bytes();
    let significant = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())..];
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(contents);
    out
}

/// Of an element that a parser has read before: tag and length are whole.
fn contents(element: &[u8]) -> &[u8] {
    &element[header(element)..]
}

/// The bytes of tag and length.
fn header(element: &[u8]) -> usize {
    if element[1] < 0x80 { 2 } else { 2 + usize::from(element[1] & 0x7f) }
}

fn length(element: &[u8]) -> usize {
    match element[1] {
        short @ 0..0x80 => short.into(),
        long => element[2..2 + usize::from(long & 0x7f)].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    }
}

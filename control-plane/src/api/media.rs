//! What the client wants to read and what it sent: `Accept` and `Content-Type`.

use http::{HeaderMap, header};

use super::status::{Failure, Outcome};

/// How a body is written. Answers are never protobuf: who offers it offers JSON, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

/// What an answer shows of its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Object,
    Table {
        v1: bool,
    },
    /// `PartialObjectMetadata` or its list.
    Metadata {
        v1: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    pub format: Format,
    pub view: View,
}

impl Accept {
    pub const JSON: Self = Self { format: Format::Json, view: View::Object };
}

/// What upstream's message lists; clients compare the text.
const LISTED: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const ACCEPTED: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// The first offer that we can serve; clients order theirs by preference.
pub fn accept(headers: &HeaderMap) -> Outcome<Accept> {
    let Some(value) = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()) else {
        return Ok(Accept::JSON);
    };
    value.split(',').find_map(offer).ok_or_else(|| Failure::not_acceptable(LISTED))
}

fn offer(offer: &str) -> Option<Accept> {
    let mut parts = offer.split(';').map(str::trim);
    let format = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        match key {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    let v1 = version == "v1";
    let view = match kind {
        "" => View::Object,
        _ if group != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1") => return None,
        "Table" => View::Table { v1 },
        "PartialObjectMetadata" | "PartialObjectMetadataList" => View::Metadata { v1 },
        _ => return None,
    };
    Some(Accept { format, view })
}

/// The format of a create's or an update's body.
pub fn body_format(headers: &HeaderMap) -> Outcome<Format> {
    match content_type(headers) {
        "application/json" | "" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Format::Protobuf),
        _ => Err(Failure::unsupported_media_type(ACCEPTED)),
    }
}

/// Without parameters.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Outcome<Accept> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, value.parse().unwrap());
        accept(&headers)
    }

    #[test]
    fn the_first_servable_offer_wins() {
        let table = Accept { format: Format::Json, view: View::Table { v1: true } };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(parse(kubectl).unwrap(), table);
        assert_eq!(parse("application/vnd.kubernetes.protobuf,application/json").unwrap(), Accept::JSON);
        assert_eq!(parse("*/*").unwrap(), Accept::JSON);
        assert_eq!(parse("application/yaml").unwrap().format, Format::Yaml);
    }

    #[test]
    fn nothing_servable_is_406() {
        assert_eq!(parse("text/csv").unwrap_err().code, 406);
    }
}

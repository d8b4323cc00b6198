//! Volumes of a pod and where containers mount them.

use leme_schema::{names, quantity::Quantity};
use serde_json::Value;

use super::super::{FieldError, field::At};

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const PROJECTIONS: &[&str] =
    &["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// A token that lives shorter is not worth its renewal.
const SHORTEST_TOKEN: i64 = 600;

pub(super) fn validate_volumes(volumes: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for volume in volumes.items() {
        let name = volume.at("name");
        match name.text() {
            "" => errors.push(name.required("")),
            text if seen.contains(&text) => errors.push(name.duplicate()),
            _ => errors.extend(name.check(names::dns1123_label)),
        }
        seen.push(name.text());
        errors.extend(validate_source(&volume));
    }
    errors
}

fn validate_source(volume: &At<'_>) -> Vec<FieldError> {
    let sources = volume.value.as_object().into_iter().flatten();
    let mut sources = sources.map(|(key, _)| key.as_str()).filter(|key| *key != "name");
    let Some(kind) = sources.next() else {
        return vec![volume.required("must specify a volume type")];
    };
    let source = volume.at(kind);
    let mut errors = match kind {
        "emptyDir" => validate_size(&source.at("sizeLimit")),
        "hostPath" => validate_host_path(&source),
        "secret" => validate_files(&source, "secretName"),
        "configMap" => validate_files(&source, "name"),
        "downwardAPI" => validate_downward(&source),
        "projected" => validate_projected(&source),
        "persistentVolumeClaim" => require(&source, &["claimName"]),
        _ => Vec::new(),
    };
    if let Some(other) = sources.next() {
        errors.push(volume.at(other).forbidden("may not specify more than 1 volume type"));
    }
    errors
}

fn require(source: &At<'_>, fields: &[&str]) -> Vec<FieldError> {
    fields.iter().map(|field| source.at(field)).filter(At::is_empty).map(|at| at.required("")).collect()
}

fn validate_size(limit: &At<'_>) -> Vec<FieldError> {
    let negative = Quantity::parse(limit.text()).is_ok_and(|size| size.nano_value() < 0);
    let error = || limit.forbidden("SizeLimit field must be a valid resource quantity");
    if negative { vec![error()] } else { Vec::new() }
}

fn validate_host_path(source: &At<'_>) -> Vec<FieldError> {
    let mut errors = require(source, &["path"]);
    errors.extend(no_backsteps(&source.at("path")));
    errors.extend(source.at("type").one_of_if_set(HOST_PATH_TYPES));
    errors
}

/// A ConfigMap's or Secret's keys as files.
fn validate_files(source: &At<'_>, name: &str) -> Vec<FieldError> {
    let mut errors = require(source, &[name]);
    errors.extend(validate_mode(&source.at("defaultMode")));
    for item in source.at("items").items() {
        errors.extend(require(&item, &["key", "path"]));
        errors.extend(validate_relative(&item.at("path")));
        errors.extend(validate_mode(&item.at("mode")));
    }
    errors
}

fn validate_mode(mode: &At<'_>) -> Option<FieldError> {
    mode.int().filter(|mode| !(0..=0o777).contains(mode)).map(|_| mode.invalid(MODE))
}

pub(super) fn validate_relative(path: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if path.text().starts_with('/') {
        errors.push(path.invalid("must be a relative path"));
    }
    errors.extend(no_backsteps(path));
    errors
}

fn no_backsteps(path: &At<'_>) -> Option<FieldError> {
    path.text().split('/').any(|part| part == "..").then(|| path.invalid("must not contain '..'"))
}

fn validate_downward(source: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = validate_mode(&source.at("defaultMode")).into_iter().collect();
    for item in source.at("items").items() {
        errors.extend(require(&item, &["path"]));
        errors.extend(validate_relative(&item.at("path")));
        errors.extend(validate_mode(&item.at("mode")));
        match (item.at("fieldRef").is_set(), item.at("resourceFieldRef").is_set()) {
            (true, true) => {
                errors.push(item.invalid("fieldRef and resourceFieldRef can not be specified simultaneously"))
            }
            (false, false) => errors.push(item.required("one of fieldRef and resourceFieldRef is required")),
            (true, false) => errors.extend(require(&item.at("fieldRef"), &["fieldPath"])),
            (false, true) => errors.extend(require(&item.at("resourceFieldRef"), &["containerName", "resource"])),
        }
    }
    errors
}

fn validate_projected(source: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = validate_mode(&source.at("defaultMode")).into_iter().collect();
    for part in source.at("sources").items() {
        let kinds: Vec<&str> = PROJECTIONS.iter().copied().filter(|kind| part.at(kind).is_set()).collect();
        match kinds[..] {
            [] => errors.push(part.required(format!("must specify one of: {}", PROJECTIONS.join(", ")))),
            [kind] => errors.extend(validate_projection(&part.at(kind), kind)),
            [_, second, ..] => {
                errors.push(part.at(second).forbidden("may not specify more than 1 volume type per source"))
            }
        }
    }
    errors
}

fn validate_projection(source: &At<'_>, kind: &str) -> Vec<FieldError> {
    match kind {
        "secret" | "configMap" => validate_files(source, "name"),
        "downwardAPI" => validate_downward(source),
        "serviceAccountToken" => {
            let seconds = source.at("expirationSeconds");
            let mut errors = require(source, &["path"]);
            errors.extend(validate_relative(&source.at("path")));
            if seconds.int().is_some_and(|s| s < SHORTEST_TOKEN) {
                errors.push(seconds.invalid("may not be less than 10 minutes"));
            }
            errors
        }
        _ => Vec::new(),
    }
}

pub(super) fn validate_mounts(mounts: &At<'_>, volumes: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut paths: Vec<&str> = Vec::new();
    let known = |name: &Value| volumes.items().any(|volume| volume.value["name"] == *name);
    for mount in mounts.items() {
        let (name, path) = (mount.at("name"), mount.at("mountPath"));
        if name.is_empty() {
            errors.push(name.required(""));
        } else if !known(name.value) {
            errors.push(name.not_found());
        }
        match path.text() {
            "" => errors.push(path.required("")),
            text if paths.contains(&text) => errors.push(path.invalid("must be unique")),
            _ => {}
        }
        paths.push(path.text());
        errors.extend(validate_relative(&mount.at("subPath")));
        errors.extend(validate_relative(&mount.at("subPathExpr")));
        if !mount.at("subPath").is_empty() && !mount.at("subPathExpr").is_empty() {
            errors.push(mount.at("subPathExpr").invalid("subPathExpr and subPath are mutually exclusive"));
        }
        errors.extend(mount.at("mountPropagation").one_of_if_set(&["Bidirectional", "HostToContainer", "None"]));
    }
    errors
}

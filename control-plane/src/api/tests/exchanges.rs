//! Whole exchanges, as they were recorded.

use super::*;

/// Every case of `tests/exchanges/*.json`, in order, on one fresh cluster per file.
#[tokio::test]
async fn the_recorded_exchanges_are_answered_so() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exchanges");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let cluster = Cluster::start().await;
        for case in &cases {
            exchange(&cluster, &file.display().to_string(), case).await;
        }
    }
}

async fn exchange(cluster: &Cluster, file: &str, case: &Value) {
    let of = |key: &str, default: &str| case[key].as_str().unwrap_or(default).to_owned();
    let name = format!("{file}: {}", of("name", "?"));
    let method = Method::from_bytes(of("method", "GET").as_bytes()).unwrap();
    let body = match &case["body"] {
        Value::Null => Body::empty(),
        Value::String(text) => Body::from(text.clone()),
        other => Body::from(other.to_string()),
    };
    let headers = [("content-type", of("type", "application/json")), ("accept", of("accept", "application/json"))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let answer = cluster.request(&of("user", "admin"), method, &of("path", "/"), &headers, body).await;
    let answer = Answer::read(answer).await;
    assert_eq!(answer.status, case["status"].as_u64().unwrap() as u16, "{name}: {}", answer.body);
    if let Some(warning) = case["warning"].as_str() {
        assert_eq!(answer.warning.as_deref(), Some(warning), "{name}");
    }
    contains(&name, "", &case["want"], &answer.body);
}

/// Everything in `want` is in `got`; `null` means absent.
fn contains(name: &str, path: &str, want: &Value, got: &Value) {
    match want {
        Value::Object(fields) => {
            for (key, value) in fields {
                contains(name, &format!("{path}.{key}"), value, &got[key]);
            }
        }
        Value::Null if path.is_empty() => {}
        want => assert_eq!(want, got, "{name}: {path}"),
    }
}

use serde_json::{Value, json};

use super::*;
use crate::decode_json;
use crate::definition::all;

type Row = (&'static str, &'static str, fn() -> Value);

/// What kubectl 1.32 sent for `create deployment`, `create namespace` and so on, and the same in JSON.
const RECORDED: &[Row] = &[
    (
        "apps.v1.Deployment",
        "6b3873000a150a07617070732f7631120a4465706c6f796d656e7412b3010a230a056e67696e7812001a0022002a003200380042005a0c\
        0a0361707012056e67696e78127e0803120e0a0c0a0361707012056e67696e781a620a1e0a0012001a0022002a003200380042005a0c0a\
        0361707012056e67696e78124012220a056e67696e7812056e67696e782a0042006a007200800100880100900100a201001a0032004200\
        4a0052005800600068008201008a01009a0100c2010022020a00280038001a0c0800100018002000280038001a002200",
        || {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "nginx", "labels": {"app": "nginx"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "nginx"}},
                "template": {"metadata": {"labels": {"app": "nginx"}},
                    "spec": {"containers": [{"name": "nginx", "image": "nginx"}]}}}})
        },
    ),
    (
        "core.v1.Namespace",
        "6b3873000a0f0a02763112094e616d657370616365121c0a140a0470726f6412001a0022002a0032003800420012001a020a001a002200",
        || json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod"}}),
    ),
    (
        "core.v1.Secret",
        "6b3873000a0c0a027631120653656372657412240a110a017312001a0022002a00320038004200120d0a0475736572120561646d696e1a\
        001a002200",
        || json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"user": "YWRtaW4="}}),
    ),
    (
        "core.v1.Service",
        "6b3873000a0d0a027631120753657276696365126d0a1f0a0377656212001a0022002a003200380042005a0a0a03617070120377656212\
        460a200a0738302d6874747012035443501850220a080110001a04687474702880eb01120a0a0361707012037765621a0022084e6f6465\
        506f72743a00420052005a00600068001a020a001a002200",
        || {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"name": "80-http", "protocol": "TCP",
                "port": 80, "targetPort": "http", "nodePort": 30080}]}})
        },
    ),
    (
        "core.v1.ResourceQuota",
        "6b3873000a130a027631120d5265736f7572636551756f746112300a110a017112001a0022002a0032003800420012190a0a0a03637075\
        12030a01310a0b0a04706f647312030a01321a001a002200",
        || {
            json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
            "spec": {"hard": {"cpu": "1", "pods": "2"}}})
        },
    ),
    (
        "policy.v1.PodDisruptionBudget",
        "6b3873000a200a09706f6c6963792f76311213506f6444697372757074696f6e42756467657412360a110a017012001a0022002a003200\
        3800420012150a09080110001a0335302512080a060a01611201621a0a080018002000280030001a002200",
        || {
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "p"},
            "spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}}})
        },
    ),
    (
        "authentication.v1.TokenRequest",
        "6b3873000a280a1861757468656e7469636174696f6e2e6b38732e696f2f7631120c546f6b656e52657175657374122d0a100a0012001a\
        0022002a0032003800420012131a0e0a03506f64120276311a0170220020901c1a040a0012001a002200",
        || {
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}, "expirationSeconds": 3600}})
        },
    ),
    (
        "authorization.v1.SelfSubjectAccessReview",
        "6b3873000a320a17617574686f72697a6174696f6e2e6b38732e696f2f7631121753656c665375626a6563744163636573735265766965\
        77123c0a100a0012001a0022002a00320038004200121e0a1c0a0764656661756c7412036765741a0022002a04706f647332003a001a08\
        080012001a0020001a002200",
        || {
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}})
        },
    ),
];

fn unhex(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint(number: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, u64::from(number) << 3);
    put_varint(&mut out, value);
    out
}

fn bytes(number: u32, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, u64::from(number) << 3 | 2);
    put_varint(&mut out, inner.len() as u64);
    out.extend(inner);
    out
}

fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC, &bytes(1, &meta), &bytes(2, message), &bytes(3, b""), &bytes(4, b"")].concat()
}

/// A value with every field that the shape has, `depth` types deep.
fn sample(shape: &Shape, name: &str, depth: usize) -> Value {
    match shape {
        Shape::String(_) => "text".into(),
        Shape::Int32 => json!(-7),
        Shape::Int64 => json!(1_i64 << 40),
        Shape::Bool => true.into(),
        Shape::Float => json!(2.5),
        Shape::Bytes => "AP8=".into(),
        Shape::Time => "2026-11-21T03:00:00Z".into(),
        Shape::MicroTime => "2026-11-21T03:00:00.000250Z".into(),
        Shape::Quantity => "100m".into(),
        Shape::IntOrString => "25%".into(),
        Shape::Any if name == "status" => json!({}),
        Shape::Any => json!({"raw": [1, "x"]}),
        Shape::Object(id) => sample_object(id.definition(), depth),
        Shape::List(item) => vec![sample(item, name, depth)].into(),
        Shape::Map(item) => json!({"key": sample(item, name, depth)}),
    }
}

fn sample_object(definition: &Definition, depth: usize) -> Value {
    let fields = definition.fields().iter().filter(|field| !field.number.is_empty() && !is_alternative(field));
    let fields = fields.filter(|field| depth > 0 || !holds_object(&field.shape));
    fields.map(|field| (field.name.to_owned(), sample(&field.shape, field.name, depth.saturating_sub(1)))).collect()
}

fn is_alternative(field: &Field) -> bool {
    matches!(field.name, "items" | "additionalItems" | "additionalProperties" | "dependencies")
        && matches!(&field.shape, Shape::Any | Shape::Map(_))
}

fn holds_object(shape: &Shape) -> bool {
    match shape {
        Shape::Object(_) => true,
        Shape::List(item) | Shape::Map(item) => holds_object(item),
        _ => false,
    }
}

/// Every number of `fields.txt` in reverse: the messages that JSON flattens are written in pieces, which readers merge.
fn encode(definition: &Definition, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for field in definition.fields() {
        let (Some(value), Some((number, around))) = (value.get(field.name), field.number.split_last()) else {
            continue;
        };
        let mut inner = match (&field.shape, value) {
            (Shape::List(item), Value::Array(items)) if field.is_repeated() => {
                items.iter().flat_map(|one| encode_field(*number, item, one)).collect()
            }
            (Shape::Map(item), Value::Object(map)) => {
                let entry = |(key, one): (&String, &Value)| {
                    bytes(*number, &[bytes(1, key.as_bytes()), encode_field(2, item, one)].concat())
                };
                map.iter().flat_map(entry).collect()
            }
            (shape, one) => encode_field(*number, shape, one),
        };
        for outer in around.iter().rev() {
            inner = bytes(*outer, &inner);
        }
        out.extend(inner);
    }
    out
}

fn encode_field(number: u32, shape: &Shape, value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap_or_default();
    let time = || text.parse::<jiff::Timestamp>().expect("a time");
    match shape {
        Shape::String(_) => bytes(number, text.as_bytes()),
        Shape::Int32 | Shape::Int64 => varint(number, value.as_i64().expect("a number").cast_unsigned()),
        Shape::Bool => varint(number, u64::from(value == true)),
        Shape::Float => {
            let mut out = Vec::new();
            put_varint(&mut out, u64::from(number) << 3 | 1);
            out.extend(value.as_f64().expect("a number").to_le_bytes());
            out
        }
        Shape::Bytes => bytes(number, &base64::engine::general_purpose::STANDARD.decode(text).expect("base64")),
        Shape::Time | Shape::MicroTime => {
            let nanos = varint(2, u64::try_from(time().subsec_nanosecond()).expect("after 1970"));
            bytes(number, &[varint(1, time().as_second().cast_unsigned()), nanos].concat())
        }
        Shape::Quantity => bytes(number, &bytes(1, text.as_bytes())),
        Shape::IntOrString => bytes(number, &[varint(1, IS_STRING), varint(2, 0), bytes(3, text.as_bytes())].concat()),
        Shape::Any => bytes(number, &bytes(1, value.to_string().as_bytes())),
        Shape::Object(id) => bytes(number, &encode(id.definition(), value)),
        Shape::List(item) => {
            let items: Vec<u8> =
                value.as_array().into_iter().flatten().flat_map(|one| encode_field(1, item, one)).collect();
            bytes(number, &items)
        }
        Shape::Map(_) => unreachable!("no map holds maps"),
    }
}

fn refusal(name: &str, body: &[u8]) -> String {
    decode_protobuf(definition(name).expect("a type"), body).expect_err("it is refused").to_string()
}

#[test]
fn what_kubectl_sends_is_what_it_would_send_in_json() {
    for (name, hex, wanted) in RECORDED {
        let definition = definition(name).expect("a type");
        let body = unhex(hex);
        let decoded = decode_protobuf(definition, &body).unwrap_or_else(|error| panic!("{name}: {error}"));
        let wanted = decode_json(definition, wanted().to_string().as_bytes()).expect("it decodes");
        assert_eq!(decoded, wanted, "{name}");
        assert_eq!(decode(&body).expect("it decodes").value, wanted.value, "{name}");
    }
}

#[test]
fn every_field_of_every_type_is_read() {
    for definition in all() {
        let value = sample_object(definition, 3);
        let read = read_object(definition, &encode(definition, &value), 0);
        assert_eq!(read.expect("it reads"), value, "{}", definition.short());
    }
}

#[test]
fn no_two_fields_of_a_type_share_a_number() {
    for definition in all() {
        let fields = definition.fields();
        for field in fields.iter().filter(|field| !matches!(field.name, "apiVersion" | "kind")) {
            assert!(!field.number.is_empty(), "{}.{}", definition.short(), field.name);
            let clash = fields.iter().find(|other| other.name != field.name && other.number.starts_with(&field.number));
            assert!(clash.is_none(), "{}.{}: {clash:?}", definition.short(), field.name);
        }
    }
}

#[test]
fn broken_bodies_are_errors_and_never_panic() {
    for (name, hex, _) in RECORDED {
        let definition = definition(name).expect("a type");
        let body = unhex(hex);
        for end in 0..body.len() {
            let _ = decode_protobuf(definition, &body[..end]);
            let _ = decode(&body[..end]);
            for byte in [0x00, 0x7f, 0x80, 0xff] {
                let mut bent = body.clone();
                bent[end] = byte;
                let _ = decode_protobuf(definition, &bent);
            }
        }
        let raw_cut = envelope("", "", &[&encode(definition, &sample_object(definition, 2))[..], &[0x0a]].concat());
        assert!(refusal(name, &raw_cut).ends_with("unexpected EOF"), "{name}");
    }
}

#[test]
fn a_refusal_says_why() {
    let unrecognized = "the object provided is unrecognized (must be of type Pod): ";
    let unfit = "Pod in version \"v1\" cannot be handled as a Pod: ";
    let pod = |message: &[u8]| envelope("v1", "Pod", message);
    let rows = [
        (vec![], format!("{unrecognized}empty data (<empty>)")),
        (MAGIC.to_vec(), format!("{unrecognized}empty body (6b387300)")),
        (
            b"{}".to_vec(),
            format!(
                "{unrecognized}provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] ({{}})"
            ),
        ),
        (pod(&[0x0a, 5]), format!("{unfit}unexpected EOF")),
        (pod(&[0x0f]), format!("{unfit}proto: illegal wireType 7")),
        (pod(&[0x0c]), format!("{unfit}proto: unexpected end of group")),
        (pod(&[0x80; 11]), format!("{unfit}proto: integer overflow")),
        (pod(&varint(2, 1)), format!("{unfit}proto: wrong wireType = 0 for field spec")),
        (pod(&bytes(1, &bytes(8, &varint(1, 1 << 62)))), format!("{unfit}proto: a timestamp is out of range")),
        (
            envelope("v1", "Service", b""),
            "Service in version \"v1\" cannot be handled as a Pod: converting (v1.Service) to (core.Pod): unknown conversion"
                .to_owned(),
        ),
    ];
    for (body, wanted) in rows {
        assert_eq!(refusal("core.v1.Pod", &body), wanted);
    }
    let unknown = decode(&envelope("v9", "Thing", b"")).expect_err("it is refused").to_string();
    assert!(unknown.starts_with("no kind \"Thing\" is registered for version \"v9\""), "{unknown}");
}

#[test]
fn nesting_ends_somewhere() {
    let not = 28;
    let deep = |levels: usize| (0..levels).fold(Vec::new(), |inner, _| bytes(not, &inner));
    let schema = definition("apiextensions.v1.JSONSchemaProps").expect("a type");
    assert!(read_object(schema, &deep(40), 0).is_ok());
    assert_eq!(read_object(schema, &deep(10_000), 0).expect_err("too deep").to_string(), Malformed::Deep.to_string());
}

#[test]
fn unknown_numbers_are_skipped_and_repeated_messages_merge() {
    let skipped =
        [varint(900, 1), bytes(901, b"x"), vec![0x8d, 0x07, 1, 2, 3, 4], vec![0x93, 0x07, 0x08, 1, 0x94, 0x07]];
    let message = [bytes(1, &bytes(1, b"a")), skipped.concat(), bytes(1, &bytes(3, b"n"))].concat();
    let value = decode(&envelope("v1", "ConfigMap", &message)).expect("it decodes").value;
    assert_eq!((&value["metadata"]["name"], &value["metadata"]["namespace"]), (&json!("a"), &json!("n")));
}

#[test]
fn numbers_come_packed_or_one_by_one() {
    let groups = [bytes(4, &[1, 2, 0x80, 1]), varint(4, 3)].concat();
    let spec = bytes(14, &groups);
    let value = decode(&envelope("v1", "Pod", &bytes(2, &spec))).expect("it decodes").value;
    assert_eq!(value["spec"]["securityContext"]["supplementalGroups"], json!([1, 2, 128, 3]));
}

#[test]
fn lists_statuses_and_options_are_read_by_their_names() {
    let item = bytes(1, &bytes(1, b"a"));
    let list = envelope("v1", "ConfigMapList", &[bytes(1, &bytes(2, b"7")), bytes(2, &item)].concat());
    let list = decode(&list).expect("it decodes");
    assert_eq!((list.api_version.as_str(), list.kind.as_str()), ("v1", "ConfigMapList"));
    assert_eq!(list.value["metadata"]["resourceVersion"], "7");
    assert_eq!(list.value["items"][0]["metadata"]["name"], "a");
    let status =
        decode(&envelope("v1", "Status", &[bytes(2, b"Failure"), varint(6, 404)].concat())).expect("it decodes");
    assert_eq!((&status.value["status"], &status.value["code"]), (&json!("Failure"), &json!(404)));
    let options = [varint(1, 0), bytes(2, &bytes(1, b"u")), bytes(4, b"Foreground"), bytes(5, b"All")].concat();
    let eviction = [bytes(1, &bytes(1, b"p")), bytes(2, &options)].concat();
    let eviction = decode(&envelope("policy/v1", "Eviction", &eviction)).expect("it decodes").value;
    let wanted = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "propagationPolicy": "Foreground",
        "dryRun": ["All"]});
    assert_eq!(eviction["deleteOptions"], wanted);
    let alone = definition("meta.v1.DeleteOptions").expect("a type");
    let alone = decode_protobuf(alone, &envelope("policy/v1", "DeleteOptions", &options)).expect("it decodes").value;
    assert_eq!((&alone["gracePeriodSeconds"], &alone["dryRun"]), (&json!(0), &json!(["All"])));
}

#[test]
fn a_schema_of_custom_resources_has_its_alternatives() {
    let text = bytes(5, b"string");
    let message = [
        bytes(24, &bytes(1, &text)),
        bytes(30, &varint(1, 0)),
        bytes(33, &bytes(2, &text)),
        bytes(32, &[bytes(1, b"k"), bytes(2, &[bytes(2, b"a"), bytes(2, b"b")].concat())].concat()),
    ];
    let schema = definition("apiextensions.v1.JSONSchemaProps").expect("a type");
    let value = read_object(schema, &message.concat(), 0).expect("it reads");
    let wanted = json!({"items": {"type": "string"}, "additionalProperties": false, "additionalItems": {"type": "string"},
        "dependencies": {"k": ["a", "b"]}});
    assert_eq!(value, wanted);
}

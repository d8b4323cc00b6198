use std::collections::HashMap;

use async_trait::async_trait;

use super::*;
use crate::auth::NOBODY;
use crate::resources::{Ranges, Strategy, by_plural, service::Service};

/// Objects by (resource, name), and what a committed transaction does to them.
#[derive(Default)]
struct Memory(HashMap<(String, String), Value>);

#[async_trait]
impl StorageView for Memory {
    async fn get(&self, plural: &str, _namespace: &str, name: &str) -> Option<Value> {
        self.0.get(&(plural.to_owned(), name.to_owned())).cloned()
    }

    async fn list(&self, plural: &str) -> Vec<Value> {
        self.0.iter().filter(|((resource, _), _)| resource == plural).map(|(_, object)| object.clone()).collect()
    }

    fn ranges(&self) -> Ranges {
        Ranges::default()
    }
}

impl Memory {
    fn commit(&mut self, companions: Companions) {
        for (resource, _, name, object) in companions.create {
            assert!(self.0.insert((resource, name), object).is_none(), "creation of what is there");
        }
        for (resource, _, name) in companions.delete {
            assert!(self.0.remove(&(resource, name)).is_some(), "deletion of what is not there");
        }
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.keys().map(|(_, name)| name.as_str()).collect();
        names.sort_unstable();
        names
    }
}

fn context() -> Context<'static> {
    let resource = by_plural("", "v1", "services").unwrap();
    Context { resource, user: &NOBODY, now: Timestamp::UNIX_EPOCH, subresource: None }
}

fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "s", "namespace": "default"}, "spec": spec})
}

async fn create(memory: &mut Memory, spec: Value) -> Result<Value, Vec<String>> {
    let mut service = service(spec);
    Service.prepare_create(&context(), &mut service);
    let result = allocate(&context(), memory, Some(&mut service), None).await;
    let companions =
        result.map_err(|e| e.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect::<Vec<_>>())?;
    memory.commit(companions);
    Ok(service)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn a_cluster_ip_that_is_asked_for_is_taken_once() {
    run(async {
        let mut memory = Memory::default();
        let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.7.7"});
        create(&mut memory, spec.clone()).await.unwrap();
        let stored = &memory.0[&(ADDRESSES.to_owned(), "10.96.7.7".to_owned())];
        assert_eq!(stored["spec"]["parentRef"], json!({"resource": "services", "namespace": "default", "name": "s"}));
        assert_eq!(
            create(&mut memory, spec).await.unwrap_err(),
            [
                "spec.clusterIPs: Invalid value: [\"10.96.7.7\"]: failed to allocate IP 10.96.7.7: provided IP is already allocated"
            ]
        );
        let outside = create(&mut memory, json!({"type": "ClusterIP", "clusterIP": "10.97.0.1"})).await.unwrap_err();
        assert!(
            outside[0]
                .ends_with("failed to allocate IP 10.97.0.1: the provided network does not match the current range")
        );
    });
}

#[test]
fn what_is_left_open_is_drawn_outside_of_the_static_bands() {
    run(async {
        let mut memory = Memory::default();
        for _ in 0..50 {
            let made = create(&mut memory, json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}))
                .await
                .unwrap();
            let address: Ipv4Addr = made["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
            assert!(u32::from(address) > u32::from(Ipv4Addr::new(10, 96, 1, 0)), "{address}");
            let port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
            assert!((30086..=32767).contains(&port), "{port}");
        }
        assert_eq!(memory.0.len(), 100);
    });
}

#[test]
fn node_ports_are_checked_against_the_range_and_each_other() {
    run(async {
        let mut memory = Memory::default();
        let spec =
            |port: i64| json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": port}]});
        create(&mut memory, spec(30080)).await.unwrap();
        assert_eq!(
            create(&mut memory, spec(30080)).await.unwrap_err(),
            ["spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"]
        );
        assert_eq!(
            create(&mut memory, spec(80)).await.unwrap_err(),
            [
                "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"
            ]
        );
    });
}

#[test]
fn an_update_releases_what_it_no_longer_needs_and_a_deletion_all() {
    run(async {
        let mut memory = Memory::default();
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.7.8", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
        let old = create(&mut memory, spec).await.unwrap();
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        Service.prepare_update(&context(), &mut new, &old);
        let companions = allocate(&context(), &memory, Some(&mut new), Some(&old)).await.unwrap();
        memory.commit(companions);
        assert_eq!(memory.names(), ["10.96.7.8"]);
        let mut renamed = new.clone();
        renamed["spec"] = json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.7.8", "clusterIPs": ["10.96.7.8"]});
        Service.prepare_update(&context(), &mut renamed, &new);
        assert!(renamed["spec"].get("clusterIP").is_none());
        let companions = allocate(&context(), &memory, Some(&mut renamed), Some(&new)).await.unwrap();
        memory.commit(companions);
        assert!(memory.0.is_empty());
    });
}

fn balanced(policy: &str, health: Option<i64>) -> Value {
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.7.8", "externalTrafficPolicy": policy,
        "allocateLoadBalancerNodePorts": false, "sessionAffinity": "None", "ports": [{"port": 80, "protocol": "TCP"}],
    });
    if let Some(port) = health {
        spec["healthCheckNodePort"] = port.into();
    }
    spec
}

async fn update(memory: &mut Memory, old: &Value, spec: Value) -> Result<Value, Vec<String>> {
    let mut new = service(spec);
    Service.prepare_update(&context(), &mut new, old);
    let words = |errors: Vec<FieldError>| errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
    let errors = Service.validate_update(&context(), &new, old);
    if !errors.is_empty() {
        return Err(words(errors));
    }
    let companions = allocate(&context(), memory, Some(&mut new), Some(old)).await.map_err(words)?;
    memory.commit(companions);
    Ok(new)
}

#[test]
fn a_health_check_port_comes_with_the_local_policy_stays_and_goes_with_it() {
    run(async {
        let mut memory = Memory::default();
        let made = create(&mut memory, balanced("Local", None)).await.unwrap();
        let port = made["spec"]["healthCheckNodePort"].as_i64().unwrap();
        assert!((30000..=32767).contains(&port), "{port}");
        let kept = update(&mut memory, &made, balanced("Local", None)).await.unwrap();
        assert_eq!(kept["spec"]["healthCheckNodePort"], port);
        let moved = update(&mut memory, &made, balanced("Local", Some(30001 + port % 2))).await.unwrap_err();
        assert!(moved[0].ends_with("field is immutable"), "{moved:?}");
        let open = update(&mut memory, &made, balanced("Cluster", Some(port))).await.unwrap();
        assert!(open["spec"].get("healthCheckNodePort").is_none());
        assert_eq!(memory.names(), ["10.96.7.8"]);
        let again = update(&mut memory, &open, balanced("Local", Some(30005))).await.unwrap();
        assert_eq!(again["spec"]["healthCheckNodePort"], 30005);
        let release = allocate(&context(), &memory, None, Some(&again)).await.unwrap();
        memory.commit(release);
        assert!(memory.0.is_empty());
    });
}

#[test]
fn a_health_check_port_without_need_is_refused() {
    let errors = Service.validate_create(&context(), &service(balanced("Cluster", Some(30001))));
    let words = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
    assert!(errors.iter().any(|e| e.field == "spec.healthCheckNodePort" && e.message.contains(words)), "{errors:?}");
}

#[test]
fn an_update_that_does_not_mention_what_was_allocated_keeps_it() {
    run(async {
        let mut memory = Memory::default();
        let old =
            create(&mut memory, json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]})).await.unwrap();
        let mut new = service(
            json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}),
        );
        Service.prepare_update(&context(), &mut new, &old);
        assert_eq!(new["spec"]["clusterIPs"], old["spec"]["clusterIPs"]);
        let companions = allocate(&context(), &memory, Some(&mut new), Some(&old)).await.unwrap();
        assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        assert_eq!((companions.create.len(), companions.delete.len()), (1, 0));
    });
}

#[test]
fn one_port_under_two_protocols_shares_its_node_port() {
    run(async {
        let mut memory = Memory::default();
        let ports = json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]);
        let made = create(&mut memory, json!({"type": "NodePort", "ports": ports})).await.unwrap();
        assert_eq!(made["spec"]["ports"][0]["nodePort"], made["spec"]["ports"][1]["nodePort"]);
        assert_eq!(memory.0.len(), 2);
    });
}

#[test]
fn a_full_range_of_node_ports_says_so() {
    run(async {
        let mut memory = Memory::default();
        for port in 30000..=32767 {
            let (resource, _, name, object) = port_entry(&port.to_string(), &Value::Null);
            memory.0.insert((resource, name), object);
        }
        let ports = json!([{"port": 53, "protocol": "UDP"}]);
        let errors = create(&mut memory, json!({"type": "NodePort", "ports": ports})).await.unwrap_err();
        assert_eq!(errors, ["spec.ports[0].nodePort: Invalid value: 0: failed to allocate a nodePort: range is full"]);
    });
}

#[test]
fn repair_finds_what_is_missing_and_what_has_leaked() {
    let held = service(
        json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"protocol": "TCP", "nodePort": 30001}]}),
    );
    let leaked = address_entry("10.96.0.10", &held, Timestamp::UNIX_EPOCH).3;
    let found = repair(&[held], &[leaked], &[], Timestamp::UNIX_EPOCH);
    let created: Vec<&str> = found.create.iter().map(|(_, _, name, _)| name.as_str()).collect();
    assert_eq!(created, ["10.96.0.9", "30001"]);
    assert_eq!(found.delete, [entry(ADDRESSES, "10.96.0.10")]);
}

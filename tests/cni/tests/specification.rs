//! The specification, version by version and verb by verb, and what CHECK and STATUS notice.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::fs;

use leme_tests_cni::{Agent, Answer, Call, Node, Pod};
use serde_json::{Value, json};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn on_node(test: impl FnOnce(&Node) + Send + 'static) {
    leme_tests_cni::on_node(env!("CARGO_BIN_EXE_leme-tests-cni"), "10.244.1.0/24", test);
}

fn with_agent(test: impl FnOnce(&Node) + Send + 'static) {
    on_node(|node| {
        let agent = Agent::start(node);
        let before = node.left();
        test(node);
        before.expect_soon(node, "after the test");
        agent.kill();
    });
}

/// Which fields an object has.
fn fields(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn every_version_has_its_verbs_and_its_result() {
    with_agent(|node| {
        for version in VERSIONS {
            let pod = Pod::new();
            let call = |command| Call::new(node, command, &pod).with("cniVersion", json!(version));
            let added = call("ADD").run().expect(version);
            check_result(version, &pod, &added.document);
            assert!(pod.interfaces().contains(&"eth0".to_owned()));
            let checked = call("CHECK").with("prevResult", added.document.clone()).run();
            assert_eq!(checked.code, (version == "0.3.1").then_some(1), "CHECK in {version}");
            let status = Call::of_network(node, "STATUS").with("cniVersion", json!(version)).run();
            assert_eq!(status.code, (version != "1.1.0").then_some(1), "STATUS in {version}");
            let valid = json!([{"containerID": pod.container, "ifname": "eth0"}]);
            let gc = Call::of_network(node, "GC").with("cniVersion", json!(version));
            let collected = gc.with("cni.dev/valid-attachments", valid).run();
            assert_eq!(collected.code, (version != "1.1.0").then_some(1), "GC in {version}");
            let deleted = call("DEL").with("prevResult", added.document).run().expect(version);
            assert_eq!(deleted.document, Value::Null, "DEL prints nothing");
            assert_eq!(pod.interfaces(), ["lo"]);
        }
    });
}

fn check_result(version: &str, pod: &Pod, result: &Value) {
    assert_eq!(fields(result), ["cniVersion", "dns", "interfaces", "ips", "routes"], "{version}");
    assert_eq!(result["cniVersion"], version);
    let ip = match version {
        "0.3.1" | "0.4.0" => &["address", "gateway", "interface", "version"][..],
        _ => &["address", "gateway", "interface"],
    };
    assert_eq!(fields(&result["ips"][0]), ip, "{version}");
    assert_eq!(result["ips"][0]["interface"], 1, "the container's");
    assert!(result["ips"][0]["address"].as_str().unwrap().ends_with("/32"));
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": result["ips"][0]["gateway"]}]));
    let [host, container] = result["interfaces"].as_array().unwrap().as_slice() else { panic!("{result}") };
    let newest = version == "1.1.0";
    assert_eq!(fields(host), if newest { &["mac", "mtu", "name"][..] } else { &["mac", "name"] });
    let inner = if newest { &["mac", "mtu", "name", "sandbox"][..] } else { &["mac", "name", "sandbox"] };
    assert_eq!(fields(container), inner);
    assert_eq!((&container["name"], &container["sandbox"]), (&json!("eth0"), &json!(pod.path)));
    if newest {
        assert_eq!((&host["mtu"], &container["mtu"]), (&json!(1500), &json!(1500)));
    }
}

#[test]
fn version_is_answered_whatever_comes_with_it() {
    on_node(|node| {
        for (stdin, version) in
            [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), (r#"{"cniVersion":"7.0.0"}"#, "1.1.0"), ("", "1.1.0")]
        {
            let call = Call::of_network(node, "VERSION").reading(stdin);
            let answer = call.run().expect(stdin);
            assert_eq!(answer.document, json!({"cniVersion": version, "supportedVersions": VERSIONS}));
        }
    });
}

#[test]
fn every_mistake_has_its_code_its_words_and_an_error_document() {
    with_agent(|node| {
        let pod = Pod::new();
        let add = || Call::new(node, "ADD", &pod);
        let garbage = |command| Call::new(node, command, &pod).reading("{\"cniVersion\": \"1.0.0\", ");
        let file = node.state().join("file");
        fs::write(&file, "").unwrap();
        for (call, code, words) in [
            (add().with("cniVersion", json!("0.2.0")), 1, "0.2.0"),
            (add().with("cniVersion", json!("2.0.0")), 1, "2.0.0"),
            (add().with("cniVersion", Value::Null), 6, "null"),
            (add().env("CNI_NETNS", "/run/netns/absent"), 3, "/run/netns/absent"),
            (add().env("CNI_COMMAND", ""), 4, "CNI_COMMAND"),
            (add().env("CNI_COMMAND", "UPDATE"), 4, "CNI_COMMAND"),
            (add().env("CNI_CONTAINERID", ""), 4, "CNI_CONTAINERID"),
            (add().env("CNI_CONTAINERID", "a/b"), 4, "CNI_CONTAINERID"),
            (add().env("CNI_IFNAME", ""), 4, "CNI_IFNAME"),
            (add().env("CNI_IFNAME", "sixteen-letters-"), 4, "CNI_IFNAME"),
            (add().env("CNI_NETNS", ""), 4, "CNI_NETNS"),
            (add().env("CNI_NETNS", file.to_str().unwrap()), 4, "CNI_NETNS"),
            (
                add().env("CNI_NETNS", &format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid())),
                4,
                "CNI_NETNS",
            ),
            (garbage("ADD"), 6, "decode"),
            (garbage("DEL"), 6, "decode"),
            (add().with("name", json!("")), 7, "name"),
            (add().with("name", json!("le/me")), 7, "name"),
            (add().with("prevResult", json!({"ips": []})), 7, "first plugin"),
            (add().with("runtimeConfig", json!({"portMappings": [{"hostPort": 80}]})), 7, "containerPort"),
            (Call::new(node, "CHECK", &pod), 7, "prevResult"),
            (Call::new(node, "CHECK", &pod).with("prevResult", json!({})), 3, &pod.container),
            (Call::of_network(node, "GC"), 7, "valid-attachments"),
        ] {
            let answer = call.run();
            assert_eq!(answer.code, Some(code), "{}", answer.document);
            assert!(answer.words().contains(words), "{words}: {}", answer.document);
            assert!(VERSIONS.contains(&answer.document["cniVersion"].as_str().unwrap()), "{}", answer.document);
        }
        assert_eq!(pod.interfaces(), ["lo"]);
    });
}

#[test]
fn adding_again_changes_nothing_and_answers_the_same() {
    with_agent(|node| {
        let pod = Pod::new();
        let first = node.add(&pod).expect("the first");
        let index = || pod.inside(|| nix::net::if_::if_nametoindex("eth0").unwrap());
        let before = index();
        assert_eq!(node.add(&pod), first);
        assert_eq!(index(), before, "the interface is the same one");
        pod.take_down();
        assert_eq!(node.add(&pod), first);
        assert_ne!(index(), before, "one that was not whole is made anew");
        node.check(&pod, &first).expect("whole again");
        node.delete(&pod).expect("DEL");
    });
}

#[test]
fn an_interface_that_is_not_ours_is_not_touched() {
    with_agent(|node| {
        let pod = Pod::new();
        pod.occupy();
        let refused = node.add(&pod);
        assert_eq!(refused.code, Some(100));
        assert!(refused.words().contains("already has an interface eth0"), "{}", refused.document);
        node.delete(&pod).expect("DEL");
        assert!(pod.interfaces().contains(&"eth0".to_owned()));
    });
}

#[test]
fn check_finds_what_was_tampered_with() {
    with_agent(|node| {
        type Tampering = (&'static str, fn(&Node, &Pod), &'static str);
        let tamperings: [Tampering; 6] = [
            ("an address is gone", |_, pod| pod.remove_addresses(), "without its address"),
            ("the link is down", |_, pod| pod.take_down(), "down"),
            ("the default route is gone", |_, pod| pod.remove_default_route(), "0.0.0.0/0"),
            ("a program is gone", |node, _| remove_pins(node, "from_pod-"), "no from_pod on leme"),
            ("the other one is gone", |node, _| remove_pins(node, "to_pod-"), "no to_pod on leme"),
            (
                "the pair is gone",
                |_, pod| pod.netlink(|handle, index| async move { handle.link().del(index).execute().await }),
                "absent",
            ),
        ];
        for (what, tamper, words) in tamperings {
            let pod = Pod::new();
            let added = node.add_with_port(&pod, 8081).expect("ADD");
            node.check(&pod, &added).expect("before");
            tamper(node, &pod);
            let found = node.check(&pod, &added);
            assert_eq!(found.code, Some(102), "{what}");
            assert!(found.words().contains(words), "{what}: {}", found.document);
            assert_eq!(node.add_with_port(&pod, 8081), added, "ADD repairs: {what}");
            node.check(&pod, &added).expect("repaired");
            node.delete(&pod).expect("DEL");
        }
    });
}

#[test]
fn check_is_of_the_address_that_the_runtime_knows() {
    with_agent(|node| {
        let pod = Pod::new();
        let mut added = node.add(&pod).expect("ADD");
        added.document["ips"][0]["address"] = json!("10.244.1.99/32");
        assert_eq!(node.check(&pod, &added).code, Some(102));
        node.delete(&pod).expect("DEL");
    });
}

/// As somebody with `rm` would.
fn remove_pins(node: &Node, prefix: &str) {
    for entry in fs::read_dir(node.pins().join("links")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn status_tells_no_agent_from_a_datapath_that_is_not_whole() {
    on_node(|node| {
        assert_eq!(node.status().code, Some(50));
        let agent = Agent::start(node);
        assert_eq!(node.status(), Answer { code: None, document: Value::Null });
        remove_pins(node, "nic_ingress-");
        let limited = node.status();
        assert_eq!(limited.code, Some(51));
        assert!(limited.words().contains("no nic_ingress on eth0"), "{}", limited.document);
        agent.kill();
        let _agent = Agent::start(node);
        node.status().expect("an agent's start repairs");
    });
}

#[test]
fn deleting_what_is_not_there_is_done() {
    with_agent(|node| {
        let unknown = Pod::new();
        node.delete(&unknown).expect("never added");
        let mut pod = Pod::new();
        node.add_with_port(&pod, 8081).expect("ADD");
        Call::new(node, "DEL", &pod).env("CNI_NETNS", "").run().expect("without a namespace");
        node.delete(&pod).expect("twice");
        node.add(&pod).expect("ADD again");
        pod.end();
        node.delete(&pod).expect("when the namespace is gone");
    });
}

#[test]
fn a_collection_leaves_what_is_in_use_and_other_networks() {
    with_agent(|node| {
        let pods: Vec<Pod> = (0..3).map(|_| Pod::new()).collect();
        let added: Vec<Answer> = pods.iter().map(|pod| node.add_with_port(pod, 8081).expect("ADD")).collect();
        let other = Pod::new();
        Call::new(node, "ADD", &other).with("name", json!("other")).run().expect("ADD to another network");
        node.collect(&[&pods[1]]).expect("GC");
        assert_eq!(node.left().reservations(), 2);
        node.check(&pods[1], &added[1]).expect("in use");
        assert_eq!(node.check(&pods[0], &added[0]).code, Some(3));
        node.collect(&[]).expect("GC of everything");
        assert_eq!(node.left().reservations(), 1);
        node.delete(&other).expect("DEL");
    });
}

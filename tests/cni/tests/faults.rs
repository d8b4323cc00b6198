//! `kill -9` at every step of every request: whatever was done by then, DEL, ADD again and the next agent end clean.
#![expect(clippy::unwrap_used, reason = "tests may")]

use std::{
    fs::{self, FileTimes},
    thread,
    time::{Duration, SystemTime},
};

use leme_tests_cni::{Agent, Answer, Call, Moment, Node, Pod};

fn on_node(pods: &str, test: impl FnOnce(&Node) + Send + 'static) {
    leme_tests_cni::on_node(env!("CARGO_BIN_EXE_leme-tests-cni"), pods, test);
}

/// Runs a request that its agent does not survive, with one step more each time, and what comes after it under the next
/// agent, until an agent survives. Returns how many died.
fn kill_at_every_step(
    node: &Node,
    before: impl Fn(&Pod),
    request: impl Fn(&Pod) -> Answer,
    after: impl Fn(&Pod),
) -> usize {
    let mut agent = Agent::start(node);
    let clean = node.left().at_once();
    for steps in 1.. {
        let pod = Pod::new();
        before(&pod);
        agent.kill();
        let doomed = Agent::doomed(node, Moment::Request, steps).expect("it starts");
        let answer = request(&pod);
        if answer.code.is_none() {
            // Its last steps are not for the DEL.
            doomed.kill();
            let _agent = Agent::start(node);
            node.delete(&pod).expect("DEL");
            return steps - 1;
        }
        assert_eq!(answer.code, Some(11), "to be tried again: {}", answer.document);
        doomed.kill();
        agent = Agent::start(node);
        after(&pod);
        assert_eq!(node.left().at_once(), clean, "killed after {steps} steps");
        assert!(!pod.interfaces().contains(&"eth0".to_owned()), "killed after {steps} steps");
    }
    unreachable!("some number of steps is enough")
}

#[test]
fn an_add_killed_at_any_step_is_undone_by_del() {
    on_node("10.244.1.0/24", |node| {
        let started = {
            let _agent = Agent::start(node);
            node.left()
        };
        let add = |pod: &Pod| node.add_with_port(pod, 8081);
        let killed = kill_at_every_step(node, |_| {}, add, |pod| drop(node.delete(pod).expect("DEL")));
        assert!(killed >= 10, "only {killed} steps");
        let _agent = Agent::start(node);
        started.expect_soon(node, "after all of them");
    });
}

#[test]
fn an_add_killed_at_any_step_succeeds_when_it_is_repeated() {
    on_node("10.244.1.0/24", |node| {
        let add = |pod: &Pod| node.add_with_port(pod, 8081);
        kill_at_every_step(
            node,
            |_| {},
            add,
            |pod| {
                let added = add(pod).expect("ADD again");
                node.check(pod, &added).expect("CHECK");
                node.delete(pod).expect("DEL");
            },
        );
    });
}

#[test]
fn an_add_killed_at_any_step_is_collected() {
    on_node("10.244.1.0/24", |node| {
        let add = |pod: &Pod| node.add_with_port(pod, 8081);
        kill_at_every_step(node, |_| {}, add, |_| drop(node.collect(&[]).expect("GC")));
    });
}

#[test]
fn a_del_killed_at_any_step_succeeds_when_it_is_repeated() {
    on_node("10.244.1.0/24", |node| {
        let add = |pod: &Pod| drop(node.add_with_port(pod, 8081).expect("ADD"));
        let killed = kill_at_every_step(node, add, |pod| node.delete(pod), |pod| drop(node.delete(pod).expect("DEL")));
        assert!(killed >= 4, "only {killed} steps");
    });
}

#[test]
fn an_agent_killed_at_any_step_of_its_start_leaves_pods_to_the_next() {
    on_node("10.244.1.0/24", |node| {
        let pods = [Pod::new(), Pod::new()];
        let added = {
            let _agent = Agent::start(node);
            [8081, 8082].map(|port| node.add_with_port(&pods[usize::from(port - 8081)], port).expect("ADD"))
        };
        let mut killed = 0;
        while Agent::doomed(node, Moment::Start, killed + 1).is_none() {
            killed += 1;
            let _agent = Agent::start(node);
            pods.iter().zip(&added).for_each(|(pod, added)| drop(node.check(pod, added).expect("CHECK")));
        }
        assert!(killed >= 4, "only {killed} steps");
        let _agent = Agent::start(node);
        pods.iter().for_each(|pod| drop(node.delete(pod).expect("DEL")));
        assert_eq!(node.left().reservations(), 0);
    });
}

#[test]
fn a_plugin_killed_at_any_moment_leaves_nothing_that_del_does_not_find() {
    on_node("10.244.1.0/24", |node| {
        let _agent = Agent::start(node);
        let clean = node.left();
        for round in 0..24 {
            let pod = Pod::new();
            let mut plugin = Call::new(node, "ADD", &pod).start();
            thread::sleep(Duration::from_millis(round));
            plugin.kill().unwrap();
            plugin.wait().unwrap();
            node.delete(&pod).expect("DEL");
            assert_eq!(pod.interfaces(), ["lo"], "killed after {round} ms");
        }
        clean.expect_soon(node, "after all of them");
    });
}

#[test]
fn while_the_agent_is_down_everything_is_to_be_tried_again_and_del_succeeds_in_the_end() {
    on_node("10.244.1.0/24", |node| {
        let (pod, late) = (Pod::new(), Pod::new());
        let clean = {
            let _agent = Agent::start(node);
            let clean = node.left();
            node.add(&pod).expect("ADD");
            clean
        };
        // One after the other they would wait for the agent three times.
        thread::scope(|scope| {
            let answers = [scope.spawn(|| node.add(&late)), scope.spawn(|| node.delete(&pod))];
            let codes = answers.map(|answer| answer.join().unwrap().code);
            assert_eq!(codes, [Some(11), Some(11)]);
        });
        let _agent = Agent::start(node);
        node.delete(&pod).expect("DEL");
        node.delete(&late).expect("DEL of what never was");
        clean.expect_soon(node, "in the end");
    });
}

#[test]
fn a_request_waits_for_an_agent_that_is_being_restarted() {
    on_node("10.244.1.0/24", |node| {
        Agent::start(node).kill();
        let pod = Pod::new();
        let plugin = Call::new(node, "ADD", &pod).start();
        let _agent = Agent::start(node);
        assert!(plugin.wait_with_output().unwrap().status.success());
        node.delete(&pod).expect("DEL");
    });
}

#[test]
fn requests_side_by_side_do_not_meet() {
    on_node("10.244.1.0/24", |node| {
        let _agent = Agent::start(node);
        let clean = node.left();
        let pods: Vec<Pod> = (0..32).map(|_| Pod::new()).collect();
        let each = |work: &(dyn Fn(&Pod) -> Answer + Sync)| -> Vec<Answer> {
            thread::scope(|scope| {
                let threads: Vec<_> =
                    pods.iter().map(|pod| scope.spawn(move || work(pod).expect(&pod.container))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            })
        };
        let added = each(&|pod| node.add(pod));
        let mut addresses: Vec<&str> = added.iter().map(Answer::address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 32, "every pod has its own");
        each(&|pod| node.delete(pod));
        clean.expect_soon(node, "after all of them");
    });
}

#[test]
fn requests_for_one_attachment_go_one_after_the_other() {
    on_node("10.244.1.0/24", |node| {
        let _agent = Agent::start(node);
        let clean = node.left();
        let pod = Pod::new();
        thread::scope(|scope| {
            let add = || node.add_with_port(&pod, 8081).expect("ADD");
            let threads: Vec<_> = (0..32).map(|_| scope.spawn(add)).collect();
            let added: Vec<Answer> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert!(added.windows(2).all(|pair| pair[0] == pair[1]), "{added:?}");
        });
        assert_eq!(node.left().reservations(), 1);
        thread::scope(|scope| {
            for turn in 0..32 {
                let pod = &pod;
                scope.spawn(move || if turn % 2 == 0 { node.delete(pod) } else { node.add(pod) }.expect("either"));
            }
        });
        node.delete(&pod).expect("DEL");
        clean.expect_soon(node, "after all of them");
    });
}

#[test]
fn when_all_addresses_are_taken_it_says_so_and_leaks_nothing() {
    on_node("10.244.1.0/28", |node| {
        let pods: Vec<Pod> = (0..13).map(|_| Pod::new()).collect();
        let agent = Agent::start(node);
        pods.iter().for_each(|pod| drop(node.add(pod).expect("there is room")));
        let (full, late) = (node.left(), Pod::new());
        for _ in 0..3 {
            let refused = node.add(&late);
            assert_eq!(refused.code, Some(101), "{}", refused.document);
            assert!(refused.words().contains("10.244.1.0/28"), "{}", refused.document);
        }
        assert_eq!(node.left(), full);
        node.delete(&late).expect("DEL of what was refused");
        node.delete(&pods[5]).expect("DEL");
        // Others may still talk to who had it: its address rests.
        assert_eq!(node.add(&late).code, Some(11));
        agent.kill();
        age_resting_addresses(node);
        let _agent = Agent::start(node);
        node.add(&late).expect("rested");
        assert_eq!(node.left(), full);
    });
}

/// As if the rest had passed.
fn age_resting_addresses(node: &Node) {
    let long_ago = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(60));
    for entry in fs::read_dir(node.state().join("ipam/resting")).unwrap().flatten() {
        fs::File::options().write(true).open(entry.path()).unwrap().set_times(long_ago).unwrap();
    }
}

#[test]
fn an_add_that_fails_uses_up_no_address() {
    on_node("10.244.1.0/28", |node| {
        let _agent = Agent::start(node);
        let clean = node.left();
        for _ in 0..30 {
            let pod = Pod::new();
            let call = Call::new(node, "ADD", &pod).env("CNI_NETNS", "/run/netns/absent");
            assert_eq!(call.run().code, Some(3));
        }
        assert_eq!(node.left(), clean);
        let pod = Pod::new();
        node.add(&pod).expect("there is room");
        node.delete(&pod).expect("DEL");
    });
}

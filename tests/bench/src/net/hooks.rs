//! Nanoseconds of the programs themselves, with few and with many Services: through BPF_PROG_TEST_RUN, which times a
//! packet inside the kernel; those that need a socket or a tunnel, by the kernel's own statistics under load.

use std::os::fd::AsFd;
use std::path::Path as FilePath;

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TestRun, TestRunOptions};
use aya::sys::{Stats, enable_stats};
use leme_measure::{Kind, Measurement};
use leme_tests_packets::frame::{ACK, Frame, SYN};
use nix::net::if_::if_nametoindex;

use super::leme::fdinfo;
use super::objects::{BACKEND_PORT, Position, Side, cluster_address, node_port};
use super::traffic::Pace;
use super::world::{CLIENT, FAR, NEAR, NODE_ADDRESSES, Path, System, World};

/// Runs behind each sample, which is their median.
const RUNS: u16 = 1_000;
const CLIENT_OUTSIDE: &str = "172.18.0.9";

/// `TC_ACT_REDIRECT`: on its way, past the node's stack.
const REDIRECT: u32 = 7;

/// A packet at a hook of the first node.
struct Case {
    name: &'static str,
    program: &'static str,
    device: &'static str,
    /// Of the n-th run, in a world with so many Services.
    frame: fn(u16, u32) -> Frame,
}

const CASES: &[Case] = &[
    Case {
        name: "from_pod: to a Service, first packet",
        program: "from_pod",
        device: "client",
        frame: |run, services| Frame::tcp(&format!("{CLIENT}:{}", 30_000 + run), &service(services), SYN),
    },
    Case {
        name: "from_pod: to a Service, later packet",
        program: "from_pod",
        device: "client",
        frame: |_, services| Frame::tcp(&format!("{CLIENT}:30000"), &service(services), ACK),
    },
    Case {
        name: "from_pod: to a pod of the node",
        program: "from_pod",
        device: "client",
        frame: |_, _| Frame::tcp(&format!("{CLIENT}:40000"), &format!("{NEAR}:{BACKEND_PORT}"), ACK),
    },
    Case {
        name: "from_pod: to a pod of another node",
        program: "from_pod",
        device: "client",
        frame: |_, _| Frame::tcp(&format!("{CLIENT}:40000"), &format!("{FAR}:{BACKEND_PORT}"), ACK),
    },
    Case {
        name: "nic_ingress: to a NodePort, first packet",
        program: "nic_ingress",
        device: "eth0",
        frame: |run, services| Frame::tcp(&format!("{CLIENT_OUTSIDE}:{}", 30_000 + run), &port(services), SYN),
    },
    Case {
        name: "nic_ingress: to a NodePort, later packet",
        program: "nic_ingress",
        device: "eth0",
        frame: |_, services| Frame::tcp(&format!("{CLIENT_OUTSIDE}:30000"), &port(services), ACK),
    },
];

/// A program that only runs where real packets or sockets are.
struct Loaded {
    name: &'static str,
    program: &'static str,
    node: usize,
    path: Path,
    kind: Kind,
}

const LOADED: &[Loaded] = &[
    Loaded {
        name: "connect4: to a Service",
        program: "connect4",
        node: 0,
        path: Path::SameNode,
        kind: Kind::FirstPackets,
    },
    Loaded {
        name: "overlay_ingress: to a pod of the node",
        program: "overlay_ingress",
        node: 1,
        path: Path::AcrossNodes,
        kind: Kind::Requests,
    },
];

fn service(services: u32) -> String {
    cluster_address(services, Position::Middle, Side::Far).to_string()
}

fn port(services: u32) -> String {
    node_port(NODE_ADDRESSES[0], services, Position::Middle, Side::Far).to_string()
}

pub(crate) fn measure(worlds: &mut [World], pace: Pace) -> Result<()> {
    eprintln!("  programs: test runs");
    let mut ours: Vec<_> =
        worlds.iter_mut().filter(|world| world.system == System::Leme && world.services > 0).collect();
    for case in CASES {
        let mut samples: Vec<Vec<f64>> = ours.iter().map(|_| Vec::new()).collect();
        for _ in 0..pace.rounds {
            for (world, samples) in ours.iter().zip(&mut samples) {
                samples.push(case.run(world).with_context(|| case.name)?);
            }
        }
        print(&ours, case.name, samples)?;
    }
    eprintln!("  programs: under load");
    let _statistics = enable_stats(Stats::RunTime).context("the kernel keeps no statistics of programs")?;
    for loaded in LOADED {
        let mut samples: Vec<Vec<f64>> = ours.iter().map(|_| Vec::new()).collect();
        for _ in 0..pace.rounds {
            for (world, samples) in ours.iter_mut().zip(&mut samples) {
                samples.push(loaded.run(world, pace).with_context(|| loaded.name)?);
            }
        }
        print(&ours, loaded.name, samples)?;
    }
    Ok(())
}

/// Flat is as good as with the fewest Services.
fn print(worlds: &[&mut World], name: &str, samples: Vec<Vec<f64>>) -> Result<()> {
    let fewest = samples[0].clone();
    for (index, (world, samples)) in worlds.iter().zip(samples).enumerate() {
        let row = Measurement::new(name, "leme", "ns", samples).with_services(world.services);
        let base = leme_measure::row::count_of(worlds[0].services);
        if index == 0 { row } else { row.against(base, fewest.clone()) }.print()?;
    }
    Ok(())
}

impl Case {
    fn run(&self, world: &World) -> Result<f64> {
        let node = &world.nodes[0];
        let pins = node.leme.as_ref().context("a world without our datapath")?.pins();
        let program = SchedClassifier::from_pin(pins.join("programs").join(self.program))?;
        let frames: Vec<_> = (0..RUNS).map(|run| (self.frame)(run, world.services)).collect();
        let mut times = node.net.within(|| {
            let mut context = [0_u8; 192];
            // `ifindex` of `struct __sk_buff`.
            context[40..44].copy_from_slice(&if_nametoindex(self.device)?.to_ne_bytes());
            let run = |frame: &Frame| {
                let options =
                    TestRunOptions { data_in: Some(&frame.0), ctx_in: Some(&context), ..TestRunOptions::new() };
                let ran = program.test_run(options)?;
                ensure!(ran.return_value == REDIRECT, "the program answers {}", ran.return_value);
                Ok(ran.duration.as_nanos() as f64)
            };
            frames.iter().map(run).collect::<Result<Vec<_>>>()
        })?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}

impl Loaded {
    /// Nanoseconds per run while a client asks a Service.
    fn run(&self, world: &mut World, pace: Pace) -> Result<f64> {
        let leme = world.nodes[self.node].leme.as_ref().context("a world without our datapath")?;
        let pin = leme.pins().join("programs").join(self.program);
        let before = statistics(&pin)?;
        let target = self.path.service(world.services, Position::Middle);
        world.client(self.path).burst(self.kind, target, pace.length)?;
        let after = statistics(&pin)?;
        ensure!(after.1 > before.1, "{} did not run", self.program);
        Ok((after.0 - before.0) as f64 / (after.1 - before.1) as f64)
    }
}

/// Nanoseconds and runs.
fn statistics(pin: &FilePath) -> Result<(u64, u64)> {
    let program = ProgramInfo::from_pin(pin)?.fd()?;
    Ok((fdinfo(program.as_fd(), "run_time_ns:")?, fdinfo(program.as_fd(), "run_cnt:")?))
}

//! The init of a test machine: loads the modules it was given, mounts what the datapath needs, opens the datapath on this
//! kernel, adopts and removes it, runs packet tests (the very binaries that run on the development machine), and then puts
//! a node's traffic on a VLAN upon a bond. What it prints on the serial line is the result.

mod uplink;

use std::{
    ffi::CString,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use leme_datapath::{Config, Datapath, Sizes};
use leme_tests_kernels::{FAILED, PACKET_TESTS, PASSED};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

const MOUNTS: [(&str, &str); 5] =
    [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("bpf", "/sys/fs/bpf"), ("cgroup2", "/sys/fs/cgroup")];

fn main() {
    match prepare().and_then(|()| check_all()) {
        Ok(()) => println!("{PASSED}"),
        Err(error) => println!("{FAILED}: {error:#}"),
    }
    // Without this the kernel panics when its init ends, which also ends the machine, only less clearly.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn prepare() -> Result<()> {
    for (kind, place) in MOUNTS {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} on {place}"))?;
    }
    for line in fs::read_to_string("/modules/order")?.lines() {
        let file = File::open(Path::new("/modules").join(line))?;
        let loaded = finit_module(&file, &CString::default(), ModuleInitFlags::empty());
        loaded.with_context(|| format!("load module {line}"))?;
    }
    Ok(())
}

fn check_all() -> Result<()> {
    opens_and_goes()?;
    run_tests()?;
    uplink::check().context("a VLAN upon a bond")?;
    complaints()
}

/// The packet tests that are here; each prints its own lines.
fn run_tests() -> Result<()> {
    let mut failed = Vec::new();
    for (test, filter) in PACKET_TESTS {
        let status =
            Command::new(format!("/tests/{test}")).args(["--test-threads=1", "--color=never", filter]).status()?;
        if !status.success() {
            failed.push(format!("{test} ({status})"));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join(", ")) }
}

/// The kernel must have had nothing to say about all this.
fn complaints() -> Result<()> {
    let mut log = vec![0u8; 1 << 20];
    let length = nix::errno::Errno::result(
        // SAFETY: the buffer is as long as it is said to be. 3 is SYSLOG_ACTION_READ_ALL.
        unsafe { libc::syscall(libc::SYS_syslog, 3, log.as_mut_ptr(), log.len()) },
    )?;
    let log = String::from_utf8_lossy(&log[..length as usize]).into_owned();
    let is_complaint = |line: &&str| ["WARNING:", "BUG:", "Oops", "Call Trace"].iter().any(|word| line.contains(word));
    match log.lines().find(is_complaint) {
        Some(line) => bail!("the kernel says: {line}\n{log}"),
        None => Ok(()),
    }
}

fn opens_and_goes() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    runtime.block_on(check())
}

async fn check() -> Result<()> {
    let nic = make_nic().await?;
    let cgroup = Path::new("/sys/fs/cgroup/node");
    fs::create_dir(cgroup).context("make a cgroup")?;
    let mut config = Config::new("check", cgroup, IpAddr::V4(ADDRESS), "10.244.1.0/24".parse()?);
    config.nics = vec![nic];
    // The machine is small.
    config.sizes = Sizes { connections: 1024, ..config.sizes };
    let datapath = Datapath::open(config.clone()).await.context("load and attach")?;
    if !config.pin_dir.is_dir() {
        bail!("nothing is pinned at {}", config.pin_dir.display());
    }
    drop(datapath);
    let mut adopted = Datapath::open(config.clone()).await.context("adopt what is pinned")?;
    adopted.dump()?;
    follow(&mut adopted).await.context("follow devices")?;
    drop(adopted);
    leme_datapath::remove_all(&config).await.context("remove")?;
    if config.pin_dir.exists() {
        bail!("{} is still there", config.pin_dir.display());
    }
    Ok(())
}

/// Without NICs the programs leave theirs, and with them they are back.
async fn follow(datapath: &mut Datapath) -> Result<()> {
    let places = datapath.attachments()?;
    let overlay = leme_datapath::keep_overlay(datapath.config()).await?;
    let nics = leme_datapath::find_nics(IpAddr::V4(ADDRESS), &[leme_datapath::VXLAN]).await?;
    for (nics, expected) in [(&[][..], 2), (&nics[..], 0)] {
        datapath.follow(overlay, nics)?;
        let found = leme_datapath::inspect(places.clone()).await?;
        let missing: Vec<_> = found.detached.iter().map(ToString::to_string).collect();
        if missing.len() != expected || !found.foreign.is_empty() {
            bail!("with {} NICs not attached: {missing:?}; others before ours: {:?}", nics.len(), found.foreign);
        }
    }
    Ok(())
}

/// A device towards the outside: one end of a veth pair.
async fn make_nic() -> Result<u32> {
    use rtnetlink::{LinkUnspec, LinkVeth};
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    handle.link().add(LinkVeth::new("eth0", "wire").build()).execute().await.context("make a veth pair")?;
    let mut index = 0;
    for name in ["lo", "wire", "eth0"] {
        index = nix::net::if_::if_nametoindex(name)?;
        handle
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .with_context(|| format!("{name} up"))?;
    }
    handle.address().add(index, IpAddr::V4(ADDRESS), 24).execute().await.context("address")?;
    Ok(index)
}

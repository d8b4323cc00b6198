//! The init of a test machine: loads the modules it was given, mounts what the datapath needs, opens the datapath on this
//! kernel, checks that it holds together, removes it again, and says `ok` or what failed on the serial line.

use std::{
    ffi::CString,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context, Result, bail};
use leme_datapath::{Config, Datapath, Sizes};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn main() {
    let outcome = prepare().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(check())
    });
    match outcome {
        Ok(report) => println!("leme-kernel-check: ok {report}"),
        Err(error) => println!("leme-kernel-check: failed: {error:#}"),
    }
    // Without this the kernel panics when its init ends, which also ends the machine, only less clearly.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn prepare() -> Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("bpf", "/sys/fs/bpf"), ("cgroup2", "/sys/fs/cgroup")] {
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

async fn check() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let nic = make_nic().await?;
    let cgroup = Path::new("/sys/fs/cgroup/node");
    fs::create_dir(cgroup).context("make a cgroup")?;
    let mut config = Config::new("check", cgroup, IpAddr::V4(ADDRESS), "10.244.1.0/24".parse()?);
    config.nics = vec![nic];
    config.sizes = small();
    let datapath = Datapath::open(config.clone()).await.context("load and attach")?;
    if !config.pin_dir.is_dir() {
        bail!("nothing is pinned at {}", config.pin_dir.display());
    }
    drop(datapath);
    let mut adopted = Datapath::open(config.clone()).await.context("adopt what is pinned")?;
    let dump = adopted.dump()?;
    follow(&mut adopted).await.context("follow devices")?;
    drop(adopted);
    leme_datapath::remove_all(&config).await.context("remove")?;
    if config.pin_dir.exists() {
        bail!("{} is still there", config.pin_dir.display());
    }
    Ok(format!("on {}, {} services", release.trim(), dump.services.len()))
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

/// The machine is small; full-sized maps are another test's matter.
fn small() -> Sizes {
    Sizes { connections: 1024, frontends: 1024, services: 1024, slots: 1024, backends: 1024, endpoints: 64, routes: 64 }
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

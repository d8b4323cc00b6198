//! A pod's network namespace, held by a thread that sleeps in it.

use std::{
    os::fd::AsFd as _,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use futures::TryStreamExt as _;
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
    unistd::gettid,
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, packet_route::route::RouteMessage};

pub struct Pod {
    pub container: String,
    /// Of the namespace.
    pub path: String,
    keeper: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Pod {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let container = format!("c{:04}", COUNT.fetch_add(1, Ordering::Relaxed));
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let keeper = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            tell.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid())).expect("somebody waits");
            let _ = ended.recv();
        });
        Self { container, path: told.recv().expect("the namespace is there"), keeper: Some((end, keeper)) }
    }

    /// Runs work in the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(&self.path).expect("the namespace");
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
                work()
            });
            thread.join().expect("work in a namespace does not panic")
        })
    }

    /// Runs netlink requests in the namespace; the index is `eth0`'s.
    pub fn netlink<F: Future<Output = Result<(), rtnetlink::Error>>>(
        &self,
        work: impl FnOnce(Handle, u32) -> F + Send,
    ) {
        self.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let done = runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
                tokio::spawn(connection);
                work(handle, if_nametoindex("eth0").unwrap_or(0)).await
            });
            done.expect("the kernel agrees");
        });
    }

    pub fn interfaces(&self) -> Vec<String> {
        self.inside(|| {
            let all = nix::net::if_::if_nameindex().expect("interfaces");
            all.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect()
        })
    }

    /// Somebody else's interface of the name that CNI is to make.
    pub fn occupy(&self) {
        self.netlink(
            |handle, _| async move { handle.link().add(LinkVeth::new("eth0", "eth1").build()).execute().await },
        );
    }

    pub fn take_down(&self) {
        self.netlink(|handle, index| async move {
            handle.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await
        });
    }

    pub fn remove_addresses(&self) {
        self.netlink(|handle, index| async move {
            let mut addresses = handle.address().get().set_link_index_filter(index).execute();
            while let Some(address) = addresses.try_next().await? {
                handle.address().del(address).execute().await?;
            }
            Ok(())
        });
    }

    pub fn remove_default_route(&self) {
        self.netlink(|handle, _| async move {
            let all = rtnetlink::RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
            let routes: Vec<RouteMessage> = handle.route().get(all).execute().try_collect().await?;
            for route in routes.into_iter().filter(|route| route.header.destination_prefix_length == 0) {
                handle.route().del(route).execute().await?;
            }
            Ok(())
        });
    }

    /// The runtime has removed the namespace: its thread ends, and with it all that is in it.
    pub fn end(&mut self) {
        if let Some((end, keeper)) = self.keeper.take() {
            drop(end);
            let _ = keeper.join();
        }
    }
}

impl Default for Pod {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.end();
    }
}

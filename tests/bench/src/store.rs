//! The stores beside each other: the embedded engine and etcd on the same disk, asked by one client, by fifty and by five
//! hundred at once. No API server is in between.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use futures::future::try_join_all;
use leme_measure::{Burst, Measurement, turns};
use leme_store::embedded::Embedded;
use leme_store::etcd::Etcd;
use leme_store::{Condition, Key, Operation, Outcome, Revision, Store, Transaction};

#[derive(Args)]
pub(crate) struct Options {
    /// An etcd that holds nothing
    #[arg(long)]
    etcd: String,
    /// An empty directory for the embedded store, on the disk that etcd has
    #[arg(long)]
    directory: PathBuf,
    #[arg(long, value_delimiter = ',', default_value = "1,50,500")]
    clients: Vec<usize>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one burst lasts
    #[arg(long, default_value_t = 1500)]
    millis: u64,
}

/// As many objects as a list shows, each of a pod's size.
const LISTED: usize = 500;
const SIZE: usize = 2048;
/// Writers under the eyes of watchers.
const WRITERS: usize = 16;

pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let stores: [Arc<dyn Store>; 2] = [
        Arc::new(Embedded::open(options.directory.join("state.db"))?),
        Arc::new(runtime.block_on(Etcd::connect(std::slice::from_ref(&options.etcd), None))?),
    ];
    for store in &stores {
        runtime.block_on(answers(&**store))?;
        runtime.block_on(prepare(&**store))?;
    }
    for work in [Work::Create, Work::Get, Work::List, Work::Watch] {
        for &clients in &options.clients {
            let span = Duration::from_millis(options.millis);
            let mut taken = turns::take(stores.len(), options.rounds, |subject| {
                let rate = runtime.block_on(work.burst(stores[subject].clone(), clients, span))?;
                Ok(Burst { rate, latency: None })
            })?
            .into_iter()
            .map(|bursts| bursts.into_iter().map(|burst| burst.rate).collect());
            let (embedded, etcd) = taken.next().zip(taken.next()).context("both were measured")?;
            let subject = format!("embedded, {clients} client{}", if clients == 1 { "" } else { "s" });
            Measurement::new(work.metric(), subject, "1/s", embedded).against("etcd", etcd).print()?;
        }
    }
    Ok(())
}

/// etcd may have been started a moment ago.
async fn answers(store: &dyn Store) -> Result<()> {
    let patience = Instant::now() + Duration::from_secs(15);
    loop {
        match store.revision().await {
            Err(_) if Instant::now() < patience => tokio::time::sleep(Duration::from_millis(50)).await,
            outcome => return Ok(outcome.map(drop)?),
        }
    }
}

async fn prepare(store: &dyn Store) -> Result<()> {
    for n in 0..LISTED {
        put(store, &format!("/registry/listed/{n:04}")).await?;
    }
    Ok(())
}

async fn put(store: &dyn Store, key: &str) -> Result<Revision> {
    let (key, value) = (Key::from(key), Bytes::from(vec![b'x'; SIZE]));
    let conditions = vec![Condition::Absent(key.clone())];
    let operations = vec![Operation::Put { key, value, lease: None }];
    match store.commit(Transaction { conditions, operations }).await? {
        Outcome::Committed(revision) => Ok(revision),
        Outcome::Conflict { .. } => anyhow::bail!("the store is not empty"),
    }
}

#[derive(Clone, Copy)]
enum Work {
    Create,
    Get,
    List,
    Watch,
}

/// No key is made twice.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Work {
    fn metric(self) -> &'static str {
        match self {
            Work::Create => "creates",
            Work::Get => "gets",
            Work::List => "lists of 500",
            Work::Watch => "watch events delivered",
        }
    }

    /// What was done per second.
    async fn burst(self, store: Arc<dyn Store>, clients: usize, span: Duration) -> Result<f64> {
        let begin = Instant::now();
        let count = match self {
            Work::Watch => watch(store, clients, span).await?,
            work => repeat(store, clients, span, move |store| work.once(store)).await?,
        };
        Ok(count as f64 / begin.elapsed().as_secs_f64())
    }

    async fn once(self, store: Arc<dyn Store>) -> Result<()> {
        match self {
            Work::Create | Work::Watch => {
                let key = format!("/registry/created/{}", NEXT.fetch_add(1, Ordering::Relaxed));
                put(&*store, &key).await.map(drop)
            }
            Work::Get => {
                let key = format!("/registry/listed/{:04}", NEXT.fetch_add(1, Ordering::Relaxed) as usize % LISTED);
                store.get(&key).await?.0.context("it was put there")?;
                Ok(())
            }
            Work::List => {
                let page = store.list("/registry/listed/", None, LISTED, None).await?;
                anyhow::ensure!(page.records.len() == LISTED, "the list is not whole");
                Ok(())
            }
        }
    }
}

/// So many do it over and over; how often they did.
async fn repeat<F>(
    store: Arc<dyn Store>,
    clients: usize,
    span: Duration,
    once: impl Fn(Arc<dyn Store>) -> F + Clone + Send + 'static,
) -> Result<u64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let until = Instant::now() + span;
    let workers = (0..clients).map(|_| {
        let (store, once) = (store.clone(), once.clone());
        tokio::spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                once(store.clone()).await?;
                count += 1;
            }
            anyhow::Ok(count)
        })
    });
    let counts = try_join_all(workers).await?;
    counts.into_iter().sum()
}

/// So many watch what a few write; how many events they got until each had seen the last.
async fn watch(store: Arc<dyn Store>, clients: usize, span: Duration) -> Result<u64> {
    let from = store.revision().await?;
    let (last, _) = tokio::sync::watch::channel(None);
    let mut watchers = Vec::with_capacity(clients);
    for _ in 0..clients {
        let (events, last) = (store.watch("/registry/created/", from).await?, last.subscribe());
        watchers.push(tokio::spawn(follow(store.clone(), events, from, last)));
    }
    repeat(store.clone(), WRITERS, span, |store| Work::Create.once(store)).await?;
    let end = format!("/registry/created/{}", NEXT.fetch_add(1, Ordering::Relaxed));
    last.send_replace(Some(put(&*store, &end).await?));
    let counts = try_join_all(watchers).await?;
    counts.into_iter().sum()
}

/// One that is cut for being slow goes on where it was.
async fn follow(
    store: Arc<dyn Store>,
    mut events: leme_store::Watch,
    mut seen: Revision,
    last: tokio::sync::watch::Receiver<Option<Revision>>,
) -> Result<u64> {
    let mut count = 0;
    loop {
        match events.next().await {
            Some(Ok(event)) => {
                seen = event.revision();
                count += u64::from(event.key().is_some());
            }
            _ => events = store.watch("/registry/created/", seen).await?,
        }
        if last.borrow().is_some_and(|last| seen >= last) {
            return Ok(count);
        }
    }
}

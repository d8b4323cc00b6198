//! Durable commits of 1 KiB per second, with 1 and 64 clients: `cargo run --release --example commits [DIRECTORY]`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use leme_store::{Key, Operation, Store, Transaction, embedded::Embedded};

const SECONDS: u64 = 3;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    for clients in [1, 64] {
        let path = std::path::Path::new(&directory).join(format!("commits-{clients}.db"));
        let store = Arc::new(Embedded::open(&path)?);
        let end = Instant::now() + Duration::from_secs(SECONDS);
        let tasks: Vec<_> = (0..clients).map(|client| tokio::spawn(write(store.clone(), client, end))).collect();
        let mut commits = 0;
        for task in tasks {
            commits += task.await??;
        }
        println!("{clients} clients: {} durable commits/s", commits / SECONDS);
        drop(store);
        for suffix in ["", ".lock"] {
            std::fs::remove_file(format!("{}{suffix}", path.display()))?;
        }
    }
    Ok(())
}

async fn write(store: Arc<Embedded>, client: usize, end: Instant) -> Result<u64, leme_store::Error> {
    let mut count = 0;
    while Instant::now() < end {
        let key = Key::from(format!("/registry/pods/default/{client}-{}", count % 1000));
        let value = Bytes::from(vec![b'x'; 1024]);
        let operations = vec![Operation::Put { key, value, lease: None }];
        store.commit(Transaction { conditions: Vec::new(), operations }).await?;
        count += 1;
    }
    Ok(count)
}

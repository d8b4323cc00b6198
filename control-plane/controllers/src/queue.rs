//! A controller's work: each key waits at most once, is worked on by one worker at a time, and comes back later and later
//! while its work fails. Retry lives here and nowhere in the reconcilers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::Display,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Upstream's: 5 ms doubling up to 1000 s; capped lower because a laptop's owner is watching.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What a reconciler wants next.
pub type Outcome = anyhow::Result<Next>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until something changes.
    Wait,
    /// Look again after this time.
    After(Duration),
}

pub struct Queue<K> {
    state: Mutex<State<K>>,
    ready: Notify,
}

struct State<K> {
    waiting: VecDeque<K>,
    /// Keys in `waiting`, and keys that changed while a worker held them.
    dirty: HashSet<K>,
    working: HashSet<K>,
    failures: HashMap<K, u32>,
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), dirty: HashSet::new(), working: HashSet::new(), failures: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash + Display + Send + Sync + 'static> Queue<K> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), ready: Notify::new() })
    }

    pub fn add(&self, key: K) {
        let mut state = self.lock();
        if state.dirty.insert(key.clone()) && !state.working.contains(&key) {
            state.waiting.push_back(key);
            self.ready.notify_one();
        }
    }

    /// [`Self::add`], for whoever hears of changes.
    pub fn adder(self: &Arc<Self>) -> impl Fn(K) + use<K> {
        let queue = self.clone();
        move |key| queue.add(key)
    }

    pub fn add_after(self: &Arc<Self>, key: K, delay: Duration) {
        let queue = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(queue) = queue.upgrade() {
                queue.add(key);
            }
        });
    }

    /// Works until `shutdown` with so many workers. Errors are logged here, once, and retried.
    pub async fn run<F, R>(
        self: Arc<Self>,
        name: &'static str,
        workers: usize,
        shutdown: CancellationToken,
        reconcile: F,
    ) where
        F: Fn(K) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for _ in 0..workers {
            tasks.spawn(self.clone().work(name, shutdown.clone(), reconcile.clone()));
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn work<F, R>(self: Arc<Self>, name: &'static str, shutdown: CancellationToken, reconcile: F)
    where
        F: Fn(K) -> R,
        R: Future<Output = Outcome> + Send + 'static,
    {
        loop {
            let key = tokio::select! {
                key = self.take() => key,
                () = shutdown.cancelled() => return,
            };
            let outcome = reconcile(key.clone()).await;
            self.finish(name, key, outcome);
        }
    }

    async fn take(&self) -> K {
        loop {
            let ready = self.ready.notified();
            if let Some(key) = self.pop() {
                return key;
            }
            ready.await;
        }
    }

    fn pop(&self) -> Option<K> {
        let mut state = self.lock();
        let key = state.waiting.pop_front()?;
        state.dirty.remove(&key);
        state.working.insert(key.clone());
        if !state.waiting.is_empty() {
            self.ready.notify_one();
        }
        Some(key)
    }

    fn finish(self: &Arc<Self>, name: &'static str, key: K, outcome: Outcome) {
        let mut state = self.lock();
        state.working.remove(&key);
        if state.dirty.contains(&key) {
            state.waiting.push_back(key.clone());
            self.ready.notify_one();
        }
        match outcome {
            Ok(next) => {
                state.failures.remove(&key);
                if let Next::After(delay) = next {
                    self.add_after(key, delay);
                }
            }
            Err(error) => {
                let failures = state.failures.entry(key.clone()).or_default();
                *failures += 1;
                let delay = FIRST_RETRY.saturating_mul(1 << (*failures - 1).min(16)).min(LAST_RETRY);
                log_failure(name, &key, *failures, &error);
                self.add_after(key, delay);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first few failures are usually somebody else's write: conflicts are how this API works.
fn log_failure(name: &str, key: &impl Display, failures: u32, error: &anyhow::Error) {
    let conflict = error.downcast_ref::<kube::Error>().is_some_and(is_conflict);
    if conflict && failures < 5 {
        tracing::debug!(controller = name, %key, failures, "conflict: {}", describe(error));
    } else {
        tracing::warn!(controller = name, %key, failures, "{}", describe(error));
    }
}

/// The API's own sentence where there is one; the client's error repeats it with the whole Status around it.
fn describe(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) => status.message.clone(),
        _ => format!("{error:#}"),
    }
}

pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Turns "it is gone already" into success.
pub fn unless_gone<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_is_retried_until_it_succeeds() {
        let queue = Queue::new();
        let runs = Arc::new(AtomicU32::new(0));
        queue.add("a");
        queue.add("a");
        let (shutdown, counted) = (CancellationToken::new(), runs.clone());
        let stop = shutdown.clone();
        let run = queue.clone().run("test", 2, shutdown, move |_| {
            let (counted, stop) = (counted.clone(), stop.clone());
            async move {
                if counted.fetch_add(1, Ordering::SeqCst) < 2 {
                    anyhow::bail!("not yet");
                }
                stop.cancel();
                Ok(Next::Wait)
            }
        });
        run.await;
        assert_eq!(runs.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_changes_while_it_is_worked_on_comes_again_but_never_twice_at_once() {
        let queue = Queue::new();
        queue.add(1);
        let held = queue.take().await;
        queue.add(1);
        assert!(queue.pop().is_none(), "one worker per key");
        queue.finish("test", held, Ok(Next::Wait));
        assert_eq!(queue.pop(), Some(1));
    }
}

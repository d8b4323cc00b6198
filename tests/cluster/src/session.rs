//! An ordered list of tests on one cluster: made when the first of them needs it, removed when the last is done,
//! whatever came of them.

use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow};
use libtest_mimic::{Failed, Trial};

use crate::Cluster;
use crate::cluster::Store;

pub type Test = (&'static str, fn(&Cluster) -> Result<()>);
/// A test that takes the cluster down and looks at what is left.
pub type Ending = (&'static str, fn(Cluster) -> Result<()>);

/// Lists functions with their names.
#[macro_export]
macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$((stringify!($name), $module::$name as fn(&$crate::Cluster) -> anyhow::Result<()>)),*]
    };
}

pub struct Session {
    store: Store,
    state: Mutex<State>,
}

enum State {
    Unmade,
    Up(Box<Cluster>),
    Failed(String),
}

impl Session {
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self { store, state: Mutex::new(State::Unmade) })
    }

    /// The list as trials of the runner.
    pub fn trials(self: &Arc<Self>, tests: Vec<Test>, (name, ending): Ending) -> Vec<Trial> {
        let prefix = if self.store == Store::Etcd { "etcd" } else { "embedded" };
        let trial = |(name, test): Test| {
            let session = self.clone();
            Trial::test(format!("{prefix}::{name}"), move || session.run(test))
        };
        let session = self.clone();
        let last = Trial::test(format!("{prefix}::{name}"), move || session.end_with(ending));
        tests.into_iter().map(trial).chain([last]).collect()
    }

    fn run(&self, test: fn(&Cluster) -> Result<()>) -> Result<(), Failed> {
        let mut state = self.lock();
        let cluster = Self::cluster(&mut state, self.store)?;
        test(cluster).map_err(|error| format!("{error:#}\n\n{}", cluster.overview()).into())
    }

    fn end_with(&self, ending: fn(Cluster) -> Result<()>) -> Result<(), Failed> {
        let mut state = self.lock();
        Self::cluster(&mut state, self.store)?;
        match std::mem::replace(&mut *state, State::Unmade) {
            State::Up(cluster) => ending(*cluster).map_err(|error| format!("{error:#}").into()),
            _ => Err("there is no cluster to end".into()),
        }
    }

    fn cluster(state: &mut State, store: Store) -> Result<&Cluster> {
        if let State::Unmade = state {
            *state = match Cluster::up(store) {
                Ok(cluster) => State::Up(Box::new(cluster)),
                Err(error) => State::Failed(format!("{error:#}")),
            };
        }
        match state {
            State::Up(cluster) => Ok(cluster),
            State::Failed(error) => Err(anyhow!("the cluster did not come up: {error}")),
            State::Unmade => unreachable!("just made"),
        }
    }

    /// Removes the cluster, if there is one.
    pub fn end(&self) {
        *self.lock() = State::Unmade;
    }

    /// A test that panicked left the cluster as it is.
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

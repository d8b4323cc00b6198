//! End-to-end tests: real clusters on this machine, driven by the real kubectl, with real pulls.
//!
//! `cargo xtask test cluster` runs `tests/cluster` with the binaries it built (`LEME_BIN`, `LEME_KUBECTL`, `LEME_ETCD`,
//! `LEME_TEST_MIRRORS`). One cluster serves an ordered list of tests per kind of store; each is a function whose name
//! is a sentence and which brings about what it needs, so that one alone runs too.
//!
//! This library is what those tests are written in. It never imports the product: what it expects is computed from
//! the API's objects, and what it sees it sees as a user or as the kernel shows it.

pub mod client;
pub mod cluster;
pub mod command;
pub mod etcd;
pub mod hammer;
pub mod machine;
pub mod outside;
pub mod place;
pub mod pods;
pub mod rules;
pub mod session;
pub mod tables;
pub mod wait;

pub use cluster::{Cluster, Node};
pub use place::Place;
pub use pods::Pod;

//! Measuring networks: load and its answers, rows of medians and ratios, and the report they make.
//!
//! Used by `leme bench` on live clusters, by `tests/bench` and by `cargo xtask bench`, so that all of them measure the
//! same way and print rows that look alike. It opens plain sockets and knows neither Kubernetes nor the datapath.

pub mod load;
pub mod machine;
pub mod measurement;
pub mod report;
pub mod row;
pub mod serve;
pub mod turns;

pub use load::{Burst, Figure, Kind};
pub use measurement::{Baseline, Measurement};
pub use row::Row;

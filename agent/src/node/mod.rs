//! The node as the API sees it: who it is, what it has, how it is, and that it lives.

mod conditions;
mod lease;
pub mod machine;
mod registration;
mod thresholds;

pub use lease::renew;
pub use registration::{Report, report};
pub use thresholds::Thresholds;

//! Survival: ordeals of a real cluster while clients go on asking, none of whose requests may fail; and after each of
//! them a count of everything that could have been left behind.
//!
//! `cargo xtask test survival` runs `tests/survival`. `LEME_SURVIVAL=full` goes through each ordeal as often as the
//! project promises; without it there are fewer rounds of the same, for a machine that has other things to do.
//! `LEME_SURVIVAL_FROM=<leme>` names an earlier version's binary: a cluster of it is upgraded, too.

mod census;
mod scale;
mod traffic;

pub use census::Census;
pub use scale::{earlier, scale};
pub use traffic::Traffic;

//! Decisions on the host, against tables made of ordinary maps.

mod fake;
mod parsing;
mod walks;

//! Decisions on the host, against tables made of ordinary maps.

mod fake;
mod host_ports;
mod parsing;
mod rates;
mod walks;

//! The control plane: API server, controllers and scheduler in one process.

pub mod resources;

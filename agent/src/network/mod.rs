pub mod cni_server;
pub mod ipam;
pub mod veth;

//! The control plane alone, for development:
//! `cargo run -p leme-control-plane --example serve -- DIRECTORY PORT [controllers] [ETCD-URL]`.

use std::{env, net::SocketAddr, time::Instant};

use leme_control_plane::{Config, Etcd, run};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let started = Instant::now();
    tracing_subscriber::fmt().init();
    let mut arguments = env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| "/tmp/leme-serve".into());
    let port: u16 = arguments.next().map_or(Ok(16443), |p| p.parse())?;
    let mut config = Config::new([127, 0, 0, 1].into(), directory);
    config.bind = SocketAddr::new([127, 0, 0, 1].into(), port);
    config.run_controllers = false;
    for argument in arguments {
        match argument.as_str() {
            "controllers" => config.run_controllers = true,
            url => config.etcd = Some(Etcd { endpoints: vec![url.into()], ..Etcd::default() }),
        }
    }
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    run(config, |address| println!("serving on {address} after {:?}", started.elapsed()), shutdown).await
}

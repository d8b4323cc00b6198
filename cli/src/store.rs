//! `leme store`: snapshots of a server's state, the way back, and the way from one store to another.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use leme_control_plane::snapshots::{self, Location};

use crate::server::EtcdFlags;

#[derive(Args)]
#[command(after_help = "Examples:
  leme store snapshot /backup/monday.db
  leme store restore /backup/monday.db")]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Copy the whole state into a file, while the server runs or not
    ///
    /// What the server seals (secrets) is sealed in the copy, too: keep the directory `pki` beside it.
    #[command(after_help = "Examples:
  leme store snapshot                            into <data-dir>/snapshots, under a name of its own
  leme store snapshot /backup/monday.db
  leme store snapshot --etcd-endpoints https://10.0.0.5:2379 --etcd-cafile ca.crt monday.db")]
    Snapshot {
        /// Where to [default: <data-dir>/snapshots, under a name of its own]
        file: Option<PathBuf>,
        #[command(flatten)]
        location: LocationFlags,
    },
    /// Put a snapshot in the place of the embedded store; the server must not run
    ///
    /// The store that was there is kept beside it. Resource versions go on beyond all that clients have seen.
    #[command(after_help = "Example:
  leme store restore /backup/monday.db")]
    Restore {
        /// The snapshot
        file: PathBuf,
        #[command(flatten)]
        data_dir: DataDir,
    },
    /// Bring the whole state from one store into another, empty one; no server may run
    ///
    /// What was interrupted is begun anew by the same command. The old store stays as it is.
    #[command(after_help = "Examples:
  leme store migrate --to etcd --etcd-endpoints https://10.0.0.5:2379 --etcd-cafile ca.crt
  leme store migrate --to embedded --etcd-endpoints https://10.0.0.5:2379 --etcd-cafile ca.crt")]
    Migrate {
        /// Where the state shall be
        #[arg(long)]
        to: Target,
        #[command(flatten)]
        location: LocationFlags,
    },
    /// Give the disk space of forgotten revisions back, one member of etcd after the other
    #[command(after_help = "Example:
  leme store defrag --etcd-endpoints https://10.0.0.5:2379,https://10.0.0.6:2379 --etcd-cafile ca.crt")]
    Defrag {
        #[command(flatten)]
        etcd: EtcdFlags,
    },
}

#[derive(Args)]
struct DataDir {
    /// The server's directory
    #[arg(long, default_value = "/var/lib/leme/server")]
    data_dir: PathBuf,
}

#[derive(Args)]
struct LocationFlags {
    #[command(flatten)]
    data_dir: DataDir,
    #[command(flatten)]
    etcd: EtcdFlags,
}

impl LocationFlags {
    fn location(self) -> Location {
        Location { data_dir: self.data_dir.data_dir, etcd: self.etcd.configure() }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Target {
    Etcd,
    Embedded,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    match options.command {
        Command::Snapshot { file, location } => {
            let (path, bytes) = location.location().snapshot(file).await?;
            println!("{}: {bytes} bytes", path.display());
        }
        Command::Restore { file, data_dir } => {
            let restored = Location { data_dir: data_dir.data_dir, etcd: None }.restore(&file).await?;
            println!("Restored; the store goes on at revision {}.", restored.revision);
            if let Some(kept) = restored.kept {
                println!("The store that was there is now {}.", kept.display());
            }
        }
        Command::Migrate { to, location } => migrate(to, location.location()).await?,
        Command::Defrag { etcd } => match etcd.configure() {
            Some(etcd) => etcd.defragment().await?,
            None => bail!("which etcd? Say --etcd-endpoints"),
        },
    }
    Ok(())
}

async fn migrate(to: Target, location: Location) -> Result<()> {
    let Some(etcd) = location.etcd else { bail!("which etcd? Say --etcd-endpoints") };
    let revision = match to {
        Target::Etcd => snapshots::migrate_to_etcd(&location.data_dir, &etcd).await?,
        Target::Embedded => snapshots::migrate_to_embedded(&location.data_dir, &etcd).await?,
    };
    let start = match to {
        Target::Etcd => "with --etcd-endpoints",
        Target::Embedded => "without --etcd-endpoints",
    };
    println!("Everything is there, at revision {revision}. Start the server {start}.");
    Ok(())
}

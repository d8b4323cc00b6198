//! Containers' log files: one that has grown past 10 MiB is set aside and the runtime told to begin anew; of those set
//! aside the newest four stay, all but the newest of them compressed. Sizes, numbers and names are the kubelet's
//! (`containerLogMaxSize`, `containerLogMaxFiles`), so that collectors of logs find what they know.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use k8s_cri::v1::ContainerState;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::runtime::Cri;

/// The kubelet's `containerLogMonitorInterval`.
const LOOK: Duration = Duration::from_secs(10);
const MAX_SIZE: u64 = 10 << 20;
/// The one that is written included.
const MAX_FILES: usize = 5;

/// Keeps the logs below a directory small until `shutdown`.
pub async fn keep_small(cri: Cri, directory: PathBuf, shutdown: CancellationToken) {
    let rounds = async {
        loop {
            tokio::time::sleep(LOOK).await;
            let folder = directory.clone();
            let large = tokio::task::spawn_blocking(move || larger_than(MAX_SIZE, &folder)).await.unwrap_or_default();
            for (id, log) in writers(&cri, &large).await {
                if let Err(error) = rotate(&cri, &id, &log).await {
                    warn!(log = %log.display(), "the log is not rotated: {error:#}");
                }
            }
        }
    };
    shutdown.run_until_cancelled(rounds).await;
}

/// Logs that are written, not those set aside.
fn larger_than(size: u64, directory: &Path) -> Vec<PathBuf> {
    let children = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = children(directory.to_owned()).flat_map(children).flat_map(children);
    files
        .filter(|file| has(file, "log"))
        .filter(|file| fs::metadata(file).is_ok_and(|meta| meta.len() > size))
        .collect()
}

/// The running containers that write these logs.
async fn writers(cri: &Cri, logs: &[PathBuf]) -> Vec<(String, PathBuf)> {
    if logs.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let containers = cri.list_containers(None).await.unwrap_or_default();
    for container in containers.iter().filter(|it| it.state() == ContainerState::ContainerRunning) {
        if let Ok(status) = cri.container_status(&container.id).await
            && let Some(log) = logs.iter().find(|log| log.as_os_str() == &*status.log_path)
        {
            found.push((container.id.clone(), log.clone()));
        }
    }
    found
}

async fn rotate(cri: &Cri, id: &str, log: &Path) -> anyhow::Result<()> {
    let path = log.to_owned();
    let aside = tokio::task::spawn_blocking(move || set_aside(&path, Timestamp::now())).await??;
    if let Err(error) = cri.reopen_log(id).await {
        // The runtime goes on writing to the file it has open: that must be the one people read.
        fs::rename(&aside, log)?;
        return Err(error.into());
    }
    Ok(())
}

/// Makes room among those set aside before, compresses them, and gives the log a name with the time in it.
fn set_aside(log: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let (torn, mut aside): (Vec<_>, Vec<_>) = set_aside_before(log).into_iter().partition(|file| has(file, "tmp"));
    for file in torn {
        fs::remove_file(file)?;
    }
    let spare = (aside.len() + 2).saturating_sub(MAX_FILES);
    for old in aside.drain(..spare) {
        fs::remove_file(old)?;
    }
    for plain in aside.iter().filter(|file| !has(file, "gz")) {
        compress(plain)?;
    }
    let name = with_suffix(log, &now.strftime("%Y%m%d-%H%M%S").to_string());
    fs::rename(log, &name)?;
    Ok(name)
}

fn has(file: &Path, extension: &str) -> bool {
    file.extension().is_some_and(|its| its == extension)
}

/// Oldest first: their names hold the time.
fn set_aside_before(log: &Path) -> Vec<PathBuf> {
    let prefix = with_suffix(log, "");
    let prefix = prefix.to_string_lossy();
    let folder = log.parent().unwrap_or(log);
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut aside: Vec<_> = files.filter(|file| file.to_string_lossy().starts_with(&*prefix)).collect();
    aside.sort();
    aside
}

fn compress(plain: &Path) -> io::Result<()> {
    let partial = with_suffix(plain, "tmp");
    let mut input = File::open(plain)?;
    let mut output = GzEncoder::new(File::create(&partial)?, Compression::default());
    output.get_ref().set_permissions(input.metadata()?.permissions())?;
    io::copy(&mut input, &mut output)?;
    output.finish()?.sync_all()?;
    fs::rename(&partial, with_suffix(plain, "gz"))?;
    fs::remove_file(plain)
}

/// Removes a log with all that was set aside of it, after its container.
pub fn remove(log: &Path) {
    for file in set_aside_before(log).iter().map(PathBuf::as_path).chain([log]) {
        if let Err(error) = fs::remove_file(file)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(log = %file.display(), %error, "a log stays");
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_stay_and_all_but_the_last_are_compressed() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        for second in 0..7 {
            fs::write(&log, format!("text {second}")).unwrap();
            set_aside(&log, Timestamp::from_second(second).unwrap()).unwrap();
        }
        let kept: Vec<_> = (3..6).map(|second| format!("0.log.19700101-00000{second}.gz")).collect();
        assert_eq!(names(folder.path()), [kept, vec!["0.log.19700101-000006".to_owned()]].concat());
        let mut text = String::new();
        let compressed = File::open(folder.path().join("0.log.19700101-000003.gz")).unwrap();
        flate2::read::GzDecoder::new(compressed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text 3");
    }

    #[test]
    fn only_large_logs_that_are_written_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let container = folder.path().join("default_web_uid/app");
        fs::create_dir_all(&container).unwrap();
        for (name, size) in [("0.log", 8), ("1.log", 16), ("1.log.19700101-000003", 16)] {
            fs::write(container.join(name), vec![b'x'; size]).unwrap();
        }
        assert_eq!(larger_than(10, folder.path()), [container.join("1.log")]);
    }

    #[test]
    fn a_log_goes_with_what_was_set_aside_of_it_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["1.log", "1.log.19700101-000003.gz", "1.log.19700101-000004", "11.log"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove(&folder.path().join("1.log"));
        assert_eq!(names(folder.path()), ["11.log"]);
    }
}

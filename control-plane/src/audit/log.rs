//! The audit log's file: one line per event, turned over by size, old ones gone by age and number.
//!
//! A thread of its own writes; requests wait for it only when it is ten thousand lines behind.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};

/// Lines that may wait.
const QUEUE: usize = 10_000;
/// A full disk is told about this often.
const COMPLAIN: Duration = Duration::from_secs(10);

/// Upstream's flags `--audit-log-…`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes in one file.
    pub size: u64,
    /// Turned-over files to keep; 0: all.
    pub files: usize,
    /// Days to keep them; 0: for ever.
    pub days: u64,
}

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(oneshot::Sender<()>),
}

/// The way to the thread.
#[derive(Clone)]
pub struct Log {
    queue: mpsc::Sender<Message>,
    lost: Counter,
}

impl Log {
    /// `-` is standard output. `lost` counts the events that could not be written.
    pub fn open(path: &Path, limits: Limits, lost: Counter) -> Result<Self> {
        let mut sink = Sink::open(path, limits).with_context(|| format!("open the audit log {}", path.display()))?;
        let (queue, mut messages) = mpsc::channel(QUEUE);
        let counter = lost.clone();
        let run = move || {
            while let Some(message) = messages.blocking_recv() {
                match message {
                    Message::Line(line) => sink.write(&line, &counter),
                    Message::Flush(done) => drop(done.send(())),
                }
            }
        };
        std::thread::Builder::new().name("audit".into()).spawn(run)?;
        Ok(Self { queue, lost })
    }

    pub async fn write(&self, line: Vec<u8>) {
        if self.queue.send(Message::Line(line)).await.is_err() {
            self.lost.inc();
        }
    }

    /// Without waiting, for what cannot.
    pub fn write_now(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.lost.inc();
        }
    }

    /// Returns when what was written before is in the file.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }
}

enum Target {
    Stdout,
    File { file: File, length: u64 },
}

struct Sink {
    path: PathBuf,
    limits: Limits,
    target: Target,
    /// When the last one was put aside.
    turned: Timestamp,
    complained: Option<SystemTime>,
}

impl Sink {
    fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let target = if path == Path::new("-") { Target::Stdout } else { open(path)? };
        Ok(Self { path: path.to_owned(), limits, target, turned: Timestamp::MIN, complained: None })
    }

    fn write(&mut self, line: &[u8], lost: &Counter) {
        if let Err(error) = self.try_write(line) {
            lost.inc();
            if self.complained.is_none_or(|last| last.elapsed().is_ok_and(|since| since > COMPLAIN)) {
                tracing::error!(path = %self.path.display(), %error, "the audit log cannot be written; events are lost");
                self.complained = Some(SystemTime::now());
            }
        }
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        let full = matches!(&self.target, Target::File { length, .. }
            if *length > 0 && *length + line.len() as u64 > self.limits.size);
        if full {
            self.turn_over()?;
        }
        match &mut self.target {
            Target::Stdout => io::stdout().lock().write_all(line),
            Target::File { file, length } => {
                let written = file.write_all(line);
                // Part of a line may be there, too.
                *length = file.metadata().map_or(*length, |data| data.len());
                written
            }
        }
    }

    fn turn_over(&mut self) -> io::Result<()> {
        let aside = self.aside(Timestamp::now());
        fs::rename(&self.path, aside)?;
        self.target = open(&self.path)?;
        self.remove_old();
        Ok(())
    }

    /// `audit-2026-11-25T14-04-05.000.log`, as upstream's; no two have the same, and a later one sorts later.
    fn aside(&mut self, now: Timestamp) -> PathBuf {
        self.turned = now.max(self.turned + SignedDuration::from_millis(1));
        let stamp = self.turned.strftime("%Y-%m-%dT%H-%M-%S.%3f");
        self.path.with_file_name(format!("{}-{stamp}{}", self.stem(), self.suffix()))
    }

    fn stem(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn suffix(&self) -> String {
        self.path.extension().map(|suffix| format!(".{}", suffix.to_string_lossy())).unwrap_or_default()
    }

    fn remove_old(&self) {
        let mut turned = self.turned_over();
        turned.sort();
        let surplus = if self.limits.files == 0 { 0 } else { turned.len().saturating_sub(self.limits.files) };
        let age = Duration::from_secs(self.limits.days * 86_400);
        for (n, path) in turned.iter().enumerate() {
            let aged = || {
                fs::metadata(path)
                    .and_then(|data| data.modified())
                    .is_ok_and(|at| at.elapsed().is_ok_and(|since| since > age))
            };
            if n < surplus || (self.limits.days > 0 && aged()) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// By name, which is by time.
    fn turned_over(&self) -> Vec<PathBuf> {
        let (start, end) = (format!("{}-", self.stem()), self.suffix());
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        let is_one = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let stamp = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(&end));
            stamp.is_some_and(|stamp| {
                stamp.len() == "2026-11-25T14-04-05.000".len() && stamp.starts_with(char::is_numeric)
            })
        };
        entries.map(|entry| entry.path()).filter(is_one).collect()
    }
}

fn open(path: &Path) -> io::Result<Target> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok(Target::File { file, length })
}

//! What a person sees of a long command: a line per finished step, and what is being waited for and why.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::green;

/// Without a terminal there is no spinner: a line tells of what takes longer than this, and again each time.
const LONG: Duration = Duration::from_secs(5);

pub(crate) struct Steps {
    began: Instant,
    bar: ProgressBar,
    quiet_since: Cell<Instant>,
}

impl Steps {
    pub(crate) fn begin() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a constant template"));
        Self { began: Instant::now(), bar, quiet_since: Cell::new(Instant::now()) }
    }

    /// The spinner's thread starts here: not before the nodes' namespaces are made, which wants a single thread.
    pub(crate) fn doing(&self, what: &str) {
        self.bar.enable_steady_tick(Duration::from_millis(100));
        self.bar.set_message(what.to_owned());
        self.quiet_since.set(Instant::now());
    }

    /// Why that is not done yet.
    pub(crate) fn waiting(&self, what: &str, why: &str) {
        let line = format!("{what}: {why}");
        if self.bar.is_hidden() && self.quiet_since.get().elapsed() > LONG {
            eprintln!("{line}");
            self.quiet_since.set(Instant::now());
        }
        self.bar.set_message(line);
    }

    pub(crate) fn done(&self, what: &str) {
        let line = format!("{} {what} ({:.1} s)", green("✓"), self.began.elapsed().as_secs_f32());
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Takes the spinner away. Seconds since the beginning.
    pub(crate) fn finish(&self) -> f32 {
        self.bar.finish_and_clear();
        self.began.elapsed().as_secs_f32()
    }
}

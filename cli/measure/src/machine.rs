//! The machine that figures come from: without it they say nothing.

use std::fs;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Machine {
    pub processors: usize,
    pub model: String,
    pub memory_gib: f64,
    pub kernel: String,
    /// Of one minute, before the measurement.
    pub load: String,
}

impl Machine {
    pub fn here() -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let value = |text: &str, name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
            found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let kibibytes = value(&line("/proc/meminfo"), "MemTotal");
        let kibibytes = kibibytes.trim_end_matches(" kB").parse().unwrap_or(0.0);
        Self {
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            model: value(&line("/proc/cpuinfo"), "model name"),
            memory_gib: kibibytes / f64::from(1 << 20),
            kernel: line("/proc/sys/kernel/osrelease"),
            load: line("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { processors, model, memory_gib, kernel, load } = self;
        write!(f, "{processors} × {model}, {memory_gib:.0} GiB, Linux {kernel}, load before {load}")
    }
}

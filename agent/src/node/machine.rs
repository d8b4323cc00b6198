//! Facts about the machine that do not change while the agent runs, read once from the kernel.

use std::fs;

use super::thresholds::Thresholds;

/// Sizes in bytes.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub cpus: i64,
    pub memory: i64,
    /// Bytes of the file system that holds the pods.
    pub storage: i64,
    pub hugepages: Vec<(String, i64)>,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    pub architecture: &'static str,
    pub hostname: String,
}

impl Machine {
    pub fn read(root_dir: &std::path::Path) -> Self {
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as i64),
            memory: memory(),
            storage: nix::sys::statvfs::statvfs(root_dir)
                .map_or(0, |stat| (stat.blocks() * stat.fragment_size()) as i64),
            hugepages: hugepages(),
            machine_id: first(&["/etc/machine-id", "/var/lib/dbus/machine-id"]),
            system_uuid: first(&["/sys/class/dmi/id/product_uuid", "/etc/machine-id"]),
            boot_id: first(&["/proc/sys/kernel/random/boot_id"]),
            kernel: first(&["/proc/sys/kernel/osrelease"]),
            os_image: os_image(),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            hostname: first(&["/proc/sys/kernel/hostname"]),
        }
    }
}

impl Machine {
    /// What is left for pods above the threshold at which the node is under pressure.
    pub fn allocatable_memory(&self, thresholds: &Thresholds) -> i64 {
        (self.memory - thresholds.memory.of(self.memory)).max(0)
    }

    pub fn allocatable_storage(&self, thresholds: &Thresholds) -> i64 {
        (self.storage - thresholds.disk.of(self.storage)).max(0)
    }
}

/// The first of the files that has anything to say.
fn first(paths: &[&str]) -> String {
    let texts = paths.iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.map(|text| text.trim().to_owned()).find(|text| !text.is_empty()).unwrap_or_default()
}

/// `MemAvailable` and the like, in bytes.
pub fn meminfo(field: &str) -> Option<i64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<i64>().ok().map(|kib| kib * 1024)
}

fn memory() -> i64 {
    meminfo("MemTotal").unwrap_or(0)
}

/// `hugepages-2Mi` and its siblings, zero included, as upstream reports them.
fn hugepages() -> Vec<(String, i64)> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: i64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count: i64 = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        let suffix = if kib >= 1 << 20 { format!("{}Gi", kib >> 20) } else { format!("{}Mi", kib >> 10) };
        Some((format!("hugepages-{suffix}"), count * kib * 1024))
    };
    let mut sizes: Vec<_> = entries.filter_map(size).collect();
    sizes.sort();
    sizes
}

fn os_image() -> String {
    let text = first(&["/etc/os-release", "/usr/lib/os-release"]);
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map(|name| name.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_for_itself_what_its_pressure_begins_at() {
        let machine = Machine { memory: 8_152_152 << 10, storage: 61_255_492 << 10, ..Machine::default() };
        assert_eq!(machine.allocatable_memory(&Thresholds::default()), (8_152_152 - 102_400) << 10);
        assert_eq!(machine.allocatable_storage(&Thresholds::default()), 56_453_061_334);
    }
}

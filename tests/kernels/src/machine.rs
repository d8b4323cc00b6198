//! One boot: kernel and initramfs in, the serial line's text out.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{initramfs::Initramfs, kernel::Kernel};

const MEMORY: &str = "768M";
/// Emulated kernels are up in seconds; a busy machine makes minutes of them.
const LIMIT: Duration = Duration::from_secs(240);

/// Boots and returns everything the machine printed until it powered itself off.
pub fn boot(kernel: &Kernel, initramfs: Initramfs, arguments: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("initramfs");
    std::fs::write(&archive, initramfs.finish())?;
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", MEMORY, "-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&archive)
        .args(["-append", &format!("console=ttyS0 panic=-1 quiet rdinit=/init {arguments}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("start qemu-system-x86_64")?;
    watch(&mut machine)
}

fn watch(machine: &mut Child) -> Result<String> {
    let mut serial = machine.stdout.take().context("the serial line")?;
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let read = serial.read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned());
        // The receiver is gone only when the test has already failed.
        let _ = done.send(read);
    });
    let outcome = finished.recv_timeout(LIMIT);
    machine.kill().context("end qemu")?;
    machine.wait()?;
    match outcome {
        Ok(text) => Ok(text?),
        Err(_) => bail!("the machine did not power off within {} s", LIMIT.as_secs()),
    }
}

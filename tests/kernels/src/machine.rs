//! One boot: kernel and initramfs in, the serial line's text out.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{initramfs::Initramfs, kernel::Kernel};

const MEMORY: &str = "768M";
/// Emulated kernels are up in seconds and a test takes a few; a busy machine makes a minute of them.
const SILENCE: Duration = Duration::from_secs(90);

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

/// Everything it prints until it powers itself off. One that says nothing for long is stuck.
fn watch(machine: &mut Child) -> Result<String> {
    let mut serial = machine.stdout.take().context("the serial line")?;
    let (printed, pieces) = mpsc::channel();
    thread::spawn(move || {
        let mut piece = [0; 4096];
        // The receiver is gone only when the test has already failed.
        while let Ok(length @ 1..) = serial.read(&mut piece)
            && printed.send(piece[..length].to_vec()).is_ok()
        {}
    });
    let mut text = Vec::new();
    let ended = loop {
        match pieces.recv_timeout(SILENCE) {
            Ok(piece) => text.extend(piece),
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    machine.kill().context("end qemu")?;
    machine.wait()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    if ended { Ok(text) } else { bail!("the machine has said nothing for {} s after\n{text}", SILENCE.as_secs()) }
}

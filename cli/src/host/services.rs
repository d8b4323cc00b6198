//! What runs on a host: the agent, and on a control-plane node the server. A supervisor in the background holds them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{BOOTSTRAP, CNI_BIN, CNI_CONF, Host, KUBELET, LOGS, PKI, POD_LOGS, PODS, RUN, SERVER};
use crate::cluster::process;

/// Parts told to end do so within seconds.
const END: Duration = Duration::from_secs(15);

pub(crate) fn supervisor_pid_file() -> PathBuf {
    Path::new(RUN).join("supervisor.pid")
}

pub(crate) fn pid_file(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.pid"))
}

impl Host {
    /// Names and command lines, in the order in which they start.
    pub(crate) fn commands(&self) -> Result<Vec<(&'static str, Vec<String>)>> {
        let binary = std::env::current_exe().context("cannot find this binary")?.to_string_lossy().into_owned();
        let mut all = Vec::new();
        if let Some(server) = self.server_flags() {
            all.push(("server", [binary.clone(), "server".into()].into_iter().chain(server).collect()));
        }
        all.push(("agent", [binary, "agent".into()].into_iter().chain(self.agent_flags()).collect()));
        Ok(all)
    }

    fn server_flags(&self) -> Option<Vec<String>> {
        let control_plane = self.control_plane.as_ref()?;
        let mut names = vec![self.node_name.clone()];
        names.extend(control_plane.extra_names.iter().cloned());
        Some(vec![
            format!("--data-dir={SERVER}"),
            format!("--cert-dir={PKI}"),
            format!("--secure-port={}", control_plane.port),
            format!("--advertise-address={}", self.address),
            format!("--cluster-cidr={}", self.pod_cidr),
            format!("--service-cluster-ip-range={}", self.service_cidr),
            format!("--tls-san={}", names.join(",")),
        ])
    }

    fn agent_flags(&self) -> Vec<String> {
        let dns = self.service_cidr.nth(10).expect("a service range was checked to hold more than ten addresses");
        let mut flags = vec![
            format!("--kubeconfig={KUBELET}"),
            format!("--hostname-override={}", self.node_name),
            format!("--node-ip={}", self.address),
            format!("--root-dir={PODS}"),
            format!("--run-dir={RUN}"),
            format!("--pod-log-dir={POD_LOGS}"),
            format!("--container-runtime-endpoint={}", self.cri_socket.display()),
            format!("--cgroup-root={}", self.cgroup_root),
            format!("--cluster-cidr={}", self.pod_cidr),
            format!("--cluster-dns={dns}"),
            format!("--client-ca-file={PKI}/ca.crt"),
            format!("--cni-conf-dir={CNI_CONF}"),
            format!("--cni-bin-dir={CNI_BIN}"),
        ];
        if self.control_plane.is_none() {
            flags.push(format!("--bootstrap-kubeconfig={BOOTSTRAP}"));
        }
        flags
    }
}

/// The supervisor, if it runs.
pub(crate) fn supervisor() -> Option<Pid> {
    process::running(&supervisor_pid_file(), "leme")
}

/// Starts the supervisor, unless it runs; what runs already it adopts.
pub(crate) fn start() -> Result<()> {
    if supervisor().is_some() {
        return Ok(());
    }
    let path = Path::new(LOGS).join("supervisor.log");
    let log = fs::File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this binary")?);
    command.arg("supervise-host").current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: both calls are async-signal-safe and touch nothing of the parent's.
    unsafe { command.pre_exec(leave_caller) };
    let mut child = command.spawn().context("cannot start the supervisor")?;
    let ready = process::wait_until(Duration::from_secs(5), || supervisor().is_some());
    if !ready || child.try_wait()?.is_some() {
        let text = fs::read_to_string(&path).unwrap_or_default();
        bail!("the supervisor did not start: {}", text.lines().last().unwrap_or("it said nothing"));
    }
    Ok(())
}

/// A session of its own, and nothing open of the caller's: a pipe that stays open would keep whoever reads it waiting.
fn leave_caller() -> std::io::Result<()> {
    // SAFETY: a system call with plain numbers. Kernels before 5.11 do not know the flag, and the rest works without.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    nix::unistd::setsid().map(drop).map_err(Into::into)
}

/// Ends the supervisor, which leaves its parts to whoever ends them next.
pub(crate) fn stop_supervisor() -> Result<()> {
    supervisor().map_or(Ok(()), |pid| end(pid, "the supervisor"))
}

/// Ends a part by its pid file; absent is done.
pub(crate) fn stop(name: &str) -> Result<()> {
    let file = pid_file(name);
    let outcome = process::running(&file, "leme").map_or(Ok(()), |pid| end(pid, name));
    let _ = fs::remove_file(file);
    outcome
}

fn end(pid: Pid, what: &str) -> Result<()> {
    process::signal(pid, Signal::SIGTERM);
    if process::wait_until(END, || !process::alive(pid)) {
        return Ok(());
    }
    process::signal(pid, Signal::SIGKILL);
    if !process::wait_until(END, || !process::alive(pid)) {
        bail!("{what} (process {pid}) does not end");
    }
    Ok(())
}

//! `leme-cni`: the CNI plugin. Environment and standard input become one request to the agent; its reply is printed.
//!
//! Run by the container runtime for each pod, so it starts in a millisecond and holds no state: no tokio, no netlink,
//! no maps. It waits a moment for an agent that is just being restarted; an agent that stays away is "try again later",
//! for DEL too, so that the runtime repeats it and nothing leaks. Installed as `loopback` it is that plugin instead.

mod loopback;

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use leme_cni::{
    Command, Failure, MAX_MESSAGE, Reply, Request, code,
    spec::{self, Call},
};

/// An agent restart takes less than this.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The agent answers in milliseconds; runtimes give a sandbox minutes.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    if let Err(error) = io::stdin().lock().take(MAX_MESSAGE as u64).read_to_end(&mut stdin) {
        let failure = Failure::new(code::IO_FAILURE, "failed to read the network configuration", error);
        return print(&spec::error(&spec::version_of(&[]), &failure), 1);
    }
    let version = spec::version_of(&stdin);
    match spec::parse(|name| std::env::var(name).ok(), &stdin).and_then(|call| answer(&version, call)) {
        Ok(Answer::Versions) => print(&spec::versions(&version), 0),
        Ok(Answer::Document(None)) | Ok(Answer::Reply(Reply::Done)) => ExitCode::SUCCESS,
        Ok(Answer::Document(Some(result))) => print(&result, 0),
        Ok(Answer::Reply(Reply::Attached(made))) => print(&spec::result(&version, &made), 0),
        Ok(Answer::Reply(Reply::Failed(failure))) | Err(failure) => print(&spec::error(&version, &failure), 1),
    }
}

enum Answer {
    Versions,
    Document(Option<serde_json::Value>),
    Reply(Reply),
}

fn answer(version: &str, call: Call) -> Result<Answer, Failure> {
    match call {
        Call::Version => Ok(Answer::Versions),
        Call::Ask { request, .. } if loopback::is_invoked() => {
            loopback::answer(version, &request).map(Answer::Document)
        }
        Call::Ask { socket, request } => ask(&socket, &request).map(Answer::Reply),
    }
}

fn ask(socket: &str, request: &Request) -> Result<Reply, Failure> {
    let stream = connect(socket).map_err(|error| unavailable(request.command, socket, error))?;
    let bytes = exchange(stream, request).map_err(|error| unavailable(request.command, socket, error))?;
    serde_json::from_slice(&bytes).map_err(|error| unavailable(request.command, socket, error.into()))
}

/// A STATUS waits too: a node whose agent is being restarted is not to be reported as not ready.
fn connect(socket: &str) -> io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_WITHIN;
    loop {
        match UnixStream::connect(socket) {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = Vec::new();
    stream.take(MAX_MESSAGE as u64).read_to_end(&mut reply)?;
    Ok(reply)
}

fn unavailable(command: Command, socket: &str, error: io::Error) -> Failure {
    let code = if command == Command::Status { code::PLUGIN_NOT_AVAILABLE } else { code::TRY_AGAIN_LATER };
    Failure::new(code, "the leme agent does not answer", format!("{socket}: {error}; is `leme agent` running?"))
}

fn print(document: &serde_json::Value, status: u8) -> ExitCode {
    match writeln!(io::stdout(), "{document:#}") {
        Ok(()) => ExitCode::from(status),
        Err(_) => ExitCode::FAILURE,
    }
}

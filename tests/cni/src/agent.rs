//! The agent's CNI part, in a process of its own.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use crate::Node;

/// From when on steps count.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// The agent's start, with all that it adopts.
    Start,
    /// The first request.
    Request,
}

pub struct Agent(Child);

impl Agent {
    /// Returns when it serves.
    pub fn start(node: &Node) -> Self {
        let mut agent = Self(command(node).spawn().expect("the agent starts"));
        assert!(agent.says_ready(), "the agent ended before it served");
        agent
    }

    /// Starts one that dies after so many steps. None if it dies while it starts.
    pub fn doomed(node: &Node, moment: Moment, steps: usize) -> Option<Self> {
        let moment = match moment {
            Moment::Start => "start",
            Moment::Request => "request",
        };
        let mut agent = Self(command(node).args([moment, &steps.to_string()]).spawn().expect("the agent starts"));
        agent.says_ready().then_some(agent)
    }

    fn says_ready(&mut self) -> bool {
        let mut line = String::new();
        let output = self.0.stdout.as_mut().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("its output can be read");
        line == "ready\n"
    }

    /// And waits until it is gone.
    pub fn kill(self) {}
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In the namespace of the thread that calls this.
fn command(node: &Node) -> Command {
    let mut command = Command::new(node.agent_binary);
    command.arg(node.state()).args([
        &node.name,
        node.cgroup.to_str().expect("ASCII"),
        &node.nic.to_string(),
        &node.pods,
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

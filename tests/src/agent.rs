//! Machines that join a cluster.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
};

use crate::program::{Program, binary};

/// Flags of a machine that runs no containers.
pub const NO_CONTAINERS: [&str; 2] = ["--container-runtime-endpoint", "none"];

/// A `wasmk agent`, ended when dropped.
#[derive(Debug)]
pub struct Agent(Child);

impl Agent {
    /// Joins as a node of that name by the program's own address; `flags` are more of its flags.
    pub fn join(program: &Program, name: &str, flags: &[&str]) -> Self {
        Self::join_at(program, &format!("https://{}", program.address("api")), name, flags)
    }

    /// Joins by another of the cluster's addresses.
    pub fn join_at(program: &Program, server: &str, name: &str, flags: &[&str]) -> Self {
        let token = program.wasmk(&["token", "create", "-q"]);
        Self::start(program, name, &[&["--server", server, "--token", token.trim()], flags].concat())
    }

    /// Comes back with what it had.
    pub fn return_to(program: &Program, name: &str, flags: &[&str]) -> Self {
        Self::start(program, name, flags)
    }

    fn start(program: &Program, name: &str, flags: &[&str]) -> Self {
        let log = File::create(program.scratch().join(format!("{name}.log"))).expect("a log file");
        let mut command = Command::new(binary());
        command
            .args(["agent", "--node-name", name, "--data-dir"])
            .arg(program.scratch().join(name))
            .args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("the agent starts"))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that is halted is ended, too.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

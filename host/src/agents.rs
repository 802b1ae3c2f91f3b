//! Nodes beside the control plane, on its machine: `wasmk agent` processes that `wasmk up --agents` starts, starts again
//! when they end, and ends with itself.
//!
//! Each has a directory of its own below the cluster's, and a join token made for it as long as it has no certificate. It
//! ends when its input does, so that none outlives a control plane that was killed.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, api::DeleteParams};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    agent::NodeOptions,
    data_dir::{Claim, DataDir, Running},
    files,
    join::{self, Identity},
    own_log,
};

/// Agents of one control plane at most: with the machine's own node as many as the default range of pods' addresses has
/// parts.
pub(crate) const MOST: u16 = 15;
/// Rest before an agent is started again that ended soon after its start; doubled each time.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest such rest.
const LONGEST: Duration = Duration::from_secs(60);
/// An agent that ran for so long ended for a new reason.
const STEADY: Duration = Duration::from_secs(60);
/// How long a join token is good for.
const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// How often is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(50);
/// Longest time for an agent to end: its pods' and some more.
const STOP: Duration = Duration::from_secs(40);

/// The agents of a control plane.
pub(crate) struct Agents {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Agents {
    /// Starts those that `running` names, and makes those go that an earlier start had beside them. Does not wait until
    /// they have joined.
    ///
    /// # Errors
    /// When a directory or log cannot be made.
    pub(crate) async fn start(
        data: &DataDir,
        running: &Running,
        options: &NodeOptions,
        client: Client,
    ) -> Result<Self> {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for index in running.agents.len()..data.agents().max(running.agents.len()) {
            let gone = remove(data, index, &client).await;
            gone.with_context(|| format!("{} cannot go", data.agent(index).path().display()))?;
        }
        for (index, name) in running.agents.iter().enumerate() {
            let (data, log) = (data.agent(index), data.agent_log(index));
            files::private_dir(data.path())?;
            own_log::open(&log).with_context(|| format!("cannot write {}", log.display()))?;
            let keeper = Keeper {
                name: name.clone(),
                data,
                log,
                server: format!("https://{}", running.api_from_here()),
                flags: options.for_agents(),
                client: client.clone(),
            };
            tasks.spawn(keeper.run(stop.clone()));
        }
        tasks.close();
        Ok(Self { stop, tasks })
    }

    /// Ends them; returns when they have ended.
    pub(crate) async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// Takes a node that is not wanted any more out of the cluster, and its things off the disk.
async fn remove(data: &DataDir, index: usize, client: &Client) -> Result<()> {
    let own = data.agent(index);
    let claim = claim(&own).await?;
    let name = Identity::load(own.path()).ok().flatten().and_then(|identity| identity.node());
    if let Some(name) = name {
        match Api::<Node>::all(client.clone()).delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other.with_context(|| format!("node {name}"))?),
        }
    }
    drop(claim);
    fs::remove_dir_all(own.path())?;
    files::remove_if_there(&data.agent_log(index))
}

/// Claims an agent's directory, when its process has ended: that of a control plane that was killed may be about to.
async fn claim(own: &DataDir) -> Result<Claim> {
    let deadline = Instant::now() + STOP;
    loop {
        match own.claim() {
            Err(_) if own.running_agent()?.is_some() && Instant::now() < deadline => {
                tokio::time::sleep(LOOK).await;
            }
            outcome => return outcome,
        }
    }
}

/// Keeps one agent running.
struct Keeper {
    name: String,
    data: DataDir,
    log: PathBuf,
    server: String,
    flags: Vec<OsString>,
    client: Client,
}

impl Keeper {
    async fn run(self, stop: CancellationToken) {
        let logs = own_log::keep_anothers_short(self.log.clone());
        tokio::select! {
            () = self.keep(&stop) => {}
            () = logs => {}
        }
    }

    async fn keep(&self, stop: &CancellationToken) {
        let mut pause = Duration::ZERO;
        loop {
            let began = Instant::now();
            let ended = self.once(stop).await;
            if stop.is_cancelled() {
                return;
            }
            pause = rest(pause, began.elapsed());
            let why = ended.map_or_else(|e| format!("{e:#}"), |status| status.to_string());
            let (node, log, again) = (&self.name, self.log.display(), pause.as_secs());
            tracing::warn!(node, why, %log, "an agent has ended; it is started again after {again} s");
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// From the agent's start to its end.
    async fn once(&self, stop: &CancellationToken) -> Result<ExitStatus> {
        let token = self.token().await.context("it got no join token")?;
        let mut child = self.spawn(token).context("it cannot be started")?;
        // Waiting would close it, and its end is the agent's.
        let _input = child.stdin.take();
        tokio::select! {
            status = child.wait() => return Ok(status?),
            () = stop.cancelled() => {}
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        }
        if let Ok(status) = tokio::time::timeout(STOP, child.wait()).await {
            return Ok(status?);
        }
        tracing::warn!(node = self.name, "an agent did not stop in time");
        child.kill().await?;
        Ok(child.wait().await?)
    }

    /// What the agent joins with, when it has no certificate that is good here.
    async fn token(&self) -> Result<Option<String>> {
        let ca = join::published_ca(&self.client).await?;
        let known = Identity::load(self.data.path()).ok().flatten();
        if known.is_some_and(|identity| identity.is_of(&self.name, &ca)) {
            return Ok(None);
        }
        files::remove_if_there(&self.data.kubeconfig())?;
        join::create_token(&self.client, &ca, TOKEN_LIFE).await.map(Some)
    }

    fn spawn(&self, token: Option<String>) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        // This very program, also when another was put into its place.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("wasmk").args(["agent", "--until-input-ends", "--node-name", &self.name]);
        command.args(["--server", &self.server, "--data-dir"]).arg(self.data.path()).args(&self.flags);
        command.env_remove("WASMK_TOKEN").envs(token.map(|token| ("WASMK_TOKEN", token)));
        // A group of its own: Ctrl-C is for the control plane, which ends its agents before itself.
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        command.kill_on_drop(true).spawn()
    }
}

/// The rest before the next start, by that before the last one and how long it went well since.
fn rest(last: Duration, ran: Duration) -> Duration {
    if ran >= STEADY { SHORTEST } else { (last * 2).clamp(SHORTEST, LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_until_it_went_well_for_a_while() {
        let check = |last: u64, ran: u64, expect: u64| {
            let pause = rest(Duration::from_secs(last), Duration::from_secs(ran));
            assert_eq!(pause, Duration::from_secs(expect), "{last} {ran}");
        };
        check(0, 0, 1);
        check(1, 1, 2);
        check(16, 59, 32);
        check(32, 3, 60);
        check(60, 3, 60);
        check(60, 60, 1);
    }
}

//! What the agent knows about one pod: a plain record, kept on disk so that a
//! restarted agent goes on with truthful restart counts.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};
use wasmk_api::{
    Timestamp,
    k8s_openapi::api::core::v1::{ContainerStatus, Pod},
};

use crate::containers::Sandbox;

/// First wait before a container that ended is started again (the very first restart is immediate).
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Longest wait between restarts and between pulls.
pub const BACKOFF_LAST: Duration = Duration::from_secs(300);
/// A run at least this long makes the next failure count as a first one.
pub const BACKOFF_RESET: Duration = Duration::from_secs(600);
/// Longest message kept of a failure, in bytes.
pub const MESSAGE_BYTES: usize = 4096;

/// One pod as the agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodState {
    /// When the agent first saw the pod.
    pub seen: Option<Timestamp>,
    /// Address and volumes.
    pub setup: Setup,
    /// The pod's address, once given.
    pub ip: Option<Ipv4Addr>,
    /// What its containers share in the container runtime, if any is there.
    pub sandbox: Option<Sandbox>,
    /// By container name; init containers are among them.
    pub containers: BTreeMap<String, ContainerState>,
    /// Why the whole pod was ended by the agent, if it was.
    pub verdict: Option<Verdict>,
    /// The pod had ended before this record began; only its deletion is still to be done.
    pub settled: bool,
}

/// How far the pod's address and volumes are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Setup {
    /// Not begun.
    #[default]
    None,
    /// Under way.
    Underway,
    /// Everything is in place.
    Done,
    /// Failed; tried again at `until`.
    Failed {
        /// For the user.
        message: String,
        /// When to try again.
        until: Timestamp,
    },
}

/// The agent's own reason to end a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// `DeadlineExceeded`, …
    pub reason: String,
    /// For the user.
    pub message: String,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Where it stands.
    pub phase: Phase,
    /// How often it was started again.
    pub restarts: u32,
    /// How the run before this one ended.
    pub last: Option<Ended>,
    /// Digest reference of the image in use.
    pub image_id: String,
    /// `wasmtime://…` or `containerd://…` of the current or last run.
    pub id: String,
    /// The startup probe passed, or there is none.
    pub started: bool,
    /// The readiness probe passed, or there is none.
    pub ready: bool,
    /// A liveness or startup probe gave up on this run; says why.
    pub unhealthy: Option<String>,
    /// Why the start before the one under way failed: reason and message.
    pub trouble: Option<(String, String)>,
    /// Wait before the next start after an end, in seconds.
    pub delay: u64,
    /// It is served by the agent (an instance per request) and has no run of its own.
    pub served: bool,
    /// It runs in the container runtime, which goes on without this agent.
    pub foreign: bool,
    /// It ran when this agent was started; nobody attends to it yet.
    pub orphan: bool,
}

/// Where a container stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Phase {
    /// Never started, nothing under way.
    #[default]
    Waiting,
    /// Image, configuration and instance are being prepared.
    Starting,
    /// Preparation failed; tried again at `until`.
    Blocked {
        /// `ErrImagePull`, `CreateContainerConfigError`, …
        reason: String,
        /// For the user.
        message: String,
        /// When it failed.
        since: Timestamp,
        /// When to try again.
        until: Timestamp,
    },
    /// Runs.
    Running {
        /// Since then.
        since: Timestamp,
    },
    /// Was asked to stop.
    Stopping {
        /// When the run began.
        since: Timestamp,
        /// When it is killed.
        deadline: Timestamp,
        /// The kill has been sent.
        killed: bool,
    },
    /// The run is over.
    Ended(Ended),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// As a shell would see it.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, …
    pub reason: String,
    /// For the user; may be empty.
    pub message: String,
    /// When the run began.
    pub started: Timestamp,
    /// When it was over.
    pub finished: Timestamp,
    /// `wasmtime://…` of that run.
    pub id: String,
}

impl ContainerState {
    /// Whether a run is going on (being stopped counts).
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Stopping { .. })
    }

    /// How the run ended, when it did.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.phase {
            Phase::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// Notes that a start is under way; counts a restart when a run went before.
    pub fn begin_start(&mut self) {
        self.trouble = None;
        match std::mem::take(&mut self.phase) {
            Phase::Ended(ended) => {
                self.delay = next_delay(self.delay, &ended);
                self.restarts = self.restarts.saturating_add(1);
                self.last = Some(ended);
            }
            Phase::Blocked { reason, message, .. } => self.trouble = Some((reason, message)),
            _ => {}
        }
        self.phase = Phase::Starting;
        self.unhealthy = None;
        self.started = false;
        self.ready = false;
        self.orphan = false;
    }

    /// Notes the end of a run; a container that never ran is left as it is.
    pub fn end(&mut self, code: i32, reason: &str, message: &str, now: Timestamp) {
        let started = match self.phase {
            Phase::Running { since } | Phase::Stopping { since, .. } => since,
            _ => now,
        };
        self.phase = Phase::Ended(Ended {
            code,
            reason: reason.into(),
            message: clip(message),
            started,
            finished: now,
            id: self.id.clone(),
        });
        self.ready = false;
        self.started = false;
    }

    /// Notes that preparing failed; `reason` decides nothing, the wait doubles each time.
    pub fn block(&mut self, reason: &str, message: &str, now: Timestamp) {
        let wait = Duration::from_secs(self.delay).clamp(BACKOFF_FIRST, BACKOFF_LAST);
        self.delay = (wait * 2).min(BACKOFF_LAST).as_secs();
        let until = now.after(wait);
        self.phase = Phase::Blocked { reason: reason.into(), message: clip(message), since: now, until };
    }
}

/// The wait after the next end, given how this run ended.
fn next_delay(delay: u64, ended: &Ended) -> u64 {
    if delay == 0 || ended.finished.since(ended.started) >= BACKOFF_RESET {
        return BACKOFF_FIRST.as_secs();
    }
    (delay * 2).min(BACKOFF_LAST.as_secs())
}

/// The first [`MESSAGE_BYTES`] of a text.
pub fn clip(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_string()
}

impl PodState {
    /// The record of a pod that this agent has none of: taken from what the API tells.
    pub fn adopt(pod: &Pod, now: Timestamp) -> Self {
        let mut state = Self { seen: Some(now), ..Self::default() };
        let Some(status) = &pod.status else { return state };
        state.settled = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if let Some(time) = &status.start_time {
            state.seen = Some(Timestamp(time.0));
        }
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        for known in all {
            state.containers.insert(known.name.clone(), ContainerState::adopt(known, now));
        }
        state
    }

    /// What is true after the agent itself was restarted: runs of commands are lost, what is
    /// served or in the container runtime goes on, anything under way begins anew.
    pub fn resume(&mut self, now: Timestamp) {
        if self.setup != Setup::None {
            self.setup = Setup::None;
        }
        for container in self.containers.values_mut() {
            match container.phase {
                Phase::Running { since } | Phase::Stopping { since, .. } if container.foreign => {
                    container.phase = Phase::Running { since };
                    container.orphan = true;
                }
                Phase::Running { .. } | Phase::Stopping { .. } if !container.served => {
                    container.end(137, "Error", "the node agent was restarted", now);
                }
                Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. } => {
                    container.phase = Phase::Waiting;
                }
                _ => {}
            }
        }
    }

    /// The named container's record, made when missing.
    pub fn container(&mut self, name: &str) -> &mut ContainerState {
        self.containers.entry(name.to_string()).or_default()
    }
}

impl ContainerState {
    /// From a status in the API: an init container that succeeded stays so, a run of which
    /// nothing is known here is lost.
    fn adopt(known: &ContainerStatus, now: Timestamp) -> Self {
        let mut out = Self {
            restarts: u32::try_from(known.restart_count).unwrap_or(0),
            image_id: known.image_id.clone(),
            id: known.container_id.clone().unwrap_or_default(),
            ..Self::default()
        };
        let Some(state) = &known.state else { return out };
        if let Some(run) = &state.running {
            out.phase = Phase::Running { since: run.started_at.as_ref().map_or(now, |t| Timestamp(t.0)) };
            out.end(137, "ContainerStatusUnknown", "the container could not be located", now);
        }
        if let Some(end) = &state.terminated {
            let time = |t: &Option<wasmk_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
                t.as_ref().map_or(now, |t| Timestamp(t.0))
            };
            out.phase = Phase::Ended(Ended {
                code: end.exit_code,
                reason: end.reason.clone().unwrap_or_default(),
                message: end.message.clone().unwrap_or_default(),
                started: time(&end.started_at),
                finished: time(&end.finished_at),
                id: out.id.clone(),
            });
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(wasmk_api::k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap())
    }

    #[test]
    fn back_off_doubles_and_is_forgotten_after_a_long_run() {
        let mut c = ContainerState::default();
        let mut now = 1_000;
        for (ran, wait) in [(1, 10), (1, 20), (1, 40), (1, 80), (1, 160), (1, 300), (1, 300), (601, 10)] {
            c.begin_start();
            c.phase = Phase::Running { since: at(now) };
            now += ran;
            c.end(1, "Error", "", at(now));
            let restarts = c.restarts;
            c.begin_start();
            assert_eq!((c.delay, c.restarts), (wait, restarts + 1), "after a run of {ran} s");
            c.phase = Phase::Waiting;
        }
    }

    #[test]
    fn a_restarted_agent_counts_lost_commands_and_keeps_what_it_serves() {
        let mut pod = PodState::default();
        pod.container("job").phase = Phase::Running { since: at(5) };
        pod.container("web").phase = Phase::Running { since: at(5) };
        pod.container("web").served = true;
        pod.container("box").phase = Phase::Stopping { since: at(5), deadline: at(8), killed: false };
        pod.container("box").foreign = true;
        pod.resume(at(9));
        let found = &pod.containers["box"];
        assert_eq!((&found.phase, found.orphan), (&Phase::Running { since: at(5) }, true));
        assert_eq!(pod.containers["job"].ended().map(|e| e.code), Some(137));
        assert_eq!(pod.containers["web"].phase, Phase::Waiting);
    }
}

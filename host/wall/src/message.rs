//! What agent and worker say to each other, and the bounds of it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wasmk_runtime::{
    BlobTold, BlobWish, Exit, HttpLimits, Mount, NetworkError, Reuse, Spec, Tally, Told, Wish,
};

/// Longest message to a worker, in bytes: a guest's variables and arguments are most of it.
pub(crate) const MAX_TO_WORKER: usize = 16 << 20;
/// Longest message to the agent, in bytes: a piece of a guest's output is most of it.
pub(crate) const MAX_TO_AGENT: usize = 1 << 20;
/// Longest wish for a key, value or object and longest answer to one, in bytes.
pub(crate) const MAX_WISH: usize = 3 << 20;
/// Bytes of a guest's output on their way to the agent before the guest waits.
pub(crate) const WINDOW: usize = 64 << 10;
/// Questions of a worker that the agent works on at a time.
pub(crate) const MAX_QUESTIONS: usize = 256;
/// Requests over one connection at a time.
pub(crate) const MAX_STREAMS: u32 = 4096;
/// Bytes of one body that are sent before the other side has taken them.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
/// The same of all bodies of a connection: no number of slow ones holds the others up.
pub(crate) const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS / 2;
/// Longest headers of one message, in bytes; a guest's own limit is lower.
pub(crate) const MAX_HEADERS: u32 = 1 << 20;
/// Guests whose figures are told in one message.
pub(crate) const MAX_REPORTED: usize = 4096;

/// Says which guest a request is for.
pub(crate) const GUEST_HEADER: &str = "wasmk-wall-guest";
/// The request named no authority.
pub(crate) const ORIGIN_HEADER: &str = "wasmk-wall-origin";
/// The answer is a [`WireFault`].
pub(crate) const FAULT_HEADER: &str = "wasmk-wall-fault";
/// Longest text of a fault, in bytes.
pub(crate) const MAX_FAULT: usize = 64 << 10;

/// The first message to a worker: what it is going to be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) room: crate::walls::Room,
    pub(crate) max_instances: u32,
    pub(crate) instance_wait: Duration,
    pub(crate) memory_budget: Option<u64>,
    pub(crate) default_memory_limit: u64,
}

/// The first message of a worker: which walls stand around it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// It is a user of its own.
    pub user: Option<u32>,
    /// The kernel's version of Landlock; 0 if it has none and no files are to be had at all.
    pub landlock: u32,
    /// System calls are filtered.
    pub seccomp: bool,
    /// Sockets are made by the agent; without this there are none.
    pub sockets: bool,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.user {
            Some(_) => f.write_str("a user of its own, ")?,
            None => f.write_str("the agent's user without capabilities, ")?,
        }
        f.write_str(if self.seccomp { "seccomp, " } else { "no seccomp, " })?;
        match self.landlock {
            0 => f.write_str("no Landlock and therefore no files")?,
            version => write!(f, "Landlock {version}")?,
        }
        f.write_str(if self.sockets { ", sockets by the agent" } else { ", no sockets" })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Job {
    /// To its end.
    Run,
    /// Requests, by an HTTP component.
    Serve,
    /// Requests, by a command that is started for each.
    Cgi,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// With the code's file, and standard input's socket if there is one.
    Start(Box<Start>),
    /// Ends a run; takes no more requests for a handler.
    Kill { guest: u64 },
    /// With a socket that requests come by.
    Connection,
    /// So much of a guest's output was taken.
    Credit { guest: u64, bytes: u32 },
    /// To a question.
    Answer { question: u64, answer: Answer },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) guest: u64,
    pub(crate) job: Job,
    pub(crate) digest: String,
    pub(crate) reuse: Option<u32>,
    pub(crate) stdin: bool,
    pub(crate) spec: WireSpec,
}

/// The parts of a [`Spec`] that are data.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireSpec {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) working_dir: Option<String>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) cpu_millis: Option<u32>,
    pub(crate) run_timeout: Option<Duration>,
    pub(crate) http: HttpLimits,
    pub(crate) reuse: Reuse,
    pub(crate) address: Option<IpAddr>,
    pub(crate) stores: Option<Vec<String>>,
    pub(crate) containers: Option<Vec<String>>,
}

impl From<&Spec> for WireSpec {
    fn from(spec: &Spec) -> Self {
        Self {
            args: spec.args.clone(),
            env: spec.env.clone(),
            mounts: spec.mounts.clone(),
            working_dir: spec.working_dir.clone(),
            memory_limit: spec.memory_limit,
            cpu_millis: spec.cpu_millis,
            run_timeout: spec.run_timeout,
            http: spec.http.clone(),
            reuse: spec.reuse,
            address: spec.network.address(),
            stores: spec.keyvalue.as_ref().map(|given| given.stores().to_vec()),
            containers: spec.blobs.as_ref().map(|given| given.containers().to_vec()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToAgent {
    /// The handler takes requests; or why not.
    Started { guest: u64, failed: Option<String> },
    /// The run is over; or it did not begin.
    Ended { guest: u64, outcome: Result<Exit, String> },
    /// A piece of output.
    Output { guest: u64, channel: Channel, bytes: Vec<u8> },
    /// What guests use, and the runtime's counters.
    Report { used: Vec<(u64, Used)>, tally: Tally },
    /// For a guest's network.
    Ask { question: u64, guest: u64, what: Question },
}

/// What a guest uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) memory: u64,
    pub(crate) instances: u64,
    pub(crate) requests: u64,
}

impl From<&wasmk_runtime::Usage> for Used {
    fn from(usage: &wasmk_runtime::Usage) -> Self {
        Self {
            cpu: usage.cpu(),
            memory: usage.memory(),
            instances: usage.instances(),
            requests: usage.requests(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// The addresses of a name.
    Resolve(String),
    /// Where a request to that scheme and authority goes.
    Http(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Resolved(Result<Vec<IpAddr>, Refusal>),
    Http(Result<Vec<SocketAddr>, Refusal>),
}

/// A [`NetworkError`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Denied(String),
    NotFound(String),
    Unreachable(String),
}

impl From<NetworkError> for Refusal {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Denied(what) => Self::Denied(what),
            NetworkError::NotFound(what) => Self::NotFound(what),
            NetworkError::Unreachable(what) => Self::Unreachable(what),
        }
    }
}

impl From<Refusal> for NetworkError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied(what) => Self::Denied(what),
            Refusal::NotFound(what) => Self::NotFound(what),
            Refusal::Unreachable(what) => Self::Unreachable(what),
        }
    }
}

/// A guest's wish for what is kept for it; they go by a socket of their own, whose other end waits.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeepWish {
    pub(crate) guest: u64,
    pub(crate) wish: Kept,
}

/// What a wish is about.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Kept {
    Key(Wish),
    Blob(BlobWish),
}

/// The answer to a [`KeepWish`].
pub(crate) type KeepTold = Result<KeptTold, String>;

/// The answer to a [`Kept`] of the same kind.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum KeptTold {
    Key(Told),
    Blob(BlobTold),
}

/// Why a request has no answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireFault {
    pub(crate) text: String,
    pub(crate) backtrace: String,
}

/// Room for a whole number that says how long a message is, and for how many files come with it.
pub(crate) const HEAD: usize = 5;

/// A message with its head.
pub(crate) fn frame(message: &impl Serialize, files: usize) -> Vec<u8> {
    // Nothing here is of unknown length or of a kind that cannot be written.
    let body = postcard::to_allocvec(message).unwrap_or_default();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEAD + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.push(u8::try_from(files).unwrap_or(u8::MAX));
    frame.extend_from_slice(&body);
    frame
}

/// The message in a frame's body.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> std::io::Result<T> {
    postcard::from_bytes(body)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))
}

/// A directory that a worker may see.
pub(crate) fn directories(mounts: &[Mount]) -> Vec<crate::walls::Directory> {
    let directory = |mount: &Mount| crate::walls::Directory {
        path: PathBuf::from(&mount.host),
        read_only: mount.read_only,
    };
    mounts.iter().map(directory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let message = ToAgent::Output { guest: 7, channel: Channel::Stderr, bytes: b"hello".to_vec() };
        let frame = frame(&message, 2);
        assert_eq!(
            (frame[..4].to_vec(), frame[4]),
            (((frame.len() - HEAD) as u32).to_le_bytes().to_vec(), 2)
        );
        let read: ToAgent = parse(&frame[HEAD..]).unwrap();
        assert_eq!(format!("{read:?}"), format!("{message:?}"));
        for cut in 0..frame.len() - HEAD {
            let _ = parse::<ToAgent>(&frame[HEAD..HEAD + cut]).unwrap_err();
        }
        // Lengths that are not there take no memory.
        assert!(parse::<ToAgent>(&[2, 7, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    }

    #[test]
    fn walls_are_named() {
        let all = Standing { user: Some(7), landlock: 6, seccomp: true, sockets: true };
        assert_eq!(all.to_string(), "a user of its own, seccomp, Landlock 6, sockets by the agent");
        let few = Standing { seccomp: true, ..Standing::default() };
        assert!(few.to_string().contains("no Landlock"), "{few}");
    }
}

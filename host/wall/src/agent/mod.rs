//! The agent's side: which worker a guest is in, and how it is started, fed and ended there.

mod core;
mod guest;
mod handler;
mod process;
mod run;
mod slot;
mod start;
mod users;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use wasmk_runtime::{Program, Runtime, Spec};

use crate::error::Error;
use crate::groups::Groups;
use crate::message::{Job, Standing, directories};
use crate::walls::Directory;
use process::Spawner;
use slot::Slot;
use users::{User, Users};

pub use handler::Handler;

/// What the embedding program decides.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program that is a worker when it is started with the arguments.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The bounds on instances and memory, for each worker.
    pub bounds: wasmk_runtime::Settings,
    /// Each worker is a user of its own, which needs root; no two are the same of the agents that name the same file.
    pub users: Option<PathBuf>,
}

/// Runs guests in workers. Clones are the same wall.
#[derive(Clone)]
pub struct Wall(Arc<Inner>);

struct Inner {
    runtime: Runtime,
    settings: Settings,
    spawner: OnceLock<Spawner>,
    shared: Mutex<HashMap<String, Arc<Slot>>>,
    users: Option<Users>,
    groups: OnceLock<Option<Groups>>,
}

impl Wall {
    /// A wall without workers yet. Programs come from `runtime`, and its counters count what workers do.
    pub fn new(runtime: Runtime, settings: Settings) -> Self {
        let (spawner, shared, groups) = (OnceLock::new(), Mutex::default(), OnceLock::new());
        let users = settings.users.as_deref().map(Users::new);
        Self(Arc::new(Inner { runtime, settings, spawner, shared, users, groups }))
    }

    /// Starts a worker and ends it again: which walls there are on this machine.
    ///
    /// # Errors
    /// When there can be no workers.
    pub async fn probe(&self) -> Result<Standing, Error> {
        let worker = start::worker(self, &[]).await?;
        Ok(worker.standing.clone())
    }

    /// Serves requests with a guest of that group; guests of a group without directories share a worker, which is
    /// started with the first request.
    pub fn handler(&self, group: &str, program: Arc<Program>, spec: Spec) -> Handler {
        Handler::new(self.clone(), self.place(group, &spec), Job::Serve, program, spec)
    }

    /// The same with a command that is started for each request, as [`Program::cgi`] has it.
    pub fn cgi(&self, group: &str, program: Arc<Program>, spec: Spec) -> Handler {
        Handler::new(self.clone(), self.place(group, &spec), Job::Cgi, program, spec)
    }

    /// The worker that a guest belongs into.
    fn place(&self, group: &str, spec: &Spec) -> Arc<Slot> {
        if !spec.mounts.is_empty() || spec.network.is_apart() {
            return Arc::new(Slot::new(directories(&spec.mounts)));
        }
        let mut shared = self.0.shared.lock();
        // Those that nobody uses and that have no worker are made again when they are needed.
        shared.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.is_used());
        Arc::clone(shared.entry(group.to_owned()).or_insert_with(|| Arc::new(Slot::new(Vec::new()))))
    }

    fn directories_allowed(&self, directories: &[Directory]) -> Result<(), Error> {
        match directories.iter().find(|directory| !directory.path.exists()) {
            Some(missing) => Err(Error::Guest(format!("{} does not exist", missing.path.display()))),
            None => Ok(()),
        }
    }

    fn user(&self) -> Option<User> {
        self.0.users.as_ref()?.take()
    }
}

impl Inner {
    /// Where workers have control groups of their own; `None` where they cannot, which is said once. Blocks.
    fn groups(&self) -> Option<&Groups> {
        let make = || {
            let made = Groups::new();
            made.inspect_err(|why| {
                tracing::info!("processes for guests have no control group of their own: {why}")
            })
            .ok()
        };
        self.groups.get_or_init(make).as_ref()
    }
}

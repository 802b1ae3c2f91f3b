//! What every controller is made of: shared caches, a work queue, a clock, an event
//! recorder and writes that carry preconditions.
//!
//! A controller subscribes to the caches it reads, lets changes put keys into its
//! queue and reconciles one key at a time. Nothing here knows what a controller does.

mod claim;
mod clock;
mod context;
mod discovery;
mod error;
mod events;
mod informer;
mod meta;
mod names;
mod pods;
mod queue;
mod wake;
mod watched;

pub use claim::{Claim, Claimed};
pub use clock::Clock;
pub use context::{Accounts, Context, LoadBalancer, Next, Settings};
pub use discovery::{Discovery, Served};
pub use error::{Error, Result};
pub use events::{Kind as EventKind, Recorder};
pub use informer::{Informer, Informers};
pub use meta::{Key, controller_of, controller_ref, is_deleting, reference, time, time_of, uid};
pub use names::{Names, hash, number};
pub use pods::{
    PodView, active, condition, container_restarts, is_available, is_finished, is_ready, pod_from_template,
    ready_since, total_restarts,
};
pub use queue::Queue;
pub use wake::{on_change, on_child, on_orphan, owner_key};
pub use watched::Watched;
pub(crate) use watched::{TOKENS_OF_ACCOUNTS, TOKENS_TO_JOIN, selecting, selects};

//! Revisioned key-value store with watches. It knows bytes, not kinds.
//!
//! One global, strictly rising [`Revision`] numbers every committed transaction. [`Store`] is the contract;
//! the backends behind it are
//!
//! - [`Memory`]: nothing on disk, for tests and throw-away clusters;
//! - [`Embedded`]: an append-only log of our own in a data directory, the default of a real server;
//! - [`Etcd`]: an etcd cluster, for several servers on one state.
//!
//! [`Sealed`] encrypts the values of some keys on their way into any of them.
//!
//! What every backend keeps:
//!
//! - A transaction is atomic: all of its changes carry one revision, and no reader or watcher sees half of it.
//! - [`Store::txn`] returns when the change is as durable as it asked for, and is visible to every read after that.
//! - A watcher gets every change under its prefix once, in revision order, or an error that says from where
//!   history is still there. A writer never waits for a watcher.
//! - A read at a revision sees exactly the state of that revision until it is compacted.

mod embedded;
mod error;
mod etcd;
mod memory;
mod mvcc;
mod seal;
mod shared;
mod snapshot;
mod store;
mod watch;

pub use bytes::Bytes;

pub use embedded::{
    CheckpointInfo, Contents, Embedded, Inspection, LogEntry, LoggedChange, Recovery, Repair, SegmentInfo,
    Settings, Stats,
};
pub use error::Error;
pub use etcd::{Etcd, EtcdTls};
pub use memory::Memory;
pub use mvcc::History;
pub use seal::{Cipher, Key, Provider, Rule, Sealed};
pub use snapshot::{SnapshotInfo, check as check_snapshot, export, import};
pub use store::{
    Compare, Durability, Health, KeyValue, MAX_KEY_BYTES, MAX_TXN_KEYS, MAX_VALUE_BYTES, Op, Range,
    RangeResult, Revision, Store, Txn, TxnOutcome,
};
pub use watch::{Event, MAX_BATCH_EVENTS, Watch, WatchBatch, WatchSource};

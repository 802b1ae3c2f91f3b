//! The contract every backend keeps, and the words it is written in.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Error, Watch};

/// Number of a committed transaction: global, strictly rising, never used twice. An empty store is at 1.
pub type Revision = u64;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// Largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 8 * 1024 * 1024;
/// Most keys one transaction may compare, and most it may change.
pub const MAX_TXN_KEYS: usize = 1024;

/// A key with its value and the revisions that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Revision in which the key last came into being.
    pub create_revision: Revision,
    /// Revision of the last change.
    pub mod_revision: Revision,
}

/// What to read: the keys that start with `prefix`, in byte order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Range<'a> {
    /// Keys must start with this.
    pub prefix: &'a [u8],
    /// Continue from this key, inclusive; `None` starts at the first.
    pub start: Option<&'a [u8]>,
    /// At most so many items; 0 for all.
    pub limit: usize,
    /// Read as of this revision; `None` for the current one.
    pub at: Option<Revision>,
}

/// One page of a range.
#[derive(Debug, Clone)]
pub struct RangeResult {
    /// The items, in key order.
    pub items: Vec<KeyValue>,
    /// The revision the page shows; pass it as `at` to continue consistently.
    pub revision: Revision,
    /// Whether keys follow after the last item.
    pub more: bool,
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// The revision it must have been changed in last; 0 when it must not exist.
    pub mod_revision: Revision,
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Removes the key; removing an absent key changes nothing.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Op {
    /// The key this changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// When a transaction counts as done; what asks for more comes later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// It survives an orderly end of the process; its death and a power failure only after the next write of
    /// another kind or [`Settings::held_delay`](crate::Settings::held_delay), whichever is sooner. Costs no write of
    /// its own. For heartbeats, the next of which makes up for a lost one.
    Held,
    /// It survives the death of the process, and a power failure after the next sync or
    /// [`Settings::relaxed_delay`](crate::Settings::relaxed_delay), whichever is sooner. For events.
    Relaxed,
    /// It survives a power failure.
    #[default]
    Synced,
}

/// Changes that happen together or not at all, if all conditions hold. A key may be changed once.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// The conditions; none means always.
    pub compares: Vec<Compare>,
    /// The changes.
    pub ops: Vec<Op>,
    /// When it counts as done.
    pub durability: Durability,
}

impl Txn {
    /// Sets `key` if it was last changed in `mod_revision` (0: if it is absent).
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>, mod_revision: Revision) -> Self {
        let (key, value) = (key.into(), value.into());
        let compares = vec![Compare { key: key.clone(), mod_revision }];
        Self { compares, ops: vec![Op::Put { key, value }], durability: Durability::Synced }
    }

    /// Removes `key` if it was last changed in `mod_revision`.
    pub fn delete(key: impl Into<Bytes>, mod_revision: Revision) -> Self {
        let key = key.into();
        let compares = vec![Compare { key: key.clone(), mod_revision }];
        Self { compares, ops: vec![Op::Delete { key }], durability: Durability::Synced }
    }

    /// The same with [`Durability::Relaxed`].
    pub fn relaxed(mut self) -> Self {
        self.durability = Durability::Relaxed;
        self
    }

    /// The same with [`Durability::Held`].
    pub fn held(mut self) -> Self {
        self.durability = Durability::Held;
        self
    }

    /// Checks every bound and that no key is changed twice.
    pub(crate) fn check(&self) -> Result<(), Error> {
        bound("the transaction (keys)", self.compares.len().max(self.ops.len()), MAX_TXN_KEYS)?;
        let mut keys: Vec<&Bytes> = self.ops.iter().map(Op::key).collect();
        for key in keys.iter().copied().chain(self.compares.iter().map(|c| &c.key)) {
            if key.is_empty() {
                return Err(Error::Invalid("a key is empty".into()));
            }
            bound("the key (bytes)", key.len(), MAX_KEY_BYTES)?;
        }
        let size: usize =
            self.ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 }).sum();
        bound("the transaction's values (bytes)", size, MAX_VALUE_BYTES)?;
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                Err(Error::Invalid(format!("key {:?} is changed twice", String::from_utf8_lossy(pair[0]))))
            }
            None => Ok(()),
        }
    }
}

fn bound(what: &'static str, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit { Err(Error::TooLarge { what, size, limit }) } else { Ok(()) }
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// All conditions held; the changes are visible in `revision`. A transaction that changes nothing takes no
    /// revision of its own and answers with the current one.
    Committed {
        /// The revision of the changes.
        revision: Revision,
    },
    /// A condition did not hold; nothing changed.
    Failed {
        /// What the compared keys hold, in the order of the compares.
        current: Vec<Option<KeyValue>>,
    },
}

/// A revisioned key-value store.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key, as of `at` or now. [`Error::Compacted`] when `at` is gone, [`Error::FutureRevision`] when it
    /// has not happened.
    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error>;

    /// Reads a page of keys; errors as [`get`](Self::get).
    async fn range(&self, range: Range<'_>) -> Result<RangeResult, Error>;

    /// Commits changes under conditions. After an I/O error the outcome is unknown: the changes are not visible
    /// now, but may be after a restart.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error>;

    /// Watches the keys under `prefix`: every change with a revision greater than `from`, in order, once.
    /// [`Error::Compacted`] when `from` is older than the history kept, [`Error::FutureRevision`] when `from` has not
    /// happened.
    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, Error>;

    /// Asks the watches on exactly `prefix` to report now how far they are, even if nothing changed under it:
    /// each that is behind the current revision gets a batch (empty, if need be) that reaches it. Without being
    /// asked, a watch reports progress a fraction of a second after a change elsewhere.
    async fn request_progress(&self, prefix: &[u8]) -> Result<(), Error>;

    /// Forgets history before `revision`, which itself stays readable. Compacting what is compacted does nothing.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// The current revision: at least that of every transaction acknowledged before the call.
    async fn revision(&self) -> Result<Revision, Error>;

    /// The oldest revision that can still be read or watched from.
    async fn compacted(&self) -> Result<Revision, Error>;

    /// How the store is doing, without asking anybody.
    fn health(&self) -> Health {
        Health::default()
    }
}

/// How a store is doing, for health checks and metrics.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Why writes are refused until somebody does something, if they are.
    pub problem: Option<String>,
    /// What should be looked after before it becomes one.
    pub warnings: Vec<String>,
    /// Figures, as Prometheus would name them: name, what it is, value.
    pub figures: Vec<(&'static str, &'static str, f64)>,
}

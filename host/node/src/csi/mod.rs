//! Volumes of storage drivers that speak CSI. Drivers register by a socket in a directory of the node
//! ([`registry`]); volumes of those are staged once on the node and published for each pod ([`mount`]), and
//! the reverse when the last use is over ([`unmount`]).
//!
//! Every call is written down before it is made ([`record`]): after a crash nothing is forgotten that a
//! driver may have mounted. Calls for one volume never overlap; one that failed rests for longer each time.
//! Nothing below a mount is ever removed here, only what drivers have left empty.

mod expand;
mod mount;
mod owner;
mod record;
mod registry;
mod request;
mod rest;
mod stats;
mod unmount;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use wasmk_csi::{Driver, v1::node_service_capability::rpc::Type as Ability};

use crate::engine::Failure;
use record::Records;
use rest::Rest;

/// Reason of a pod whose volumes cannot be mounted.
const MOUNT_ERROR: &str = "FailedMount";
/// Wait before volumes of pods that have left are tried again.
const LEAVE_PERIOD: Duration = Duration::from_secs(2);

/// The storage drivers of this node and the volumes they have mounted.
pub(crate) struct Csi {
    node: String,
    client: kube::Client,
    records: Records,
    drivers: Mutex<BTreeMap<String, Arc<Registered>>>,
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    rest: Rest,
    in_use: watch::Sender<Vec<String>>,
    /// Pods that are gone and whose volumes are still here.
    leaving: Mutex<BTreeSet<String>>,
}

/// A driver that serves this node.
struct Registered {
    name: String,
    client: Driver,
    /// What it calls this node.
    node_id: String,
    /// Volumes it can have on this node; 0 is no limit.
    most_volumes: i64,
    /// Where this node is, for it.
    topology: BTreeMap<String, String>,
    abilities: Vec<Ability>,
}

impl Registered {
    fn can(&self, ability: Ability) -> bool {
        self.abilities.contains(&ability)
    }
}

impl Csi {
    /// Keeps its things below `data`; `pods` are those that this node still has.
    pub(crate) fn open(
        node: &str,
        client: kube::Client,
        data: &Path,
        pods: &BTreeSet<String>,
    ) -> io::Result<Arc<Self>> {
        let records = Records::open(data)?;
        let leaving = records.pods().into_iter().filter(|uid| !pods.contains(uid)).collect();
        let (in_use, _) = watch::channel(records.in_use());
        Ok(Arc::new(Self {
            node: node.into(),
            client,
            records,
            drivers: Mutex::default(),
            turns: Mutex::default(),
            rest: Rest::default(),
            in_use,
            leaving: Mutex::new(leaving),
        }))
    }

    /// Names of the volumes that may not be detached from this node.
    pub(crate) fn in_use(&self) -> watch::Receiver<Vec<String>> {
        self.in_use.subscribe()
    }

    /// Follows drivers that come and go, and frees volumes of pods that have left.
    pub(crate) async fn keep(self: Arc<Self>) {
        tokio::join!(registry::follow(&self), self.free_leaving());
    }

    /// Whether a pod has volumes of drivers here.
    pub(crate) fn holds(&self, uid: &str) -> bool {
        self.records.holds(uid)
    }

    /// The pod is gone; its volumes are freed as soon as that can be done.
    pub(crate) fn leave(&self, uid: &str) {
        if self.holds(uid) {
            self.leaving.lock().insert(uid.into());
        }
    }

    async fn free_leaving(&self) {
        let mut ticks = tokio::time::interval(LEAVE_PERIOD);
        loop {
            ticks.tick().await;
            let uids: Vec<String> = self.leaving.lock().iter().cloned().collect();
            for uid in uids {
                match self.unmount(&uid).await {
                    Ok(()) => drop(self.leaving.lock().remove(&uid)),
                    Err(error) => tracing::debug!(uid, error, "cannot free a pod's volumes yet"),
                }
            }
        }
    }

    fn driver(&self, name: &str) -> Result<Arc<Registered>, Failure> {
        let found = self.drivers.lock().get(name).cloned();
        found.ok_or_else(|| {
            let text = format!("driver name {name} not found in the list of registered CSI drivers");
            Failure::new(MOUNT_ERROR, text)
        })
    }

    /// The turn of a volume: who holds it alone calls the driver for it.
    async fn turn(&self, driver: &str, handle: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock();
            turns.retain(|_, turn| turn.strong_count() > 0);
            let entry = turns.entry(format!("{driver}^{handle}")).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let fresh = Arc::default();
                *entry = Arc::downgrade(&fresh);
                fresh
            })
        };
        turn.lock_owned().await
    }

    fn note_in_use(&self) {
        let now = self.records.in_use();
        self.in_use.send_if_modified(|old| std::mem::replace(old, now.clone()) != now);
    }
}

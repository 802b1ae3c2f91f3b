//! Which resources the API serves now, custom ones included.

use std::{sync::Arc, time::Duration};

use kube::{
    Client,
    core::discovery::{ApiResource, Scope, verbs},
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{Error, Result};

/// How long a list of resources is used before it is read anew.
const MAX_AGE: Duration = Duration::from_secs(30);

/// A served resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// Its names.
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

impl Served {
    /// Whether it can be deleted, listed and watched: what garbage collection needs.
    pub fn is_collectable(&self) -> bool {
        [verbs::DELETE, verbs::LIST, verbs::WATCH].iter().all(|v| self.can(v))
    }

    /// Whether it has that verb.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// A cached list of served resources, each group in its preferred version.
pub struct Discovery {
    client: Client,
    cached: Mutex<Option<(Instant, Arc<Vec<Served>>)>>,
    stale: Notify,
}

impl Discovery {
    /// Reads through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, cached: Mutex::default(), stale: Notify::new() }
    }

    /// Says that kinds have come or gone.
    pub fn invalidate(&self) {
        *self.cached.lock() = None;
        self.stale.notify_waiters();
        self.stale.notify_one();
    }

    /// Returns when kinds have come or gone.
    pub async fn changed(&self) {
        self.stale.notified().await;
    }

    /// The served resources, at most half a minute old.
    pub async fn resources(&self) -> Result<Arc<Vec<Served>>> {
        if let Some((at, list)) = &*self.cached.lock()
            && at.elapsed() < MAX_AGE
        {
            return Ok(list.clone());
        }
        let fresh = Arc::new(self.read().await?);
        *self.cached.lock() = Some((Instant::now(), fresh.clone()));
        Ok(fresh)
    }

    async fn read(&self) -> Result<Vec<Served>> {
        let discovery = match kube::Discovery::new(self.client.clone()).run_aggregated().await {
            Ok(discovery) => discovery,
            Err(_) => kube::Discovery::new(self.client.clone())
                .run()
                .await
                .map_err(|e| Error::Discovery(Box::new(e)))?,
        };
        let mut all = Vec::new();
        for (resource, can) in discovery.groups_alphabetical().iter().flat_map(|g| g.recommended_resources())
        {
            let namespaced = can.scope == Scope::Namespaced;
            all.push(Served { resource, namespaced, verbs: can.operations });
        }
        Ok(all)
    }
}

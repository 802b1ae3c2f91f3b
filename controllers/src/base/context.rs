//! What a controller is given: caches, clock, events and writes; and the loop that runs it.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    serde::{Serialize, de::DeserializeOwned},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Clock, Discovery, Error, Informer, Informers, Key, Queue, Recorder, Result, Watched, is_deleting, uid,
};

/// How the controllers run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which controllers: names, `*` for all, `-name` to leave one out.
    pub enabled: Vec<String>,
    /// Objects a controller works on at once.
    pub workers: usize,
    /// Silence after which a node counts as unreachable.
    pub node_monitor_grace: Duration,
    /// How often nodes are looked at.
    pub node_monitor_period: Duration,
    /// Where nodes' pod ranges are taken from.
    pub cluster_cidr: String,
    /// Prefix length of one node's range.
    pub node_cidr_mask: u8,
    /// Authorities of the API's certificates, PEM; published to every namespace. Empty: not published.
    pub ca_pem: String,
    /// Certificate that signs requests, PEM. Empty: the first of `ca_pem`.
    pub signer_pem: String,
    /// Key with which requests are signed, PEM. Empty: none are signed.
    pub ca_key_pem: String,
    /// Key with which tokens in Secrets are signed, PEM. Empty: the API is asked for tokens that last long.
    pub token_key_pem: String,
    /// Finished pods beyond this number are collected, oldest first. Zero: never.
    pub terminated_pod_threshold: usize,
    /// Directory below which the built-in provisioner makes volumes. Empty: none are made.
    pub volume_root: String,
    /// Where services of type LoadBalancer answer.
    pub load_balancer: LoadBalancer,
}

/// The address that services of type LoadBalancer get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// None: somebody else gives them one.
    #[default]
    Nobody,
    /// The service's own ClusterIP, where that can be reached from outside the pods as well.
    ClusterIp,
    /// This address or name, where every service port answers.
    At(String),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: vec!["*".into()],
            workers: 5,
            node_monitor_grace: Duration::from_secs(50),
            node_monitor_period: Duration::from_secs(5),
            cluster_cidr: "127.42.0.0/16".into(),
            node_cidr_mask: 24,
            ca_pem: String::new(),
            signer_pem: String::new(),
            ca_key_pem: String::new(),
            token_key_pem: String::new(),
            terminated_pod_threshold: 12_500,
            volume_root: String::new(),
            load_balancer: LoadBalancer::Nobody,
        }
    }
}

impl Settings {
    /// Whether a controller of that name is to run.
    pub fn is_enabled(&self, name: &str) -> bool {
        let named = |wanted: &str| self.enabled.iter().any(|e| e == wanted);
        !named(&format!("-{name}")) && (named(name) || named("*"))
    }
}

/// When to look at an object again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// When something changes.
    Change,
    /// After that while, or when something changes.
    After(Duration),
}

impl Next {
    /// After a while if there is one.
    pub fn after(wait: Option<Duration>) -> Self {
        wait.map_or(Self::Change, Self::After)
    }
}

/// Shared by all controllers of a process.
#[derive(Clone)]
pub struct Context {
    /// The API.
    pub client: Client,
    /// Caches.
    pub informers: Informers,
    /// Served resources.
    pub discovery: Arc<Discovery>,
    /// The time.
    pub clock: Clock,
    /// Events about objects.
    pub events: Recorder,
    /// How to run.
    pub settings: Arc<Settings>,
    /// Clients of the service accounts that controllers write as; `None`: all write as one.
    pub accounts: Option<Accounts>,
    /// Ends everything.
    pub shutdown: CancellationToken,
}

/// Makes the client of a service account of `kube-system`, by its name.
pub type Accounts = Arc<dyn Fn(&str) -> Client + Send + Sync>;

impl Context {
    /// The cache of a kind.
    pub fn cache<K: Watched>(&self) -> Arc<Informer<K>> {
        self.informers.of()
    }

    /// Works on a queue's keys until shutdown, up to `workers` at once. A failed key comes
    /// back after its back-off.
    pub async fn work<K, F, Fut>(&self, name: &'static str, queue: &Queue<K>, workers: usize, reconcile: F)
    where
        K: Clone + Eq + std::hash::Hash + Ord + std::fmt::Display,
        F: Fn(K) -> Fut,
        Fut: Future<Output = Result<Next>>,
    {
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                key = queue.next(), if running.len() < workers.max(1) => {
                    let pass = reconcile(key.clone());
                    running.push(async move { (key, pass.await) });
                }
                Some((key, outcome)) = running.next() => settle(name, queue, key, outcome),
            }
        }
    }

    /// Creates an object. The cache has it when this returns.
    pub async fn create<K: Watched>(&self, object: &K) -> Result<Arc<K>> {
        let key = Key::of(object.meta());
        let api = K::api(self.client.clone(), &key.namespace);
        let made =
            api.create(&PostParams::default(), object).await.map_err(|e| failed::<K>("create", &key, e))?;
        Ok(self.cache::<K>().assume(made))
    }

    /// Writes a whole object, if it is still at the version it was read at.
    pub async fn replace<K: Watched>(&self, object: &K) -> Result<Arc<K>> {
        let key = Key::of(object.meta());
        let api = K::api(self.client.clone(), &key.namespace);
        let written = api
            .replace(&key.name, &PostParams::default(), object)
            .await
            .map_err(|e| failed::<K>("update", &key, e))?;
        Ok(self.cache::<K>().assume(written))
    }

    /// Writes an object's status, if it is still at the version it was read at.
    pub async fn replace_status<K: Watched>(&self, object: &K) -> Result<Arc<K>> {
        let key = Key::of(object.meta());
        let api = K::api(self.client.clone(), &key.namespace);
        let written = api
            .replace_subresource("status", &key.name, &PostParams::default(), object)
            .await
            .map_err(|e| failed::<K>("update the status of", &key, e))?;
        Ok(self.cache::<K>().assume(written))
    }

    /// Merges `patch` into an object, if it is still the same one (by uid).
    pub async fn patch<K: Watched>(&self, object: &K, patch: Value) -> Result<Arc<K>> {
        self.merge(object, None, patch).await
    }

    /// Merges `patch` into an object's subresource, if it is still the same one (by uid).
    pub async fn patch_sub<K: Watched>(&self, object: &K, sub: &str, patch: Value) -> Result<Arc<K>> {
        self.merge(object, Some(sub), patch).await
    }

    async fn merge<K: Watched>(&self, object: &K, sub: Option<&str>, mut patch: Value) -> Result<Arc<K>> {
        let key = Key::of(object.meta());
        patch["metadata"]["uid"] = json!(uid(object));
        let api = K::api(self.client.clone(), &key.namespace);
        let params = PatchParams::default();
        let written = match sub {
            None => api.patch(&key.name, &params, &Patch::Merge(&patch)).await,
            Some(sub) => api.patch_subresource(sub, &key.name, &params, &Patch::Merge(&patch)).await,
        };
        Ok(self.cache::<K>().assume(written.map_err(|e| failed::<K>("patch", &key, e))?))
    }

    /// Deletes an object, if it is still the same one. One that is gone already counts as deleted.
    pub async fn delete<K: Watched>(&self, object: &K, params: DeleteParams) -> Result<()> {
        let key = Key::of(object.meta());
        let condition = Preconditions { uid: object.meta().uid.clone(), resource_version: None };
        let api = K::api(self.client.clone(), &key.namespace);
        match api.delete(&key.name, &params.preconditions(condition)).await {
            Ok(outcome) => {
                match outcome.left().filter(|o| is_deleting(o) && uid(o) == uid(object)) {
                    Some(going) => drop(self.cache::<K>().assume(going)),
                    None => self.cache::<K>().forget(object),
                }
                Ok(())
            }
            Err(error) => {
                let error = failed::<K>("delete", &key, error);
                if error.is_not_found() {
                    self.cache::<K>().forget(object);
                    return Ok(());
                }
                Err(error)
            }
        }
    }

    /// Deletes in the background, letting the garbage collector take what it owns.
    pub async fn delete_background<K: Watched>(&self, object: &K) -> Result<()> {
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..Default::default() };
        self.delete(object, params).await
    }

    /// Reads an object past the cache, and takes the answer into it.
    pub async fn fetch<K: Watched>(&self, key: &Key) -> Result<Option<Arc<K>>> {
        let api = K::api(self.client.clone(), &key.namespace);
        let found = api.get_opt(&key.name).await.map_err(|e| failed::<K>("read", key, e))?;
        Ok(found.map(|object| self.cache::<K>().assume(object)))
    }

    /// Makes `owner` the controller of an object that has none.
    pub async fn adopt<K: Watched>(&self, object: &K, owner: &OwnerReference) -> Result<()> {
        let mut owners = object.meta().owner_references.clone().unwrap_or_default();
        owners.push(owner.clone());
        self.set_owners(object, &owners).await
    }

    /// Removes an owner from an object.
    pub async fn release<K: Watched>(&self, object: &K, owner: &str) -> Result<()> {
        let mut owners = object.meta().owner_references.clone().unwrap_or_default();
        owners.retain(|r| r.uid != owner);
        match self.set_owners(object, &owners).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    async fn set_owners<K: Watched>(&self, object: &K, owners: &[OwnerReference]) -> Result<()> {
        let version = object.meta().resource_version.clone();
        let patch = json!({"metadata": {"resourceVersion": version, "ownerReferences": owners}});
        self.patch(object, patch).await.map(drop)
    }

    /// Posts to a subresource of an object, such as `pods/binding`.
    pub async fn post_sub<K: Watched, B: Serialize, R: DeserializeOwned>(
        &self,
        key: &Key,
        sub: &str,
        body: &B,
    ) -> Result<R> {
        let api: Api<K> = K::api(self.client.clone(), &key.namespace);
        api.create_subresource(sub, &key.name, &PostParams::default(), body)
            .await
            .map_err(|e| failed::<K>("post to", key, e))
    }
}

fn failed<K: Watched>(verb: &'static str, key: &Key, error: kube::Error) -> Error {
    Error::api(verb, &K::kind(&()), key.clone(), error)
}

fn settle<K>(name: &'static str, queue: &Queue<K>, key: K, outcome: Result<Next>)
where
    K: Clone + Eq + std::hash::Hash + Ord + std::fmt::Display,
{
    match outcome {
        Ok(next) => {
            queue.done(&key);
            if let Next::After(wait) = next {
                queue.add_after(key, wait);
            }
        }
        Err(error) => {
            let wait = queue.failed(&key);
            let chain = &error as &(dyn std::error::Error + 'static);
            if error.is_conflict() || error.is_already_exists() || error.is_not_found() {
                tracing::debug!(controller = name, %key, ?wait, error = chain, "overtaken, trying again");
            } else {
                tracing::warn!(controller = name, %key, ?wait, error = chain, "pass failed, trying again");
            }
        }
    }
}

//! What the controllers share: the client, the clock, the objects there are, and writing only what differs.

use std::{fmt::Debug, sync::Arc, time::Duration};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service as Placeholder};
use k8s_openapi::{
    NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use thiserror::Error;
use wasmk_api::{
    Timestamp,
    knative::{Configuration, DomainMapping, Revision, Route, Service},
};

use crate::{
    cache::{Cache, key_of},
    config::Live,
    executor::Executor,
    fleet::{Fleet, Key},
    references::References,
    workloads::Workloads,
};

/// Who owns the fields that these controllers write.
pub(crate) const MANAGER: &str = "knative-serving";
/// As long as this a new object may say nothing while those that it waits for have said nothing either: what they
/// come to is written at once, and not each step on the way.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);

/// Why a pass did not finish. The next pass is the retry.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The API refused or could not be reached.
    #[error("{what}")]
    Api {
        /// What was tried, with the object's name.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// An object of ours does not have the form it must have.
    #[error("cannot read {what}")]
    Form {
        /// Which.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// Shared by all controllers.
pub(crate) struct Context {
    /// The API.
    pub client: Client,
    /// The settings.
    pub live: Live,
    /// The objects there are.
    pub there: There,
    /// The routes there are, by what they lead to.
    pub references: References,
    /// Runs functions in this process.
    pub executor: Arc<dyn Executor>,
    /// The revisions that can be called.
    pub fleet: Arc<Fleet>,
    /// The deployments of their pods.
    pub workloads: Arc<Workloads>,
}

/// The objects there are, a moment ago.
pub(crate) struct There {
    /// The services.
    pub services: Arc<Cache<Service>>,
    /// The configurations.
    pub configurations: Arc<Cache<Configuration>>,
    /// The revisions, also by their configuration.
    pub revisions: Arc<Cache<Revision>>,
    /// The routes.
    pub routes: Arc<Cache<Route>>,
    /// The domain mappings, also by their target and, in no namespace, by their host.
    pub mappings: Arc<Cache<DomainMapping>>,
    /// The Services by which the cluster knows routes, also by their route.
    pub placeholders: Arc<Cache<Placeholder>>,
    /// The deployments of revisions.
    pub deployments: Arc<Cache<Deployment>>,
    /// The apps that become services.
    pub apps: Arc<Cache<DynamicObject>>,
}

impl Context {
    /// The present.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Forgets a revision that is gone.
    pub(crate) fn forget(&self, key: &Key) {
        if self.fleet.remove(key).is_some() {
            self.executor.forget(&key.namespace, &key.name);
        }
    }

    /// The objects of a kind in a namespace.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// One object, if it is there.
    pub(crate) async fn find<K>(&self, namespace: &str, name: &str) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let found = self.api::<K>(namespace).get_opt(name).await;
        found.map_err(|e| failed(format!("read {} {namespace}/{name}", K::kind(&())), e))
    }

    /// An object of a cache; one that is not in it yet is looked for at the API.
    pub(crate) async fn known<K>(&self, cache: &Cache<K>, key: &Key) -> Result<Option<Arc<K>>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug,
    {
        match cache.get(key) {
            Some(object) => Ok(Some(object)),
            None => Ok(self.find(&key.namespace, &key.name).await?.map(Arc::new)),
        }
    }

    /// Makes the object that `owner` is to control, or brings the one that is there to what `wanted` says: its spec
    /// whole, its labels, annotations and owners beside those that others gave it. Nothing where it is not the owner's.
    pub(crate) async fn ensure<K>(
        &self,
        cached: Option<Arc<K>>,
        owner: &ObjectMeta,
        wanted: &Value,
    ) -> Result<Option<Arc<K>>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        let namespace = owner.namespace.as_deref().unwrap_or_default();
        let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
        if let Some(cached) = cached {
            if !controlled_by(cached.meta(), owner) {
                return Ok(None);
            }
            if next(&*cached, wanted)?.is_none() {
                return Ok(Some(cached));
            }
        } else if let Some(made) = self.create(namespace, wanted).await? {
            return Ok(Some(Arc::new(made)));
        }
        // The cache has not got that far, or there is something to change.
        let Some(found) = self.find::<K>(namespace, name).await? else {
            return Ok(self.create(namespace, wanted).await?.map(Arc::new));
        };
        if !controlled_by(found.meta(), owner) {
            return Ok(None);
        }
        let Some(next) = next(&found, wanted)? else { return Ok(Some(Arc::new(found))) };
        let what = format!("change {} {namespace}/{name}", K::kind(&()));
        let parameters = PostParams { field_manager: Some(MANAGER.into()), ..Default::default() };
        let body = serde_json::to_vec(&next).map_err(|source| Error::Form { what: what.clone(), source })?;
        let request =
            kube::core::Request::new(K::url_path(&(), Some(namespace))).replace(name, &parameters, body);
        let request = request.map_err(|e| failed(what.clone(), kube::Error::BuildRequest(e)))?;
        self.client.request(request).await.map(Some).map_err(|e| failed(what, e))
    }

    /// Makes an object from its JSON; nothing where there is one of its name.
    pub(crate) async fn create<K>(&self, namespace: &str, wanted: &Value) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let what = format!(
            "create {} {namespace}/{}",
            K::kind(&()),
            wanted["metadata"]["name"].as_str().unwrap_or("")
        );
        let parameters = PostParams { field_manager: Some(MANAGER.into()), ..Default::default() };
        let body = serde_json::to_vec(wanted).map_err(|source| Error::Form { what: what.clone(), source })?;
        let path = K::url_path(&(), Some(namespace));
        let request = kube::core::Request::new(path).create(&parameters, body);
        let request = request.map_err(|e| failed(what.clone(), kube::Error::BuildRequest(e)))?;
        match self.client.request(request).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
            made => made.map(Some).map_err(|e| failed(what, e)),
        }
    }

    /// Changes labels and annotations of an object; `null` removes one.
    pub(crate) async fn annotate<K>(&self, object: &K, metadata: Value) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = self.api::<K>(&namespace);
        let done =
            api.patch(&name, &PatchParams::default(), &Patch::Merge(&json!({"metadata": metadata}))).await;
        done.map(drop).map_err(|e| failed(format!("annotate {} {namespace}/{name}", K::kind(&())), e))
    }

    /// Writes a status if it differs from the one that is there.
    pub(crate) async fn write_status<K, S>(&self, object: &K, old: Option<&S>, new: &S) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
        S: Serialize + PartialEq,
    {
        if old == Some(new) {
            return Ok(());
        }
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let what = format!("write the status of {} {namespace}/{name}", K::kind(&()));
        // Fields that are gone must go; a merge patch removes what is null.
        let mut status =
            serde_json::to_value(new).map_err(|source| Error::Form { what: what.clone(), source })?;
        let before =
            serde_json::to_value(old).map_err(|source| Error::Form { what: what.clone(), source })?;
        for key in before.as_object().into_iter().flat_map(|o| o.keys()) {
            if let Some(map) = status.as_object_mut() {
                map.entry(key.clone()).or_insert(Value::Null);
            }
        }
        let patch = json!({"metadata": {"resourceVersion": object.resource_version()}, "status": status});
        let api = self.api::<K>(&namespace);
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            // The object has changed since this pass began; that change brings the next pass.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                tracing::debug!("could not {what}: {}", status.message);
                Ok(())
            }
            done => done.map(drop).map_err(|e| failed(what, e)),
        }
    }
}

/// A failure of the API with what was tried.
pub(crate) fn failed(what: String, source: kube::Error) -> Error {
    Error::Api { what: format!("could not {what}"), source: Box::new(source) }
}

/// Whether it may wait for others before it says anything: it is new, and has said nothing yet.
pub(crate) fn is_silent<S>(metadata: &ObjectMeta, status: Option<&S>, now: Timestamp) -> bool {
    let made = metadata.creation_timestamp.as_ref().and_then(|t| t.0.to_string().parse().ok());
    status.is_none() && made.is_some_and(|made| now.since(made) < SILENCE)
}

/// What an object is to be, if that differs from what it is.
fn next<K: Serialize + Resource<DynamicType = ()>>(is: &K, wanted: &Value) -> Result<Option<Value>, Error> {
    let form = |source| Error::Form { what: format!("{} {}", K::kind(&()), key_of(is)), source };
    let is = serde_json::to_value(is).map_err(form)?;
    let next = brought_to(&is, wanted);
    Ok((!covers(&is, &next)).then_some(next))
}

/// The object with the wanted spec and with the wanted metadata added to its own.
fn brought_to(is: &Value, wanted: &Value) -> Value {
    let mut next = is.clone();
    for key in ["apiVersion", "kind", "spec"] {
        next[key] = wanted[key].clone();
    }
    for (key, value) in wanted["metadata"].as_object().into_iter().flatten() {
        match (next["metadata"].get_mut(key).and_then(Value::as_object_mut), value) {
            (Some(map), Value::Object(more)) => map.extend(more.clone()),
            _ => next["metadata"][key] = value.clone(),
        }
    }
    next
}

/// Whether two objects say the same; what is empty may be missing, as may their kind.
fn covers(is: &Value, next: &Value) -> bool {
    match (is, next) {
        (Value::Object(is), Value::Object(next)) => {
            let same = |key: &String, value: &Value| match is.get(key) {
                Some(have) => covers(have, value),
                None => matches!(key.as_str(), "apiVersion" | "kind") || is_empty(value),
            };
            next.iter().all(|(key, value)| same(key, value))
                && is.iter().all(|(key, value)| next.contains_key(key) || is_empty(value))
        }
        (Value::Array(is), Value::Array(next)) => {
            is.len() == next.len() && is.iter().zip(next).all(|(a, b)| covers(a, b))
        }
        (is, next) => is == next || (is_empty(is) && is_empty(next)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// A reference that makes `object` the controller of another.
pub(crate) fn owner<K: Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.meta().name.clone().unwrap_or_default(),
        uid: object.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether `owner` controls the object with that metadata.
pub(crate) fn controlled_by(metadata: &ObjectMeta, owner: &ObjectMeta) -> bool {
    let references = metadata.owner_references.iter().flatten();
    references.into_iter().any(|r| r.controller == Some(true) && Some(&r.uid) == owner.uid.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_written() {
        let is =
            json!({"metadata": {"name": "a", "uid": "1", "labels": {"x": "y"}}, "spec": {"a": [1], "b": {}}});
        for (wanted, same) in [
            (json!({"kind": "K", "metadata": {"labels": {"x": "y"}}, "spec": {"a": [1]}}), true),
            (json!({"metadata": {}, "spec": {"a": [2]}}), false),
            (json!({"metadata": {}, "spec": {}}), false),
            (json!({"metadata": {"labels": {"z": "y"}}, "spec": {"a": [1]}}), false),
        ] {
            assert_eq!(covers(&is, &brought_to(&is, &wanted)), same, "{wanted}");
        }
    }
}

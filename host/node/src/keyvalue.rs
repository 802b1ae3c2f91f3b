//! Stores of keys and values, and containers of objects: which a pod may use, and when those of a namespace go.
//!
//! They belong to a namespace by its uid: one that is made again under the same name begins with nothing.

use wasmk_api::{k8s_openapi::api::core::v1::Pod, per_request};

use crate::{
    engine::{Engine, Failure, Stores},
    pod::env::{CONFIG_ERROR, Sources},
};

/// The stores that the pod's annotation names.
///
/// # Errors
/// When the annotation is malformed, or its namespace cannot be read.
pub(crate) async fn given(pod: &Pod, sources: &dyn Sources) -> Result<Option<Stores>, Failure> {
    let annotations = pod.metadata.annotations.as_ref();
    let names = per_request::stores(|key| annotations?.get(key).map(String::as_str))
        .map_err(|wrong| Failure::new(CONFIG_ERROR, wrong))?;
    owned(pod, sources, names).await
}

/// The containers of objects that the pod's annotation names.
///
/// # Errors
/// As [`given`].
pub(crate) async fn containers(pod: &Pod, sources: &dyn Sources) -> Result<Option<Stores>, Failure> {
    let annotations = pod.metadata.annotations.as_ref();
    let names = per_request::containers(|key| annotations?.get(key).map(String::as_str))
        .map_err(|wrong| Failure::new(CONFIG_ERROR, wrong))?;
    owned(pod, sources, names).await
}

async fn owned(pod: &Pod, sources: &dyn Sources, names: Vec<String>) -> Result<Option<Stores>, Failure> {
    if names.is_empty() {
        return Ok(None);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let owner = owner(namespace, sources).await?;
    let gone = || Failure::new(CONFIG_ERROR, format!("namespace \"{namespace}\" not found"));
    Ok(Some(Stores { owner: owner.ok_or_else(gone)?, names }))
}

async fn owner(namespace: &str, sources: &dyn Sources) -> Result<Option<String>, Failure> {
    let uid = sources.namespace(namespace).await?.and_then(|found| found.metadata.uid);
    Ok(uid.map(|uid| format!("{namespace}.{uid}")))
}

/// Removes the stores of namespaces that are gone.
pub(crate) async fn sweep(engine: &dyn Engine, sources: &dyn Sources) {
    for kept in engine.store_owners() {
        let Some((namespace, _)) = kept.split_once('.') else {
            continue;
        };
        // Without an answer nothing is known.
        let Ok(now) = owner(namespace, sources).await else {
            continue;
        };
        if now.as_ref() == Some(&kept) {
            continue;
        }
        match engine.forget_stores(&kept) {
            Ok(()) => {
                tracing::info!(namespace, "what the functions of a namespace kept is removed with it")
            }
            Err(error) => {
                tracing::warn!(namespace, error, "cannot remove what the functions of a namespace kept")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;
    use crate::{
        engine::{Prepared, Program, Wanted},
        pod::env::tests::Fixed,
    };

    fn pod(namespace: &str, stores: &str) -> Pod {
        let metadata =
            json!({"name": "p", "namespace": namespace, "annotations": {per_request::KEYVALUE: stores}});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[tokio::test]
    async fn stores_belong_to_the_namespace_as_it_is_now() {
        let found = given(&pod("shop", "a,b"), &Fixed).await.unwrap().unwrap();
        assert_eq!((found.owner.as_str(), found.names.len()), ("shop.uid-of-shop", 2));
        assert_eq!(given(&Pod::default(), &Fixed).await, Ok(None));
        for (pod, expect) in [(pod("shop", "No!"), per_request::KEYVALUE), (pod("gone", "a"), "not found")] {
            let failure = given(&pod, &Fixed).await.unwrap_err();
            assert!(failure.reason == CONFIG_ERROR && failure.message.contains(expect), "{failure}");
        }
    }

    struct Kept(Mutex<Vec<String>>);

    #[async_trait]
    impl Engine for Kept {
        async fn recognizes(&self, _: &Wanted) -> Option<bool> {
            None
        }

        async fn load(&self, _: Bytes) -> Result<std::sync::Arc<dyn Program>, Failure> {
            Err(Failure::new("None", "none"))
        }

        async fn prepare(&self, _: &Wanted) -> Result<Prepared, Failure> {
            Err(Failure::new("None", "none"))
        }

        fn version(&self) -> String {
            String::new()
        }

        fn store_owners(&self) -> Vec<String> {
            self.0.lock().clone()
        }

        fn forget_stores(&self, owner: &str) -> Result<(), String> {
            self.0.lock().retain(|kept| kept != owner);
            Ok(())
        }
    }

    #[tokio::test]
    async fn stores_go_with_their_namespace() {
        let all = ["shop.uid-of-shop", "shop.an-earlier-one", "gone.uid-of-gone"];
        let engine = Kept(Mutex::new(all.map(String::from).to_vec()));
        sweep(&engine, &Fixed).await;
        assert_eq!(*engine.0.lock(), ["shop.uid-of-shop"]);
    }
}

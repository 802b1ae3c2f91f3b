//! Keeps claims that pods use, and volumes that claims use, from going too early.
//!
//! Reads claims, volumes and pods. Removes the finalizers `kubernetes.io/pvc-protection` and
//! `kubernetes.io/pv-protection` from objects that are being deleted and no longer used.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::json;

use crate::{
    base::{Context, Informer, Key, Next, Queue, Result, Watched, is_deleting, is_finished, on_change},
    scheduler::volumes::claim_names,
};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

pub(crate) async fn run_claims(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (claims, pods) = (cx.cache::<PersistentVolumeClaim>(), cx.cache::<Pod>());
    on_change(&claims, &queue);
    let sink = queue.clone();
    pods.subscribe(move |old, new| {
        if let Some(pod) = old.filter(|_| new.is_none_or(|p| is_finished(p))) {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
            claim_names(pod).into_iter().for_each(|name| sink.add(Key::new(namespace, name)));
        }
    });
    claims.ready().await;
    pods.ready().await;
    cx.work("persistentvolumeclaim-protection-controller", &queue, cx.settings.workers, |key| {
        free_claim(&cx, &claims, &pods, key)
    })
    .await;
}

async fn free_claim(
    cx: &Context,
    claims: &Informer<PersistentVolumeClaim>,
    pods: &Informer<Pod>,
    key: Key,
) -> Result<Next> {
    let Some(claim) = claims.get(&key).filter(|c| is_deleting(&**c)) else { return Ok(Next::Change) };
    let uses = |pod: &Arc<Pod>| !is_finished(pod) && claim_names(pod).contains(&key.name);
    if !pods.in_namespace(&key.namespace).iter().any(uses) {
        drop_finalizer(cx, &*claim, CLAIM).await?;
    }
    Ok(Next::Change)
}

pub(crate) async fn run_volumes(cx: Context) {
    let queue = Arc::new(Queue::default());
    let volumes = cx.cache::<PersistentVolume>();
    on_change(&volumes, &queue);
    volumes.ready().await;
    cx.work("persistentvolume-protection-controller", &queue, cx.settings.workers, |key| {
        let (cx, volume) = (&cx, volumes.get(&key));
        async move {
            let bound =
                |v: &PersistentVolume| v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            if let Some(volume) = volume.filter(|v| is_deleting(&**v) && !bound(v)) {
                drop_finalizer(cx, &*volume, VOLUME).await?;
            }
            Ok(Next::Change)
        }
    })
    .await;
}

async fn drop_finalizer<K: Watched>(cx: &Context, object: &K, name: &str) -> Result<()> {
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|f| f == name) {
        return Ok(());
    }
    finalizers.retain(|f| f != name);
    let version = &object.meta().resource_version;
    let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
    match cx.patch(object, patch).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

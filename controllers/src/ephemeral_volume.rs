//! Makes the claims of pods' generic ephemeral volumes.
//!
//! Reads pods and claims. Creates claims, owned by their pod: they go with it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::api::ObjectMeta;

use crate::base::{
    Context, Error, EventKind, Informer, Key, Next, Queue, Result, controller_of, controller_ref,
    is_deleting, is_finished, owner_key, uid,
};

const NAME: &str = "ephemeral-volume-controller";

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (pods, claims) = (cx.cache::<Pod>(), cx.cache::<PersistentVolumeClaim>());
    let sink = queue.clone();
    pods.subscribe(move |old, new| {
        if let Some(pod) = new.filter(|p| old.is_none() && ephemeral(p).next().is_some()) {
            sink.add(Key::of(&pod.metadata));
        }
    });
    let sink = queue.clone();
    claims.subscribe(move |old, new| {
        if let (Some(gone), None) = (old, new)
            && let Some(pod) = owner_key::<Pod, _>(&**gone)
        {
            sink.add(pod);
        }
    });
    pods.ready().await;
    claims.ready().await;
    cx.work(NAME, &queue, cx.settings.workers, |key| reconcile(&cx, &pods, &claims, key)).await;
}

async fn reconcile(
    cx: &Context,
    pods: &Informer<Pod>,
    claims: &Informer<PersistentVolumeClaim>,
    key: Key,
) -> Result<Next> {
    let Some(pod) = pods.get(&key).filter(|p| !is_deleting(&**p) && !is_finished(p)) else {
        return Ok(Next::Change);
    };
    for volume in ephemeral(&pod) {
        let Some(wanted) = claim(&pod, volume) else { continue };
        match claims.get(&Key::of(&wanted.metadata)) {
            Some(there) if is_of(&there, &pod) => continue,
            Some(there) => return Err(taken(cx, &pod, &there)),
            None => {}
        }
        match cx.create(&wanted).await {
            Err(error) if error.is_namespace_terminating() => {}
            Err(error) if error.is_already_exists() => {
                cx.fetch::<PersistentVolumeClaim>(&Key::of(&wanted.metadata)).await?;
                return Err(error);
            }
            other => drop(other?),
        }
    }
    Ok(Next::Change)
}

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter(|v| v.ephemeral.is_some())
}

/// Whether a claim was made for that pod: one of the same name may be somebody else's.
pub(crate) fn is_of(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    controller_of(claim).is_some_and(|owner| owner.uid == uid(pod))
}

fn taken(cx: &Context, pod: &Pod, claim: &PersistentVolumeClaim) -> Error {
    let message = format!(
        "ephemeral volume: PVC {} was not created for pod {} (pod is not owner)",
        Key::of(&claim.metadata),
        Key::of(&pod.metadata)
    );
    cx.events.record(NAME, pod, EventKind::Warning, "FailedBinding", message.clone());
    Error::Invalid(message)
}

/// The claim of one volume.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.metadata.name.as_deref()?, volume.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![controller_ref(pod)]),
            ..Default::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_named_after_pod_and_volume_and_owned_by_the_pod() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "scratch", "ephemeral":
                {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}}]},
        }))
        .unwrap();
        let made: Vec<_> = ephemeral(&pod).filter_map(|v| claim(&pod, v)).collect();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].metadata.name.as_deref(), Some("db-scratch"));
        assert_eq!(made[0].metadata.labels.as_ref().unwrap()["a"], "b");
        assert!(is_of(&made[0], &pod));
        let mut other = pod;
        other.metadata.uid = Some("v".into());
        assert!(!is_of(&made[0], &other), "a pod of the same name that came later");
    }
}

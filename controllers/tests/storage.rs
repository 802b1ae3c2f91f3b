//! Claims, volumes and the scheduler's part in them, in a whole cluster.

mod support;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use support::{Cluster, is_ready};

fn claim(class: &str) -> Value {
    json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "resources": {"requests": {"storage": "1Gi"}}}})
}

fn pod() -> Value {
    json!({"metadata": {"name": "db"}, "spec": {
        "containers": [{"name": "c", "image": "v1", "volumeMounts": [{"name": "d", "mountPath": "/d"}]}],
        "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}})
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

#[tokio::test(start_paused = true)]
async fn a_claim_waits_for_its_pod_and_gets_a_volume_on_the_pods_node() {
    let cluster = Cluster::with_nodes(2).await;
    let classes: Api<StorageClass> = Api::all(cluster.client.clone());
    let class = json!({"metadata": {"name": "local"}, "provisioner": "wasmk.dev/local-path",
        "volumeBindingMode": "WaitForFirstConsumer"});
    classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    cluster.create::<PersistentVolumeClaim>(claim("local")).await;
    cluster.rest(20).await;
    let waiting = cluster.until::<PersistentVolumeClaim>("data", |_| true).await;
    assert!(!is_bound(&waiting), "nobody uses it yet");
    cluster.create::<Pod>(pod()).await;
    let running = cluster.until::<Pod>("db", is_ready).await;
    let bound = cluster.until::<PersistentVolumeClaim>("data", is_bound).await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let volume = volumes.get(&bound.spec.unwrap().volume_name.unwrap()).await.unwrap();
    let affinity = serde_json::to_string(&volume.spec.as_ref().unwrap().node_affinity).unwrap();
    assert!(affinity.contains(&running.spec.unwrap().node_name.unwrap()), "{affinity}");
    // A claim in use stays until its pod is gone; its volume goes with it.
    cluster.api::<PersistentVolumeClaim>().delete("data", &DeleteParams::default()).await.unwrap();
    cluster.rest(20).await;
    assert!(cluster.api::<PersistentVolumeClaim>().get_opt("data").await.unwrap().is_some(), "still used");
    cluster.api::<Pod>().delete("db", &DeleteParams::default()).await.unwrap();
    cluster.until_all::<PersistentVolumeClaim>("", <[_]>::is_empty).await;
    let mut looks = 0;
    while !volumes.list(&ListParams::default()).await.unwrap().items.is_empty() {
        cluster.rest(1).await;
        looks += 1;
        assert!(looks < 100, "the volume stays");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_finds_a_volume_made_by_hand_which_is_kept() {
    let cluster = Cluster::with_nodes(1).await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let volume = json!({"metadata": {"name": "disk"}, "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "hand", "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/disk"}}});
    volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    cluster.create::<PersistentVolumeClaim>(claim("hand")).await;
    let bound = cluster.until::<PersistentVolumeClaim>("data", is_bound).await;
    assert_eq!(bound.spec.unwrap().volume_name.as_deref(), Some("disk"));
    cluster.create::<Pod>(pod()).await;
    cluster.until::<Pod>("db", is_ready).await;
    cluster.api::<Pod>().delete("db", &DeleteParams::default()).await.unwrap();
    cluster.api::<PersistentVolumeClaim>().delete("data", &DeleteParams::default()).await.unwrap();
    let mut looks = 0;
    let phase = |v: PersistentVolume| v.status.and_then(|s| s.phase).unwrap_or_default();
    while phase(volumes.get("disk").await.unwrap()) != "Released" {
        cluster.rest(1).await;
        looks += 1;
        assert!(looks < 100, "the volume is not released");
    }
}

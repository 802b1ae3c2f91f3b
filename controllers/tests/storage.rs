//! Claims, volumes and the scheduler's part in them, in a whole cluster.

mod support;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, StorageClass, VolumeAttachment},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
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

async fn make<K>(cluster: &Cluster, value: Value) -> K
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>,
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::all(cluster.client.clone());
    api.create(&PostParams::default(), &serde_json::from_value(value).unwrap()).await.unwrap()
}

fn local_class(binding: &str) -> Value {
    json!({"metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "wasmk.dev/local-path", "volumeBindingMode": binding, "allowVolumeExpansion": true})
}

#[tokio::test(start_paused = true)]
async fn a_claim_grows_and_its_volume_before_it() {
    let cluster = Cluster::with_nodes(1).await;
    make::<StorageClass>(&cluster, local_class("Immediate")).await;
    cluster.create::<PersistentVolumeClaim>(claim("local")).await;
    let bound = cluster.until::<PersistentVolumeClaim>("data", is_bound).await;
    let more = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
    cluster.patch::<PersistentVolumeClaim>("data", more).await;
    let capacity =
        |c: &PersistentVolumeClaim| c.status.clone()?.capacity?.get("storage").map(|q| q.0.clone());
    cluster.until::<PersistentVolumeClaim>("data", |c| capacity(c).as_deref() == Some("3Gi")).await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let volume = volumes.get(&bound.spec.unwrap().volume_name.unwrap()).await.unwrap();
    assert_eq!(volume.spec.unwrap().capacity.unwrap()["storage"].0, "3Gi");
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_a_class_gets_the_default_when_it_comes() {
    let cluster = Cluster::with_nodes(1).await;
    let mut silent = claim("");
    silent["spec"].as_object_mut().unwrap().remove("storageClassName");
    cluster.create::<PersistentVolumeClaim>(silent).await;
    let mut empty = claim("");
    empty["metadata"]["name"] = json!("by-hand");
    cluster.create::<PersistentVolumeClaim>(empty).await;
    cluster.rest(20).await;
    make::<StorageClass>(&cluster, local_class("Immediate")).await;
    let bound = cluster.until::<PersistentVolumeClaim>("data", is_bound).await;
    assert_eq!(bound.spec.unwrap().storage_class_name.as_deref(), Some("local"));
    cluster.rest(20).await;
    let waiting = cluster.until::<PersistentVolumeClaim>("by-hand", |_| true).await;
    assert!(!is_bound(&waiting), "an empty class means a volume made by hand");
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_volume_comes_and_goes_with_its_pod() {
    let cluster = Cluster::with_nodes(2).await;
    make::<StorageClass>(&cluster, local_class("WaitForFirstConsumer")).await;
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster
        .create::<Pod>(
            json!({"metadata": {"name": "db"}, "spec": {"containers": [{"name": "c", "image": "v1"}],
            "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]}}),
        )
        .await;
    cluster.until::<Pod>("db", is_ready).await;
    let made = cluster.until::<PersistentVolumeClaim>("db-scratch", is_bound).await;
    assert_eq!(made.metadata.owner_references.unwrap()[0].kind, "Pod");
    cluster.api::<Pod>().delete("db", &DeleteParams::default()).await.unwrap();
    cluster.until_all::<PersistentVolumeClaim>("", <[_]>::is_empty).await;
}

/// Plays a driver's attacher: whatever is to be attached is.
async fn attach_all(client: kube::Client) {
    let api: Api<VolumeAttachment> = Api::all(client);
    loop {
        for attachment in api.list(&ListParams::default()).await.unwrap() {
            if attachment.status.as_ref().is_none_or(|s| !s.attached) {
                let done = Patch::Merge(json!({"status": {"attached": true}}));
                let name = attachment.metadata.name.unwrap();
                // One that is gone by now needs nothing.
                let _ = api.patch_status(&name, &PatchParams::default(), &done).await;
            }
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

/// A node is cut off: its pod of a stateful set, and the volume with the data, move to another once somebody
/// has said that the node is out of service. When the node comes back it is ready and takes pods again.
#[tokio::test(start_paused = true)]
async fn the_pod_of_a_lost_node_moves_with_its_data_and_the_node_recovers() {
    let cluster = Cluster::with_nodes(2).await;
    tokio::spawn(cluster.shutdown.clone().run_until_cancelled_owned(attach_all(cluster.client.clone())));
    make::<CSIDriver>(
        &cluster,
        json!({"metadata": {"name": "disk.example.com"}, "spec": {"attachRequired": true}}),
    )
    .await;
    let volume = json!({"metadata": {"name": "disk"}, "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "hand", "csi": {"driver": "disk.example.com", "volumeHandle": "disk-1"}}});
    make::<PersistentVolume>(&cluster, volume).await;
    let mut template = claim("hand");
    template["metadata"]["name"] = json!("data");
    let tolerations: Vec<_> = ["not-ready", "unreachable"]
        .iter()
        .map(|key| json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20}))
        .collect();
    let set = json!({"metadata": {"name": "postgres"}, "spec": {"replicas": 1, "serviceName": "postgres",
        "selector": {"matchLabels": {"app": "postgres"}}, "volumeClaimTemplates": [template],
        "template": {"metadata": {"labels": {"app": "postgres"}}, "spec": {"tolerations": tolerations,
            "containers": [{"name": "c", "image": "v1", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}}}});
    cluster.create::<StatefulSet>(set).await;
    let first = cluster.until::<Pod>("postgres-0", is_ready).await;
    let at = |p: &Pod| p.spec.as_ref().unwrap().node_name.clone().unwrap();
    let (lost, uid) = (at(&first), first.metadata.uid.clone());
    let attached_to = |node: &str| {
        let node = node.to_owned();
        let attachments: Api<VolumeAttachment> = Api::all(cluster.client.clone());
        async move {
            loop {
                let all = attachments.list(&ListParams::default()).await.unwrap().items;
                if all
                    .iter()
                    .any(|a| a.spec.node_name == node && a.status.as_ref().is_some_and(|s| s.attached))
                {
                    return all.len();
                }
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        }
    };
    assert_eq!(attached_to(&lost).await, 1);
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let in_use = json!({"status": {"volumesInUse": ["kubernetes.io/csi/disk.example.com^disk-1"]}});
    nodes.patch_status(&lost, &PatchParams::default(), &Patch::Merge(in_use)).await.unwrap();
    let dead = |value: Value| Patch::Merge(json!({"metadata": {"labels": {"dead": value}}}));
    nodes.patch(&lost, &PatchParams::default(), &dead(json!(""))).await.unwrap();

    // Nobody can know that the pod has stopped: it is marked and waited for.
    cluster.until::<Pod>("postgres-0", |p| p.metadata.deletion_timestamp.is_some()).await;
    cluster.rest(120).await;
    assert_eq!(
        cluster.until::<Pod>("postgres-0", |_| true).await.metadata.uid,
        uid,
        "two of it would harm the data"
    );
    let taint = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]}});
    nodes.patch(&lost, &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    let began = tokio::time::Instant::now();
    let moved = cluster.until::<Pod>("postgres-0", |p| is_ready(p) && p.metadata.uid != uid).await;
    assert!(began.elapsed().as_secs() <= 60, "about a minute, not {:?}", began.elapsed());
    assert_ne!(at(&moved), lost);
    let claim = cluster.until::<PersistentVolumeClaim>("data-postgres-0", is_bound).await;
    assert_eq!(claim.spec.unwrap().volume_name.as_deref(), Some("disk"), "the same data");
    assert_eq!(attached_to(&at(&moved)).await, 1, "and only there");

    // The network is back.
    let back = json!({"spec": {"taints": null}, "metadata": {"labels": {"dead": null}}});
    nodes.patch(&lost, &PatchParams::default(), &Patch::Merge(back)).await.unwrap();
    let is_well = |n: &Node| {
        let taints = n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        let conditions = n.status.iter().flat_map(|s| s.conditions.iter().flatten());
        taints.is_empty() && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let mut looks = 0;
    while !is_well(&nodes.get(&lost).await.unwrap()) {
        cluster.rest(1).await;
        looks += 1;
        assert!(looks < 200, "the node does not recover: {:#?}", nodes.get(&lost).await.unwrap());
    }
    let mut there = pod();
    there["metadata"]["name"] = json!("again");
    there["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": lost});
    there["spec"]["volumes"] = json!([]);
    there["spec"]["containers"][0].as_object_mut().unwrap().remove("volumeMounts");
    cluster.create::<Pod>(there).await;
    cluster.until::<Pod>("again", is_ready).await;
}

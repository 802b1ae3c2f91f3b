//! Namespaces, ownership and nodes in a whole cluster.

mod support;

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Event, Namespace, Node, Pod, ResourceQuota, Secret, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use support::{Cluster, deployment, is_ready};

#[tokio::test(start_paused = true)]
async fn deletion_cascades() {
    let cluster = Cluster::with_nodes(1).await;
    cluster.create::<Deployment>(deployment("web", 3, "v1")).await;
    cluster.until_all::<Pod>("app=web", |all| all.len() == 3 && all.iter().all(is_ready)).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    cluster.until_all::<ReplicaSet>("app=web", <[_]>::is_empty).await;
    cluster.until_all::<Pod>("app=web", <[_]>::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn foreground_deletion_ends_with_the_owner() {
    let cluster = Cluster::with_nodes(1).await;
    cluster.create::<Deployment>(deployment("web", 2, "v1")).await;
    cluster.until_all::<Pod>("app=web", |all| all.len() == 2).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::foreground()).await.unwrap();
    cluster.until_all::<Deployment>("", |all| all.is_empty()).await;
    assert!(cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items.is_empty());
    assert!(cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn orphans_live_on() {
    let cluster = Cluster::with_nodes(1).await;
    cluster.create::<Deployment>(deployment("web", 2, "v1")).await;
    cluster.until_all::<Pod>("app=web", |all| all.len() == 2).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::orphan()).await.unwrap();
    cluster.until_all::<Deployment>("", <[_]>::is_empty).await;
    cluster.rest(10).await;
    let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
    assert!(sets.len() == 1 && sets[0].owner_references().is_empty());
    assert_eq!(cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_object_of_a_false_owner_goes() {
    let cluster = Cluster::with_nodes(0).await;
    let owner = cluster.create::<ConfigMap>(json!({"metadata": {"name": "owner"}})).await;
    let child = |name: &str, uid: &str| json!({"metadata": {"name": name, "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]}});
    cluster.create::<ConfigMap>(child("true", &owner.uid().unwrap())).await;
    cluster.create::<ConfigMap>(child("false", "no-such-uid")).await;
    cluster.until_all::<ConfigMap>("", |all| all.iter().all(|m| m.name_any() != "false")).await;
    cluster.rest(10).await;
    assert!(cluster.api::<ConfigMap>().get_opt("true").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_namespace_gets_its_account_and_certificate_and_ends_empty() {
    let cluster = Cluster::with_nodes(1).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let space: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &space).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "team");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "team");
    let mut looks = 0;
    while accounts.get_opt("default").await.unwrap().is_none()
        || maps.get_opt("kube-root-ca.crt").await.unwrap().is_none()
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
        looks += 1;
        assert!(looks < 1000, "no account or certificate");
    }
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "team");
    let web = serde_json::from_value(deployment("web", 2, "v1")).unwrap();
    deployments.create(&PostParams::default(), &web).await.unwrap();
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    maps.create(&PostParams::default(), &serde_json::from_value(held).unwrap()).await.unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    let remaining = |n: &Namespace| {
        let all = n.status.clone().unwrap_or_default().conditions.unwrap_or_default();
        all.iter()
            .find(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")
            .and_then(|c| c.message.clone())
    };
    let mut looks = 0;
    let message = loop {
        let now = namespaces.get("team").await.unwrap();
        if let Some(message) = remaining(&now) {
            break message;
        }
        looks += 1;
        assert!(looks < 3000, "{now:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(message.contains("example.com/hold in 1 resource instances"), "{message}");
    maps.patch("held", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
    let mut looks = 0;
    while namespaces.get_opt("team").await.unwrap().is_some() {
        looks += 1;
        assert!(looks < 3000, "the namespace stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "team");
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_silent_node_move() {
    let cluster = Cluster::with_nodes(2).await;
    cluster.create::<Deployment>(deployment("web", 2, "v1")).await;
    cluster.until_all::<Pod>("app=web", |all| all.len() == 2 && all.iter().all(is_ready)).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let cidrs: Vec<_> = nodes
        .list(&ListParams::default())
        .await
        .unwrap()
        .iter()
        .filter_map(|n| n.spec.clone()?.pod_cidr)
        .collect();
    assert_eq!(cidrs.len(), 2);
    assert!(cidrs.contains(&"127.42.0.0/24".into()) && cidrs.contains(&"127.42.1.0/24".into()));
    nodes
        .patch("n0", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"labels": {"dead": ""}}})))
        .await
        .unwrap();
    let on_n1 = |p: &Pod| p.spec.as_ref().unwrap().node_name.as_deref() == Some("n1");
    cluster
        .until_all::<Pod>("app=web", |all| all.iter().filter(|p| on_n1(p) && is_ready(p)).count() == 2)
        .await;
    let n0 = nodes.get("n0").await.unwrap();
    let taints: Vec<_> =
        n0.spec.unwrap().taints.unwrap().iter().map(|t| format!("{}:{}", t.key, t.effect)).collect();
    assert!(taints.contains(&"node.kubernetes.io/unreachable:NoExecute".into()), "{taints:?}");
    // With the node object gone, what it held is collected.
    nodes.delete("n0", &DeleteParams::default()).await.unwrap();
    cluster.until_all::<Pod>("app=web", |all| all.len() == 2 && all.iter().all(on_n1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_nowhere_says_why_and_starts_when_room_comes() {
    let cluster = Cluster::with_nodes(1).await;
    let pod = |name: &str, cpu: &str| {
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "v1",
            "resources": {"requests": {"cpu": cpu}}}]}})
    };
    cluster.create::<Pod>(pod("big", "3")).await;
    cluster.until::<Pod>("big", is_ready).await;
    cluster.create::<Pod>(pod("more", "2")).await;
    let waiting = cluster
        .until::<Pod>("more", |p| {
            p.status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|c| c.reason.as_deref() == Some("Unschedulable"))
        })
        .await;
    let message = waiting.status.unwrap().conditions.unwrap().into_iter().find_map(|c| c.message).unwrap();
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{message}");
    cluster
        .until_all::<Event>("", |all| all.iter().any(|e| e.reason.as_deref() == Some("FailedScheduling")))
        .await;
    cluster.api::<Pod>().delete("big", &DeleteParams::default()).await.unwrap();
    cluster.until::<Pod>("more", is_ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_secret_is_filled_and_goes_with_its_account() {
    let cluster = Cluster::with_nodes(0).await;
    cluster.create::<ServiceAccount>(json!({"metadata": {"name": "robot"}})).await;
    let secret = json!({"metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token"});
    cluster.create::<Secret>(secret).await;
    let filled = cluster
        .until::<Secret>("robot-token", |s| s.data.as_ref().is_some_and(|d| d.contains_key("token")))
        .await;
    assert_eq!(filled.data.unwrap()["namespace"].0, b"default");
    cluster.api::<ServiceAccount>().delete("robot", &DeleteParams::default()).await.unwrap();
    cluster.until_all::<Secret>("", |all| all.iter().all(|s| s.name_any() != "robot-token")).await;
}

#[tokio::test(start_paused = true)]
async fn budgets_and_quotas_say_how_things_stand() {
    let cluster = Cluster::with_nodes(1).await;
    let budget = json!({"metadata": {"name": "web"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.create::<PodDisruptionBudget>(budget).await;
    let quota =
        json!({"metadata": {"name": "all"}, "spec": {"hard": {"pods": "10", "count/deployments.apps": "5"}}});
    cluster.create::<ResourceQuota>(quota).await;
    cluster.create::<Deployment>(deployment("web", 3, "v1")).await;
    let allowed = |b: &PodDisruptionBudget| b.status.as_ref().and_then(|s| s.disruptions_allowed);
    cluster.until::<PodDisruptionBudget>("web", |b| allowed(b) == Some(1)).await;
    let used = |q: &ResourceQuota, name: &str| {
        q.status.as_ref().and_then(|s| s.used.as_ref()?.get(name)).map(|v| v.0.clone()).unwrap_or_default()
    };
    cluster
        .until::<ResourceQuota>("all", |q| used(q, "pods") == "3" && used(q, "count/deployments.apps") == "1")
        .await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    cluster.until::<ResourceQuota>("all", |q| used(q, "pods") == "1").await;
}

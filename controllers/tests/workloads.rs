//! Deployments and ReplicaSets in a whole cluster.

mod support;

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Endpoints, Event, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use support::{Cluster, deployment, images, is_going, is_ready};

fn available(d: &Deployment) -> i32 {
    let status = d.status.clone().unwrap_or_default();
    if status.observed_generation == d.metadata.generation {
        status.available_replicas.unwrap_or(0)
    } else {
        -1
    }
}

fn condition<'a>(d: &'a Deployment, kind: &str) -> &'a str {
    let all = d.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or(&[]);
    all.iter().find(|c| c.type_ == kind).and_then(|c| c.reason.as_deref()).unwrap_or("")
}

fn done(d: &Deployment) -> bool {
    let status = d.status.clone().unwrap_or_default();
    let wanted = d.spec.as_ref().unwrap().replicas;
    available(d) == wanted.unwrap()
        && status.updated_replicas == wanted
        && status.replicas == wanted
        && condition(d, "Progressing") == "NewReplicaSetAvailable"
}

#[tokio::test(start_paused = true)]
async fn a_deployment_becomes_available() {
    let cluster = Cluster::with_nodes(2).await;
    cluster.create::<Deployment>(deployment("web", 3, "v1")).await;
    let d = cluster.until::<Deployment>("web", done).await;
    assert_eq!(condition(&d, "Available"), "MinimumReplicasAvailable");
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "1");
    let pods = cluster.until_all::<Pod>("app=web", |all| all.len() == 3).await;
    let nodes: BTreeSet<_> = pods.iter().map(|p| p.spec.as_ref().unwrap().node_name.clone()).collect();
    assert_eq!(nodes.len(), 2, "spread over both nodes");
    let hash = &pods[0].labels()["pod-template-hash"];
    assert!(pods.iter().all(|p| p.name_any().starts_with(&format!("web-{hash}-"))));
}

#[tokio::test(start_paused = true)]
async fn pods_are_available_after_their_minimum_time() {
    let cluster = Cluster::with_nodes(1).await;
    let mut slow = deployment("web", 3, "v1");
    slow["spec"]["minReadySeconds"] = json!(30);
    cluster.create::<Deployment>(slow).await;
    let ready = |d: &Deployment| d.status.as_ref().and_then(|s| s.ready_replicas);
    let d = cluster.until::<Deployment>("web", |d| ready(d) == Some(3)).await;
    let since = tokio::time::Instant::now();
    assert_eq!(available(&d), 0);
    cluster.until::<Deployment>("web", done).await;
    // Conditions have whole seconds.
    let waited = since.elapsed();
    assert!((Duration::from_secs(27)..Duration::from_secs(60)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bad_image_stops_at_the_right_numbers_and_undo_recovers() {
    let cluster = Cluster::with_nodes(3).await;
    let mut first = deployment("web", 10, "v1");
    first["spec"]["progressDeadlineSeconds"] = json!(60);
    cluster.create::<Deployment>(first).await;
    cluster.until::<Deployment>("web", done).await;
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    cluster.patch::<Deployment>("web", image("bad")).await;
    let d = cluster
        .until::<Deployment>("web", |d| condition(d, "Progressing") == "ProgressDeadlineExceeded")
        .await;
    assert_eq!(available(&d), 8);
    let pods = cluster.until_all::<Pod>("app=web", |all| !all.iter().any(is_going)).await;
    assert_eq!(images(&pods), [("bad".to_owned(), 5), ("v1".to_owned(), 8)].into());
    cluster.patch::<Deployment>("web", image("v1")).await;
    let d = cluster.until::<Deployment>("web", done).await;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "3");
    let sets = cluster.until_all::<ReplicaSet>("app=web", |all| all.len() == 2).await;
    let old = sets.iter().find(|s| s.annotations().contains_key("deployment.kubernetes.io/revision-history"));
    assert_eq!(old.unwrap().annotations()["deployment.kubernetes.io/revision-history"], "1");
}

#[tokio::test(start_paused = true)]
async fn scaling_keeps_exactly_the_wanted_number() {
    let cluster = Cluster::with_nodes(2).await;
    cluster.create::<Deployment>(deployment("web", 2, "v1")).await;
    cluster.until::<Deployment>("web", done).await;
    for replicas in [8, 3, 0, 1] {
        cluster.patch::<Deployment>("web", json!({"spec": {"replicas": replicas}})).await;
        cluster.until::<Deployment>("web", |d| available(d) == replicas).await;
        let pods = cluster.until_all::<Pod>("app=web", |all| all.len() == replicas as usize).await;
        assert!(pods.iter().all(is_ready));
    }
}

#[tokio::test(start_paused = true)]
async fn recreate_never_mixes_versions() {
    let cluster = Cluster::with_nodes(1).await;
    let mut first = deployment("web", 3, "v1");
    first["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create::<Deployment>(first).await;
    cluster.until::<Deployment>("web", done).await;
    cluster
        .patch::<Deployment>(
            "web",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
        )
        .await;
    cluster
        .until_all::<Pod>("app=web", |all| {
            let running = images(all);
            assert!(running.len() <= 1, "two versions at once: {running:?}");
            running.get("v2") == Some(&3)
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_a_rollout_back() {
    let cluster = Cluster::with_nodes(1).await;
    cluster.create::<Deployment>(deployment("web", 2, "v1")).await;
    cluster.until::<Deployment>("web", done).await;
    let change = json!({"spec": {"paused": true, "template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
    cluster.patch::<Deployment>("web", change).await;
    cluster.until::<Deployment>("web", |d| condition(d, "Progressing") == "DeploymentPaused").await;
    cluster.rest(30).await;
    assert_eq!(cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items.len(), 1);
    cluster.patch::<Deployment>("web", json!({"spec": {"paused": false}})).await;
    let pods =
        cluster.until_all::<Pod>("app=web", |all| images(all).get("v2") == Some(&2) && all.len() == 2).await;
    assert_eq!(images(&pods).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn pods_are_replaced_released_and_adopted() {
    let cluster = Cluster::with_nodes(1).await;
    cluster.create::<Deployment>(deployment("web", 3, "v1")).await;
    cluster.until::<Deployment>("web", done).await;
    let pods = cluster.until_all::<Pod>("app=web", |all| all.len() == 3).await;
    let first = pods[0].name_any();
    cluster.api::<Pod>().delete(&first, &DeleteParams::default()).await.unwrap();
    let after = cluster
        .until_all::<Pod>("app=web", |all| all.len() == 3 && all.iter().all(|p| p.name_any() != first))
        .await;
    // Relabelled: let go and replaced. Labelled back: adopted, and one too many goes.
    let second = after[0].name_any();
    cluster.patch::<Pod>(&second, json!({"metadata": {"labels": {"app": "debug"}}})).await;
    cluster.until::<Pod>(&second, |p| p.owner_references().is_empty()).await;
    cluster.until_all::<Pod>("app=web", |all| all.len() == 3).await;
    cluster.patch::<Pod>(&second, json!({"metadata": {"labels": {"app": "web"}}})).await;
    let pods = cluster
        .until_all::<Pod>("app=web", |all| {
            all.len() == 3 && all.iter().all(|p| !p.owner_references().is_empty())
        })
        .await;
    assert!(pods.iter().all(|p| !is_going(p)));
}

#[tokio::test(start_paused = true)]
async fn two_sets_of_controllers_make_no_pod_too_many() {
    let cluster = Cluster::with_nodes(2).await;
    cluster.run_controllers();
    cluster.create::<Deployment>(deployment("web", 20, "v1")).await;
    cluster.until::<Deployment>("web", done).await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 31}})).await;
    cluster.until::<Deployment>("web", |d| available(d) == 31).await;
    cluster.rest(20).await;
    let events = cluster.api::<Event>().list(&ListParams::default()).await.unwrap().items;
    let created: BTreeSet<_> = events
        .iter()
        .filter(|e| e.reason.as_deref() == Some("SuccessfulCreate"))
        .map(|e| e.message.clone())
        .collect();
    let deleted = events.iter().filter(|e| e.reason.as_deref() == Some("SuccessfulDelete")).count();
    assert!(created.len() <= 31 && deleted == 0, "{} created, {deleted} deleted", created.len());
    assert_eq!(cluster.until_all::<Pod>("app=web", |all| !all.is_empty()).await.len(), 31);
}

#[tokio::test(start_paused = true)]
async fn a_service_lists_its_pods() {
    let cluster = Cluster::with_nodes(1).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    cluster.create::<Service>(service).await;
    cluster.create::<Deployment>(deployment("web", 2, "v1")).await;
    let ready = |e: &EndpointSlice| {
        e.endpoints.iter().flatten().filter(|e| e.conditions.as_ref().unwrap().ready == Some(true)).count()
    };
    let slices = cluster
        .until_all::<EndpointSlice>("kubernetes.io/service-name=web", |all| {
            all.len() == 1 && ready(&all[0]) == 2
        })
        .await;
    assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    cluster
        .until::<Endpoints>("web", |e| {
            e.subsets.iter().flatten().any(|s| s.addresses.as_ref().is_some_and(|a| a.len() == 2))
        })
        .await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 0}})).await;
    cluster
        .until_all::<EndpointSlice>("kubernetes.io/service-name=web", |all| {
            all.len() == 1 && ready(&all[0]) == 0
        })
        .await;
    cluster.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
    cluster.until_all::<EndpointSlice>("kubernetes.io/service-name=web", <[_]>::is_empty).await;
    cluster.until_all::<Endpoints>("", |all| all.iter().all(|e| e.name_any() != "web")).await;
}

#[tokio::test(start_paused = true)]
async fn endpoints_made_by_hand_become_slices() {
    let cluster = Cluster::with_nodes(0).await;
    cluster.create::<Service>(json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 80}]}})).await;
    let by_hand = json!({"metadata": {"name": "db"}, "subsets": [{"addresses": [{"ip": "192.168.123.234"}], "ports": [{"port": 80}]}]});
    cluster.create::<Endpoints>(by_hand).await;
    let of = "kubernetes.io/service-name=db";
    let slices = cluster.until_all::<EndpointSlice>(of, |all| all.len() == 1).await;
    assert_eq!(slices[0].endpoints.as_ref().unwrap()[0].addresses, ["192.168.123.234"]);
    cluster.api::<Endpoints>().delete("db", &DeleteParams::default()).await.unwrap();
    cluster.until_all::<EndpointSlice>(of, <[_]>::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn an_autoscaler_without_metrics_says_so_and_does_nothing() {
    let cluster = Cluster::with_nodes(1).await;
    cluster.create::<Deployment>(deployment("web", 3, "v1")).await;
    cluster.until::<Deployment>("web", done).await;
    let scaler = json!({"metadata": {"name": "web"}, "spec": {"minReplicas": 2, "maxReplicas": 5,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}});
    cluster.create::<HorizontalPodAutoscaler>(scaler).await;
    let inactive = |h: &HorizontalPodAutoscaler| {
        let all = h.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        all.iter().any(|c| c.type_ == "ScalingActive" && c.status == "False")
    };
    cluster.until::<HorizontalPodAutoscaler>("web", inactive).await;
    let replicas = |d: &Deployment| d.spec.as_ref().unwrap().replicas;
    assert_eq!(replicas(&cluster.until::<Deployment>("web", done).await), Some(3));
    // Its limits count without metrics too.
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 9}})).await;
    cluster.until::<Deployment>("web", |d| done(d) && replicas(d) == Some(5)).await;
}

//! Jobs, CronJobs, DaemonSets and StatefulSets in a whole cluster.

mod support;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{Node, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use support::{Cluster, images, is_going, is_ready};

fn job(name: &str, image: &str, spec: Value) -> Value {
    let mut job = json!({"metadata": {"name": name}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}}}});
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job
}

fn ended(job: &Job) -> &str {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut conditions =
        conditions.filter(|c| c.status == "True" && matches!(&*c.type_, "Complete" | "Failed"));
    conditions.next().and_then(|c| c.reason.as_deref()).unwrap_or("")
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_to_its_completions() {
    let cluster = Cluster::with_nodes(2).await;
    cluster.create::<Job>(job("sum", "ok", json!({"completions": 7, "parallelism": 3}))).await;
    let done = cluster.until::<Job>("sum", |j| ended(j) == "CompletionsReached").await;
    let status = done.status.unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(7), None, None));
    assert!(status.completion_time.is_some());
    let pods =
        cluster.until_all::<Pod>("job-name=sum", |all| all.iter().all(|p| p.finalizers().is_empty())).await;
    assert_eq!(pods.len(), 7, "finished pods are kept for their logs");
}

#[tokio::test(start_paused = true)]
async fn a_failing_job_gives_up_after_its_limit() {
    let cluster = Cluster::with_nodes(1).await;
    cluster
        .create::<Job>(job("bad", "fail", json!({"backoffLimit": 2, "ttlSecondsAfterFinished": 30})))
        .await;
    let done = cluster.until::<Job>("bad", |j| ended(j) == "BackoffLimitExceeded").await;
    assert_eq!(done.status.unwrap().failed, Some(3));
    cluster.until_all::<Job>("", <[_]>::is_empty).await;
    cluster.until_all::<Pod>("job-name=bad", <[_]>::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn an_indexed_job_does_each_index_once() {
    let cluster = Cluster::with_nodes(1).await;
    let spec = json!({"completions": 5, "parallelism": 2, "completionMode": "Indexed"});
    cluster.create::<Job>(job("map", "ok", spec)).await;
    let done = cluster.until::<Job>("map", |j| ended(j) == "CompletionsReached").await;
    assert_eq!(done.status.unwrap().completed_indexes.as_deref(), Some("0-4"));
    let pods = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
    let mut hosts: Vec<_> = pods.iter().map(|p| p.spec.clone().unwrap().hostname.unwrap()).collect();
    hosts.sort();
    assert_eq!(hosts, ["map-0", "map-1", "map-2", "map-3", "map-4"]);
}

#[tokio::test(start_paused = true)]
async fn a_suspended_job_has_no_pods_until_it_goes_on() {
    let cluster = Cluster::with_nodes(1).await;
    cluster.create::<Job>(job("later", "run", json!({"parallelism": 2, "completions": 2}))).await;
    cluster.until_all::<Pod>("job-name=later", |all| all.len() == 2 && all.iter().all(is_ready)).await;
    cluster.patch::<Job>("later", json!({"spec": {"suspend": true}})).await;
    cluster.until_all::<Pod>("job-name=later", <[_]>::is_empty).await;
    cluster.patch::<Job>("later", json!({"spec": {"suspend": false}})).await;
    cluster.until_all::<Pod>("job-name=later", |all| all.len() == 2 && all.iter().all(is_ready)).await;
    let job = cluster.api::<Job>().get("later").await.unwrap();
    assert_eq!(job.status.unwrap().failed, None, "stopping pods is no failure");
}

#[tokio::test(start_paused = true)]
async fn a_cron_job_makes_a_job_each_minute_and_keeps_three() {
    let cluster = Cluster::with_nodes(1).await;
    let template = job("x", "ok", json!({}))["spec"].clone();
    let cron = json!({"metadata": {"name": "tick"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": template}}});
    cluster.create::<CronJob>(cron).await;
    cluster.until_all::<Job>("", |all| !all.is_empty()).await;
    cluster.rest(300).await;
    let jobs = cluster.until_all::<Job>("", |all| all.len() <= 4).await;
    assert!(jobs.len() >= 3 && jobs.iter().all(|j| j.name_any().starts_with("tick-")));
    let cron = cluster
        .until::<CronJob>("tick", |c| c.status.as_ref().is_some_and(|s| s.last_successful_time.is_some()))
        .await;
    assert!(cron.status.unwrap().last_schedule_time.is_some());
}

fn template(name: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

#[tokio::test(start_paused = true)]
async fn a_daemon_set_follows_the_nodes() {
    let cluster = Cluster::with_nodes(2).await;
    let set = json!({"metadata": {"name": "log"}, "spec": {
        "selector": {"matchLabels": {"app": "log"}}, "template": template("log", "v1")}});
    cluster.create::<DaemonSet>(set).await;
    let ready = |s: &DaemonSet, n: i32| {
        let status = s.status.clone().unwrap_or_default();
        status.desired_number_scheduled == n
            && status.number_available == Some(n)
            && status.updated_number_scheduled == Some(n)
    };
    cluster.until::<DaemonSet>("log", |s| ready(s, 2)).await;
    cluster.add_node("n2", json!({})).await;
    cluster.until::<DaemonSet>("log", |s| ready(s, 3)).await;
    // A new template goes from node to node.
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
    cluster.patch::<DaemonSet>("log", change).await;
    cluster
        .until_all::<Pod>("app=log", |all| {
            assert!(all.iter().filter(|p| is_ready(p) && !is_going(p)).count() >= 2, "one at a time");
            images(all).get("v2") == Some(&3)
        })
        .await;
    cluster.until::<DaemonSet>("log", |s| ready(s, 3)).await;
    let history = cluster.api::<ControllerRevision>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(history.len(), 2);
    // A taint that it does not put up with, and a node that is gone.
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let taint = json!({"spec": {"taints": [{"key": "own", "effect": "NoExecute"}]}});
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    cluster.until::<DaemonSet>("log", |s| ready(s, 2)).await;
    nodes.delete("n0", &DeleteParams::default()).await.unwrap();
    cluster.until::<DaemonSet>("log", |s| ready(s, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stateful_set_keeps_names_order_and_claims() {
    let cluster = Cluster::with_nodes(2).await;
    let set = |claims: Value| {
        json!({"metadata": {"name": "db"}, "spec": {"replicas": 3, "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}}, "template": template("db", "v1"), "volumeClaimTemplates": claims}})
    };
    cluster.create::<StatefulSet>(set(json!([]))).await;
    let settled = |s: &StatefulSet, n: i32| {
        let status = s.status.clone().unwrap_or_default();
        status.observed_generation == s.metadata.generation
            && status.replicas == n
            && status.available_replicas == Some(n)
            && status.current_revision == status.update_revision
            && status.updated_replicas.unwrap_or(0) == n
    };
    cluster.until::<StatefulSet>("db", |s| settled(s, 3)).await;
    let mut pods = cluster.until_all::<Pod>("app=db", |all| all.len() == 3).await;
    pods.sort_by_key(ResourceExt::creation_timestamp);
    let names = |pods: &[Pod]| pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
    assert_eq!(names(&pods), ["db-0", "db-1", "db-2"]);
    let spec = pods[1].spec.clone().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-1"), Some("db")));
    // Updated from the top down, the partition staying behind.
    let change = |partition: i32| {
        json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}},
            "template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}})
    };
    cluster.patch::<StatefulSet>("db", change(1)).await;
    let pods = cluster
        .until_all::<Pod>("app=db", |all| images(all).get("v2") == Some(&2) && all.iter().all(is_ready))
        .await;
    let old = pods.iter().find(|p| p.name_any() == "db-0").unwrap();
    assert_eq!(old.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("v1"));
    cluster.patch::<StatefulSet>("db", change(0)).await;
    cluster.until::<StatefulSet>("db", |s| settled(s, 3)).await;
    cluster.patch::<StatefulSet>("db", json!({"spec": {"replicas": 1}})).await;
    let left = cluster.until_all::<Pod>("app=db", |all| all.len() == 1).await;
    assert_eq!(names(&left), ["db-0"]);
    cluster.api::<StatefulSet>().delete("db", &DeleteParams::background()).await.unwrap();
    cluster.until_all::<Pod>("app=db", <[_]>::is_empty).await;
    // Claims are made, and stay when the set goes.
    let claim = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}}}}]);
    cluster.until_all::<StatefulSet>("", <[_]>::is_empty).await;
    cluster.create::<StatefulSet>(set(claim)).await;
    cluster
        .until_all::<PersistentVolumeClaim>("app=db", |all| {
            all.len() == 1 && all[0].name_any() == "data-db-0"
        })
        .await;
    cluster.api::<StatefulSet>().delete("db", &DeleteParams::background()).await.unwrap();
    cluster.until_all::<Pod>("app=db", <[_]>::is_empty).await;
    assert_eq!(
        cluster.api::<PersistentVolumeClaim>().list(&ListParams::default()).await.unwrap().items.len(),
        1
    );
}

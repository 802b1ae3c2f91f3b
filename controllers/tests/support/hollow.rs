//! Plays all nodes of a cluster, thousands if need be: pods become Running and ready, those of image `bad`
//! never do, those of `ok` and `fail` end so; pods being deleted go at once. Nodes renew their leases, and say
//! that they are ready when somebody has said otherwise. Those labelled `dead` do nothing at all.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use wasmk_controllers::{
    Context, Result,
    base::{Informer, Key, Next, PodView, Queue, is_deleting},
};

/// How often a node renews its lease.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Pods and leases written at once.
const WORKERS: usize = 64;

/// Runs until the context's shutdown.
pub(crate) async fn run(cx: Context) {
    let (nodes, pods) = (cx.cache::<Node>(), cx.cache::<Pod>());
    let (work, beats) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
    let (sink, known) = (beats.clone(), pods.clone());
    let wake = work.clone();
    nodes.subscribe(move |old, new| {
        let Some(node) = new else { return };
        let was_dead = old.is_some_and(|n| is_dead(n));
        if old.is_none() || was_dead != is_dead(node) {
            sink.add(Key::of(&node.metadata));
        }
        if was_dead {
            known.on_node(&node.name_any()).iter().for_each(|pod| wake.add(Key::of(&pod.metadata)));
        }
    });
    let sink = work.clone();
    pods.subscribe(move |_, new| {
        if let Some(pod) = new.filter(|p| !PodView(p).node().is_empty()) {
            sink.add(Key::of(&pod.metadata));
        }
    });
    tokio::join!(
        cx.work("hollow pods", &work, WORKERS, |key| play(&cx, &nodes, &pods, key)),
        cx.work("hollow nodes", &beats, WORKERS, |key| beat(&cx, &nodes, key)),
    );
}

pub(crate) fn is_dead(node: &Node) -> bool {
    node.labels().contains_key("dead")
}

async fn beat(cx: &Context, nodes: &Informer<Node>, key: Key) -> Result<Next> {
    let Some(node) = nodes.get(&key).filter(|n| !is_dead(n)) else { return Ok(Next::Change) };
    let leases: Api<Lease> = Api::namespaced(cx.client.clone(), "kube-node-lease");
    let renewed = Patch::Merge(json!({"spec": {"renewTime": format!("{:.6}", cx.clock.now().0)}}));
    // A node that has no lease yet gets one soon.
    let _ = leases.patch(&key.name, &PatchParams::default(), &renewed).await;
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or(&[]);
    if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "Unknown") {
        let at = cx.clock.now().to_string();
        let condition = |kind: &str, status: &str| {
            json!({"type": kind, "status": status, "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": at, "lastTransitionTime": at})
        };
        let all = [
            condition("Ready", "True"),
            condition("MemoryPressure", "False"),
            condition("DiskPressure", "False"),
            condition("PIDPressure", "False"),
        ];
        cx.patch_sub(&*node, "status", json!({"status": {"conditions": all}})).await?;
    }
    Ok(Next::After(HEARTBEAT))
}

async fn play(cx: &Context, nodes: &Informer<Node>, pods: &Informer<Pod>, key: Key) -> Result<Next> {
    let Some(pod) = pods.get(&key) else { return Ok(Next::Change) };
    let node = nodes.get(&Key::new("", PodView(&pod).node()));
    if node.is_none_or(|n| is_dead(&n)) {
        return Ok(Next::Change);
    }
    if is_deleting(&*pod) {
        cx.delete(&*pod, DeleteParams::default().grace_period(0)).await?;
        return Ok(Next::Change);
    }
    if !matches!(PodView(&pod).phase(), "Pending" | "") {
        return Ok(Next::Change);
    }
    let at = cx.clock.now().to_string();
    let container = &pod.spec.as_ref().expect("a pod has a spec").containers[0];
    let (phase, ready) = match container.image.as_deref().unwrap_or("") {
        "bad" => return Ok(Next::Change),
        "ok" => ("Succeeded", "False"),
        "fail" => ("Failed", "False"),
        _ => ("Running", "True"),
    };
    let uid = pod.uid().unwrap_or_default();
    let digest = uid.bytes().fold(7_u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let ip = Ipv4Addr::from(0x0a00_0000 | (digest & 0xff_ffff)).to_string();
    let mut status = json!({
        "phase": phase, "podIP": ip, "podIPs": [{"ip": ip}], "startTime": at,
        "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": at},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": at}],
    });
    if phase != "Running" {
        let code = i32::from(phase == "Failed");
        status["containerStatuses"] = json!([{"name": container.name, "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code, "finishedAt": at}}}]);
    }
    match cx.patch_sub(&*pod, "status", json!({"status": status})).await {
        Err(error) if error.is_not_found() => Ok(Next::Change),
        other => other.map(|_| Next::Change),
    }
}

//! `pods/eviction`: deleting a pod as far as disruption budgets allow.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use wasmk_api::{Cause, Gvk, LabelSelector, Object, Reason, Status};

use crate::{
    admission,
    cache::{Entry, Filter},
    http::{Answer, negotiate, respond},
    machine,
    write::{DeleteOptions, Mode, Work, delete_object, update_object},
};

const BUDGETS: &str = "policy/poddisruptionbudgets";

/// Evicts the pod.
///
/// # Errors
/// 429 when a budget has no disruption left, 500 when several budgets cover the pod.
pub(crate) async fn create(work: &Work<'_>, body: &Bytes) -> Result<Answer, Status> {
    let body_type = negotiate::body_type(&work.call.headers)?;
    let mut eviction = work.decode_as(body, body_type, &Gvk::new("policy", "v1", "Eviction"))?;
    let name = &work.call.info.name;
    if eviction.name() != name.as_str() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    admission::sent(work, &mut eviction).await?;
    let options = options(&eviction)?;
    // Some clients say it in the options alone.
    let dry_run = work.dry_run || options.is_dry();
    let work = &Work { manager: work.manager.clone(), dry_run, ..*work };
    work.core.caches.catch_up().await?;
    let key = crate::cache::key(work.namespace(), name);
    let pod = work.resource.cache.get(&key).ok_or_else(|| work.not_found(name))?;
    crate::admission::node::validate_eviction(work, &pod.object())?;
    if !goes_anyway(&pod.object()) {
        spend_budget(work, &pod).await?;
    }
    delete_object(work, work.namespace(), name, &options).await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::value_as(StatusCode::CREATED, work.call.wanted, &status))
}

/// How the pod is to be deleted.
fn options(eviction: &Object) -> Result<DeleteOptions, Status> {
    let Some(options) = eviction.0.get("deleteOptions") else { return Ok(DeleteOptions::default()) };
    let options: DeleteOptions =
        serde_json::from_value(options.clone()).map_err(|e| Status::bad_request(e.to_string()))?;
    options.check()?;
    Ok(options)
}

/// Pods that do not run, or are being deleted, need no budget.
fn goes_anyway(pod: &Object) -> bool {
    let phase = pod.at(&["status", "phase"]).and_then(Value::as_str).unwrap_or("");
    pod.is_deleting() || matches!(phase, "Succeeded" | "Failed" | "Pending" | "")
}

fn is_ready(pod: &Object) -> bool {
    let conditions = pod.at(&["status", "conditions"]).and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| {
        c.get("type").and_then(Value::as_str) == Some("Ready")
            && c.get("status").and_then(Value::as_str) == Some("True")
    })
}

/// The budgets that cover a pod.
fn budgets(work: &Work<'_>, pod: &Entry) -> Vec<Object> {
    let filter = Filter { namespace: pod.namespace.to_string(), ..Filter::default() };
    let covers = |budget: &Object| {
        let Some(selector) = budget.at(&["spec", "selector"]) else { return false };
        let Ok(selector) = serde_json::from_value(selector.clone()) else { return false };
        LabelSelector::from_api(&selector).is_ok_and(|s| s.matches_with(|key| pod.label(key)))
    };
    work.core.caches.of(BUDGETS).list(&filter).iter().map(|e| e.object()).filter(covers).collect()
}

async fn spend_budget(work: &Work<'_>, pod: &Entry) -> Result<(), Status> {
    let budgets = budgets(work, pod);
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(Status::new(
                Reason::Unknown,
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let always =
        budget.at(&["spec", "unhealthyPodEvictionPolicy"]).and_then(Value::as_str) == Some("AlwaysAllow");
    let object = pod.object();
    if !is_ready(&object) {
        let count = |key: &str| budget.at(&["status", key]).and_then(Value::as_i64).unwrap_or(0);
        if always || (count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0) {
            return Ok(());
        }
    }
    if work.dry_run {
        return allowed(budget).map(|_| ());
    }
    let table = work.core.table.load();
    let Some(resource) = table.get("policy", "v1", "poddisruptionbudgets").cloned() else { return Ok(()) };
    drop(table);
    let inner = Work { resource: &resource, manager: "kube-apiserver".into(), ..*work };
    let name = object.name().to_owned();
    let spent = update_object(&inner, budget.name(), Mode::Free("status"), false, |budget| {
        let left = allowed(budget)?;
        let mut new = budget.clone();
        if let Some(status) = new.0.entry("status").or_insert_with(|| json!({})).as_object_mut() {
            status.insert("disruptionsAllowed".into(), (left - 1).into());
            let disrupted = status.entry("disruptedPods").or_insert_with(|| json!({}));
            if let Some(disrupted) = disrupted.as_object_mut() {
                disrupted.insert(name.clone(), work.now.to_string().into());
            }
            if left == 1 {
                exhaust(status, budget.generation(), work.now);
            }
        }
        machine::manage_as(&inner, &resource.gvk, &mut new, Some(budget), "status")?;
        Ok(new)
    });
    Box::pin(spent).await.map(|_| ())
}

/// Says that no disruption is left.
fn exhaust(status: &mut serde_json::Map<String, Value>, generation: i64, now: wasmk_api::Timestamp) {
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    list.retain(|c| c.get("type").and_then(Value::as_str) != Some("DisruptionAllowed"));
    list.push(json!({
        "type": "DisruptionAllowed", "status": "False", "observedGeneration": generation,
        "lastTransitionTime": now.to_string(), "reason": "InsufficientPods", "message": "",
    }));
}

/// How many disruptions a budget has left.
fn allowed(budget: &Object) -> Result<i64, Status> {
    let status = |key: &str| budget.at(&["status", key]).and_then(Value::as_i64).unwrap_or(0);
    let refuse = |seconds: u32, message: String| {
        let cause = Cause { reason: "DisruptionBudget".into(), message, field: String::new() };
        let text = "Cannot evict pod as it would violate the pod's disruption budget.";
        let mut status = Status::new(Reason::TooManyRequests, text).with_causes(&[cause]);
        if seconds > 0 {
            status = status.retry_after(seconds);
        }
        Err(status)
    };
    if status("observedGeneration") < budget.generation() {
        return refuse(
            10,
            format!("The disruption budget {} is still being processed by the server.", budget.name()),
        );
    }
    match status("disruptionsAllowed") {
        left if left > 0 => Ok(left),
        _ => refuse(
            0,
            format!(
                "The disruption budget {} needs {} healthy pods and has {} currently",
                budget.name(),
                status("desiredHealthy"),
                status("currentHealthy")
            ),
        ),
    }
}

//! Resource quotas: what a new object uses is charged before it is stored.
//!
//! The charge is an update of the quota's status under its revision, so that two writers cannot both take the last
//! of something. What is charged for an object that then is not stored comes back with the quota controller's next
//! pass.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wasmk_api::{Object, Quantity, Status};

use super::{
    PODS,
    amounts::{Amounts, amount, of_pod, quantity, show},
};
use crate::{
    cache::Filter,
    crd::own_call,
    write::{Mode, Work, update_object},
};

/// Resources counted under a name of their own, besides `count/<plural>.<group>`.
const COUNTED: [(&str, &str); 8] = [
    ("core/configmaps", "configmaps"),
    ("core/secrets", "secrets"),
    ("core/services", "services"),
    ("core/replicationcontrollers", "replicationcontrollers"),
    ("core/resourcequotas", "resourcequotas"),
    ("core/persistentvolumeclaims", "persistentvolumeclaims"),
    ("core/pods", "pods"),
    ("resource.k8s.io/resourceclaims", "resourceclaims"),
];

/// What an object uses.
fn usage(work: &Work<'_>, object: &Object) -> Amounts {
    let mut used = Amounts::new();
    let resource = work.resource.group_resource();
    used.insert(format!("count/{resource}"), Quantity::units(1));
    if let Some((_, name)) = COUNTED.iter().find(|(storage, _)| *storage == work.resource.storage) {
        used.insert((*name).into(), Quantity::units(1));
    }
    match &*work.resource.storage {
        PODS => pod_usage(object, &mut used),
        "core/persistentvolumeclaims" => {
            if let Some(storage) = amount(object.at(&["spec", "resources", "requests"]), "storage") {
                used.insert("requests.storage".into(), storage);
                let class = object.at(&["spec", "storageClassName"]).and_then(Value::as_str).unwrap_or("");
                if !class.is_empty() {
                    let prefix = format!("{class}.storageclass.storage.k8s.io/");
                    used.insert(format!("{prefix}requests.storage"), storage);
                    used.insert(format!("{prefix}persistentvolumeclaims"), Quantity::units(1));
                }
            }
        }
        "core/services" => {
            let kind = object.at(&["spec", "type"]).and_then(Value::as_str).unwrap_or("");
            let ports = object.at(&["spec", "ports"]).and_then(Value::as_array).map_or(0, Vec::len);
            let ports = i64::try_from(ports).unwrap_or(0);
            if kind == "LoadBalancer" {
                used.insert("services.loadbalancers".into(), Quantity::units(1));
            }
            if matches!(kind, "NodePort" | "LoadBalancer") {
                used.insert("services.nodeports".into(), Quantity::units(ports));
            }
        }
        _ => {}
    }
    used
}

fn pod_usage(pod: &Object, used: &mut Amounts) {
    let phase = pod.at(&["status", "phase"]).and_then(Value::as_str).unwrap_or("");
    if matches!(phase, "Succeeded" | "Failed") {
        used.retain(|name, _| name.starts_with("count/"));
        return;
    }
    for (name, amount) in of_pod(pod, "requests") {
        if matches!(&*name, "cpu" | "memory" | "ephemeral-storage") {
            used.insert(name.clone(), amount);
        }
        used.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in of_pod(pod, "limits") {
        used.insert(format!("limits.{name}"), amount);
    }
}

fn best_effort(pod: &Object) -> bool {
    of_pod(pod, "requests").is_empty() && of_pod(pod, "limits").is_empty()
}

/// Whether a quota is about an object.
fn in_scope(quota: &Object, object: &Object) -> bool {
    let scopes = quota.at(&["spec", "scopes"]).and_then(Value::as_array);
    let plain = scopes.into_iter().flatten().filter_map(Value::as_str).all(|scope| holds(scope, object));
    let terms = quota.at(&["spec", "scopeSelector", "matchExpressions"]).and_then(Value::as_array);
    plain
        && terms.into_iter().flatten().all(|term| {
            let text = |key: &str| term.get(key).and_then(Value::as_str).unwrap_or("");
            let values: Vec<&str> = term
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            if text("scopeName") != "PriorityClass" {
                return holds(text("scopeName"), object);
            }
            let class = object.at(&["spec", "priorityClassName"]).and_then(Value::as_str).unwrap_or("");
            match text("operator") {
                "In" => values.contains(&class),
                "NotIn" => !values.contains(&class),
                "Exists" => !class.is_empty(),
                _ => class.is_empty(),
            }
        })
}

fn holds(scope: &str, pod: &Object) -> bool {
    let terminating = pod.at(&["spec", "activeDeadlineSeconds"]).is_some_and(|v| !v.is_null());
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(pod),
        "NotBestEffort" => !best_effort(pod),
        "PriorityClass" => {
            !pod.at(&["spec", "priorityClassName"]).and_then(Value::as_str).unwrap_or("").is_empty()
        }
        "CrossNamespacePodAffinity" => false,
        _ => true,
    }
}

fn text_of(map: Option<&Value>, name: &str) -> String {
    match map.and_then(|m| m.get(name)) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "0".into(),
    }
}

/// Charges what an object newly uses to the quotas of its namespace.
///
/// # Errors
/// 403 when a quota has not enough left, or the object does not say what a quota limits.
pub(crate) async fn charge(work: &Work<'_>, new: &Object, old: Option<&Object>) -> Result<(), Status> {
    if !work.resource.namespaced || work.resource.storage == "core/resourcequotas" {
        return Ok(());
    }
    let filter = Filter { namespace: work.namespace().into(), ..Filter::default() };
    let quotas = work.core.caches.of("core/resourcequotas").list(&filter);
    if quotas.is_empty() {
        return Ok(());
    }
    let before = old.map(|o| usage(work, o)).unwrap_or_default();
    let mut more = usage(work, new);
    for (name, amount) in &before {
        if let Some(after) = more.get_mut(name) {
            *after = *after - *amount;
        }
    }
    more.retain(|_, amount| !amount.is_negative() && *amount != Quantity::default());
    if more.is_empty() && old.is_some() {
        return Ok(());
    }
    for entry in quotas {
        let quota = entry.object();
        if in_scope(&quota, new) {
            one(work, new, &quota, &more, old.is_none()).await?;
        }
    }
    Ok(())
}

/// What of the extra usage a quota limits.
fn limited(quota: &Object, more: &Amounts) -> BTreeMap<String, Quantity> {
    let hard = quota.at(&["status", "hard"]).and_then(Value::as_object);
    let names = hard.into_iter().flatten().map(|(name, _)| name);
    names.filter_map(|name| Some((name.clone(), *more.get(name)?))).collect()
}

fn unsaid(work: &Work<'_>, quota: &Object, more: &Amounts) -> Vec<String> {
    if work.resource.storage != PODS {
        return Vec::new();
    }
    let hard = quota.at(&["status", "hard"]).and_then(Value::as_object);
    let mut names: Vec<String> = hard
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .filter(|name| {
            let bare = name.trim_start_matches("requests.").trim_start_matches("limits.");
            matches!(bare, "cpu" | "memory" | "ephemeral-storage") && !more.contains_key(name)
        })
        .collect();
    names.sort();
    names
}

async fn one(
    work: &Work<'_>,
    object: &Object,
    quota: &Object,
    more: &Amounts,
    created: bool,
) -> Result<(), Status> {
    let forbid = |why: String| Err(Status::forbidden(&work.resource.group_resource(), object.name(), &why));
    let unsaid = unsaid(work, quota, more);
    if created && !unsaid.is_empty() {
        let list: Vec<String> =
            unsaid.iter().map(|name| format!("{name} for: {}", container_names(object, name))).collect();
        return forbid(format!("failed quota: {}: must specify {}", quota.name(), list.join("; ")));
    }
    let wanted = limited(quota, more);
    if wanted.is_empty() {
        return Ok(());
    }
    if let Some(why) = exceeded(quota, &wanted) {
        return forbid(why);
    }
    if work.dry_run {
        return Ok(());
    }
    let Some(resource) = work.core.table.load().get("", "v1", "resourcequotas").cloned() else {
        return Ok(());
    };
    let mut call = own_call(&resource, quota.name());
    call.info.namespace = quota.namespace().into();
    let inner = Work { trusted: true, ..Work::new(work.core, &call, &resource)? };
    let (name, kind) = (object.name().to_owned(), work.resource.group_resource());
    let charged = update_object(&inner, quota.name(), Mode::Status, false, |present| {
        if let Some(why) = exceeded(present, &wanted) {
            return Err(Status::forbidden(&kind, &name, &why));
        }
        Ok(with(present, &wanted))
    });
    Box::pin(charged).await.map(|_| ())
}

/// The containers that do not say an amount, by name.
fn container_names(pod: &Object, name: &str) -> String {
    let (kind, bare) = match name.split_once('.') {
        Some((kind, bare)) => (kind, bare),
        None => ("requests", name),
    };
    let mut names: Vec<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| pod.at(&["spec", list]).and_then(Value::as_array).into_iter().flatten())
        .filter(|c| c.pointer(&format!("/resources/{kind}")).and_then(|r| r.get(bare)).is_none())
        .filter_map(|c| c.get("name")?.as_str())
        .collect();
    names.sort_unstable();
    names.join(",")
}

fn exceeded(quota: &Object, wanted: &BTreeMap<String, Quantity>) -> Option<String> {
    let (hard, used) = (quota.at(&["status", "hard"]), quota.at(&["status", "used"]));
    let over: Vec<(&String, &Quantity)> = wanted
        .iter()
        .filter(|(name, more)| {
            let limit = amount(hard, name).unwrap_or_default();
            amount(used, name).unwrap_or_default() + **more > limit
        })
        .collect();
    if over.is_empty() {
        return None;
    }
    let list = |text: &dyn Fn(&str, Quantity) -> String| -> String {
        over.iter().map(|(name, more)| format!("{name}={}", text(name, **more))).collect::<Vec<_>>().join(",")
    };
    Some(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        quota.name(),
        list(&|name, more| show(more, &text_of(hard, name))),
        list(&|name, _| text_of(used, name)),
        list(&|name, _| text_of(hard, name)),
    ))
}

fn with(quota: &Object, wanted: &BTreeMap<String, Quantity>) -> Object {
    let mut new = quota.clone();
    let Some(status) = new.0.entry("status").or_insert_with(|| json!({})).as_object_mut() else { return new };
    let used = status.entry("used").or_insert_with(|| json!({}));
    let Some(used) = used.as_object_mut() else { return new };
    for (name, more) in wanted {
        let before = used.get(name).and_then(quantity).unwrap_or_default();
        // Nothing has no form of its own.
        let like = match used.get(name).and_then(Value::as_str) {
            None | Some("0") => text_of(quota.at(&["status", "hard"]), name),
            Some(text) => text.to_owned(),
        };
        used.insert(name.clone(), show(before + *more, &like).into());
    }
    new
}

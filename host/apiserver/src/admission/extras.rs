//! Small plugins that are off unless they are asked for.

use serde_json::{Value, json};
use wasmk_api::{GroupResource, Object, Status};

use crate::{
    crd::own_call,
    write::{Mode, Work, create_object},
};

/// The one domain that [`anti_affinity`] lets pods keep others away from.
const HOST: &str = "kubernetes.io/hostname";

fn refuse(work: &Work<'_>, object: &Object, why: &str) -> Result<(), Status> {
    Err(Status::forbidden(&work.resource.group_resource(), object.name(), why))
}

/// Pods pull their images whenever they start, so that nobody runs what others' credentials have brought here.
pub(crate) fn always_pull(_: &Work<'_>, pod: &mut Object, _: Option<&Object>) -> Result<(), Status> {
    let Some(spec) = pod.0.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.insert("imagePullPolicy".into(), "Always".into());
            }
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(image) = volume.get_mut("image").and_then(Value::as_object_mut) {
            image.insert("pullPolicy".into(), "Always".into());
        }
    }
    Ok(())
}

/// Pods that use an extended resource tolerate nodes that are tainted with its name.
pub(crate) fn tolerate_extended(_: &Work<'_>, pod: &mut Object, _: Option<&Object>) -> Result<(), Status> {
    let Some(spec) = pod.0.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let mut names: Vec<String> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| spec.get(*list).and_then(Value::as_array).into_iter().flatten())
        .filter_map(|container| container.pointer("/resources/requests")?.as_object())
        .flat_map(|requests| requests.keys())
        .filter(|name| is_extended(name))
        .cloned()
        .collect();
    names.sort();
    names.dedup();
    for name in names {
        let list = spec.entry("tolerations").or_insert_with(|| json!([]));
        let Some(list) = list.as_array_mut() else { return Ok(()) };
        let wanted = json!({ "key": name, "operator": "Exists" });
        if !list.contains(&wanted) {
            list.push(wanted);
        }
    }
    Ok(())
}

fn is_extended(name: &str) -> bool {
    let Some((domain, _)) = name.split_once('/') else { return false };
    !(domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") || name.starts_with("requests."))
}

/// Pods may keep others away from their own host, not from wider domains.
pub(crate) fn anti_affinity(
    work: &Work<'_>,
    pod: &Object,
    _: Option<&Object>,
    _: Mode,
) -> Result<(), Status> {
    let path = ["spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
    for term in pod.at(&path).and_then(Value::as_array).into_iter().flatten() {
        let key = term.get("topologyKey").and_then(Value::as_str).unwrap_or("");
        if key != HOST {
            let why = format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOST} is allowed"
            );
            return refuse(work, pod, &why);
        }
    }
    Ok(())
}

/// Services get no external addresses they did not have.
pub(crate) fn external_ips(
    work: &Work<'_>,
    service: &Object,
    old: Option<&Object>,
    _: Mode,
) -> Result<(), Status> {
    let addresses = |object: &Object| {
        object.at(&["spec", "externalIPs"]).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let before = old.map(addresses).unwrap_or_default();
    if addresses(service).iter().all(|address| before.contains(address)) {
        return Ok(());
    }
    refuse(work, service, "Use of external IPs is denied by admission control.")
}

/// Refuses everything.
pub(crate) fn never(work: &Work<'_>, object: &Object, _: Option<&Object>, _: Mode) -> Result<(), Status> {
    refuse(work, object, "admission control is denying all modifications")
}

/// Nothing changes in a namespace that is not there.
pub(crate) fn namespace_exists(
    work: &Work<'_>,
    _: &Object,
    _: Option<&Object>,
    _: Mode,
) -> Result<(), Status> {
    let namespace = work.namespace();
    if namespace.is_empty() || work.core.caches.of("core/namespaces").get(namespace).is_some() {
        return Ok(());
    }
    Err(Status::not_found(&GroupResource::new("", "namespaces"), namespace))
}

/// Makes the namespace of an object that is created, when it is not there.
pub(crate) async fn provide_namespace(work: &Work<'_>) -> Result<(), Status> {
    let name = work.namespace();
    if name.is_empty() || work.dry_run || work.core.caches.of("core/namespaces").get(name).is_some() {
        return Ok(());
    }
    let Some(resource) = work.core.table.load().get("", "v1", "namespaces").cloned() else { return Ok(()) };
    let call = own_call(&resource, name);
    let inner = Work { trusted: true, ..Work::new(work.core, &call, &resource)? };
    let namespace = json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
        "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" },
    });
    let Some(namespace) = Object::from_value(namespace) else { return Ok(()) };
    match Box::pin(create_object(&inner, namespace)).await {
        Err(status) if status.code != 409 => Err(status),
        _ => work.core.caches.catch_up().await.map(|_| ()),
    }
}

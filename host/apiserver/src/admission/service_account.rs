//! Pods run as a service account: the one they name or `default`, with its token and pull secrets.

use serde_json::{Value, json};
use wasmk_api::{GroupResource, Object, Status};

use crate::write::Work;

/// Where tokens are found in containers.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of the tokens of pods, in seconds.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Completes a pod that is created.
pub(crate) fn mutate(work: &Work<'_>, pod: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if old.is_some() {
        return Ok(());
    }
    let refuse = |why: &str| Err(Status::forbidden(&work.resource.group_resource(), pod.name(), why));
    if pod.annotation(MIRROR).is_some() {
        let named = pod.at(&["spec", "serviceAccountName"]).and_then(Value::as_str).unwrap_or("");
        return if named.is_empty() {
            Ok(())
        } else {
            refuse("a mirror pod may not reference service accounts")
        };
    }
    let mut name = pod.at(&["spec", "serviceAccountName"]).and_then(Value::as_str).unwrap_or("").to_owned();
    if name.is_empty() {
        name = "default".into();
    }
    let namespace = work.namespace();
    let Some(account) = work.core.caches.of("core/serviceaccounts").get(&crate::cache::key(namespace, &name))
    else {
        let missing = Status::not_found(&GroupResource::new("", "serviceaccounts"), &name);
        // Where no controller makes the default account, pods may do without it.
        let why = format!(
            "error looking up service account {namespace}/{name}: {}",
            missing.message.replace("serviceaccounts", "serviceaccount")
        );
        return refuse(&why);
    };
    let account = account.object();
    let Some(spec) = pod.0.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    spec.insert("serviceAccountName".into(), name.clone().into());
    spec.insert("serviceAccount".into(), name.into());
    let no_secrets = spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if let (true, Some(secrets)) = (no_secrets, account.0.get("imagePullSecrets")) {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let wants = |map: Option<&Value>| map.and_then(Value::as_bool);
    let automount = wants(spec.get("automountServiceAccountToken"))
        .or_else(|| wants(account.0.get("automountServiceAccountToken")))
        .unwrap_or(true);
    if automount {
        mount(spec);
    }
    Ok(())
}

fn mount(spec: &mut serde_json::Map<String, Value>) {
    let mut volume = None;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            let mounted = mounts.iter().any(|m| m.get("mountPath").and_then(Value::as_str) == Some(MOUNT));
            if mounted {
                continue;
            }
            let name = volume.get_or_insert_with(|| crate::write::generated_name("kube-api-access-"));
            mounts.push(json!({ "name": name, "readOnly": true, "mountPath": MOUNT }));
        }
    }
    let Some(name) = volume else { return };
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if !volumes.is_array() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({ "name": name, "projected": { "defaultMode": 420, "sources": [
            { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [
                { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } },
            ] } },
        ] } }));
    }
    order(spec);
}

/// Puts the volumes first, as Kubernetes writes them.
fn order(spec: &mut serde_json::Map<String, Value>) {
    if let Some(volumes) = spec.shift_remove("volumes") {
        spec.shift_insert(0, "volumes".into(), volumes);
    }
}

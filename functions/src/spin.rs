//! SpinApp (`core.spinkube.dev/v1alpha1`): each becomes a Service of the same name, and so a function.
//! Reads spinapps, services. Writes services, spinapps/status.
//! Never touches a Service that it does not control.

use std::{collections::BTreeMap, sync::Arc};

use kube::{
    Api, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Map, Value, json};
use wasmk_api::knative::{Service, condition};

use crate::{
    context::{Context, Error, failed},
    fleet::Key,
    passes::Again,
    schema,
};

const GROUP: &str = "core.spinkube.dev";
/// Label of what belongs to an app.
const APP_LABEL: &str = "core.spinkube.dev/app-name";

/// The resource of apps.
pub(crate) fn resource() -> ApiResource {
    let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1alpha1", "SpinApp"));
    resource.plural = "spinapps".into();
    resource
}

/// `CustomResourceDefinition` objects of apps and their executors.
pub(crate) fn definitions() -> Vec<Value> {
    let schemas = schema::named(include_str!("../data/spin.txt"), &BTreeMap::new());
    let definition = |(kind, plural): (&str, &str)| {
        let columns = match kind {
            "SpinApp" => json!([
                {"name": "Ready", "type": "integer", "jsonPath": ".status.readyReplicas"},
                {"name": "Desired", "type": "integer", "jsonPath": ".spec.replicas"},
                {"name": "Executor", "type": "string", "jsonPath": ".spec.executor"},
            ]),
            _ => json!([{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]),
        };
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{GROUP}")},
            "spec": {
                "group": GROUP,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{
                    "name": "v1alpha1",
                    "served": true,
                    "storage": true,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schemas[kind]},
                }],
            },
        })
    };
    [("SpinApp", "spinapps"), ("SpinAppExecutor", "spinappexecutors")].map(definition).to_vec()
}

/// One pass.
pub(crate) async fn reconcile(key: Key, cx: Arc<Context>) -> Result<Again, Error> {
    let Some(app) = cx.there.apps.get(&key) else { return Ok(Again::OnChange) };
    if app.metadata.deletion_timestamp.is_some() {
        return Ok(Again::OnChange);
    }
    let service = cx.ensure(cx.there.services.get(&key), &app.metadata, &service(&app)).await?;
    let status = match &service {
        Some(service) => status(&app, Some(service), ""),
        None => status(&app, None, "a Service of this name belongs to somebody else"),
    };
    if app.data["status"] != status {
        let api = Api::<DynamicObject>::namespaced_with(cx.client.clone(), &key.namespace, &resource());
        let patch = Patch::Merge(json!({"status": status}));
        let done = api.patch_status(&key.name, &PatchParams::default(), &patch).await;
        done.map_err(|e| failed(format!("write the status of SpinApp {key}"), e))?;
    }
    Ok(Again::OnChange)
}

/// The Service of an app: its replicas are the fewest instances accounted for, its variables the environment.
pub(crate) fn service(app: &DynamicObject) -> Value {
    let spec = &app.data["spec"];
    let mut container = json!({"image": spec["image"], "name": "user-container"});
    let variable = |v: &Value| {
        let name = v["name"].as_str().unwrap_or("").to_uppercase().replace('-', "_");
        let mut variable = json!({"name": format!("SPIN_VARIABLE_{name}")});
        for key in ["value", "valueFrom"] {
            if !v[key].is_null() {
                variable[key] = v[key].clone();
            }
        }
        variable
    };
    let variables: Vec<Value> = spec["variables"].as_array().into_iter().flatten().map(variable).collect();
    if !variables.is_empty() {
        container["env"] = variables.into();
    }
    let mut pod = json!({});
    for (from, to) in [("resources", "resources"), ("volumeMounts", "volumeMounts")] {
        if !spec[from].is_null() {
            container[to] = spec[from].clone();
        }
    }
    for key in ["volumes", "imagePullSecrets", "serviceAccountName"] {
        if !spec[key].is_null() {
            pod[key] = spec[key].clone();
        }
    }
    pod["containers"] = json!([container]);
    let mut annotations: Map<String, Value> = spec["podAnnotations"].as_object().cloned().unwrap_or_default();
    let replicas = spec["replicas"].as_i64().filter(|_| spec["enableAutoscaling"] != true);
    if let Some(replicas) = replicas {
        annotations.insert("autoscaling.knative.dev/min-scale".into(), replicas.to_string().into());
    }
    let mut labels: Map<String, Value> = spec["podLabels"].as_object().cloned().unwrap_or_default();
    labels.insert(APP_LABEL.into(), app.name_any().into());
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": app.name_any(),
            "namespace": app.namespace(),
            "labels": {APP_LABEL: app.name_any()},
            "ownerReferences": [{"apiVersion": format!("{GROUP}/v1alpha1"), "kind": "SpinApp", "name": app.name_any(),
                "uid": app.metadata.uid, "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {"template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}},
    })
}

/// What an app has come to.
fn status(app: &DynamicObject, service: Option<&Service>, problem: &str) -> Value {
    let state = service.and_then(|s| s.status.as_ref());
    let ready = state.is_some_and(|s| condition(&s.conditions, "Ready") == Some(true));
    let wanted = app.data["spec"]["replicas"].as_i64().unwrap_or(1);
    let message = match problem {
        "" => state.and_then(|s| s.conditions.iter().find(|c| c.type_ == "Ready")).map(|c| c.message.clone()),
        problem => Some(problem.into()),
    };
    json!({
        "activeScheduler": "wasmk",
        "readyReplicas": if ready { wanted } else { 0 },
        "conditions": [{
            "type": "Available",
            "status": if ready { "True" } else { "False" },
            "reason": if ready { "ServiceReady" } else { "ServiceNotReady" },
            "message": message.unwrap_or_default(),
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_a_function() {
        let app: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "core.spinkube.dev/v1alpha1", "kind": "SpinApp",
            "metadata": {"name": "simple", "namespace": "default", "uid": "u"},
            "spec": {"image": "ghcr.io/x/y:1", "replicas": 2, "variables": [{"name": "log_level", "value": "debug"}],
                "resources": {"limits": {"memory": "64Mi"}}},
        }))
        .unwrap();
        let service = service(&app);
        let template = &service["spec"]["template"];
        assert_eq!(template["metadata"]["annotations"], json!({"autoscaling.knative.dev/min-scale": "2"}));
        let container = &template["spec"]["containers"][0];
        assert_eq!(container["env"], json!([{"name": "SPIN_VARIABLE_LOG_LEVEL", "value": "debug"}]));
        assert_eq!(container["resources"]["limits"]["memory"], "64Mi");
        assert_eq!(service["metadata"]["ownerReferences"][0]["controller"], true);
        assert_eq!(status(&app, None, "no")["readyReplicas"], 0);
    }
}

//! Objects that every cluster of ours has: Knative's kinds, its controller's rights, where clients
//! find registry and gateway, and what a joining node may read.

use anyhow::{Context, Result};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use crate::data_dir::Running;

/// Writes what is missing and corrects what differs.
///
/// # Errors
/// When the API refuses an object.
pub(crate) async fn write(client: &Client, running: &Running, ca: &str) -> Result<()> {
    for definition in wasmk_functions::definitions() {
        apply(client, &definition).await?;
    }
    for object in objects(running, ca) {
        apply(client, &object).await?;
    }
    create_class(client).await
}

/// The class of claims that name none: directories of the claiming pod's node. Once it is there it is the
/// administrator's, who may want another default.
async fn create_class(client: &Client) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "wasmk.dev/local-path",
        "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    });
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("storage.k8s.io", "v1", "StorageClass"));
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    match api.create(&PostParams::default(), &serde_json::from_value(class)?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop).context("StorageClass local-path"),
    }
}

pub(crate) async fn apply(client: &Client, object: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let name = text(&object["metadata"]["name"]);
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let parameters = PatchParams::apply("wasmk").force();
    api.patch(&name, &parameters, &Patch::Apply(object)).await.with_context(|| format!("{kind} {name}"))?;
    Ok(())
}

fn objects(running: &Running, ca: &str) -> Vec<Value> {
    let user = |name: &str| json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}]);
    let group =
        |name: &str| json!([{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": name}]);
    let controller =
        json!([{"kind": "ServiceAccount", "name": "controller", "namespace": "knative-serving"}]);
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "knative-serving"}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "controller", "namespace": "knative-serving"}}),
        cluster_role(
            "knative-serving-controller",
            json!([
                {"apiGroups": ["serving.knative.dev"], "resources": ["*"], "verbs": ["*"]},
                {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["*"]},
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
            ]),
        ),
        binding("knative-serving-controller", "knative-serving-controller", controller),
        // One identity for all controllers; Kubernetes gives each its own service account instead.
        binding("wasmk:kube-controller-manager", "cluster-admin", user("system:kube-controller-manager")),
        // Every agent is its own service proxy.
        binding("wasmk:node-proxier", "system:node-proxier", group("system:nodes")),
        binding("kubeadm:get-nodes", "system:node-bootstrapper", group("system:bootstrappers")),
        binding(
            "kubeadm:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            group("system:bootstrappers"),
        ),
        binding(
            "kubeadm:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            group("system:nodes"),
        ),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "kubeadm:bootstrap-signer-clusterinfo", "namespace": "kube-public"},
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"], "verbs": ["get"]}],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "kubeadm:bootstrap-signer-clusterinfo", "namespace": "kube-public"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "kubeadm:bootstrap-signer-clusterinfo"},
            "subjects": user("system:anonymous"),
        }),
        config_map("cluster-info", json!({"kubeconfig": cluster_info(running, ca)})),
        config_map(
            "local-registry-hosting",
            json!({
                "localRegistryHosting.v1": format!("host: \"{}\"\n", running.registry),
            }),
        ),
        config_map(
            "wasmk",
            json!({
                "registry": running.registry.to_string(),
                "gateway": running.gateway.to_string(),
            }),
        ),
        json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": "wasmtime"}, "handler": "wasmtime",
        }),
        // Pods of this class go to nodes that run OCI containers.
        json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": "runc"}, "handler": "runc",
        }),
    ]
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kube-public"}, "data": data})
}

fn cluster_role(name: &str, rules: Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules})
}

fn binding(name: &str, role: &str, subjects: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

/// The public part of a kubeconfig: where the API is, and whose signature to trust.
fn cluster_info(running: &Running, ca: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": {
            "server": format!("https://{}", running.api),
            "certificate-authority-data": STANDARD.encode(ca),
        }}],
    });
    serde_yaml::to_string(&config).unwrap_or_default()
}

//! Objects that every cluster of ours has: Knative's kinds, its controller's rights, where clients
//! find registry and gateway, and what a joining node may read.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, NodeSpec, Taint};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use wasmk_api::proxy_protocol;

use crate::{data_dir::Running, join::JOINERS};

/// Label and taint of nodes of the control plane.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// The service of the functions' gateway.
pub(crate) const GATEWAY: &str = "gateway";

/// Objects on their way at a time.
const AT_ONCE: usize = 16;

/// Writes what is missing and corrects what differs.
///
/// # Errors
/// When the API refuses an object.
pub(crate) async fn write(client: &Client, running: &Running, ca: &str) -> Result<()> {
    let (namespaces, objects): (Vec<Value>, Vec<Value>) =
        objects(running, ca).into_iter().chain(controllers()).partition(|o| o["kind"] == "Namespace");
    let created = |object: Value| {
        let client = client.clone();
        async move { create(&client, &object).await }
    };
    apply_all(client, wasmk_functions::definitions().into_iter().chain(namespaces)).await?;
    apply_all(client, objects).await?;
    at_once(wasmk_functions::config_maps().into_iter().chain([default_class()]).map(created)).await
}

/// Makes objects, of which none needs another, be as said.
///
/// # Errors
/// When the API refuses one.
pub(crate) async fn apply_all(client: &Client, objects: impl IntoIterator<Item = Value>) -> Result<()> {
    let applied = |object: Value| {
        let client = client.clone();
        async move { apply(&client, &object).await }
    };
    at_once(objects.into_iter().map(applied)).await
}

/// Does some of it at a time, so that writes share a sync of the disk.
async fn at_once(work: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await
}

/// The class of claims that name none: directories of the claiming pod's node.
fn default_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "wasmk.dev/local-path",
        "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
    })
}

/// Makes the control plane's node before it registers itself: with its role, which a node may not say of itself,
/// and with the taint that keeps ordinary pods away. One that is there keeps its taints.
///
/// # Errors
/// When the API refuses.
pub(crate) async fn reserve_node(client: &Client, name: &str) -> kube::Result<()> {
    let api = Api::<Node>::all(client.clone());
    let taint = Taint { key: CONTROL_PLANE.into(), effect: "NoSchedule".into(), ..Taint::default() };
    let mut node =
        Node { spec: Some(NodeSpec { taints: Some(vec![taint]), ..NodeSpec::default() }), ..Node::default() };
    node.metadata.name = Some(name.into());
    node.metadata.labels = Some([(CONTROL_PLANE.to_owned(), String::new())].into());
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = Patch::Merge(json!({"metadata": {"labels": {CONTROL_PLANE: ""}}}));
            api.patch(name, &PatchParams::default(), &patch).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Services of the cluster's own that lead to this server.
#[derive(Clone)]
pub(crate) struct Leading {
    pub(crate) client: Client,
    pub(crate) objects: Vec<Value>,
}

impl Leading {
    /// Makes them lead here.
    ///
    /// # Errors
    /// When the API refuses an object, for instance because another service has the address.
    pub(crate) async fn write(&self) -> Result<()> {
        let applied = |object: Value| {
            let client = self.client.clone();
            async move { apply(&client, &object).await }
        };
        at_once(self.objects.clone().into_iter().map(applied)).await
    }
}

/// The service of the cluster's DNS server, at the address that pods ask, with where it is.
pub(crate) fn names(service: Ipv4Addr, server: SocketAddr) -> [Value; 2] {
    let ports = |port: u16| json!([{"name": "dns", "port": port, "protocol": "UDP"}, {"name": "dns-tcp", "port": port, "protocol": "TCP"}]);
    let labels = json!({
        "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
    });
    let metadata = json!({"name": "kube-dns", "namespace": "kube-system", "labels": labels});
    let spec = json!({"clusterIP": service, "ports": ports(53)});
    leading(metadata, spec, server, ports(server.port()))
}

/// The service of the functions' gateway, which is what the names of functions in the cluster stand for.
pub(crate) fn gateway(server: SocketAddr) -> [Value; 2] {
    let ports = |port: u16| json!([{"name": "http2", "port": port, "protocol": "TCP"}]);
    let metadata = json!({
        "name": GATEWAY, "namespace": wasmk_functions::NAMESPACE,
        // A pod may call a function of its namespace by its mere name.
        "annotations": {proxy_protocol::ANNOTATION: proxy_protocol::V2},
    });
    leading(metadata, json!({"ports": ports(80)}), server, ports(server.port()))
}

/// A service and its one endpoint.
fn leading(metadata: Value, spec: Value, server: SocketAddr, ports: Value) -> [Value; 2] {
    let (name, namespace) = (&metadata["name"], &metadata["namespace"]);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [server.ip()], "conditions": {"ready": true}}],
        "ports": ports,
    });
    [json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}), slice]
}

/// Makes an object that is the administrator's once it is there, unless it is.
async fn create(client: &Client, object: &Value) -> Result<()> {
    let (api, what) = api_of(client, object);
    match api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop).context(what),
    }
}

pub(crate) async fn apply(client: &Client, object: &Value) -> Result<()> {
    let (api, what) = api_of(client, object);
    let name = object["metadata"]["name"].as_str().unwrap_or("");
    let parameters = PatchParams::apply("wasmk").force();
    api.patch(name, &parameters, &Patch::Apply(object)).await.map(drop).context(what)
}

/// Where an object goes, and how to speak of it.
fn api_of(client: &Client, object: &Value) -> (Api<DynamicObject>, String) {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    (api, format!("{kind} {}", text(&object["metadata"]["name"])))
}

/// What controllers do beyond what the roles of Kubernetes' own allow: these write whole objects where ours patch a
/// part. Account, API group, resources, verb.
const CONTROLLERS: [(&str, &str, &[&str], &str); 9] = [
    ("deployment-controller", "apps", &["deployments/status"], "patch"),
    ("statefulset-controller", "", &["persistentvolumeclaims"], "patch"),
    ("pvc-protection-controller", "", &["persistentvolumeclaims"], "patch"),
    ("pv-protection-controller", "", &["persistentvolumes"], "patch"),
    (
        "persistent-volume-binder",
        "",
        &[
            "persistentvolumes",
            "persistentvolumes/status",
            "persistentvolumeclaims",
            "persistentvolumeclaims/status",
        ],
        "patch",
    ),
    ("daemon-set-controller", "", &["pods"], "get"),
    ("replicaset-controller", "", &["pods"], "get"),
    ("replication-controller", "", &["pods"], "get"),
    ("job-controller", "", &["pods"], "get"),
];

/// The roles of [`CONTROLLERS`] with their bindings.
fn controllers() -> Vec<Value> {
    let mut all = Vec::new();
    for (account, group, resources, verb) in CONTROLLERS {
        let name = format!("wasmk:controller:{account}");
        let rule = json!({"apiGroups": [group], "resources": resources, "verbs": [verb]});
        all.push(cluster_role(&name, json!([rule])));
        let subject = json!([{"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}]);
        all.push(binding(&name, &name, subject));
    }
    all
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
                {"apiGroups": ["eventing.knative.dev", "sources.knative.dev", "core.spinkube.dev"], "resources": ["*"], "verbs": ["*"]},
                // An ApiServerSource sees what its service account may see.
                {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"]},
                // The names of functions in the cluster.
                {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "watch", "create", "update", "delete"]},
                {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": ["*"]},
                {"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["get", "list", "watch"]},
                // Who is inside the cluster: hosts that only the cluster is to reach are answered to nobody else.
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
            ]),
        ),
        function_role("view", &["get", "list", "watch"]),
        function_role("edit", &["create", "update", "patch", "delete", "deletecollection"]),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "coredns", "namespace": "kube-system"}}),
        cluster_role(
            "system:coredns",
            json!([
                {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ]),
        ),
        binding(
            "system:coredns",
            "system:coredns",
            json!([{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}]),
        ),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ingress", "namespace": "kube-system"}}),
        cluster_role(
            "wasmk:ingress",
            json!([
                {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
                {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "networkpolicies"], "verbs": ["list", "watch"]},
                // Certificates, and who is whose peer in policies.
                {"apiGroups": [""], "resources": ["secrets", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["patch"]},
            ]),
        ),
        binding(
            "wasmk:ingress",
            "wasmk:ingress",
            json!([{"kind": "ServiceAccount", "name": "ingress", "namespace": "kube-system"}]),
        ),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {"name": wasmk_net::ingress::table::CLASS},
            "spec": {"controller": "wasmk.dev/ingress"},
        }),
        binding("knative-serving-controller", "knative-serving-controller", controller),
        // Whose keys and values a node keeps, it tells by the namespace's uid.
        cluster_role(
            "wasmk:node-namespaces",
            json!([{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}]),
        ),
        binding("wasmk:node-namespaces", "wasmk:node-namespaces", group("system:nodes")),
        // Every node holds its pods to the policies of the cluster, whose peers are any pods and namespaces.
        cluster_role(
            "wasmk:node-policies",
            json!([
                {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]},
                {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"]},
            ]),
        ),
        binding("wasmk:node-policies", "wasmk:node-policies", group("system:nodes")),
        // Every agent is its own service proxy.
        binding("wasmk:node-proxier", "system:node-proxier", group("system:nodes")),
        binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", group(JOINERS)),
        binding(
            "kubeadm:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            group(JOINERS),
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
        // Pods of this class run in processes apart from the node's own.
        json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": wasmk_node::ISOLATED_HANDLER}, "handler": wasmk_node::ISOLATED_HANDLER,
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

/// What a role for people (`view`, and `edit` on top of it) may do with functions.
fn function_role(of: &str, verbs: &[&str]) -> Value {
    let groups = ["serving.knative.dev", "eventing.knative.dev", "sources.knative.dev", "core.spinkube.dev"];
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{of}");
    let rules = json!([{"apiGroups": groups, "resources": ["*"], "verbs": verbs}]);
    let mut role = cluster_role(&format!("knative-serving-namespaced-{of}"), rules);
    role["metadata"]["labels"] = json!({ label: "true" });
    role
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

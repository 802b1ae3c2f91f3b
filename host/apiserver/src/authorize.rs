//! Whether somebody may do something: RBAC, and the rules for nodes.

use serde_json::Value;
use wasmk_api::{GroupResource, Reason, Status};

use crate::{
    auth::{Attributes, Decision, User, user},
    server::Core,
};

/// Decides.
pub(crate) fn decide(core: &Core, user: &User, asked: &Attributes<'_>) -> Decision {
    let decision = core.rbac.authorize(user, asked);
    if decision.allowed || !user.is_in("system:nodes") {
        return decision;
    }
    node(core, user, asked).unwrap_or(decision)
}

/// # Errors
/// 403 in Kubernetes' words.
pub(crate) fn require(core: &Core, user: &User, asked: &Attributes<'_>) -> Result<(), Status> {
    let decision = decide(core, user, asked);
    if decision.allowed { Ok(()) } else { Err(forbidden(user, asked, &decision.reason)) }
}

/// The refusal of a request.
pub(crate) fn forbidden(user: &User, asked: &Attributes<'_>, reason: &str) -> Status {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !asked.is_resource {
        let message =
            format!("forbidden: User {:?} cannot {} path {:?}{reason}", user.name, asked.verb, asked.path);
        return Status::new(Reason::Forbidden, message);
    }
    let full = if asked.subresource.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", asked.namespace)
    };
    let why = format!(
        "User {:?} cannot {} resource {full:?} in API group {:?} {place}{reason}",
        user.name, asked.verb, asked.group
    );
    Status::forbidden(&GroupResource::new(asked.group, asked.resource), asked.name, &why)
}

/// Checks that `real` may act as `wanted`; the user to act as.
///
/// # Errors
/// 403 for the first thing it may not impersonate.
pub(crate) fn impersonate(core: &Core, real: &User, mut wanted: User) -> Result<User, Status> {
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let asked = Attributes {
            verb: "impersonate",
            group,
            resource,
            subresource,
            namespace,
            name,
            path: "",
            is_resource: true,
            on_node: "",
        };
        require(core, real, &asked)
    };
    match wanted.as_service_account() {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &wanted.name)?,
    }
    for group in &wanted.groups {
        ask("", "groups", "", "", group)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            ask("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    if !wanted.uid.is_empty() {
        ask("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    if let (true, Some((namespace, name))) = (wanted.groups.is_empty(), wanted.as_service_account()) {
        wanted.groups = User::service_account(namespace, name).groups;
    }
    let basic = if wanted.name == user::ANONYMOUS { user::UNAUTHENTICATED } else { user::AUTHENTICATED };
    if !wanted.groups.iter().any(|g| g == user::AUTHENTICATED || g == user::UNAUTHENTICATED) {
        wanted.groups.push(basic.into());
    }
    Ok(wanted)
}

/// What nodes may do beyond their roles: everything about themselves and the pods bound to them, and reading what
/// those pods use.
fn node(core: &Core, user: &User, asked: &Attributes<'_>) -> Option<Decision> {
    let name = user.name.strip_prefix("system:node:")?;
    let read = matches!(asked.verb, "get" | "list" | "watch");
    let allowed = match (asked.group, asked.resource) {
        ("", "nodes") => asked.verb == "create" || read || asked.name == name,
        ("", "pods") => match asked.verb {
            // What a node may do with single pods is looked at again when they are admitted.
            "create" | "delete" => true,
            "update" | "patch" => asked.subresource == "status",
            "list" | "watch" => asked.on_node == name,
            _ => bound_to(core, asked, name),
        },
        ("", "events") | ("events.k8s.io", "events") => matches!(asked.verb, "create" | "update" | "patch"),
        ("coordination.k8s.io", "leases") => {
            asked.namespace == "kube-node-lease" && (asked.verb == "create" || asked.name == name)
        }
        ("certificates.k8s.io", "certificatesigningrequests") => {
            matches!(asked.verb, "create" | "get" | "list" | "watch")
        }
        ("storage.k8s.io", "csinodes") => asked.verb == "create" || asked.name == name,
        ("authentication.k8s.io", "tokenreviews")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => {
            asked.verb == "create"
        }
        ("", "services" | "namespaces")
        | ("node.k8s.io", "runtimeclasses")
        | ("storage.k8s.io", "csidrivers") => read,
        ("", "serviceaccounts") if asked.subresource == "token" => {
            asked.verb == "create"
                && uses(core, name, asked, |spec| {
                    spec.get("serviceAccountName").and_then(Value::as_str) == Some(asked.name)
                })
        }
        ("", "secrets" | "configmaps" | "persistentvolumeclaims") => {
            read && !asked.name.is_empty() && uses(core, name, asked, |spec| mentions(spec, asked.name))
        }
        ("", "persistentvolumes") => read,
        _ => false,
    };
    allowed.then(|| Decision { allowed: true, reason: String::new() })
}

fn bound_to(core: &Core, asked: &Attributes<'_>, node: &str) -> bool {
    let pods = core.caches.of("core/pods");
    pods.get(&crate::cache::key(asked.namespace, asked.name))
        .is_some_and(|pod| pod.field("spec.nodeName") == Some(node))
}

/// Whether a pod of that namespace on that node satisfies a condition on its spec.
fn uses(core: &Core, node: &str, asked: &Attributes<'_>, condition: impl Fn(&Value) -> bool) -> bool {
    let filter = crate::cache::Filter { namespace: asked.namespace.into(), ..Default::default() };
    core.caches
        .of("core/pods")
        .list(&filter)
        .iter()
        .filter(|pod| pod.field("spec.nodeName") == Some(node))
        .any(|pod| pod.object().0.get("spec").is_some_and(&condition))
}

/// Whether a name stands anywhere in a pod's volumes, environment or pull secrets.
fn mentions(value: &Value, name: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| match value {
            Value::String(text) => matches!(&**key, "name" | "secretName" | "claimName") && text == name,
            other => mentions(other, name),
        }),
        Value::Array(items) => items.iter().any(|item| mentions(item, name)),
        _ => false,
    }
}

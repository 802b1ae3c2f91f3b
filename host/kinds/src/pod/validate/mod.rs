//! What is wrong with pods and pod templates.

pub(crate) mod affinity;
mod containers;
mod env;
mod fields;
mod parts;
mod probes;
mod security;
mod update;
pub(crate) mod volumes;

use serde_json::Value;
use wasmk_api::Object;

pub(crate) use parts::tolerations;
pub(crate) use update::{pod_status, pod_update};

use crate::errors::{At, Errors};
use crate::fields::spec;
use crate::meta;
use crate::value::{list, or_null, text};

/// Marks the pods that stand for those a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Checks a pod template.
pub(crate) fn template(template: &Value, at: &At<'_>, errors: &mut Errors) {
    let meta = or_null(template, "metadata");
    meta::labels(meta, &at.field("labels"), errors);
    meta::annotations(meta, &at.field("annotations"), errors);
    let at = at.field("spec");
    pod_spec(or_null(template, "spec"), &at, errors);
    no_ephemeral(or_null(template, "spec"), &at, "ephemeral containers not allowed in pod template", errors);
}

/// Checks a new pod.
pub(crate) fn pod(obj: &Object, errors: &mut Errors) {
    let (spec, at) = (spec(obj), At::new("spec"));
    if let Some(mirrored) = obj.annotation(MIRROR).filter(|_| text(spec, "nodeName").is_empty()) {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errors.invalid_text(&At::new("metadata").field("annotations").key(MIRROR), mirrored, why);
    }
    pod_spec(spec, &at, errors);
    no_ephemeral(spec, &at, "cannot be set on create", errors);
    if !list(spec, "schedulingGates").is_empty() && !text(spec, "nodeName").is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden(&at.field("nodeName"), why);
    }
}

/// Checks a pod changed through a subresource of its own.
pub(crate) fn part(obj: &Object, errors: &mut Errors) {
    pod_spec(spec(obj), &At::new("spec"), errors);
}

fn no_ephemeral(spec: &Value, at: &At<'_>, why: &str, errors: &mut Errors) {
    if !list(spec, "ephemeralContainers").is_empty() {
        errors.forbidden(&at.field("ephemeralContainers"), why);
    }
}

/// Checks a pod spec, in the order that messages list what is wrong.
fn pod_spec(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let volumes = volumes::all(spec, &at.field("volumes"), errors);
    parts::resource_claims(spec, &at.field("resourceClaims"), errors);
    containers::all(spec, &volumes, at, errors);
    parts::policies(spec, at, errors);
    security::pod(spec, at, errors);
    affinity::affinity(or_null(spec, "affinity"), &at.field("affinity"), errors);
    parts::dns(spec, &at.field("dnsConfig"), errors);
    parts::gates(spec, at, errors);
    affinity::spread(list(spec, "topologySpreadConstraints"), &at.field("topologySpreadConstraints"), errors);
    security::windows_host_process(spec, at, errors);
    security::host_users(spec, at, errors);
    parts::names(spec, at, errors);
    tolerations(list(spec, "tolerations"), &at.field("tolerations"), errors);
    parts::rest(spec, at, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wasmk_api::Object;

    use crate::kind;

    #[test]
    fn ephemeral_containers_are_judged_where_they_may_be_added() {
        let pod = |name: &str| {
            let container = json!({"name": "c", "image": "i"});
            let added = json!({"name": name, "image": "i"});
            let spec = json!({"containers": [container], "ephemeralContainers": [added]});
            let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
            let mut obj = Object::from_value(body).unwrap();
            kind("", "Pod").default(&mut obj);
            obj
        };
        let fields = |name: &str| -> Vec<String> {
            let obj = pod(name);
            let causes = kind("", "Pod").validate_part("ephemeralcontainers", &obj, &obj);
            causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
        };
        assert_eq!(fields("d"), Vec::<String>::new());
        assert_eq!(fields("c"), [r#"spec.ephemeralContainers[0].name: Duplicate value: "c""#]);
        assert_eq!(kind("", "Pod").validate(&pod("d")).len(), 1);
    }
}

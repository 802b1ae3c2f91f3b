//! `pods/binding`: putting a pod on a node.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use wasmk_api::{Cause, Gvk, Object, Status};

use crate::{
    admission,
    http::{Answer, negotiate, respond},
    write::{Mode, Work, update_object},
};

/// Binds a pod to the node the body names.
///
/// # Errors
/// 409 when the pod is bound already or being deleted.
pub(crate) async fn create(work: &Work<'_>, body: &Bytes) -> Result<Answer, Status> {
    let body_type = negotiate::body_type(&work.call.headers)?;
    let mut binding = work.decode_as(body, body_type, &Gvk::new("", "v1", "Binding"))?;
    admission::sent(work, &mut binding).await?;
    let name = if work.call.info.name.is_empty() { binding.name() } else { &work.call.info.name };
    if !binding.name().is_empty() && binding.name() != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let node = binding.at(&["target", "name"]).and_then(Value::as_str).unwrap_or("").to_owned();
    if node.is_empty() {
        let cause = Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: "target.name".into(),
        };
        return Err(Status::invalid(&Gvk::new("", "v1", "Binding").group_kind(), name, &[cause]));
    }
    update_object(work, name, Mode::Free("binding"), false, |pod| bind(work, pod, &binding, &node)).await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::value_as(StatusCode::CREATED, work.call.wanted, &status))
}

fn bind(work: &Work<'_>, pod: &Object, binding: &Object, node: &str) -> Result<Object, Status> {
    let resource = wasmk_api::GroupResource::new("", "pods/binding");
    let conflict = |why: String| Err(Status::conflict(&resource, pod.name(), &why));
    if !binding.uid().is_empty() && binding.uid() != pod.uid() {
        return conflict(format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            binding.uid(),
            pod.uid()
        ));
    }
    if pod.is_deleting() {
        return conflict(format!("pod {} is being deleted, cannot be assigned to a host", pod.name()));
    }
    let bound = pod.at(&["spec", "nodeName"]).and_then(Value::as_str).unwrap_or("");
    if !bound.is_empty() {
        return conflict(format!("pod {} is already assigned to node {bound:?}", pod.name()));
    }
    let gates = pod.at(&["spec", "schedulingGates"]).and_then(Value::as_array);
    if gates.is_some_and(|g| !g.is_empty()) {
        return conflict(format!("pod {} has non-empty .spec.schedulingGates", pod.name()));
    }
    let mut new = pod.clone();
    if let Some(spec) = new.0.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("nodeName".into(), node.into());
    }
    let copied: [(&str, Vec<(&str, &str)>); 2] =
        [("annotations", binding.annotations().collect()), ("labels", binding.labels().collect())];
    for (field, pairs) in copied {
        for (key, value) in pairs {
            let all = new.metadata_mut().entry(field).or_insert_with(|| json!({}));
            if let Some(all) = all.as_object_mut() {
                all.insert(key.into(), value.into());
            }
        }
    }
    set_scheduled(&mut new, work.now);
    Ok(new)
}

fn set_scheduled(pod: &mut Object, now: wasmk_api::Timestamp) {
    let Some(status) = pod.0.entry("status").or_insert_with(|| json!({})).as_object_mut() else { return };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    list.retain(|c| c.get("type").and_then(Value::as_str) != Some("PodScheduled"));
    list.push(json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now.to_string(),
    }));
}

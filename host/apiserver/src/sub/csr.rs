//! `certificatesigningrequests/approval`: saying yes or no.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use wasmk_api::Status;

use super::Body;
use crate::{
    http::Answer,
    machine, read,
    write::{Mode, Work, update_object},
};

/// Replaces the conditions of a request's status; times of conditions that changed are the server's.
///
/// # Errors
/// When the body is no request of that name.
pub(crate) async fn approve(work: &Work<'_>, body: &Bytes, verb: &str) -> Result<Answer, Status> {
    let name = work.call.info.name.clone();
    let sent = Body::read(work, body, verb)?;
    let done = update_object(work, &name, Mode::Free("approval"), false, |old| {
        let sent = sent.on(work, old, Mode::Free("approval"))?;
        let mut new = old.clone();
        if !sent.resource_version().is_empty() {
            new.set_meta("resourceVersion", sent.resource_version());
        }
        let mut conditions = sent.at(&["status", "conditions"]).cloned().unwrap_or(Value::Null);
        for condition in conditions.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            let now = work.now.to_string();
            for key in ["lastUpdateTime", "lastTransitionTime"] {
                if condition.get(key).is_none_or(Value::is_null) {
                    condition.insert(key.into(), now.clone().into());
                }
            }
        }
        if let Some(status) = new.0.entry("status").or_insert_with(|| json!({})).as_object_mut() {
            status.insert("conditions".into(), conditions);
        }
        machine::manage_as(work, &work.resource.gvk, &mut new, Some(old), "approval")?;
        Ok(new)
    })
    .await?;
    read::object(work.core, work.call, work.resource, StatusCode::OK, &done.into_object())
}

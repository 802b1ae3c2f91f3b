//! `namespaces/finalize`: what keeps a namespace from going.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use wasmk_api::{Object, Status};

use crate::{
    http::Answer,
    machine, read,
    write::{Mode, Work, update_object},
};

/// Replaces the finalizers of a namespace's spec; the namespace goes when none is left.
///
/// # Errors
/// When the body is no namespace of that name.
pub(crate) async fn finalize(work: &Work<'_>, body: &Bytes) -> Result<Answer, Status> {
    let mut sent = work.decode(body)?;
    let name = work.call.info.name.clone();
    work.place(&mut sent, &name)?;
    let finalizers = sent.at(&["spec", "finalizers"]).cloned();
    let metadata_finalizers = sent.metadata().and_then(|m| m.get("finalizers")).cloned();
    let version = sent.resource_version().to_owned();
    let done = update_object(work, &name, Mode::Free("finalize"), false, |old| {
        let mut new: Object = old.clone();
        new.set_meta("finalizers", metadata_finalizers.clone().unwrap_or(Value::Null));
        if !version.is_empty() {
            new.set_meta("resourceVersion", version.clone());
        }
        if let Some(spec) = new.0.entry("spec").or_insert_with(|| json!({})).as_object_mut() {
            match finalizers.clone().filter(|f| f.as_array().is_some_and(|f| !f.is_empty())) {
                Some(list) => {
                    spec.insert("finalizers".into(), list);
                }
                None => {
                    spec.shift_remove("finalizers");
                }
            }
        }
        machine::manage_as(work, &work.resource.gvk, &mut new, Some(old), "finalize")?;
        Ok(new)
    })
    .await?;
    read::object(work.core, work.call, work.resource, StatusCode::OK, &done.into_object())
}

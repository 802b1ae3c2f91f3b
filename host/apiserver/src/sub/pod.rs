//! `pods/ephemeralcontainers` and `pods/resize`: the parts of a running pod's spec that may change.

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use wasmk_api::{Cause, Object, Status};

use super::Body;
use crate::{
    http::Answer,
    machine, read,
    write::{Mode, Work, update_object},
};

/// Changes the ephemeral containers of a pod; those there are stay as they are.
///
/// # Errors
/// When one that is there would be changed or removed.
pub(crate) async fn ephemeral(work: &Work<'_>, body: &Bytes, verb: &str) -> Result<Answer, Status> {
    change(work, body, verb, "ephemeralcontainers", |new, old, sent| {
        let list = |object: &Object| -> Vec<Value> {
            object.at(&["spec", "ephemeralContainers"]).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let (before, after) = (list(old), list(sent));
        let kept = before.iter().enumerate().all(|(i, c)| after.get(i) == Some(c));
        if !kept {
            let cause = Cause {
                reason: "FieldValueForbidden".into(),
                message: "Forbidden: existing ephemeral containers may not be changed or removed".into(),
                field: "spec.ephemeralContainers".into(),
            };
            return Err(vec![cause]);
        }
        if let Some(spec) = new.0.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("ephemeralContainers".into(), after.into());
        }
        Ok(())
    })
    .await
}

/// Changes the resources of a pod's containers.
///
/// # Errors
/// When the containers are not the same.
pub(crate) async fn resize(work: &Work<'_>, body: &Bytes, verb: &str) -> Result<Answer, Status> {
    change(work, body, verb, "resize", |new, old, sent| {
        for list in ["containers", "initContainers"] {
            let wanted = sent.at(&["spec", list]).and_then(Value::as_array).cloned().unwrap_or_default();
            let present = new.0.get_mut("spec").and_then(|s| s.get_mut(list)).and_then(Value::as_array_mut);
            for container in present.into_iter().flatten().filter_map(Value::as_object_mut) {
                let same = wanted.iter().find(|w| w.get("name") == container.get("name"));
                for key in ["resources", "resizePolicy"] {
                    if let Some(value) = same.and_then(|w| w.get(key)) {
                        container.insert(key.into(), value.clone());
                    }
                }
            }
        }
        resizable(work, new, old)
    })
    .await
}

/// Only processor time and memory of running containers can change.
fn resizable(work: &Work<'_>, new: &Object, old: &Object) -> Result<(), Vec<Cause>> {
    let fixed = |pod: &Object| -> Vec<Value> {
        let lists = ["containers", "initContainers"].into_iter();
        let containers =
            lists.flat_map(|list| pod.at(&["spec", list]).and_then(Value::as_array).into_iter().flatten());
        let kinds = containers
            .flat_map(|c| ["requests", "limits"].map(|kind| c.pointer(&format!("/resources/{kind}"))));
        let others = kinds.map(|map| {
            let pairs = map.and_then(Value::as_object).into_iter().flatten();
            pairs
                .filter(|(name, _)| !matches!(&***name, "cpu" | "memory"))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        });
        others.map(Value::Object).collect()
    };
    if fixed(new) == fixed(old) {
        return Ok(());
    }
    let mut causes = work.resource.kind().validate(new);
    causes.push(Cause {
        reason: "FieldValueForbidden".into(),
        message: "Forbidden: only cpu and memory resources are mutable".into(),
        field: "spec".into(),
    });
    Err(causes)
}

async fn change(
    work: &Work<'_>,
    body: &Bytes,
    verb: &str,
    sub: &'static str,
    take: impl Fn(&mut Object, &Object, &Object) -> Result<(), Vec<Cause>>,
) -> Result<Answer, Status> {
    let name = work.call.info.name.clone();
    let sent = Body::read(work, body, verb)?;
    let done = update_object(work, &name, Mode::Free(sub), false, |old| {
        let mut sent = sent.on(work, old, Mode::Free(sub))?;
        machine::manage_as(work, &work.resource.gvk, &mut sent, Some(old), sub)?;
        let mut new = old.clone();
        if !sent.resource_version().is_empty() {
            new.set_meta("resourceVersion", sent.resource_version());
        }
        take(&mut new, old, &sent)
            .map_err(|causes| Status::invalid(&work.resource.group_kind(), &name, &causes))?;
        new.set_meta(
            "managedFields",
            sent.metadata().and_then(|m| m.get("managedFields")).cloned().unwrap_or(Value::Null),
        );
        let causes = work.resource.kind().validate_part(sub, &new, old);
        if !causes.is_empty() {
            return Err(Status::invalid(&work.resource.group_kind(), &name, &causes));
        }
        Ok(new)
    })
    .await?;
    read::object(work.core, work.call, work.resource, StatusCode::OK, &done.into_object())
}

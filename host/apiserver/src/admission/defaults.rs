//! Small additions: taints of new nodes, finalizers of storage in use, default classes.

use serde_json::{Value, json};
use wasmk_api::{Object, Status};

use super::amounts::amount;
use crate::{
    cache::{Entry, Filter},
    write::{Mode, Work},
};

/// A node that joins gets no pods before it is ready.
pub(crate) fn taint_node(_: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if old.is_none() {
        wasmk_kinds::taint_new_node(object);
    }
    Ok(())
}

fn add_finalizer(object: &mut Object, finalizer: &str) {
    if object.finalizers().any(|f| f == finalizer) {
        return;
    }
    let mut all: Vec<String> = object.finalizers().map(Into::into).collect();
    all.push(finalizer.into());
    object.set_meta("finalizers", all);
}

/// A claim is protected while pods use it.
pub(crate) fn protect_claim(_: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if old.is_none() {
        add_finalizer(object, "kubernetes.io/pvc-protection");
    }
    Ok(())
}

/// A claim has the default class when it names none.
pub(crate) fn claim_class(work: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if old.is_some() {
        return Ok(());
    }
    let named = object.at(&["spec", "storageClassName"]).is_some_and(|v| !v.is_null())
        || object.annotation("volume.beta.kubernetes.io/storage-class").is_some();
    if named {
        return Ok(());
    }
    if let Some(class) =
        default_class(work, "storage.k8s.io/storageclasses", "storageclass.kubernetes.io/is-default-class")
    {
        set(object, "storageClassName", class.into());
    }
    Ok(())
}

/// A volume is protected while a claim is bound to it.
pub(crate) fn volume(_: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if old.is_none() {
        add_finalizer(object, "kubernetes.io/pv-protection");
    }
    Ok(())
}

/// An ingress without a class has the default one.
pub(crate) fn ingress(work: &Work<'_>, object: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    let named = object.at(&["spec", "ingressClassName"]).is_some_and(|v| !v.is_null())
        || object.annotation("kubernetes.io/ingress.class").is_some();
    if old.is_some() || named {
        return Ok(());
    }
    let classes = "networking.k8s.io/ingressclasses";
    if let Some(class) = default_class(work, classes, "ingressclass.kubernetes.io/is-default-class") {
        set(object, "ingressClassName", class.into());
    }
    Ok(())
}

fn set(object: &mut Object, key: &str, value: Value) {
    let spec = object.0.entry("spec").or_insert_with(|| json!({}));
    if let Some(spec) = spec.as_object_mut() {
        spec.insert(key.into(), value);
    }
}

/// The newest of the classes that are marked as default.
fn default_class(work: &Work<'_>, classes: &str, mark: &str) -> Option<String> {
    let marked = |entry: &Entry| {
        let object = entry.object();
        (object.annotation(mark) == Some("true"))
            .then(|| (object.meta("creationTimestamp").to_owned(), object.name().to_owned()))
    };
    let mut all: Vec<(String, String)> =
        work.core.caches.of(classes).list(&Filter::default()).iter().filter_map(|e| marked(e)).collect();
    all.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    all.into_iter().next().map(|(_, name)| name)
}

/// A claim grows only where its class allows it.
pub(crate) fn resize(work: &Work<'_>, new: &Object, old: Option<&Object>, mode: Mode) -> Result<(), Status> {
    let Some(old) = old.filter(|_| mode == Mode::Main) else { return Ok(()) };
    let storage = |claim: &Object| amount(claim.at(&["spec", "resources", "requests"]), "storage");
    let bound = old.at(&["status", "phase"]).and_then(Value::as_str) == Some("Bound");
    if !bound || storage(new) <= storage(old) {
        return Ok(());
    }
    let class = old.at(&["spec", "storageClassName"]).and_then(Value::as_str).unwrap_or("");
    let entry = work.core.caches.of("storage.k8s.io/storageclasses").get(class);
    let allowed = entry.is_some_and(|e| e.object().0.get("allowVolumeExpansion") == Some(&Value::Bool(true)));
    if allowed {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(Status::forbidden(&work.resource.group_resource(), new.name(), why))
}

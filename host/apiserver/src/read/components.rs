//! `componentstatuses`: how the parts of the control plane are, asked for when somebody reads it.

use std::sync::Arc;

use serde_json::json;

use crate::{
    cache::{Entry, Reader},
    server::Core,
    table::Resource,
};

/// Whether these are the objects of that resource.
pub(super) fn are(resource: &Resource) -> bool {
    resource.storage == "core/componentstatuses"
}

/// The parts, each as it is at present, in the order of their names.
pub(super) fn entries(core: &Core) -> Vec<Arc<Entry>> {
    let others = core.config.components.iter().map(|part| (part.name, (part.problem)()));
    let mut all: Vec<_> = others.chain([("etcd-0", core.config.store.health().problem)]).collect();
    all.sort_by_key(|(name, _)| *name);
    all.into_iter().filter_map(|(name, problem)| entry(name, problem).map(Arc::new)).collect()
}

fn entry(name: &str, problem: Option<String>) -> Option<Entry> {
    let condition = match problem {
        None => json!({ "type": "Healthy", "status": "True", "message": "ok" }),
        Some(why) => json!({ "type": "Healthy", "status": "False", "message": why }),
    };
    let object = json!({
        "kind": "ComponentStatus",
        "apiVersion": "v1",
        "metadata": { "name": name, "creationTimestamp": null },
        "conditions": [condition],
    });
    Entry::read(name, &object.to_string().into(), 0, Reader::Plain)
}

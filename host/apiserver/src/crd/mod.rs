//! Custom resources: definitions become rows of the table while the server runs.
//!
//! The definitions in the cache are the truth. Whenever one changes, its conditions are brought up to date and the
//! table is made anew from the built-in rows and all established definitions.

mod convert;
mod version;

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use wasmk_api::{GroupVersion, Gvk, Object, Timestamp};
use wasmk_machinery::resources::{self, Subresource};

use crate::{
    admission::Kept,
    cache::{Entry, Filter},
    call::Call,
    http::{Query, RequestInfo, Wanted},
    server::Core,
    table::{Addition, Nature, Resource, Table},
    write::{DeleteOptions, Mode, Work, delete_object, update_object},
};

pub(crate) use convert::Converter;
pub(crate) use version::CustomVersion;
use version::text;

const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";
/// What can be done with custom resources.
const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
/// Longest wait of a request for the establishment of its kind.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(5);
/// Between looks at definitions that are not yet where they should be: what they wait for wakes nobody here.
const AGAIN: Duration = Duration::from_secs(1);
/// The finalizer that keeps a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Most definitions whose rows are kept for as long as they do not change.
const MAX_KEPT: usize = 10_000;

/// What was read from definitions.
pub(crate) type Definitions = Kept<Defined, MAX_KEPT>;

/// What is known of a definition without reading it again.
pub(crate) struct Defined {
    established: bool,
    deleting: bool,
    /// Whether nothing is left to do about it.
    settled: bool,
    rows: Vec<Addition>,
}

impl Defined {
    fn read(definition: &Object) -> Self {
        let (established, deleting) = (is_true(definition, "Established"), definition.is_deleting());
        let settled =
            !deleting && established && is_true(definition, "NamesAccepted") && accepted(definition);
        Self { established, deleting, settled, rows: additions(definition) }
    }
}

/// All definitions, each with what is known of it.
fn all(core: &Core) -> Vec<(Arc<Entry>, Arc<Defined>)> {
    let entries = core.caches.of(DEFINITIONS).list(&Filter::default());
    let known = |entry: &Entry| core.definitions.get(entry, || Defined::read(&entry.object()));
    entries.into_iter().map(|entry| (entry.clone(), known(&entry))).collect()
}

/// Makes the table anew from the built-in rows and the definitions that are established, or about to be.
pub(crate) fn refresh(core: &Core) {
    let mut soon = core.establishing.lock();
    let definitions = all(core);
    let names: HashMap<&str, &Defined> = definitions.iter().map(|(e, d)| (&*e.name, &**d)).collect();
    soon.retain(|name| names.get(&**name).is_some_and(|d| !d.deleting && !d.established));
    core.definitions.retain(|name| names.contains_key(name));
    let served = definitions.iter().filter(|(e, d)| d.established || soon.contains(&*e.name));
    let additions = served.flat_map(|(_, d)| d.rows.iter().cloned()).collect();
    let remote = core.aggregated.load().values().flat_map(|server| server.rows()).collect();
    core.table.store(Arc::new(Table::new(&core.caches, additions, remote)));
    core.defined.send_modify(|times| *times += 1);
}

fn is_true(definition: &Object, condition: &str) -> bool {
    let conditions = definition.at(&["status", "conditions"]).and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| text(c, "/type") == condition && text(c, "/status") == "True")
}

/// The rows of a definition: one for each version that is served.
fn additions(definition: &Object) -> Vec<Addition> {
    let Some(spec) = definition.0.get("spec") else { return Vec::new() };
    // Nothing is accepted yet of what is only about to be established.
    let accepted =
        definition.at(&["status", "acceptedNames"]).filter(|names| !text(names, "/kind").is_empty());
    let names = accepted.unwrap_or(&spec["names"]);
    let versions: Vec<&Value> =
        spec.get("versions").and_then(Value::as_array).into_iter().flatten().collect();
    let flag = |v: &Value, key: &str| v.get(key) == Some(&Value::Bool(true));
    let stored = versions.iter().find(|v| flag(v, "storage")).map_or("", |v| text(v, "/name"));
    let served = versions.iter().filter(|v| flag(v, "served"));
    let converter = Converter::read(definition);
    served
        .filter_map(|version| {
            let custom = CustomVersion::read(definition, version, converter.clone())?;
            Some(addition(custom, names, version, stored))
        })
        .collect()
}

fn addition(custom: CustomVersion, names: &Value, version: &Value, stored: &str) -> Addition {
    let gvk = custom.gvk.clone();
    let list = |key: &str| -> Vec<String> {
        let items = names.get(key).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
    };
    let deprecated = version.get("deprecated") == Some(&Value::Bool(true));
    let deprecation = deprecated.then(|| match text(version, "/deprecationWarning") {
        "" => format!("{}/{} {} is deprecated", gvk.group, gvk.version, gvk.kind),
        given => given.to_owned(),
    });
    let mut row = resources::Resource::default();
    row.group.clone_from(&gvk.group);
    row.version = gvk.version;
    row.plural = text(names, "/plural").into();
    row.singular = text(names, "/singular").into();
    row.list_kind = match text(names, "/listKind") {
        "" => format!("{}List", gvk.kind),
        given => given.into(),
    };
    row.kind = gvk.kind;
    row.namespaced = custom.namespaced;
    row.short_names = list("shortNames");
    row.categories = list("categories");
    row.verbs = VERBS.map(Into::into).to_vec();
    row.storage = GroupVersion::new(gvk.group, stored);
    row.subresources = subresources(&custom);
    row.custom = Some(custom.schema.clone());
    Addition { row: row.into(), version: custom.into(), deprecation }
}

fn subresources(custom: &CustomVersion) -> Vec<Subresource> {
    let verbs = || ["get", "patch", "update"].map(Into::into).to_vec();
    let mut all = Vec::new();
    if custom.has_status {
        all.push(Subresource { name: "status".into(), kind: custom.gvk.clone(), verbs: verbs() });
    }
    if custom.scale.is_some() {
        let gvk = Gvk::new("autoscaling", "v1", "Scale");
        all.push(Subresource { name: "scale".into(), kind: gvk, verbs: verbs() });
    }
    all
}

/// Keeps conditions and table up to date for as long as the server runs.
pub(crate) async fn follow(core: Arc<Core>) {
    let cache = core.caches.of(DEFINITIONS);
    let mut changed = cache.subscribe();
    loop {
        changed.mark_unchanged();
        // What comes meanwhile has its turn next time.
        let open = all(&core).into_iter().filter(|(_, known)| !known.settled);
        let definitions: Vec<Object> = open.map(|(entry, _)| entry.object()).collect();
        announce(&core, &definitions);
        let mut waits = definitions.iter().any(Object::is_deleting);
        for definition in &definitions {
            if let Err(error) = settle(&core, definition).await {
                tracing::warn!(definition = definition.name(), %error, "a definition could not be settled");
                waits = true;
            }
        }
        refresh(&core);
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            woken = changed.changed() => if woken.is_err() { return },
            () = tokio::time::sleep(AGAIN), if waits => {}
        }
    }
}

/// Serves what can be established before it says so of itself: who reads the condition finds the kind.
fn announce(core: &Core, definitions: &[Object]) {
    for definition in definitions {
        let waits = !definition.is_deleting() && !is_true(definition, "Established");
        if !waits || conflict(core, definition).is_some() {
            continue;
        }
        let new = core.establishing.lock().insert(definition.name().to_owned());
        // Before the next one is looked at, which may want the same names.
        if new {
            refresh(core);
        }
    }
}

/// Lets a request for a kind that is only about to be established wait until it is: who finds the kind finds that its
/// definition says so.
pub(crate) async fn await_established(core: &Core, resource: &Resource) {
    if !matches!(resource.nature, Nature::Custom(_)) || core.establishing.lock().is_empty() {
        return;
    }
    let name = format!("{}.{}", resource.plural, resource.gvk.group);
    let waits = || core.establishing.lock().contains(&name);
    let settled = async {
        let mut defined = core.defined.subscribe();
        while waits() && defined.changed().await.is_ok() {}
    };
    // A definition that cannot be written is no reason to refuse what is served.
    let _ = tokio::time::timeout(ESTABLISHED_WITHIN, settled).await;
}

/// Brings a definition to where it should be: named, established, or cleaned up.
async fn settle(core: &Arc<Core>, definition: &Object) -> Result<(), wasmk_api::Status> {
    if definition.is_deleting() {
        return clean_up(core, definition).await;
    }
    let Some(resource) =
        core.table.load().get("apiextensions.k8s.io", "v1", "customresourcedefinitions").cloned()
    else {
        return Ok(());
    };
    let conflict = conflict(core, definition);
    let call = own_call(&resource, definition.name());
    let work = Work::new(core, &call, &resource)?;
    update_object(&work, definition.name(), Mode::Free("status"), false, |old| {
        let mut new = settled(old, conflict.as_deref(), work.now);
        crate::machine::manage_as(&work, &resource.gvk, &mut new, Some(old), "status")?;
        Ok(new)
    })
    .await
    .map(|_| ())
}

/// Whether the accepted names are those of the spec.
fn accepted(definition: &Object) -> bool {
    definition.at(&["status", "acceptedNames"]) == definition.at(&["spec", "names"])
}

/// Why the names of a definition cannot be had: another one has them.
fn conflict(core: &Core, definition: &Object) -> Option<String> {
    let spec = definition.0.get("spec")?;
    let (group, plural) = (text(spec, "/group"), text(spec, "/names/plural"));
    let kind = text(spec, "/names/kind");
    let table = core.table.load();
    let mine = format!("{plural}.{group}");
    let taken = table
        .all()
        .find(|r| r.gvk.group == group && format!("{}.{group}", r.plural) != mine && (r.gvk.kind == kind))?;
    Some(format!("{:?} is already in use", taken.gvk.kind))
}

fn settled(old: &Object, conflict: Option<&str>, now: Timestamp) -> Object {
    let mut new = old.clone();
    let names = old.at(&["spec", "names"]).cloned().unwrap_or_default();
    let versions = old.at(&["spec", "versions"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let stored = versions.iter().find(|v| v.get("storage") == Some(&Value::Bool(true)));
    let stored = stored.map_or("", |v| text(v, "/name")).to_owned();
    let Some(status) = new.0.entry("status").or_insert_with(|| json!({})).as_object_mut() else { return new };
    let mut conditions = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    match conflict {
        None => {
            set(&mut conditions, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now);
            set(
                &mut conditions,
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
                now,
            );
        }
        Some(why) => {
            set(&mut conditions, "NamesAccepted", "False", "KindConflict", why, now);
            set(&mut conditions, "Established", "False", "NotAccepted", "not all names are accepted", now);
        }
    }
    let mut versions = status.get("storedVersions").and_then(Value::as_array).cloned().unwrap_or_default();
    if !versions.iter().any(|v| v == stored.as_str()) {
        versions.push(stored.into());
    }
    status.insert("conditions".into(), conditions.into());
    status.insert(
        "acceptedNames".into(),
        if conflict.is_none() { names } else { json!({ "plural": "", "kind": "" }) },
    );
    status.insert("storedVersions".into(), versions.into());
    new
}

/// Begins the deletion of a definition: its objects go first.
pub(crate) fn mark(definition: &mut Object, now: Timestamp) {
    definition.set_meta("deletionTimestamp", now.to_string());
    if !definition.finalizers().any(|f| f == CLEANUP) {
        let mut all: Vec<String> = definition.finalizers().map(Into::into).collect();
        all.push(CLEANUP.into());
        definition.set_meta("finalizers", all);
    }
    let Some(status) = definition.0.entry("status").or_insert_with(|| json!({})).as_object_mut() else {
        return;
    };
    let mut conditions = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set(&mut conditions, "Terminating", "True", "InstanceDeletionPending", message, now);
    status.insert("conditions".into(), conditions.into());
}

fn set(conditions: &mut Vec<Value>, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) {
    if let Some(known) = conditions.iter_mut().find(|c| text(c, "/type") == kind) {
        if text(known, "/status") == status && text(known, "/reason") == reason {
            return;
        }
        *known = condition(kind, status, reason, message, now);
        return;
    }
    conditions.push(condition(kind, status, reason, message, now));
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    json!({
        "type": kind, "status": status, "lastTransitionTime": now.to_string(), "reason": reason, "message": message,
    })
}

/// Deletes the objects of a definition that goes, then lets it go.
async fn clean_up(core: &Arc<Core>, definition: &Object) -> Result<(), wasmk_api::Status> {
    if !definition.finalizers().any(|f| f == CLEANUP) {
        return Ok(());
    }
    let (group, plural) = (definition.at(&["spec", "group"]), definition.at(&["spec", "names", "plural"]));
    let (group, plural) =
        (group.and_then(Value::as_str).unwrap_or(""), plural.and_then(Value::as_str).unwrap_or(""));
    let owner = core.table.load().any_version(group, plural).cloned();
    if let Some(resource) = owner {
        for entry in resource.cache.list(&Filter::default()) {
            let mut call = own_call(&resource, &entry.name);
            call.info.verb = "delete";
            call.info.namespace = entry.namespace.to_string();
            // Whoever may delete the definition has decided about its objects.
            let work = Work { trusted: true, ..Work::new(core, &call, &resource)? };
            let gone = delete_object(&work, &entry.namespace, &entry.name, &DeleteOptions::default()).await;
            if let Err(status) = gone
                && status.code != 404
            {
                return Err(status);
            }
        }
        core.caches.catch_up().await?;
        if resource.cache.len() > 0 {
            return Ok(());
        }
    }
    let Some(resource) =
        core.table.load().get("apiextensions.k8s.io", "v1", "customresourcedefinitions").cloned()
    else {
        return Ok(());
    };
    let call = own_call(&resource, definition.name());
    let work = Work::new(core, &call, &resource)?;
    update_object(&work, definition.name(), Mode::Free(""), false, |old| {
        let mut new = old.clone();
        let rest: Vec<&str> = old.finalizers().filter(|f| *f != CLEANUP).collect();
        new.set_meta("finalizers", if rest.is_empty() { Value::Null } else { json!(rest) });
        Ok(new)
    })
    .await
    .map(|_| ())
}

/// A call of the server itself.
pub(crate) fn own_call(resource: &Resource, name: &str) -> Call {
    let info = RequestInfo {
        is_resource: true,
        verb: "update",
        group: resource.gvk.group.clone(),
        version: resource.gvk.version.clone(),
        resource: resource.plural.clone(),
        name: name.into(),
        ..RequestInfo::default()
    };
    let mut headers = http::HeaderMap::new();
    headers.insert(http::header::USER_AGENT, http::HeaderValue::from_static("kube-apiserver"));
    let user = Arc::new(crate::User::new("system:apiserver", ["system:masters"]));
    Call::new(info, http::Method::PUT, Query::default(), headers, user, Wanted::default())
}

//! What becomes of one object, given what is known of its owners and dependents.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde_json::{Value, json};

use crate::base::{Error, EventKind, Key, Next, Result, Served};

use super::{
    Collector, NAME,
    graph::{FOREGROUND, Node, ORPHAN, Uid, Work, blocks},
};

/// How an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// It is there.
    Solid,
    /// It is there, but waits for its dependents to go.
    Waiting,
    /// It is gone.
    Dangling,
}

/// What to do with an object.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing.
    Stay,
    /// Forget the owners that are gone or going.
    DropOwners(Vec<String>),
    /// Delete it.
    Delete {
        /// Its own dependents first.
        foreground: bool,
    },
}

fn judge(owners: &[(String, Owner)], has_dependents: bool) -> Verdict {
    let any = |state| owners.iter().any(|(_, s)| *s == state);
    if owners.is_empty() {
        return Verdict::Stay;
    }
    if any(Owner::Solid) {
        let lost: Vec<String> =
            owners.iter().filter(|(_, s)| *s != Owner::Solid).map(|(uid, _)| uid.clone()).collect();
        return if lost.is_empty() { Verdict::Stay } else { Verdict::DropOwners(lost) };
    }
    Verdict::Delete { foreground: any(Owner::Waiting) && has_dependents }
}

impl Collector {
    pub(super) async fn attempt(self: Arc<Self>, work: Work) -> Result<Next> {
        match work {
            Work::Judge(uid) => self.judge(&uid).await?,
            Work::Orphan(uid) => self.orphan(&uid).await?,
        }
        Ok(Next::Change)
    }

    async fn judge(&self, uid: &Uid) -> Result<()> {
        let Some(node) = self.node(uid) else { return Ok(()) };
        if node.foreground {
            return self.wait_for_dependents(uid, &node).await;
        }
        if node.deleting || self.all_owners_known_solid(&node) {
            return Ok(());
        }
        // What the watch showed may be old: decide on the object as it is.
        let Some(live) = self.read(&node).await?.filter(|m| m.uid.as_deref() == Some(&**uid)) else {
            self.add(self.graph.lock().remove(uid));
            return Ok(());
        };
        if live.deletion_timestamp.is_some() {
            return Ok(());
        }
        let mut owners = Vec::new();
        for owner in live.owner_references.iter().flatten() {
            owners.push((owner.uid.clone(), self.owner_state(&node, owner).await?));
        }
        let has_dependents = self.graph.lock().has_dependents(uid);
        match judge(&owners, has_dependents) {
            Verdict::Stay => Ok(()),
            Verdict::DropOwners(lost) => self.drop_owners(&node, &live, &lost).await,
            Verdict::Delete { foreground } => {
                if foreground {
                    self.break_cycles(uid).await?;
                }
                self.delete(&node, &live, foreground).await
            }
        }
    }

    fn node(&self, uid: &str) -> Option<Node> {
        self.graph.lock().get(uid).cloned()
    }

    fn all_owners_known_solid(&self, node: &Node) -> bool {
        let graph = self.graph.lock();
        node.owners.iter().all(|o| {
            graph.get(&o.uid).is_some_and(|owner| !owner.foreground && is_reachable(&owner.key, &node.key))
        })
    }

    async fn owner_state(&self, node: &Node, owner: &OwnerReference) -> Result<Owner> {
        if let Some(known) = self.node(&owner.uid)
            && known.key.name == owner.name
            && is_reachable(&known.key, &node.key)
        {
            return Ok(if known.foreground { Owner::Waiting } else { Owner::Solid });
        }
        let served = self.resolve(owner).await?;
        if served.namespaced && node.key.namespace.is_empty() {
            // Nobody can say which namespace was meant.
            self.tell_bad_owner(node, owner);
            return Ok(Owner::Solid);
        }
        let namespace = if served.namespaced { node.key.namespace.clone() } else { String::new() };
        let key = Key::new(namespace, owner.name.clone());
        let Some(live) = self.read_at(&served, &key).await? else { return Ok(Owner::Dangling) };
        if live.uid.as_deref() != Some(&*owner.uid) {
            return Ok(Owner::Dangling);
        }
        let waiting =
            live.deletion_timestamp.is_some() && live.finalizers.iter().flatten().any(|f| f == FOREGROUND);
        Ok(if waiting { Owner::Waiting } else { Owner::Solid })
    }

    /// The resource of an owner's kind.
    async fn resolve(&self, owner: &OwnerReference) -> Result<Served> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let resources = self.cx.discovery.resources().await?;
        let found = resources.iter().find(|s| s.resource.group == group && s.resource.kind == owner.kind);
        found.cloned().ok_or_else(|| {
            Error::Invalid(format!("no resource is served for owner {} {}", owner.api_version, owner.kind))
        })
    }

    fn tell_bad_owner(&self, node: &Node, owner: &OwnerReference) {
        let about = ObjectReference {
            api_version: Some(node.served.resource.api_version.clone()),
            kind: Some(node.served.resource.kind.clone()),
            name: Some(node.key.name.clone()),
            ..Default::default()
        };
        let message = format!(
            "ownerRef [{}/{}, name: {}, uid: {}] does not exist in namespace \"\"",
            owner.api_version, owner.kind, owner.name, owner.uid
        );
        self.cx.events.record_about(NAME, about, EventKind::Warning, "OwnerRefInvalidNamespace", message);
    }

    /// A foreground deletion goes on when no dependent blocks it any more.
    async fn wait_for_dependents(&self, uid: &Uid, node: &Node) -> Result<()> {
        let dependents = self.graph.lock().dependents(uid);
        let blocking = dependents
            .iter()
            .filter(|(_, d)| blocks(d.owners.iter().find(|o| *o.uid == **uid)))
            .collect::<Vec<_>>();
        if blocking.is_empty() {
            return self.drop_finalizer(node, uid, FOREGROUND).await;
        }
        for (dependent, state) in blocking {
            if !state.foreground {
                self.queue.add(Work::Judge(dependent.clone()));
            }
        }
        Ok(())
    }

    async fn orphan(&self, uid: &Uid) -> Result<()> {
        let Some(node) = self.node(uid) else { return Ok(()) };
        let dependents = self.graph.lock().dependents(uid);
        for (dependent, state) in dependents {
            let live = self.read(&state).await?;
            if let Some(live) = live.filter(|m| m.uid.as_deref() == Some(&*dependent)) {
                self.drop_owners(&state, &live, &[uid.to_string()]).await?;
            }
        }
        self.drop_finalizer(&node, uid, ORPHAN).await
    }

    /// Two objects that block each other's foreground deletion would wait for ever.
    async fn break_cycles(&self, uid: &Uid) -> Result<()> {
        let dependents = self.graph.lock().dependents(uid);
        if !dependents.iter().any(|(_, d)| d.foreground) {
            return Ok(());
        }
        let Some(node) = self.node(uid) else { return Ok(()) };
        let Some(live) = self.read(&node).await? else { return Ok(()) };
        let mut owners = live.owner_references.clone().unwrap_or_default();
        owners.iter_mut().for_each(|o| o.block_owner_deletion = Some(false));
        self.patch(&node, &live, json!({"ownerReferences": owners})).await
    }

    async fn drop_owners(&self, node: &Node, live: &ObjectMeta, lost: &[String]) -> Result<()> {
        let mut owners = live.owner_references.clone().unwrap_or_default();
        let before = owners.len();
        owners.retain(|o| !lost.contains(&o.uid));
        if owners.len() == before {
            return Ok(());
        }
        self.patch(node, live, json!({"ownerReferences": owners})).await
    }

    async fn drop_finalizer(&self, node: &Node, uid: &Uid, name: &str) -> Result<()> {
        let Some(live) = self.read(node).await?.filter(|m| m.uid.as_deref() == Some(&**uid)) else {
            return Ok(());
        };
        let mut finalizers = live.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|f| f == name) {
            return Ok(());
        }
        finalizers.retain(|f| f != name);
        self.patch(node, &live, json!({"finalizers": finalizers})).await
    }

    async fn patch(&self, node: &Node, live: &ObjectMeta, mut meta: Value) -> Result<()> {
        meta["uid"] = json!(live.uid);
        meta["resourceVersion"] = json!(live.resource_version);
        let patch = Patch::Merge(json!({"metadata": meta}));
        let api = self.api(&node.served, &node.key);
        let outcome = api.patch_metadata(&node.key.name, &PatchParams::default(), &patch).await;
        match outcome.map_err(|e| failed("patch", node, e)) {
            Err(error) if error.is_not_found() => Ok(()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, node: &Node, live: &ObjectMeta, foreground: bool) -> Result<()> {
        let has = |finalizer: &str| live.finalizers.iter().flatten().any(|f| f == finalizer);
        let policy = match () {
            () if foreground || has(FOREGROUND) => PropagationPolicy::Foreground,
            () if has(ORPHAN) => PropagationPolicy::Orphan,
            () => PropagationPolicy::Background,
        };
        let condition =
            Preconditions { uid: live.uid.clone(), resource_version: live.resource_version.clone() };
        let params = DeleteParams { propagation_policy: Some(policy), ..Default::default() };
        let params = params.preconditions(condition);
        match self.api(&node.served, &node.key).delete(&node.key.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) => match failed("delete", node, error) {
                error if error.is_not_found() => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn read(&self, node: &Node) -> Result<Option<ObjectMeta>> {
        self.read_at(&node.served, &node.key).await
    }

    async fn read_at(&self, served: &Served, key: &Key) -> Result<Option<ObjectMeta>> {
        let found = self.api(served, key).get_metadata_opt(&key.name).await;
        let found = found.map_err(|e| Error::api("read", &served.resource.kind, key.clone(), e))?;
        Ok(found.map(|object| object.metadata))
    }

    fn api(&self, served: &Served, key: &Key) -> Api<DynamicObject> {
        let client = self.cx.client.clone();
        if served.namespaced {
            Api::namespaced_with(client, &key.namespace, &served.resource)
        } else {
            Api::all_with(client, &served.resource)
        }
    }
}

/// Owners are cluster scoped or of the same namespace.
fn is_reachable(owner: &Key, dependent: &Key) -> bool {
    owner.namespace.is_empty() || owner.namespace == dependent.namespace
}

fn failed(verb: &'static str, node: &Node, error: kube::Error) -> Error {
    Error::api(verb, &node.served.resource.kind, node.key.clone(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Owners as letters: solid `s`, waiting `w`, dangling `d`.
    fn check(owners: &str, has_dependents: bool, expect: &Verdict) {
        let owners: Vec<_> = owners
            .chars()
            .enumerate()
            .map(|(i, c)| {
                let state = match c {
                    's' => Owner::Solid,
                    'w' => Owner::Waiting,
                    _ => Owner::Dangling,
                };
                (i.to_string(), state)
            })
            .collect();
        assert_eq!(judge(&owners, has_dependents), *expect);
    }

    #[test]
    fn one_solid_owner_is_enough() {
        let lost = |uids: &[&str]| Verdict::DropOwners(uids.iter().map(|u| (*u).to_owned()).collect());
        check("", true, &Verdict::Stay);
        check("s", true, &Verdict::Stay);
        check("sd", false, &lost(&["1"]));
        check("wsd", false, &lost(&["0", "2"]));
        check("d", true, &Verdict::Delete { foreground: false });
        check("w", true, &Verdict::Delete { foreground: true });
        check("w", false, &Verdict::Delete { foreground: false });
        check("dw", true, &Verdict::Delete { foreground: true });
    }
}

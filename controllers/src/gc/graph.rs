//! Who owns whom, as far as the watches have told. Pure data.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::base::{Key, Served};

/// Deletion waits for the dependents that block it.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Deletion lets the dependents live.
pub(super) const ORPHAN: &str = "orphan";

pub(super) type Uid = Arc<str>;

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Work {
    /// Whether this object must go.
    Judge(Uid),
    /// Release the dependents of this object.
    Orphan(Uid),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Judge(uid) => write!(f, "judge {uid}"),
            Self::Orphan(uid) => write!(f, "orphan dependents of {uid}"),
        }
    }
}

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) served: Arc<Served>,
    pub(super) key: Key,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    /// Being deleted, waiting for its dependents.
    pub(super) foreground: bool,
    /// Being deleted, its dependents are to be released.
    pub(super) orphaning: bool,
}

/// What a change asks for: at once, or after a moment in which its owner may still turn up.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Tasks {
    pub(super) now: Vec<Work>,
    pub(super) soon: Vec<Work>,
}

/// All objects and their owners.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, BTreeSet<Uid>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name this one as an owner.
    pub(super) fn dependents(&self, uid: &str) -> Vec<(Uid, Node)> {
        let all = self.dependents.get(uid).into_iter().flatten();
        all.filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.clone()))).collect()
    }

    pub(super) fn has_dependents(&self, uid: &str) -> bool {
        self.dependents.contains_key(uid)
    }

    /// Everything that may need a look, for when the queue had no room for it.
    pub(super) fn all_work(&self) -> Vec<Work> {
        let judged = self.nodes.iter().filter(|(_, n)| n.foreground || !n.owners.is_empty());
        let orphaning = self.nodes.iter().filter(|(_, n)| n.orphaning);
        let judged = judged.map(|(uid, _)| Work::Judge(uid.clone()));
        judged.chain(orphaning.map(|(uid, _)| Work::Orphan(uid.clone()))).collect()
    }

    /// Takes in an object as it is now.
    pub(super) fn put(&mut self, served: &Arc<Served>, meta: &ObjectMeta) -> Tasks {
        let mut tasks = Tasks::default();
        let Some(uid) = meta.uid.as_deref().map(Uid::from) else { return tasks };
        let deleting = meta.deletion_timestamp.is_some();
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
        let node = Node {
            served: served.clone(),
            key: Key::of(meta),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
        };
        let old = self.nodes.insert(uid.clone(), node.clone());
        self.link(&uid, &node, old.as_ref(), &mut tasks);
        let (was_foreground, was_orphaning) =
            old.as_ref().map_or((false, false), |o| (o.foreground, o.orphaning));
        if node.orphaning && !was_orphaning {
            tasks.now.push(Work::Orphan(uid.clone()));
        }
        if node.foreground && !was_foreground {
            let dependents = self.dependents.get(&uid).into_iter().flatten();
            tasks.now.extend(dependents.map(|d| Work::Judge(d.clone())));
            tasks.now.push(Work::Judge(uid));
        }
        tasks
    }

    fn link(&mut self, uid: &Uid, node: &Node, old: Option<&Node>, tasks: &mut Tasks) {
        let before = old.map_or(&[][..], |o| &o.owners);
        for owner in before.iter().filter(|o| !node.owners.iter().any(|n| n.uid == o.uid)) {
            self.unlink(uid, &owner.uid, tasks);
        }
        for owner in &node.owners {
            let was = before.iter().find(|o| o.uid == owner.uid);
            if was.is_none() {
                self.dependents.entry(Uid::from(&*owner.uid)).or_default().insert(uid.clone());
            }
            match self.nodes.get(&*owner.uid) {
                None => tasks.soon.push(Work::Judge(uid.clone())),
                Some(state) if state.foreground => {
                    tasks.now.push(Work::Judge(uid.clone()));
                    if blocks(was) && !blocks(Some(owner)) {
                        tasks.now.push(Work::Judge(Uid::from(&*owner.uid)));
                    }
                }
                Some(state)
                    if state.key.namespace != node.key.namespace && !state.key.namespace.is_empty() =>
                {
                    tasks.now.push(Work::Judge(uid.clone()));
                }
                Some(_) => {}
            }
        }
    }

    fn unlink(&mut self, uid: &Uid, owner: &str, tasks: &mut Tasks) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(uid);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
        if let Some((owner, state)) = self.nodes.get_key_value(owner)
            && state.foreground
        {
            tasks.now.push(Work::Judge(owner.clone()));
        }
    }

    /// Takes out an object that is gone.
    pub(super) fn remove(&mut self, uid: &str) -> Tasks {
        let mut tasks = Tasks::default();
        let Some((uid, node)) = self.nodes.remove_entry(uid) else { return tasks };
        for owner in &node.owners {
            self.unlink(&uid, &owner.uid, &mut tasks);
        }
        let dependents = self.dependents.get(&uid).into_iter().flatten();
        tasks.now.extend(dependents.map(|d| Work::Judge(d.clone())));
        tasks
    }

    /// Takes out a resource's objects that a new list did not bring.
    pub(super) fn keep_only(&mut self, served: &Served, listed: &HashSet<Uid>) -> Tasks {
        let same = |n: &Node| n.served.resource == served.resource;
        let gone: Vec<Uid> = self
            .nodes
            .iter()
            .filter(|(uid, n)| same(n) && !listed.contains(*uid))
            .map(|(u, _)| u.clone())
            .collect();
        let mut all = Tasks::default();
        for uid in gone {
            let tasks = self.remove(&uid);
            all.now.extend(tasks.now);
            all.soon.extend(tasks.soon);
        }
        all
    }
}

/// Whether a reference holds its owner back from going.
pub(super) fn blocks(owner: Option<&OwnerReference>) -> bool {
    owner.is_some_and(|o| o.block_owner_deletion == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::ApiResource;

    fn served() -> Arc<Served> {
        let resource = ApiResource {
            group: String::new(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: "Thing".into(),
            plural: "things".into(),
        };
        Arc::new(Served { resource, namespaced: true, verbs: Vec::new() })
    }

    /// `uid [< owner[!]]… [foreground|orphan|deleting]`; `!` blocks the owner.
    fn meta(text: &str) -> ObjectMeta {
        let mut words = text.split_whitespace();
        let uid = words.next().unwrap();
        let mut meta = ObjectMeta {
            uid: Some(uid.into()),
            name: Some(uid.into()),
            namespace: Some("ns".into()),
            ..Default::default()
        };
        let mut owners = Vec::new();
        for word in words {
            let going = Some(crate::base::time("2026-01-01T00:00:00Z".parse().unwrap()));
            match word {
                "<" => {}
                "deleting" => meta.deletion_timestamp = going,
                "foreground" | "orphan" => {
                    meta.deletion_timestamp = going;
                    let finalizer = if word == "orphan" { ORPHAN } else { FOREGROUND };
                    meta.finalizers = Some(vec![finalizer.into()]);
                }
                owner => owners.push(OwnerReference {
                    uid: owner.trim_end_matches('!').into(),
                    block_owner_deletion: Some(owner.ends_with('!')),
                    ..Default::default()
                }),
            }
        }
        meta.owner_references = Some(owners);
        meta
    }

    /// Plays events (`-uid` removes) and checks what the last one asks for.
    fn check(events: &[&str], now: &str, soon: &str) {
        let mut graph = Graph::default();
        let mut last = Tasks::default();
        for event in events {
            last = match event.strip_prefix('-') {
                Some(uid) => graph.remove(uid),
                None => graph.put(&served(), &meta(event)),
            };
        }
        let show = |work: &[Work]| {
            let name = |w: &Work| match w {
                Work::Judge(uid) => uid.to_string(),
                Work::Orphan(uid) => format!("orphan:{uid}"),
            };
            work.iter().map(name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((show(&last.now).as_str(), show(&last.soon).as_str()), (now, soon), "{events:?}");
    }

    #[test]
    fn changes_ask_for_the_right_work() {
        check(&["a", "b < a"], "", "");
        check(&["b < a"], "", "b");
        check(&["a", "b < a", "c < a", "-a"], "b c", "");
        check(&["a", "b < a!", "a foreground"], "b a", "");
        check(&["a", "b < a!", "a foreground", "-b"], "a", "");
        check(&["a foreground", "b < a!"], "b", "");
        check(&["a foreground", "b < a!", "b < a"], "b a", "");
        check(&["a foreground", "b < a!", "b"], "a", "");
        check(&["a", "b < a", "a orphan"], "orphan:a", "");
        check(&["a", "b < a", "a orphan", "a orphan"], "", "");
    }

    #[test]
    fn a_new_list_removes_what_is_gone() {
        let mut graph = Graph::default();
        graph.put(&served(), &meta("a"));
        graph.put(&served(), &meta("b < a"));
        let listed = HashSet::from([Uid::from("b")]);
        assert_eq!(graph.keep_only(&served(), &listed).now, [Work::Judge("b".into())]);
        assert!(graph.get("a").is_none() && graph.has_dependents("a"));
    }
}

//! The authorizer of nodes: their fixed rules, and of secrets, claims and the like only what their pods use.

use super::{
    graph::{Graph, Thing},
    rbac::Decision,
    rules::{Attributes, Rule},
    user::User,
};
use crate::cache::Caches;

const NODES: &str = "system:nodes";
const PREFIX: &str = "system:node:";
/// Where nodes say that they live.
const LEASES: &str = "kube-node-lease";

/// The node that somebody is, if it is one.
pub(crate) fn identity(user: &User) -> Option<&str> {
    user.name.strip_prefix(PREFIX).filter(|_| user.is_in(NODES))
}

/// Decides about nodes, and has no opinion about anybody else.
pub(crate) struct Nodes {
    graph: Graph,
    rules: Vec<Rule>,
}

/// Allowed, or why there is no opinion.
type Verdict = Result<(), String>;

fn only(condition: bool, else_say: impl Into<String>) -> Verdict {
    if condition { Ok(()) } else { Err(else_say.into()) }
}

impl Nodes {
    /// Over those caches, with the rules every node has.
    pub(crate) fn new(caches: &Caches, rules: Vec<Rule>) -> Self {
        Self { graph: Graph::new(caches), rules }
    }

    /// Decides.
    pub(crate) fn authorize(&self, user: &User, asked: &Attributes<'_>) -> Decision {
        match identity(user) {
            None => Decision::default(),
            Some("") => Decision::no_opinion(format!("unknown node for user {:?}", user.name)),
            Some(node) => match self.verdict(node, asked) {
                Ok(()) => Decision::allow(""),
                Err(why) => Decision::no_opinion(why),
            },
        }
    }

    fn verdict(&self, node: &str, asked: &Attributes<'_>) -> Verdict {
        if !asked.is_resource {
            return self.by_rule(asked);
        }
        match (asked.group, asked.resource) {
            ("", "secrets") => self.read(node, Thing::Secret, asked),
            ("", "configmaps") => self.read(node, Thing::ConfigMap, asked),
            ("", "persistentvolumeclaims") if asked.subresource == "status" => {
                only(
                    matches!(asked.verb, "get" | "update" | "patch"),
                    "can only get/update/patch this type",
                )?;
                self.related(node, Thing::Claim, asked)
            }
            ("", "persistentvolumeclaims") => {
                individual(asked)?;
                self.related(node, Thing::Claim, asked)
            }
            ("", "persistentvolumes") => {
                individual(asked)?;
                only(self.graph.mounts(node, asked.name), unrelated(node))
            }
            ("resource.k8s.io", "resourceclaims") => {
                individual(asked)?;
                self.related(node, Thing::ResourceClaim, asked)
            }
            ("storage.k8s.io", "volumeattachments") => {
                individual(asked)?;
                only(self.graph.attaches(node, asked.name), unrelated(node))
            }
            ("", "serviceaccounts") => self.account(node, asked),
            ("coordination.k8s.io", "leases") => lease(node, asked),
            ("storage.k8s.io", "csinodes") => csi_node(node, asked),
            ("", "nodes") => nodes(node, asked),
            ("", "pods") => self.pods(node, asked),
            _ => self.by_rule(asked),
        }
    }

    fn by_rule(&self, asked: &Attributes<'_>) -> Verdict {
        only(self.rules.iter().any(|rule| rule.allows(asked)), "")
    }

    fn related(&self, node: &str, thing: Thing, asked: &Attributes<'_>) -> Verdict {
        only(!asked.name.is_empty(), "No Object name found")?;
        only(self.graph.uses(node, thing, asked.namespace, asked.name), unrelated(node))
    }

    /// Reads of an object by its name: plainly, or as a list or watch of that one.
    fn read(&self, node: &str, thing: Thing, asked: &Attributes<'_>) -> Verdict {
        only(matches!(asked.verb, "get" | "list" | "watch"), "can only read resources of this type")?;
        only(asked.subresource.is_empty(), "cannot read subresource")?;
        only(!asked.namespace.is_empty(), "can only read namespaced object of this type")?;
        self.related(node, thing, asked)
    }

    fn account(&self, node: &str, asked: &Attributes<'_>) -> Verdict {
        if asked.verb == "get" && asked.subresource.is_empty() {
            return self.related(node, Thing::ServiceAccount, asked);
        }
        only(
            asked.verb == "create" && asked.subresource == "token" && !asked.name.is_empty(),
            "can only get service accounts, or create tokens for individual service accounts",
        )?;
        self.related(node, Thing::ServiceAccount, asked)
    }

    /// What a node may do to single pods beyond reading them is looked at again when the change is admitted.
    fn pods(&self, node: &str, asked: &Attributes<'_>) -> Verdict {
        match (asked.subresource, asked.verb) {
            ("", "get") => only(self.graph.runs(node, asked.namespace, asked.name), unrelated(node)),
            ("", "list" | "watch") => {
                let one = !asked.name.is_empty() && self.graph.runs(node, asked.namespace, asked.name);
                only(
                    asked.on_node == node || one,
                    "can only list/watch pods with spec.nodeName field selector",
                )
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(String::new()),
        }
    }
}

fn unrelated(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

fn individual(asked: &Attributes<'_>) -> Verdict {
    only(asked.verb == "get", "can only get individual resources of this type")?;
    only(asked.subresource.is_empty(), "cannot get subresource")
}

fn own_by_name(asked: &Attributes<'_>) -> bool {
    matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete")
}

fn lease(node: &str, asked: &Attributes<'_>) -> Verdict {
    only(own_by_name(asked), "can only get, create, update, patch, or delete a node lease")?;
    only(asked.namespace == LEASES, format!("can only access leases in the {LEASES:?} system namespace"))?;
    only(
        asked.verb == "create" || asked.name == node,
        "can only access node lease with the same name as the requesting node",
    )
}

fn csi_node(node: &str, asked: &Attributes<'_>) -> Verdict {
    only(own_by_name(asked), "can only get, create, update, patch, or delete a CSINode")?;
    only(asked.subresource.is_empty(), "cannot authorize CSINode subresources")?;
    only(
        asked.verb == "create" || asked.name == node,
        "can only access CSINode with the same name as the requesting node",
    )
}

/// Which node's object a node changes is looked at again when the change is admitted.
fn nodes(node: &str, asked: &Attributes<'_>) -> Verdict {
    match (asked.subresource, asked.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if asked.name == node => Ok(()),
        ("", "get") => Err(format!("node '{node}' cannot read '{}', only its own Node object", asked.name)),
        ("", "list" | "watch") => {
            Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        _ => Err(String::new()),
    }
}

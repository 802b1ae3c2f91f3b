//! Nobody hands out more than they have: roles and bindings are checked against the rules of whoever writes them.

use wasmk_api::{Object, Reason, Status};

use crate::{
    auth::{
        Attributes,
        rbac::RoleRef,
        rules::{Rule, missing},
    },
    authorize,
    write::{Mode, Work},
};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks roles and bindings.
pub(crate) async fn validate(
    work: &Work<'_>,
    new: &Object,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    if work.resource.gvk.group != GROUP || mode != Mode::Main || work.call.user.is_in("system:masters") {
        return Ok(());
    }
    if old.is_some_and(|old| only_for_collection(new, old)) {
        return Ok(());
    }
    match &*work.resource.plural {
        "roles" | "clusterroles" => role(work, new).await,
        _ => binding(work, new).await,
    }
}

/// Whether nothing changed but what the collection of garbage changes.
fn only_for_collection(new: &Object, old: &Object) -> bool {
    let rest = |object: &Object| {
        let mut object = object.clone();
        for key in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            object.set_meta(key, serde_json::Value::Null);
        }
        object
    };
    rest(new) == rest(old)
}

async fn may(work: &Work<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let namespace = if resource == "roles" { work.namespace() } else { "" };
    let asked = Attributes {
        verb,
        group: GROUP,
        resource,
        namespace,
        name,
        is_resource: true,
        ..Attributes::default()
    };
    authorize::decide(work.core, &work.call.user, &asked).await.allowed
}

fn rules(object: &Object) -> Vec<Rule> {
    object.0.get("rules").and_then(|r| serde_json::from_value(r.clone()).ok()).unwrap_or_default()
}

async fn role(work: &Work<'_>, new: &Object) -> Result<(), Status> {
    if may(work, "escalate", &work.resource.plural, new.name()).await {
        return Ok(());
    }
    let mut wanted = rules(new);
    if new.0.get("aggregationRule").is_some_and(|a| !a.is_null()) {
        // Whoever aggregates could end up with any rule.
        let star = || vec!["*".to_owned()];
        wanted.push(Rule { verbs: star(), api_groups: star(), resources: star(), ..Rule::default() });
        wanted.push(Rule { verbs: star(), urls: star(), ..Rule::default() });
    }
    covered(work, new, &wanted)
}

async fn binding(work: &Work<'_>, new: &Object) -> Result<(), Status> {
    let reference: RoleRef =
        new.0.get("roleRef").and_then(|r| serde_json::from_value(r.clone()).ok()).unwrap_or_default();
    let plural = if reference.kind == "ClusterRole" { "clusterroles" } else { "roles" };
    let scope = work.namespace();
    let asked = Attributes {
        verb: "bind",
        group: GROUP,
        resource: plural,
        namespace: scope,
        name: &reference.name,
        is_resource: true,
        ..Attributes::default()
    };
    if authorize::decide(work.core, &work.call.user, &asked).await.allowed {
        return Ok(());
    }
    match work.core.rbac.role_rules(scope, &reference) {
        Some(wanted) => covered(work, new, &wanted),
        None => Err(Status::not_found(&work.resource.group_resource(), &reference.name)),
    }
}

fn covered(work: &Work<'_>, object: &Object, wanted: &[Rule]) -> Result<(), Status> {
    let user = &work.call.user;
    let (owned, broken) = core_rules(work);
    let lacking = missing(&owned, wanted);
    if lacking.is_empty() {
        return Ok(());
    }
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        list(&user.groups),
        lacking.join("\n")
    );
    if !broken.is_empty() {
        why = format!("{why}; resolution errors: [{}]", broken.join(", "));
    }
    let mut status = Status::forbidden(&work.resource.group_resource(), object.name(), &why);
    status.reason = Reason::Forbidden;
    Err(status)
}

fn core_rules(work: &Work<'_>) -> (Vec<Rule>, Vec<String>) {
    work.core.rbac.rules(&work.call.user, work.namespace())
}

fn list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|i| format!("{i:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

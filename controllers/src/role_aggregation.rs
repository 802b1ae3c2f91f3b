//! Fills ClusterRoles that are made up of others.
//!
//! Reads cluster roles. Writes the `rules` of those with an `aggregationRule`: the rules of
//! all roles that its selectors match, ordered by name, each rule once.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;
use wasmk_api::LabelSelector;

use crate::base::{Context, Informer, Key, Next, Queue, Result, on_change};

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let roles = cx.cache::<ClusterRole>();
    on_change(&roles, &queue);
    roles.ready().await;
    // Any role may be a part of any aggregated one.
    let (known, sink) = (roles.clone(), queue.clone());
    roles.subscribe(move |_, _| {
        let aggregated = known.list().into_iter().filter(|r| r.aggregation_rule.is_some());
        aggregated.for_each(|r| sink.add(Key::of(&r.metadata)));
    });
    cx.work("clusterrole-aggregation-controller", &queue, 1, |key| reconcile(&cx, &roles, key)).await;
}

async fn reconcile(cx: &Context, roles: &Informer<ClusterRole>, key: Key) -> Result<Next> {
    let Some(role) = roles.get(&key) else { return Ok(Next::Change) };
    if let Some(rules) = plan(&role, &roles.list()) {
        let patch = json!({"metadata": {"resourceVersion": role.metadata.resource_version}, "rules": rules});
        cx.patch(&*role, patch).await?;
    }
    Ok(Next::Change)
}

/// The rules as they have to be, unless they are so already.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref()?;
    let selectors: Vec<LabelSelector> =
        selectors.iter().filter_map(|s| LabelSelector::from_api(s).ok()).collect();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for part in all.iter().filter(|r| r.metadata.name != role.metadata.name) {
        if selectors.iter().any(|s| s.matches(part.metadata.labels.as_ref())) {
            for rule in part.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    (role.rules.as_deref().unwrap_or(&[]) != rules).then_some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_the_parts() {
        let role = |name: &str, label: &str, verbs: &[&str]| -> Arc<ClusterRole> {
            let rules: Vec<_> = verbs.iter().map(|v| json!({"verbs": [v]})).collect();
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": rules}),
                )
                .unwrap(),
            )
        };
        let mut whole = (*role("admin", "", &[])).clone();
        whole.aggregation_rule =
            serde_json::from_value(json!({"clusterRoleSelectors": [{"matchLabels": {"to": "admin"}}]}))
                .unwrap();
        let all = [
            role("a", "admin", &["get", "list"]),
            role("b", "admin", &["list", "watch"]),
            role("c", "x", &["delete"]),
        ];
        let rules = plan(&whole, &all).unwrap();
        let verbs: Vec<_> = rules.iter().map(|r| r.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list", "watch"]);
        whole.rules = Some(rules);
        assert!(plan(&whole, &all).is_none());
    }
}

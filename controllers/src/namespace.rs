//! Empties namespaces that are being deleted, and lets them go once nothing is left.
//!
//! Reads namespaces and, through discovery, everything namespaced. Deletes all of it:
//! pods first, the rest when they are gone. Writes the namespace's conditions (what holds
//! it back) and, at the end, its `finalize` subresource.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, PostParams, PropagationPolicy},
    core::discovery::verbs,
};
use wasmk_api::Timestamp;

use crate::base::{
    Context, Error, Informer, Key, Next, Queue, Result, Served, is_deleting, on_change, time, time_of,
};

const NAME: &str = "namespace-controller";
/// The entry of `spec.finalizers` that is ours.
const FINALIZER: &str = "kubernetes";
/// When to look again while content remains, should no pod's end come earlier: soon at first, and more
/// seldom the longer it takes.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const LOOK_AGAIN_LATEST: Duration = Duration::from_secs(30);
/// Resources asked about at once.
const PARALLEL: usize = 8;
/// Objects listed per page.
const PAGE: u32 = 500;

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let namespaces = cx.cache::<Namespace>();
    let pods = cx.cache::<Pod>();
    on_change(&namespaces, &queue);
    let sink = queue.clone();
    // The end of a pod is what a namespace usually waits for.
    pods.subscribe(move |old, new| {
        if let (Some(pod), None) = (old, new) {
            sink.add(Key::new("", pod.metadata.namespace.clone().unwrap_or_default()));
        }
    });
    namespaces.ready().await;
    cx.work(NAME, &queue, cx.settings.workers, |key| reconcile(&cx, &namespaces, key)).await;
}

async fn reconcile(cx: &Context, namespaces: &Informer<Namespace>, key: Key) -> Result<Next> {
    let Some(namespace) = namespaces.get(&key) else { return Ok(Next::Change) };
    if !is_deleting(&*namespace) || !has_finalizer(&namespace) {
        return Ok(Next::Change);
    }
    let mut found = Found::default();
    match cx.discovery.resources().await {
        Err(error) => found.discovery_failures.push(error.message()),
        Ok(resources) => empty(cx, &key.name, &resources, &mut found).await,
    }
    if !found.is_empty() {
        write_conditions(cx, &namespace, &found).await?;
        let since = time_of(namespace.metadata.deletion_timestamp.as_ref());
        let age = since.map_or(Duration::ZERO, |since| cx.clock.now().since(since));
        return Ok(Next::After(pause(age)));
    }
    finalize(cx, &namespace).await?;
    Ok(Next::Change)
}

/// How long to wait before looking again at what has been on its way out for that long.
fn pause(age: Duration) -> Duration {
    (age / 10).clamp(LOOK_AGAIN, LOOK_AGAIN_LATEST)
}

fn has_finalizer(namespace: &Namespace) -> bool {
    namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).any(|f| f == FINALIZER)
}

/// What is still in a namespace, and what could not be asked or deleted.
#[derive(Debug, Default)]
struct Found {
    discovery_failures: Vec<String>,
    failures: Vec<String>,
    /// `pods.` or `deployments.apps` to how many.
    remaining: BTreeMap<String, usize>,
    /// Finalizers to how many objects have them.
    finalizers: BTreeMap<String, usize>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.discovery_failures.is_empty() && self.failures.is_empty() && self.remaining.is_empty()
    }

    fn add(&mut self, resource: &Served, outcome: Result<Vec<DynamicObject>>) {
        let name = format!("{}.{}", resource.resource.plural, resource.resource.group);
        match outcome {
            Err(error) if error.is_not_found() => {}
            Err(error) => self.failures.push(format!("{name}: {}", error.message())),
            Ok(objects) if objects.is_empty() => {}
            Ok(objects) => {
                for finalizer in objects.iter().flat_map(|o| o.metadata.finalizers.iter().flatten()) {
                    *self.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
                }
                self.remaining.insert(name, objects.len());
            }
        }
    }
}

async fn empty(cx: &Context, namespace: &str, resources: &[Served], found: &mut Found) {
    let deletable = |s: &&Served| s.namespaced && s.can(verbs::DELETE) && s.can(verbs::LIST);
    let is_pods = |s: &Served| s.resource.group.is_empty() && s.resource.plural == "pods";
    let (pods, rest): (Vec<&Served>, Vec<&Served>) =
        resources.iter().filter(deletable).partition(|s| is_pods(s));
    for wave in [pods, rest] {
        let mut asked = Vec::with_capacity(wave.len());
        for served in wave {
            asked.push(async move { (served, clear(cx, namespace, served).await) });
        }
        let outcomes: Vec<_> = stream::iter(asked).buffer_unordered(PARALLEL).collect().await;
        outcomes.into_iter().for_each(|(served, outcome)| found.add(served, outcome));
        if !found.is_empty() {
            return;
        }
    }
}

/// Deletes a resource's objects; what is there afterwards.
async fn clear(cx: &Context, namespace: &str, served: &Served) -> Result<Vec<DynamicObject>> {
    let before = list(cx, namespace, served).await?;
    if before.is_empty() {
        return Ok(before);
    }
    let api: Api<DynamicObject> = Api::namespaced_with(cx.client.clone(), namespace, &served.resource);
    let params =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..Default::default() };
    let fail = |verb, key, error| Error::api(verb, &served.resource.kind, key, error);
    if served.can(verbs::DELETE_COLLECTION) {
        let all = ListParams::default();
        api.delete_collection(&params, &all)
            .await
            .map_err(|e| fail("delete all", Key::new(namespace, ""), e))?;
    } else {
        for name in before.into_iter().filter_map(|o| o.metadata.name) {
            match api.delete(&name, &params).await.map_err(|e| fail("delete", Key::new(namespace, name), e)) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
    }
    list(cx, namespace, served).await
}

async fn list(cx: &Context, namespace: &str, served: &Served) -> Result<Vec<DynamicObject>> {
    let api: Api<DynamicObject> = Api::namespaced_with(cx.client.clone(), namespace, &served.resource);
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let fail = |e| Error::api("list", &served.resource.kind, Key::new(namespace, ""), e);
        let page = api.list_metadata(&params).await.map_err(fail)?;
        let next = page.metadata.continue_.clone().filter(|c| !c.is_empty());
        all.extend(page.items.into_iter().map(|o| DynamicObject {
            types: o.types,
            metadata: o.metadata,
            data: serde_json::Value::Null,
        }));
        match next {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// The conditions of a namespace that is being emptied, in a fixed order.
fn conditions(old: &[NamespaceCondition], found: &Found, now: Timestamp) -> Vec<NamespaceCondition> {
    let counted = |map: &BTreeMap<String, usize>, what: &str| {
        let each = map.iter().map(|(name, count)| format!("{name} {what} {count} resource instances"));
        each.collect::<Vec<_>>().join(", ")
    };
    let states: [(&str, Option<String>, [&str; 2], &str); 5] = [
        (
            "NamespaceDeletionDiscoveryFailure",
            (!found.discovery_failures.is_empty()).then(|| {
                format!(
                    "Discovery failed for some groups, {} failing: {}",
                    found.discovery_failures.len(),
                    found.discovery_failures.join(", ")
                )
            }),
            ["DiscoveryFailed", "ResourcesDiscovered"],
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ["GroupVersionParsingFailed", "ParsedGroupVersions"],
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            (!found.failures.is_empty()).then(|| {
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    found.failures.len(),
                    found.failures.join(", ")
                )
            }),
            ["ContentDeletionFailed", "ContentDeleted"],
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            (!found.remaining.is_empty())
                .then(|| format!("Some resources are remaining: {}", counted(&found.remaining, "has"))),
            ["SomeResourcesRemain", "ContentRemoved"],
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            (!found.finalizers.is_empty()).then(|| {
                format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    counted(&found.finalizers, "in")
                )
            }),
            ["SomeFinalizersRemain", "ContentHasNoFinalizers"],
            "All content-preserving finalizers finished",
        ),
    ];
    let set = |(kind, trouble, [bad, good], fine): (&str, Option<String>, [&str; 2], &str)| {
        let status = if trouble.is_some() { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == kind && c.status == status);
        NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(if trouble.is_some() { bad } else { good }.into()),
            message: Some(trouble.unwrap_or_else(|| fine.into())),
            last_transition_time: before.map_or_else(|| Some(time(now)), |c| c.last_transition_time.clone()),
        }
    };
    let mut all: Vec<_> = states.into_iter().map(set).collect();
    all.extend(old.iter().filter(|c| !c.type_.starts_with("Namespace")).cloned());
    all
}

async fn write_conditions(cx: &Context, namespace: &Namespace, found: &Found) -> Result<()> {
    let mut next = namespace.clone();
    let status = next.status.get_or_insert_default();
    let old = status.conditions.take().unwrap_or_default();
    let new = conditions(&old, found, cx.clock.now());
    if new == old {
        return Ok(());
    }
    status.conditions = Some(new);
    status.phase = Some("Terminating".into());
    cx.replace_status(&next).await.map(drop)
}

async fn finalize(cx: &Context, namespace: &Namespace) -> Result<()> {
    let mut next = namespace.clone();
    if let Some(finalizers) = next.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    let key = Key::of(&namespace.metadata);
    let api: Api<Namespace> = Api::all(cx.client.clone());
    match api.replace_subresource("finalize", &key.name, &PostParams::default(), &next).await {
        Ok(_) => Ok(()),
        Err(error) => match Error::api("finalize", "Namespace", key, error) {
            error if error.is_not_found() => Ok(()),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stuck_is_looked_at_more_seldom() {
        for (age, expect) in [(0, 500), (4_000, 500), (60_000, 6_000), (86_400_000, 30_000)] {
            assert_eq!(pause(Duration::from_millis(age)), Duration::from_millis(expect), "{age}");
        }
    }

    #[test]
    fn conditions_name_what_holds_a_namespace() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut found = Found::default();
        found.remaining.insert("pods.".into(), 2);
        found.finalizers.insert("example.com/keep".into(), 1);
        let all = conditions(&[], &found, now);
        let shown: Vec<_> = all
            .iter()
            .map(|c| format!("{}={} {}", c.type_, c.status, c.message.as_deref().unwrap()))
            .collect();
        assert_eq!(
            shown[3],
            "NamespaceContentRemaining=True Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            shown[4],
            "NamespaceFinalizersRemaining=True Some content in the namespace has finalizers remaining: \
             example.com/keep in 1 resource instances"
        );
        assert!(shown[0].starts_with("NamespaceDeletionDiscoveryFailure=False"));
        assert_eq!(conditions(&all, &found, now.after(Duration::from_secs(9))), all, "no news, no change");
    }
}

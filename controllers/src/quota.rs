//! Counts what each ResourceQuota's namespace uses.
//!
//! Reads quotas, pods, claims, services and, for `count/…` limits, the metadata of any
//! resource. Writes quotas' status only; admission raises it when objects are made, this
//! controller puts it right when they go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{
        PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, ScopedResourceSelectorRequirement,
        Service,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kube::{
    Api,
    api::{DynamicObject, ListParams},
};
use wasmk_api::Quantity;

use crate::base::{Context, Error, Informer, Key, Next, Queue, Result, is_deleting, is_finished};

const NAME: &str = "resourcequota-controller";
/// How often resources without a cache are counted.
const RECOUNT: Duration = Duration::from_secs(60);
/// How often everything is counted.
const RESYNC: Duration = Duration::from_secs(300);
/// Plain names of object counts, with their groups.
const PLAIN: [(&str, &str); 5] = [
    ("configmaps", ""),
    ("replicationcontrollers", ""),
    ("resourcequotas", ""),
    ("secrets", ""),
    ("services", ""),
];

struct Counter {
    cx: Context,
    quotas: Arc<Informer<ResourceQuota>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    services: Arc<Informer<Service>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let counter = Counter {
        quotas: cx.cache(),
        pods: cx.cache(),
        claims: cx.cache(),
        services: cx.cache(),
        cx: cx.clone(),
    };
    // A changed status is this controller's own doing, or a charge of admission for what is not stored yet: counting
    // now would take the charge back.
    let changed = queue.clone();
    counter.quotas.subscribe(move |old, new| {
        if let Some(new) = new.filter(|new| old.is_none_or(|old| old.spec != new.spec)) {
            changed.add(Key::of(&new.metadata));
        }
    });
    wake(&counter.pods, &counter.quotas, &queue, |old, new| {
        new.is_none() || is_finished(old) != new.is_some_and(is_finished)
    });
    wake(&counter.claims, &counter.quotas, &queue, |old, new| new.is_none_or(|n| n.spec != old.spec));
    wake(&counter.services, &counter.quotas, &queue, |old, new| new.is_none_or(|n| n.spec != old.spec));
    counter.quotas.ready().await;
    counter.pods.ready().await;
    counter.claims.ready().await;
    counter.services.ready().await;
    cx.work(NAME, &queue, cx.settings.workers, |key| counter.reconcile(key)).await;
}

/// What frees something wakes the quotas of its namespace.
fn wake<K: crate::base::Watched>(
    cache: &Informer<K>,
    quotas: &Arc<Informer<ResourceQuota>>,
    queue: &Arc<Queue<Key>>,
    matters: impl Fn(&K, Option<&K>) -> bool + Send + Sync + 'static,
) {
    let (quotas, queue) = (quotas.clone(), queue.clone());
    cache.subscribe(move |old, new| {
        let Some(old) = old.filter(|old| matters(old, new.map(|n| &**n))) else { return };
        let all = quotas.in_namespace(old.meta().namespace.as_deref().unwrap_or(""));
        all.iter().for_each(|q| queue.add(Key::of(&q.metadata)));
    });
}

impl Counter {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(quota) = self.quotas.get(&key).filter(|q| !is_deleting(&**q)) else {
            return Ok(Next::Change);
        };
        let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
        let mut used: BTreeMap<String, ApiQuantity> = BTreeMap::new();
        let mut again = RESYNC;
        let mut known = usage(
            &quota,
            &self.pods.in_namespace(&key.namespace),
            &self.claims.in_namespace(&key.namespace),
            &self.services.in_namespace(&key.namespace),
        );
        if lowers(&quota, &known) {
            // Admission may have charged what the caches do not show yet. What is charged after this is asked changes
            // the quota, and the write below fails.
            let namespace = &key.namespace;
            let (pods, claims, services) =
                tokio::try_join!(self.all(namespace), self.all(namespace), self.all(namespace))?;
            known = usage(&quota, &pods, &claims, &services);
        }
        for name in hard.keys() {
            let amount = match known.get(name.as_str()) {
                Some(amount) => *amount,
                None => {
                    again = RECOUNT;
                    match self.count(&key.namespace, name).await? {
                        Some(count) => Quantity::units(count),
                        // Nothing of that name is in use.
                        None => Quantity::default(),
                    }
                }
            };
            used.insert(name.clone(), ApiQuantity(shown(name, amount)));
        }
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        if quota.status.as_ref() != Some(&status) {
            let mut next = (*quota).clone();
            next.status = Some(status);
            self.cx.replace_status(&next).await?;
        }
        Ok(Next::After(again))
    }

    /// The objects of a namespace as the server has them at present.
    async fn all<K>(&self, namespace: &str) -> Result<Vec<Arc<K>>>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.cx.client.clone(), namespace);
        let listed = api.list(&ListParams::default()).await;
        let listed = listed.map_err(|e| Error::api("list", &K::kind(&()), Key::new(namespace, ""), e))?;
        Ok(listed.items.into_iter().map(Arc::new).collect())
    }

    /// How many objects of a resource there are; `None` when the name is no object count.
    async fn count(&self, namespace: &str, name: &str) -> Result<Option<i64>> {
        let (plural, group) = match name.strip_prefix("count/") {
            Some(full) => full.split_once('.').unwrap_or((full, "")),
            None => match PLAIN.iter().find(|(plain, _)| *plain == name) {
                Some(plain) => *plain,
                None => return Ok(None),
            },
        };
        let resources = self.cx.discovery.resources().await?;
        let Some(served) =
            resources.iter().find(|s| s.resource.plural == plural && s.resource.group == group)
        else {
            return Ok(Some(0));
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.cx.client.clone(), namespace, &served.resource);
        let first = api.list_metadata(&ListParams::default().limit(1)).await;
        let first =
            first.map_err(|e| Error::api("list", &served.resource.kind, Key::new(namespace, ""), e))?;
        let rest = first.metadata.remaining_item_count.unwrap_or(0);
        Ok(Some(i64::try_from(first.items.len()).unwrap_or(0) + rest))
    }
}

/// Whether a count is below what the quota says is used.
fn lowers(quota: &ResourceQuota, known: &Usage) -> bool {
    let used = quota.status.as_ref().and_then(|s| s.used.as_ref());
    used.into_iter().flatten().any(|(name, amount)| {
        let before: Quantity = amount.0.parse().unwrap_or_default();
        known.get(name.as_str()).is_some_and(|now| *now < before)
    })
}

/// Amounts as their owners write them: bytes in powers of 1024 where that is exact.
fn shown(name: &str, amount: Quantity) -> String {
    let bytes = ["memory", "storage"].iter().any(|unit| name.ends_with(unit));
    let value = amount.value();
    if !bytes || !amount.is_whole() || value == 0 {
        return amount.to_string();
    }
    let mut units = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"].iter().zip([60, 50, 40, 30, 20, 10]);
    match units.find(|(_, shift)| value % (1_i64 << shift) == 0) {
        Some((unit, shift)) => format!("{}{unit}", value >> shift),
        None => amount.to_string(),
    }
}

type Usage = BTreeMap<String, Quantity>;

/// What pods, claims and services use, under all names that a quota may limit.
fn usage(
    quota: &ResourceQuota,
    pods: &[Arc<Pod>],
    claims: &[Arc<PersistentVolumeClaim>],
    services: &[Arc<Service>],
) -> Usage {
    let mut used = Usage::new();
    let mut add = |name: String, amount: Quantity| {
        let slot = used.entry(name).or_default();
        *slot = *slot + amount;
    };
    for name in [
        "pods",
        "count/pods",
        "cpu",
        "memory",
        "requests.cpu",
        "requests.memory",
        "limits.cpu",
        "limits.memory",
        "ephemeral-storage",
        "requests.ephemeral-storage",
        "limits.ephemeral-storage",
        "persistentvolumeclaims",
        "count/persistentvolumeclaims",
        "requests.storage",
        "services",
        "count/services",
        "services.nodeports",
        "services.loadbalancers",
    ] {
        add(name.into(), Quantity::default());
    }
    for pod in pods {
        if in_scope(quota, pod) {
            add("count/pods".into(), Quantity::units(1));
            if !is_finished(pod) {
                add("pods".into(), Quantity::units(1));
                of_pod(pod).into_iter().for_each(|(name, amount)| add(name, amount));
            }
        }
    }
    for claim in claims {
        add("persistentvolumeclaims".into(), Quantity::units(1));
        add("count/persistentvolumeclaims".into(), Quantity::units(1));
        let spec = claim.spec.as_ref();
        let size = spec
            .and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.parse().ok())
            .unwrap_or_default();
        add("requests.storage".into(), size);
        if let Some(class) = spec.and_then(|s| s.storage_class_name.as_deref()).filter(|c| !c.is_empty()) {
            add(format!("{class}.storageclass.storage.k8s.io/requests.storage"), size);
            add(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), Quantity::units(1));
        }
    }
    for service in services {
        let kind = service.spec.as_ref().and_then(|s| s.type_.as_deref()).unwrap_or("ClusterIP");
        let ports = service
            .spec
            .iter()
            .flat_map(|s| s.ports.iter().flatten())
            .filter(|p| p.node_port.is_some())
            .count();
        add("services".into(), Quantity::units(1));
        add("count/services".into(), Quantity::units(1));
        add("services.loadbalancers".into(), Quantity::units(i64::from(kind == "LoadBalancer")));
        add("services.nodeports".into(), Quantity::units(i64::try_from(ports).unwrap_or(0)));
    }
    used
}

/// Requests and limits of a pod, under their quota names.
fn of_pod(pod: &Pod) -> Usage {
    let mut used = Usage::new();
    let Some(spec) = &pod.spec else { return used };
    let sum = |limits: bool, used: &mut Usage| {
        let of = |c: &k8s_openapi::api::core::v1::Container| -> Usage {
            let resources = c.resources.as_ref();
            let list = resources.and_then(|r| if limits { r.limits.clone() } else { r.requests.clone() });
            list.into_iter().flatten().map(|(k, v)| (k, v.0.parse().unwrap_or_default())).collect()
        };
        let mut total = Usage::new();
        for (name, amount) in spec.containers.iter().flat_map(of) {
            let slot = total.entry(name).or_default();
            *slot = *slot + amount;
        }
        let mut running = Usage::new();
        for init in spec.init_containers.iter().flatten() {
            for (name, amount) in of(init) {
                let before = running.get(&name).copied().unwrap_or_default();
                let slot = total.entry(name.clone()).or_default();
                if init.restart_policy.as_deref() == Some("Always") {
                    running.insert(name, before + amount);
                    *slot = *slot + amount;
                } else {
                    *slot = (*slot).max(before + amount);
                }
            }
        }
        for (name, amount) in spec.overhead.iter().flatten() {
            let slot = total.entry(name.clone()).or_default();
            *slot = *slot + amount.0.parse().unwrap_or_default();
        }
        for (name, amount) in total {
            let prefix = if limits { "limits" } else { "requests" };
            if !limits && matches!(&*name, "cpu" | "memory" | "ephemeral-storage") {
                used.insert(name.clone(), amount);
            }
            used.insert(format!("{prefix}.{name}"), amount);
        }
    };
    sum(false, &mut used);
    sum(true, &mut used);
    used
}

/// Whether a pod counts for a quota with scopes.
fn in_scope(quota: &ResourceQuota, pod: &Pod) -> bool {
    let Some(spec) = &quota.spec else { return true };
    let plain = spec.scopes.iter().flatten().all(|scope| has_scope(pod, scope, None));
    let selected = spec.scope_selector.iter().flat_map(|s| s.match_expressions.iter().flatten());
    plain && selected.into_iter().all(|r| has_scope(pod, &r.scope_name, Some(r)))
}

fn has_scope(pod: &Pod, scope: &str, rule: Option<&ScopedResourceSelectorRequirement>) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ends = spec.active_deadline_seconds.is_some_and(|s| s >= 0);
    let best_effort = || pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) == Some("BestEffort");
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = spec.priority_class_name.as_deref().filter(|c| !c.is_empty());
            let listed = |r: &ScopedResourceSelectorRequirement| {
                class.is_some_and(|c| r.values.iter().flatten().any(|v| v == c))
            };
            match rule.map(|r| (r, r.operator.as_str())) {
                Some((r, "In")) => listed(r),
                Some((r, "NotIn")) => !listed(r),
                Some((_, "DoesNotExist")) => class.is_none(),
                _ => class.is_some(),
            }
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, phase: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(
                json!({"spec": spec, "status": {"phase": phase, "qosClass": "Burstable"}}),
            )
            .unwrap(),
        )
    }

    fn check(quota: Value, pods: &[Arc<Pod>], name: &str, expect: &str) {
        let quota = serde_json::from_value(json!({"spec": quota})).unwrap();
        let used = usage(&quota, pods, &[], &[]);
        assert_eq!(shown(name, used[name]), expect, "{name}");
    }

    #[test]
    fn running_pods_use_what_they_request() {
        let spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2"}}}]});
        let pods = [pod(spec.clone(), "Running"), pod(spec, "Succeeded")];
        check(json!({}), &pods, "pods", "1");
        check(json!({}), &pods, "count/pods", "2");
        check(json!({}), &pods, "requests.cpu", "2");
        check(json!({}), &pods, "memory", "1Gi");
        check(json!({}), &pods, "limits.cpu", "1");
        check(json!({"scopes": ["BestEffort"]}), &pods, "pods", "0");
        check(json!({"scopes": ["NotTerminating"]}), &pods, "pods", "1");
        let class = json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}});
        check(class.clone(), &pods, "pods", "0");
        check(class, &[pod(json!({"containers": [], "priorityClassName": "high"}), "Running")], "pods", "1");
    }
}

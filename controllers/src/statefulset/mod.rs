//! Keeps each StatefulSet's pods, numbered and with claims of their own.
//!
//! Reads stateful sets, pods, claims and controller revisions. Writes pods, claims (created;
//! owned by set or pod as the retention policy says), revisions and the set's status.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, StatefulSet},
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use serde_json::json;
use wasmk_api::LabelSelector;

use crate::{
    base::{
        Claim, Context, Error, EventKind, Informer, Key, Next, Queue, Result, controller_ref, is_available,
        is_deleting, is_ready, on_change, on_child, on_orphan, pod_from_template, uid,
    },
    history::{self, History},
};

mod plan;

use plan::{Plan, View, ordinal, revision_of};

const NAME: &str = "statefulset-controller";
const DEFAULT_HISTORY: i32 = 10;

struct Keeper {
    cx: Context,
    sets: Arc<Informer<StatefulSet>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (sets, pods) = (cx.cache::<StatefulSet>(), cx.cache::<Pod>());
    let claims = cx.cache::<PersistentVolumeClaim>();
    on_change(&sets, &queue);
    on_child::<StatefulSet, Pod>(&pods, &queue);
    let known = sets.clone();
    on_orphan(&pods, &queue, move |pod| {
        let all = known.in_namespace(pod.metadata.namespace.as_deref().unwrap_or(""));
        let wants = |s: &&Arc<StatefulSet>| {
            ordinal(s, pod).is_some()
                && selector(s).is_ok_and(|sel| sel.matches(pod.metadata.labels.as_ref()))
        };
        all.iter().filter(wants).map(|s| Key::of(&s.metadata)).collect()
    });
    sets.ready().await;
    pods.ready().await;
    claims.ready().await;
    let keeper = Keeper { cx: cx.clone(), sets, pods, claims };
    cx.work(NAME, &queue, cx.settings.workers, |key| keeper.reconcile(key)).await;
}

fn selector(set: &StatefulSet) -> Result<LabelSelector> {
    let Some(spec) = &set.spec else { return Ok(LabelSelector::default()) };
    LabelSelector::from_api(&spec.selector).map_err(|e| Error::Invalid(e.to_string()))
}

impl Keeper {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(set) = self.sets.get(&key) else { return Ok(Next::Change) };
        let (selector, Some(spec)) = (selector(&set)?, &set.spec) else { return Ok(Next::Change) };
        if selector.is_empty() || is_deleting(&*set) {
            return Ok(Next::Change);
        }
        let old = set.status.clone().unwrap_or_default();
        let collisions = old.collision_count.unwrap_or(0);
        let history = history::sync(&self.cx, &*set, &selector, &spec.template, collisions).await?;
        let mut pods = Claim::apply(&self.cx, &*set, &selector, &self.pods).await?;
        pods.retain(|p| ordinal(&set, p).is_some());
        let update = history.current.metadata.name.clone().unwrap_or_default();
        let current =
            old.current_revision.filter(|r| find(&history, r).is_some()).unwrap_or_else(|| update.clone());
        let now = self.cx.clock.now();
        let mut plan = plan::plan(&View { set: &set, pods: &pods, current: &current, update: &update, now });
        plan.status.collision_count = Some(history.collisions);
        self.apply(&set, &pods, &history, &plan).await?;
        let in_use = |r: &ControllerRevision| {
            let name = r.metadata.name.as_deref().unwrap_or("");
            name == current || pods.iter().any(|p| revision_of(p) == name)
        };
        history::trim(&self.cx, &history, in_use, spec.revision_history_limit.unwrap_or(DEFAULT_HISTORY))
            .await?;
        let wait = spec.min_ready_seconds.unwrap_or(0);
        let waits = wait > 0 && pods.iter().any(|p| is_ready(p) && !is_available(p, wait, now));
        Ok(if waits { Next::After(Duration::from_secs(1)) } else { Next::Change })
    }

    async fn apply(
        &self,
        set: &Arc<StatefulSet>,
        pods: &[Arc<Pod>],
        history: &History,
        plan: &Plan,
    ) -> Result<()> {
        for pod in &plan.delete {
            self.delete(set, pod).await?;
        }
        for (number, revision) in &plan.create {
            self.create(set, *number, find(history, revision).unwrap_or(&history.current)).await?;
        }
        self.keep_claims(set, pods).await?;
        if set.status.as_ref() != Some(&plan.status) {
            let mut next = (**set).clone();
            next.status = Some(plan.status.clone());
            self.cx.replace_status(&next).await?;
        }
        Ok(())
    }

    async fn delete(&self, set: &Arc<StatefulSet>, pod: &Arc<Pod>) -> Result<()> {
        let name = pod.metadata.name.as_deref().unwrap_or("");
        self.cx.delete(&**pod, Default::default()).await?;
        let message = format!(
            "delete Pod {name} in StatefulSet {} successful",
            set.metadata.name.as_deref().unwrap_or("")
        );
        self.cx.events.record(NAME, &**set, EventKind::Normal, "SuccessfulDelete", message);
        Ok(())
    }

    async fn create(&self, set: &Arc<StatefulSet>, number: i32, revision: &ControllerRevision) -> Result<()> {
        for claim in claims(set, number) {
            match self.cx.create(&claim).await {
                Err(error) if error.is_already_exists() => {}
                other => drop(other?),
            }
        }
        let Some(pod) = pod(set, number, revision) else { return Ok(()) };
        let name = pod.metadata.name.as_deref().unwrap_or("");
        let owner = set.metadata.name.as_deref().unwrap_or("");
        match self.cx.create(&pod).await {
            Ok(_) => {
                let message = format!("create Pod {name} in StatefulSet {owner} successful");
                self.cx.events.record(NAME, &**set, EventKind::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                if error.is_already_exists() {
                    self.cx.fetch::<Pod>(&Key::of(&pod.metadata)).await?;
                }
                let message =
                    format!("create Pod {name} in StatefulSet {owner} failed error: {}", error.message());
                self.cx.events.record(NAME, &**set, EventKind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    /// Claims go with their set, with their pod's number, or stay: as the policy says.
    async fn keep_claims(&self, set: &Arc<StatefulSet>, pods: &[Arc<Pod>]) -> Result<()> {
        let spec = set.spec.as_ref();
        let Some(policy) = spec.and_then(|s| s.persistent_volume_claim_retention_policy.as_ref()) else {
            return Ok(());
        };
        let is_delete = |text: &Option<String>| text.as_deref() == Some("Delete");
        let replicas = spec.and_then(|s| s.replicas).unwrap_or(1);
        let start = spec.and_then(|s| s.ordinals.as_ref()?.start).unwrap_or(0);
        for pod in pods {
            let Some(number) = ordinal(set, pod) else { continue };
            let surplus = number >= start + replicas || number < start;
            let owner = match () {
                () if surplus && is_delete(&policy.when_scaled) => Some(owner_ref(controller_ref(&**pod))),
                () if is_delete(&policy.when_deleted) => Some(owner_ref(controller_ref(&**set))),
                () => None,
            };
            for wanted in claims(set, number) {
                if let Some(claim) = self.claims.get(&Key::of(&wanted.metadata)) {
                    self.own_claim(set, &claim, owner.as_ref()).await?;
                }
            }
        }
        Ok(())
    }

    async fn own_claim(
        &self,
        set: &StatefulSet,
        claim: &Arc<PersistentVolumeClaim>,
        owner: Option<&OwnerReference>,
    ) -> Result<()> {
        let old = claim.metadata.owner_references.clone().unwrap_or_default();
        let mut new = old.clone();
        let prefix = format!("{}-", set.metadata.name.as_deref().unwrap_or(""));
        let ours = |r: &OwnerReference| r.uid == uid(set) || (r.kind == "Pod" && r.name.starts_with(&prefix));
        new.retain(|r| !ours(r));
        new.extend(owner.cloned());
        if new == old {
            return Ok(());
        }
        let version = &claim.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version, "ownerReferences": new}});
        self.cx.patch(&**claim, patch).await.map(drop)
    }
}

/// An owner that a claim goes with, without being controlled by it.
fn owner_ref(controller: OwnerReference) -> OwnerReference {
    OwnerReference { controller: None, block_owner_deletion: None, ..controller }
}

fn find<'a>(history: &'a History, name: &str) -> Option<&'a Arc<ControllerRevision>> {
    history.all.iter().find(|r| r.metadata.name.as_deref() == Some(name))
}

/// The claims of a numbered pod.
fn claims(set: &StatefulSet, number: i32) -> Vec<PersistentVolumeClaim> {
    let Some(spec) = &set.spec else { return Vec::new() };
    let name = set.metadata.name.as_deref().unwrap_or("");
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        let volume = template.metadata.name.as_deref().unwrap_or("");
        claim.metadata.name = Some(format!("{volume}-{name}-{number}"));
        claim.metadata.namespace.clone_from(&set.metadata.namespace);
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.status = None;
        claim
    };
    spec.volume_claim_templates.iter().flatten().map(claim).collect()
}

/// The pod of a number: its name is its hostname, and each claim template is a volume.
fn pod(set: &StatefulSet, number: i32, revision: &ControllerRevision) -> Option<Pod> {
    let spec = set.spec.as_ref()?;
    let template = history::template_of(revision).unwrap_or_else(|| spec.template.clone());
    let set_name = set.metadata.name.as_deref().unwrap_or("");
    let name = format!("{set_name}-{number}");
    let namespace = set.metadata.namespace.as_deref().unwrap_or("");
    let mut pod = pod_from_template(&template, namespace, name.clone(), controller_ref(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert("statefulset.kubernetes.io/pod-name".into(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".into(), number.to_string());
    labels.insert(history::HASH.into(), revision.metadata.name.clone().unwrap_or_default());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name);
    pod_spec.subdomain = spec.service_name.clone().filter(|s| !s.is_empty());
    let volumes = pod_spec.volumes.get_or_insert_default();
    for template in spec.volume_claim_templates.iter().flatten() {
        let volume = template.metadata.name.clone().unwrap_or_default();
        volumes.retain(|v| v.name != volume);
        let claim_name = format!("{volume}-{set_name}-{number}");
        volumes.push(Volume {
            name: volume,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
            ..Default::default()
        });
    }
    Some(pod)
}

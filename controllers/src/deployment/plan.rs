//! One pass over a deployment: what it and its ReplicaSets have to become.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use wasmk_api::Timestamp;

use crate::base::{is_deleting, uid};

use super::{
    DESIRED_REPLICAS, REVISION, is_going,
    rollout::{self, Bounds, Part, Sizes},
    status,
    template::{self, noted},
};

/// What a pass looks at.
pub(super) struct View {
    pub(super) deployment: Arc<Deployment>,
    /// The deployment's sets, in any order.
    pub(super) sets: Vec<Arc<ReplicaSet>>,
    /// Unfinished pods by their set's uid, those being deleted included.
    pub(super) pods: BTreeMap<String, usize>,
}

/// What a pass does, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Sets whose annotations or `minReadySeconds` change.
    pub(super) update: Vec<ReplicaSet>,
    /// The set for a new template.
    pub(super) create: Option<ReplicaSet>,
    /// Sets that change size: from, to, the set as it is to be.
    pub(super) scale: Vec<(i32, i32, ReplicaSet)>,
    /// Old sets beyond the history limit.
    pub(super) delete: Vec<Arc<ReplicaSet>>,
    /// The deployment's revision annotation, when it changes.
    pub(super) revision: Option<String>,
    /// The status, after this pass.
    pub(super) status: DeploymentStatus,
    /// When to look again though nothing changes.
    pub(super) again: Option<Duration>,
}

/// The sets, oldest first, and which of them runs the current template.
struct Sets<'a> {
    deployment: &'a Deployment,
    all: Vec<Arc<ReplicaSet>>,
    new: Option<usize>,
    bounds: Bounds,
}

/// Decides on one pass.
pub(super) fn plan(view: &View, now: Timestamp) -> Plan {
    let deployment = &*view.deployment;
    let mut all = view.sets.clone();
    all.sort_by_key(|s| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.metadata.name.clone()));
    let new = template::find_new(deployment, &all).map(|set| uid(&**set).to_owned());
    let new = new.and_then(|id| all.iter().position(|s| uid(&**s) == id));
    let sets = Sets { deployment, all, new, bounds: Bounds::of(deployment) };

    let mut plan = Plan::default();
    let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
    let mut progress = status::Progress::Watched;
    if is_going(deployment) {
        progress = status::Progress::Ignored;
    } else if paused {
        sets.sync_revision(&mut plan);
        sets.resize(&mut plan, sets.scaled());
        sets.trim_history(&mut plan);
        progress = status::Progress::Ignored;
    } else if sets.was_scaled() {
        sets.sync_revision(&mut plan);
        sets.resize(&mut plan, sets.scaled());
        progress = status::Progress::Ignored;
    } else if sets.bounds.rolling {
        sets.roll(&mut plan);
    } else {
        sets.recreate(&mut plan, &view.pods);
    }
    let current = plan.create.as_ref().or(sets.new.map(|i| &*sets.all[i]));
    let created = plan.create.as_ref().and_then(|s| s.metadata.name.clone());
    let input = status::Input {
        deployment,
        sets: &sets.all,
        new: sets.new.map(|i| &sets.all[i]),
        new_name: current.and_then(|s| s.metadata.name.as_deref()).unwrap_or(""),
        created: created.as_deref(),
        bounds: sets.bounds,
        progress,
    };
    (plan.status, plan.again) = status::calculate(&input, now);
    if status::is_complete(deployment, deployment.status.as_ref()) && !is_going(deployment) && !paused {
        sets.trim_history(&mut plan);
    }
    plan
}

impl Sets<'_> {
    fn parts(&self) -> Vec<Part> {
        self.all.iter().enumerate().map(|(i, set)| Part::of(i, set)).collect()
    }

    fn old_parts(&self) -> Vec<Part> {
        self.parts().into_iter().filter(|p| Some(p.index) != self.new).collect()
    }

    /// Whether the deployment's size changed since its sets were last scaled.
    fn was_scaled(&self) -> bool {
        self.all.iter().any(|set| {
            let active = set.spec.as_ref().is_some_and(|s| s.replicas.unwrap_or(1) > 0);
            active && noted(set, DESIRED_REPLICAS).is_some_and(|n| n != i64::from(self.bounds.replicas))
        })
    }

    fn scaled(&self) -> Sizes {
        let replicas = self.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        rollout::scale(&self.bounds, &self.parts(), self.new, replicas)
    }

    /// The revision of the current template: one more than any other set's.
    fn next_revision(&self) -> i64 {
        let others = self.all.iter().enumerate().filter(|(i, _)| Some(*i) != self.new);
        others.filter_map(|(_, set)| noted(set, REVISION)).max().unwrap_or(0) + 1
    }

    /// Brings the current set's annotations up to date, and the deployment's revision with it.
    fn sync_revision(&self, plan: &mut Plan) {
        let Some(index) = self.new else { return };
        let old = &self.all[index];
        let mut set = (**old).clone();
        template::annotate(&mut set, self.deployment, self.next_revision());
        let wait = self.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
        if let Some(spec) = &mut set.spec {
            spec.min_ready_seconds = wait;
        }
        self.note_revision(plan, noted(&set, REVISION).unwrap_or(1));
        if set != **old {
            plan.update.push(set);
        }
    }

    fn note_revision(&self, plan: &mut Plan, revision: i64) {
        let text = revision.to_string();
        let noted = self.deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
        if noted != Some(&text) {
            plan.revision = Some(text);
        }
    }

    fn create(&self, plan: &mut Plan) {
        let total: i32 = self.parts().iter().map(|p| p.size).sum();
        let size = rollout::grow_new(&self.bounds, 0, total);
        let revision = self.next_revision();
        plan.create = template::new_set(self.deployment, size, revision, self.bounds.surge);
        self.note_revision(plan, revision);
    }

    fn roll(&self, plan: &mut Plan) {
        let Some(index) = self.new else { return self.create(plan) };
        self.sync_revision(plan);
        let parts = self.parts();
        let new = &parts[index];
        let total: i32 = parts.iter().map(|p| p.size).sum();
        let size = match new.size > self.bounds.replicas {
            true => self.bounds.replicas,
            false => rollout::grow_new(&self.bounds, new.size, total),
        };
        if size != new.size {
            return self.resize(plan, vec![(index, size)]);
        }
        self.resize(plan, rollout::shrink_old(&self.bounds, new, &self.old_parts()));
    }

    /// All old pods end before the first new one starts.
    fn recreate(&self, plan: &mut Plan, pods: &BTreeMap<String, usize>) {
        self.sync_revision(plan);
        let old: Sizes = self.old_parts().iter().filter(|p| p.size > 0).map(|p| (p.index, 0)).collect();
        if !old.is_empty() {
            return self.resize(plan, old);
        }
        let current = self.new.map(|i| uid(&*self.all[i]));
        if pods.iter().any(|(set, running)| Some(&**set) != current && *running > 0) {
            return;
        }
        match self.new {
            None => self.create(plan),
            Some(index) => self.resize(plan, vec![(index, self.bounds.replicas)]),
        }
    }

    /// Sets sizes, and notes beside each what was wanted at the time.
    fn resize(&self, plan: &mut Plan, sizes: Sizes) {
        for (index, to) in sizes {
            let pending = plan.update.iter().position(|s| uid(s) == uid(&*self.all[index]));
            let mut set = match pending {
                Some(at) => plan.update.swap_remove(at),
                None => (*self.all[index]).clone(),
            };
            let from = set.spec.as_ref().map_or(0, |s| s.replicas.unwrap_or(1));
            let noted = template::note_scale(&mut set, self.bounds.replicas, self.bounds.surge);
            if let Some(spec) = &mut set.spec {
                spec.replicas = Some(to);
            }
            if from != to {
                plan.scale.push((from, to, set));
            } else if noted || pending.is_some() {
                plan.update.push(set);
            }
        }
    }

    fn trim_history(&self, plan: &mut Plan) {
        let Some(limit) = self.deployment.spec.as_ref().and_then(|s| s.revision_history_limit) else {
            return;
        };
        let alive = |set: &&Arc<ReplicaSet>| !is_deleting(&***set);
        let old = self.all.iter().enumerate().filter(|(i, _)| Some(*i) != self.new).map(|(_, set)| set);
        let mut old: Vec<&Arc<ReplicaSet>> = old.filter(alive).collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|set| noted(set, REVISION).unwrap_or(0));
        plan.delete.extend(old.into_iter().take(surplus).filter(|set| is_idle(set)).cloned());
    }
}

/// Whether a set has no pods, wants none, and has said so.
fn is_idle(set: &ReplicaSet) -> bool {
    let status = set.status.as_ref();
    set.spec.as_ref().and_then(|s| s.replicas) == Some(0)
        && status.is_none_or(|s| s.replicas == 0)
        && status.and_then(|s| s.observed_generation) >= set.metadata.generation
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A deployment of image `v2`; sets as `name image size available [wanted=N] [pods=N]`.
    fn check(spec: Value, texts: &[&str], expect: &str) {
        let container = |image: &str| json!({"spec": {"containers": [{"name": "c", "image": image}]}});
        let mut whole = json!({"metadata": {"name": "web", "uid": "d", "generation": 1}, "spec": {
            "replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": container("v2")}});
        for (key, value) in spec.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        let wanted = whole["spec"]["replicas"].to_string();
        let set = |(i, text): (usize, &&str)| -> Arc<ReplicaSet> {
            let words: Vec<&str> = text.split_whitespace().collect();
            let noted = words.iter().find_map(|w| w.strip_prefix("wanted=")).unwrap_or(&wanted);
            let max = noted.parse::<i32>().unwrap() * 5 / 4;
            let (size, available): (i32, i32) = (words[2].parse().unwrap(), words[3].parse().unwrap());
            Arc::new(serde_json::from_value(json!({
                "metadata": {"name": words[0], "uid": words[0], "creationTimestamp": format!("2026-01-01T00:00:0{i}Z"),
                    "annotations": {REVISION: (i + 1).to_string(), DESIRED_REPLICAS: noted, super::super::MAX_REPLICAS: max.to_string()}},
                "spec": {"replicas": size, "selector": {}, "template": container(words[1])},
                "status": {"replicas": size, "availableReplicas": available, "readyReplicas": available},
            })).unwrap())
        };
        let sets: Vec<_> = texts.iter().enumerate().map(set).collect();
        let running = |(s, text): (&Arc<ReplicaSet>, &&str)| {
            let counted = text.split_whitespace().find_map(|w| w.strip_prefix("pods="));
            let size = s.status.as_ref().unwrap().replicas as usize;
            (uid(&**s).to_owned(), counted.map_or(size, |n| n.parse().unwrap()))
        };
        let pods = sets.iter().zip(texts).map(running).collect();
        let view = View { deployment: Arc::new(serde_json::from_value(whole).unwrap()), sets, pods };
        let plan = plan(&view, "2026-01-01T01:00:00Z".parse().unwrap());
        let size = |s: &ReplicaSet| s.spec.as_ref().unwrap().replicas.unwrap();
        let mut shown: Vec<String> = plan.create.iter().map(|s| format!("create {}", size(s))).collect();
        shown.extend(plan.scale.iter().map(|(from, to, s)| format!("{} {from}>{to}", uid(s))));
        shown.extend(plan.revision.iter().map(|r| format!("revision {r}")));
        assert_eq!(
            shown.join(", "),
            expect,
            "{spec} {:?}",
            view.sets.iter().map(|s| uid(&**s)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn one_step_of_a_rollout_at_a_time() {
        check(json!({}), &[], "create 4, revision 1");
        check(json!({}), &["a v1 4 4"], "create 1, revision 2");
        check(json!({}), &["a v1 4 4", "b v2 1 0"], "a 4>3, revision 2");
        check(json!({}), &["a v1 3 3", "b v2 1 0"], "b 1>2, revision 2");
        check(json!({}), &["a v1 3 3", "b v2 2 0"], "revision 2");
        check(json!({}), &["a v1 3 3", "b v2 2 2"], "a 3>1, revision 2");
        check(json!({}), &["a v2 0 0", "b v1 4 4"], "a 0>1, revision 3");
    }

    #[test]
    fn recreate_pause_and_scaling() {
        let recreate = || json!({"strategy": {"type": "Recreate"}});
        check(recreate(), &["a v1 4 4"], "a 4>0");
        // Pods that are on their way out are still there.
        check(recreate(), &["a v1 0 0 pods=1"], "");
        check(recreate(), &["a v1 0 0"], "create 4, revision 2");
        check(json!({"paused": true}), &["a v1 4 4"], "");
        check(json!({"paused": true, "replicas": 6}), &["a v1 4 4 wanted=4"], "a 4>6");
        check(
            json!({"replicas": 8}),
            &["a v1 3 3 wanted=4", "b v2 2 0 wanted=4"],
            "a 3>6, b 2>4, revision 2",
        );
    }
}

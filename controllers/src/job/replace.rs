//! The pods a job should have now: which to add, which to let go, how long to wait after failures.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use wasmk_api::Timestamp;

use crate::base::{PodView, is_deleting, is_ready, time_of, uid};

use super::{
    plan::Plan,
    tally::{Tally, failures_before, index_of, phase},
};

/// Pods created in a pass.
const BURST: usize = 500;
/// Wait after the first failure; doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const MAX_BACKOFF: Duration = Duration::from_secs(600);

impl Tally<'_> {
    /// Keeps as many pods running as are wanted now.
    pub(super) fn manage(&self, plan: &mut Plan) {
        let mut active = self.active();
        if self.spec.suspend == Some(true) {
            plan.withdraw = active;
            return;
        }
        let parallelism = self.spec.parallelism.unwrap_or(1).max(0);
        let wanted = match self.completions {
            Some(completions) => (completions - self.total_succeeded()).clamp(0, parallelism),
            None if self.total_succeeded() > 0 => parallelism.min(i32::try_from(active.len()).unwrap_or(0)),
            None => parallelism,
        };
        let wanted = usize::try_from(wanted).unwrap_or(0);
        if active.len() > wanted {
            active.sort_by_key(|p| {
                (phase(p) == "Running", is_ready(p), std::cmp::Reverse(index_of(p)), uid(&**p).to_owned())
            });
            let surplus = active.len() - wanted;
            plan.withdraw = active.into_iter().take(surplus).collect();
            return;
        }
        let waits = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        let going = self.pods.iter().filter(|p| waits && is_deleting(&***p) && !crate::base::is_finished(p));
        let missing = wanted.saturating_sub(active.len() + going.count()).min(BURST);
        if missing == 0 {
            return;
        }
        if self.indexed() {
            self.add_indexes(plan, missing);
        } else if let Some(wait) = self.backoff(|_| true) {
            plan.again = Some(wait);
        } else {
            plan.create = vec![(None, 0); missing];
        }
    }

    /// The lowest indexes that nobody works on; those that failed lately wait.
    pub(super) fn add_indexes(&self, plan: &mut Plan, missing: usize) {
        let busy: BTreeSet<i32> =
            self.pods.iter().filter(|p| PodView(p).is_active()).filter_map(|p| index_of(p)).collect();
        let free = (0..self.completions.unwrap_or(0))
            .filter(|i| !busy.contains(i) && !self.done.contains(i) && !self.failed_indexes.contains(i));
        let alone = self.spec.backoff_limit_per_index.is_some();
        let shared = if alone { None } else { self.backoff(|_| true) };
        let mut failures: BTreeMap<i32, i32> = BTreeMap::new();
        for pod in self.pods.iter().filter(|p| phase(p) == "Failed") {
            if let Some(index) = index_of(pod) {
                let count = failures.entry(index).or_insert(0);
                *count = (*count).max(failures_before(pod) + 1);
            }
        }
        for index in free.take(missing) {
            let own = if alone { self.backoff(|p| index_of(p) == Some(index)) } else { shared };
            match own {
                Some(wait) => plan.again = Some(plan.again.map_or(wait, |a| a.min(wait))),
                None => plan.create.push((Some(index), failures.get(&index).copied().unwrap_or(0))),
            }
        }
    }

    /// How long to wait because the latest pods have failed.
    pub(super) fn backoff(&self, of: impl Fn(&Pod) -> bool) -> Option<Duration> {
        let ended =
            self.pods.iter().filter(|p| of(p)).filter_map(|p| Some((finished_at(p)?, phase(p) == "Failed")));
        let mut ended: Vec<(Timestamp, bool)> = ended.collect();
        ended.sort_unstable();
        let failures = ended.iter().rev().take_while(|(_, failed)| *failed).count();
        let last = ended.last().filter(|_| failures > 0)?.0;
        let exponent = u32::try_from(failures - 1).unwrap_or(u32::MAX).min(16);
        let wait = FIRST_BACKOFF.saturating_mul(1 << exponent).min(MAX_BACKOFF);
        let until = last.after(wait);
        (until > self.now).then(|| until.since(self.now))
    }
}

/// When a finished pod's last container ended.
fn finished_at(pod: &Pod) -> Option<Timestamp> {
    if !crate::base::is_finished(pod) {
        return None;
    }
    let containers = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ends =
        containers.filter_map(|c| time_of(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()));
    let changed = crate::base::condition(pod, "Ready").and_then(|c| time_of(c.last_transition_time.as_ref()));
    ends.max().or(changed).or(time_of(pod.metadata.creation_timestamp.as_ref()))
}

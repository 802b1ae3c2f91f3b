//! Whether a job has failed or succeeded, and why.

use std::time::Duration;

use crate::base::{time_of, total_restarts};

use super::{
    policy,
    tally::{Tally, phase},
};

impl Tally<'_> {
    /// Why the job has failed, if it has.
    pub(super) fn failure(&self) -> Option<(String, String)> {
        let why = |reason: &str, message: &str| Some((reason.to_owned(), message.to_owned()));
        if let Some(verdict) = &self.verdict {
            return Some(verdict.clone());
        }
        let limit = self.spec.backoff_limit.unwrap_or(if self.spec.backoff_limit_per_index.is_some() {
            i32::MAX
        } else {
            6
        });
        if self.total_failed() > limit || self.restarted_too_often(limit) {
            return why("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if self.deadline_left().is_some_and(|left| left.is_zero()) {
            return why("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        let failed = i32::try_from(self.failed_indexes.len()).unwrap_or(i32::MAX);
        if self.spec.max_failed_indexes.is_some_and(|max| failed > max) {
            return why(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            );
        }
        let all = self.indexed() && self.total_succeeded() + failed >= self.completions.unwrap_or(i32::MAX);
        if all && failed > 0 && self.active().is_empty() {
            why("FailedIndexes", "Job has failed indexes")
        } else {
            None
        }
    }

    /// Containers that the node restarts in place count by their restarts.
    pub(super) fn restarted_too_often(&self, limit: i32) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|p| matches!(phase(p), "Running" | "Pending"));
        let restarts: i32 = running.map(|p| total_restarts(p)).fold(0, i32::saturating_add);
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    pub(super) fn deadline_left(&self) -> Option<Duration> {
        let limit = u64::try_from(self.spec.active_deadline_seconds?).unwrap_or(0);
        let start = time_of(self.job.status.as_ref()?.start_time.as_ref())?;
        if self.spec.suspend == Some(true) {
            return None;
        }
        Some(start.after(Duration::from_secs(limit)).since(self.now))
    }

    /// Why the job has succeeded, if it has.
    pub(super) fn success(&self) -> Option<(String, String)> {
        if let Some(message) = policy::of_success(self.job, &self.done, self.completions.unwrap_or(0)) {
            return Some(("SuccessPolicy".into(), message));
        }
        let enough = match self.completions {
            Some(completions) => {
                self.total_succeeded() >= completions && (self.failed_indexes.is_empty() || completions == 0)
            }
            // A work queue is done when one pod has found it empty and all have ended.
            None => self.total_succeeded() > 0 && self.active().is_empty(),
        };
        enough.then(|| ("CompletionsReached".into(), "Reached expected number of succeeded pods".into()))
    }
}

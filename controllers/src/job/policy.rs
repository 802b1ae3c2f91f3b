//! What a job's policies say about failed pods and about enough success.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyRule},
    core::v1::Pod,
};

use super::indexes;

/// What a failed pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It counts.
    Count,
    /// It does not count.
    Ignore,
    /// The job has failed, for this reason.
    FailJob(String),
    /// The pod's index has failed.
    FailIndex,
}

/// The first matching rule of the job's failure policy decides.
pub(super) fn of_failure(job: &Job, pod: &Pod) -> Failure {
    let Some(policy) = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref()) else {
        return Failure::Count;
    };
    for (i, rule) in policy.rules.iter().enumerate() {
        let Some(what) = matches(rule, pod) else { continue };
        return match &*rule.action {
            "Ignore" => Failure::Ignore,
            "FailIndex" => Failure::FailIndex,
            "FailJob" => {
                let pod = crate::base::Key::of(&pod.metadata);
                Failure::FailJob(format!(
                    "{} for pod {pod} {}matching FailJob rule at index {i}",
                    what.0, what.1
                ))
            }
            _ => Failure::Count,
        };
    }
    Failure::Count
}

/// What in the pod matches the rule, as the two halves of a message.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    if let Some(wanted) = &rule.on_exit_codes {
        let all =
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        let all = all.filter(|c| wanted.container_name.as_ref().is_none_or(|n| *n == c.name));
        for container in all {
            let Some(ended) = container.state.as_ref().and_then(|s| s.terminated.as_ref()) else { continue };
            let listed = wanted.values.contains(&ended.exit_code);
            if ended.exit_code != 0 && listed == (wanted.operator == "In") {
                let what = format!("Container {}", container.name);
                return Some((what, format!("failed with exit code {} ", ended.exit_code)));
            }
        }
        return None;
    }
    let holds = |kind: &str, value: &str| {
        status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == value)
    };
    let found = rule.on_pod_conditions.iter().flatten();
    let mut found = found.filter(|p| holds(&p.type_, p.status.as_deref().unwrap_or("True")));
    found.next().map(|p| (format!("Pod condition {}", p.type_), String::new()))
}

/// Whether the success policy is content with these indexes; then why.
pub(super) fn of_success(job: &Job, done: &BTreeSet<i32>, completions: i32) -> Option<String> {
    let policy = job.spec.as_ref()?.success_policy.as_ref()?;
    for (i, rule) in policy.rules.iter().enumerate() {
        let matching = match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = indexes::parse(text, completions);
                let met = wanted.intersection(done).count();
                (met, rule.succeeded_count.map_or(wanted.len(), |n| usize::try_from(n).unwrap_or(0)))
            }
            None => (done.len(), usize::try_from(rule.succeeded_count?).unwrap_or(0)),
        };
        if matching.0 >= matching.1 && matching.1 > 0 {
            return Some(format!("Matched rules at index {i}"));
        }
    }
    None
}

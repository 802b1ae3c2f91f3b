//! Passes over jobs in every state.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    super::tally::{FINALIZER, INDEX},
    *,
};

const NOW: &str = "2026-01-01T12:00:00Z";

fn job(spec: Value) -> Job {
    let mut whole = json!({"metadata": {"name": "j", "namespace": "ns", "uid": "j"},
        "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 6,
            "template": {"spec": {"restartPolicy": "Never", "containers": []}}},
        "status": {"startTime": "2026-01-01T11:00:00Z"}});
    for (key, value) in spec.as_object().unwrap() {
        whole["spec"][key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

/// `name running|ok|failed[@secondsAgo[:exit]] [released] [going] [#index]`.
fn pod(text: &str) -> Arc<Pod> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let now: Timestamp = NOW.parse().unwrap();
    let mut meta = json!({"name": words[0], "uid": words[0], "namespace": "ns", "finalizers": [FINALIZER]});
    let mut status = json!({"phase": "Running"});
    for word in &words[1..] {
        let (state, ended) = word.split_once('@').unwrap_or((word, "60"));
        let (ago, code) = ended.split_once(':').unwrap_or((ended, "1"));
        match state {
            "ok" | "failed" => {
                let at = Timestamp(now.0 - Duration::from_secs(ago.parse().unwrap()));
                status["phase"] = json!(if state == "ok" { "Succeeded" } else { "Failed" });
                let code: i32 = if state == "ok" { 0 } else { code.parse().unwrap() };
                status["containerStatuses"] = json!([{"name": "c", "ready": false, "restartCount": 0, "image": "",
                    "imageID": "", "state": {"terminated": {"exitCode": code, "finishedAt": at.to_string()}}}]);
            }
            "released" => meta["finalizers"] = json!([]),
            "going" => meta["deletionTimestamp"] = json!(NOW),
            "running" => {}
            index => meta["annotations"] = json!({INDEX: index.strip_prefix('#').unwrap()}),
        }
    }
    Arc::new(serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap())
}

fn show(plan: &Plan) -> String {
    let mut parts = Vec::new();
    match &*plan.create {
        [] => {}
        [(None, _), ..] => parts.push(format!("create {}", plan.create.len())),
        all => parts.extend(all.iter().map(|(i, _)| format!("create #{}", i.unwrap()))),
    }
    let name = |p: &Arc<Pod>| p.metadata.name.clone().unwrap();
    parts.extend(plan.delete.iter().map(|p| format!("delete {}", name(p))));
    parts.extend(plan.withdraw.iter().map(|p| format!("withdraw {}", name(p))));
    parts.extend(plan.release.iter().map(|p| format!("release {}", name(p))));
    for c in plan.status.conditions.iter().flatten().filter(|c| c.status == "True") {
        parts.push(format!("{}({})", c.type_, c.reason.as_deref().unwrap()));
    }
    parts.join(", ")
}

fn check(spec: Value, pods: &[&str], expect: &str) -> Plan {
    let pods: Vec<_> = pods.iter().map(|p| pod(p)).collect();
    let plan = plan(&job(spec.clone()), &pods, NOW.parse().unwrap()).unwrap();
    assert_eq!(show(&plan), expect, "{spec} {pods:?}");
    plan
}

#[test]
fn runs_as_many_as_are_wanted() {
    check(json!({}), &[], "create 1");
    check(json!({"completions": 10, "parallelism": 5}), &["a running"], "create 4");
    check(json!({"completions": 10, "parallelism": 5}), &["a running", "b ok"], "create 4, release b");
    check(json!({"completions": 2, "parallelism": 5}), &["a running", "b ok"], "release b");
    check(json!({"parallelism": 1, "completions": 9}), &["a running", "b running"], "withdraw a");
    check(json!({"suspend": true}), &["a running"], "withdraw a, Suspended(JobSuspended)");
    check(json!({"completions": null, "parallelism": 3}), &["a running", "b running"], "create 1");
    check(json!({"completions": null, "parallelism": 3}), &["a running", "b ok"], "release b");
}

#[test]
fn failures_wait_and_then_end_the_job() {
    let plan = check(json!({}), &["a failed@3 released"], "");
    assert_eq!(plan.again, Some(Duration::from_secs(7)));
    check(json!({}), &["a failed@11 released"], "create 1");
    let plan = check(json!({}), &["a failed@30 released", "b failed@11 released"], "");
    assert_eq!(plan.again, Some(Duration::from_secs(9)));
    check(
        json!({"backoffLimit": 0, "completions": 2, "parallelism": 2}),
        &["a failed", "b running"],
        "delete b, release a, FailureTarget(BackoffLimitExceeded)",
    );
    check(json!({"activeDeadlineSeconds": 60}), &["a running"], "delete a, FailureTarget(DeadlineExceeded)");
    let plan = check(json!({"activeDeadlineSeconds": 7200}), &["a running"], "");
    assert_eq!(plan.again, Some(Duration::from_secs(3600)));
}

#[test]
fn a_pod_is_counted_once_then_released_then_forgotten() {
    let mut j = job(json!({}));
    let now = NOW.parse().unwrap();
    let first = plan(&j, &[pod("a ok")], now).unwrap();
    assert_eq!(show(&first), "release a, SuccessCriteriaMet(CompletionsReached)");
    assert_eq!(first.status.succeeded, None);
    j.status = Some(first.status);
    // Status written, but stopped before the release: the same again.
    let again = plan(&j, &[pod("a ok")], now).unwrap();
    assert_eq!(show(&again), "release a, SuccessCriteriaMet(CompletionsReached)");
    // Released: counted, even if the pod is gone.
    for pods in [vec![pod("a ok released")], vec![]] {
        let last = plan(&j, &pods, now).unwrap();
        assert_eq!(show(&last), "SuccessCriteriaMet(CompletionsReached), Complete(CompletionsReached)");
        assert_eq!(last.status.succeeded, Some(1));
        assert!(last.status.completion_time.is_some());
    }
}

#[test]
fn indexes_are_each_done_once() {
    let spec = |more: Value| {
        let mut s = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2});
        s.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        s
    };
    check(spec(json!({})), &[], "create #0, create #1");
    let p = check(spec(json!({})), &["a ok #0", "b running #1"], "create #2, release a");
    assert_eq!(p.status.completed_indexes.as_deref(), Some("0"));
    assert_eq!(p.status.succeeded, Some(1));
    check(
        spec(json!({"backoffLimitPerIndex": 0})),
        &["a failed@99 #0", "b running #1"],
        "create #2, release a",
    );
    check(
        spec(json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0})),
        &["a failed #0", "b running #1"],
        "delete b, release a, FailureTarget(MaxFailedIndexesExceeded)",
    );
    check(
        spec(json!({"successPolicy": {"rules": [{"succeededIndexes": "0"}]}})),
        &["a ok #0", "b running #1"],
        "delete b, release a, SuccessCriteriaMet(SuccessPolicy)",
    );
}

#[test]
fn policies_judge_failed_pods() {
    let rule = |action: &str| {
        json!({"podFailurePolicy": {"rules": [{"action": action,
        "onExitCodes": {"operator": "In", "values": [42]}}]}})
    };
    check(rule("FailJob"), &["a failed@60:42"], "release a, FailureTarget(PodFailurePolicy)");
    let plan = check(rule("Ignore"), &["a failed@60:42"], "create 1, release a");
    assert_eq!(plan.status.uncounted_terminated_pods, Some(Default::default()));
    check(rule("FailJob"), &["a failed@60:1"], "create 1, release a");
}

#[test]
fn pods_being_deleted_are_replaced_as_the_policy_says() {
    check(json!({}), &["a running going"], "create 1, release a");
    check(json!({"podReplacementPolicy": "Failed"}), &["a running going"], "");
}

/// A job that is played: its pods by number, and what the world has seen of them.
#[derive(Clone, Debug)]
struct World {
    job: Job,
    /// Number, state (`running`, `ok`, `failed`), whether tracked, whether being deleted.
    pods: BTreeMap<usize, (&'static str, bool, bool)>,
    made: usize,
    ok: usize,
}

impl World {
    fn plan(&self) -> Plan {
        let pods: Vec<_> = self
            .pods
            .iter()
            .map(|(n, (state, tracked, going))| {
                let mark = |on: bool, text: &'static str| if on { text } else { "" };
                let state = if *state == "running" { "running".to_owned() } else { format!("{state}@9999") };
                pod(&format!("p{n} {state} {} {}", mark(!tracked, "released"), mark(*going, "going")))
            })
            .collect();
        plan(&self.job, &pods, NOW.parse().unwrap()).unwrap()
    }

    /// Does the first `steps` things of a plan, as a controller that is stopped then would have.
    fn apply(&mut self, plan: &Plan, first_new: usize, mut steps: usize) {
        let number = |p: &Arc<Pod>| p.metadata.name.as_ref().unwrap()[1..].parse::<usize>().unwrap();
        let mut step = || {
            steps = steps.saturating_sub(1);
            steps > 0
        };
        for p in &plan.withdraw {
            if !step() {
                return;
            }
            self.pods.remove(&number(p));
        }
        for p in &plan.delete {
            if !step() {
                return;
            }
            let gone = self.pods.get_mut(&number(p)).map(|p| {
                p.2 = true;
                !p.1
            });
            if gone == Some(true) {
                self.pods.remove(&number(p));
            }
        }
        for i in 0..plan.create.len() {
            if !step() {
                return;
            }
            self.pods.entry(first_new + i).or_insert(("running", true, false));
            self.made = self.made.max(first_new + i + 1);
        }
        if !step() {
            return;
        }
        self.job.status = Some(plan.status.clone());
        for p in &plan.release {
            if !step() {
                return;
            }
            let n = number(p);
            if let Some(pod) = self.pods.get_mut(&n) {
                pod.1 = false;
                if pod.2 {
                    self.pods.remove(&n);
                }
            }
        }
    }
}

use proptest::prelude::*;
proptest! {
    /// Whatever happens to pods, wherever passes are cut short, and if two do the same pass: each
    /// success counts once, there are never more pods than wanted, and the job ends.
    #[test]
    fn no_pod_is_lost_or_counted_twice(
        completions in 1..8i32, parallelism in 1..5i32,
        acts in prop::collection::vec((0..4u8, 0..20usize, 1..12usize, any::<bool>()), 0..40),
    ) {
        let spec = json!({"completions": completions, "parallelism": parallelism, "backoffLimit": 100_000});
        let mut world = World { job: job(spec), pods: BTreeMap::new(), made: 0, ok: 0 };
        let quiet = std::iter::repeat_n((0, 0, 10_000, false), 40);
        for (act, which, steps, twice) in acts.into_iter().chain(quiet) {
            let running: Vec<usize> =
                world.pods.iter().filter(|(_, p)| p.0 == "running" && !p.2).map(|(n, _)| *n).collect();
            if !running.is_empty() {
                let chosen = running[which % running.len()];
                let pod = world.pods.get_mut(&chosen).unwrap();
                match act {
                    0 => (pod.0, world.ok) = ("ok", world.ok + 1),
                    1 => pod.0 = "failed",
                    2 => pod.2 = true,
                    _ => {}
                }
            }
            let (plan, first_new) = (world.plan(), world.made);
            world.apply(&plan, first_new, steps + 1);
            if twice {
                world.apply(&plan, first_new, steps + 1);
            }
            let active = world.pods.values().filter(|p| p.0 == "running" && !p.2).count();
            prop_assert!(active <= usize::try_from(parallelism).unwrap(), "{:?}", world);
            let status = world.job.status.clone().unwrap_or_default();
            prop_assert!(usize::try_from(status.succeeded.unwrap_or(0)).unwrap() <= world.ok, "{:?}", world);
        }
        prop_assert!(is_over(&world.job), "{:?}", world);
        let counted = world.job.status.as_ref().unwrap().succeeded.unwrap_or(0);
        prop_assert_eq!(usize::try_from(counted).unwrap(), world.ok, "{:?}", world);
    }
}

//! Whatever happens between passes, and wherever one of them stops: no time gets two jobs, and each gets one that
//! may have it.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use jiff::Zoned;
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Times of the day at which something is due, by the clocks of a zone.
#[derive(Clone, Debug)]
struct Times {
    minutes: BTreeSet<i8>,
    hours: BTreeSet<i8>,
    name: &'static str,
    zone: TimeZone,
}

impl Times {
    fn schedule(&self) -> String {
        let list = |all: &BTreeSet<i8>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        format!("{} {} * * *", list(&self.minutes), list(&self.hours))
    }

    fn has(&self, at: Timestamp) -> bool {
        let local: Zoned = at.0.to_zoned(self.zone.clone());
        at.0.as_second() % 60 == 0
            && self.minutes.contains(&local.minute())
            && self.hours.contains(&local.hour())
    }

    /// The last time in `(from, now]`, and the first after `now`, minute by minute.
    fn around(&self, from: Timestamp, now: Timestamp) -> (Option<Timestamp>, Timestamp) {
        let minute = |number: i64| Timestamp(jiff::Timestamp::from_second(number * 60).unwrap());
        let (first, last) = (from.0.as_second().div_euclid(60), now.0.as_second().div_euclid(60));
        let latest = (first..=last).rev().map(minute).find(|at| *at > from && *at <= now && self.has(*at));
        let next = (last + 1..).map(minute).find(|at| self.has(*at)).unwrap();
        (latest, next)
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// So many seconds go by.
    Wait(u32),
    /// A pass; whether it stops before it has written the status.
    Pass(bool),
    /// One of the running jobs ends.
    End(usize, bool),
    Suspend(bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (1..5_000_u32).prop_map(Act::Wait),
        1 => (5_000..100_000_u32).prop_map(Act::Wait),
        5 => any::<bool>().prop_map(Act::Pass),
        2 => (0..4_usize, any::<bool>()).prop_map(|(which, well)| Act::End(which, well)),
        1 => any::<bool>().prop_map(Act::Suspend),
    ];
    prop::collection::vec(act, 1..50)
}

fn times() -> impl Strategy<Value = Times> {
    let set = |bound: i8| {
        let all = (0..bound).collect::<BTreeSet<i8>>();
        prop_oneof![4 => prop::collection::btree_set(0..bound, 1..4), 1 => Just(all)]
    };
    let zones = prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]);
    // Most changes of the clocks are between one and three.
    let hours = prop_oneof![set(24), set(4)];
    (set(60), hours, zones).prop_map(|(minutes, hours, name)| {
        let zone = TimeZone::get(name).unwrap();
        Times { minutes, hours, name, zone }
    })
}

struct World {
    times: Times,
    cron: CronJob,
    jobs: BTreeMap<String, Arc<Job>>,
    /// Every job that was ever made, by the time it was made for.
    made: Vec<Timestamp>,
    now: Timestamp,
}

impl World {
    fn new(times: Times, policy: &str, deadline: Option<i64>, history: i32, start: Timestamp) -> Self {
        let cron = json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "c", "creationTimestamp": start.to_string()},
            "spec": {"schedule": times.schedule(), "timeZone": times.name, "jobTemplate": {},
                "concurrencyPolicy": policy, "startingDeadlineSeconds": deadline,
                "successfulJobsHistoryLimit": history, "failedJobsHistoryLimit": history},
        });
        let cron = serde_json::from_value(cron).unwrap();
        Self { times, cron, jobs: BTreeMap::new(), made: Vec::new(), now: start }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Wait(seconds) => self.now = self.now.after(Duration::from_secs(u64::from(*seconds))),
            Act::Suspend(yes) => self.cron.spec.suspend = Some(*yes),
            Act::End(which, well) => self.end(*which, *well),
            Act::Pass(stops) => self.pass(*stops),
        }
    }

    fn running(&self) -> Vec<Arc<Job>> {
        self.jobs.values().filter(|j| job::finished(j).is_none()).cloned().collect()
    }

    fn end(&mut self, which: usize, well: bool) {
        let Some(ended) = self.running().get(which).cloned() else { return };
        let (at, kind) = (self.now.to_string(), if well { "Complete" } else { "Failed" });
        let status = json!({"startTime": at, "completionTime": at,
            "conditions": [{"type": kind, "status": "True", "lastTransitionTime": at}]});
        let mut job = (*ended).clone();
        job.status = serde_json::from_value(status).unwrap();
        self.jobs.insert(job.metadata.name.clone().unwrap(), Arc::new(job));
    }

    /// What [`Keeper::reconcile`] does with a plan, on the jobs here.
    fn pass(&mut self, stops: bool) {
        let jobs: Vec<_> = self.jobs.values().cloned().collect();
        let mut plan = plan(&self.cron, &jobs, self.now);
        self.check(&plan);
        let gone = |jobs: &mut BTreeMap<String, Arc<Job>>, list: &[Arc<Job>]| {
            list.iter().for_each(|j| drop(jobs.remove(j.metadata.name.as_deref().unwrap())));
        };
        gone(&mut self.jobs, &plan.replace);
        if let Some(at) = plan.create {
            let mut job = job_at(&self.cron, at);
            let name = job.metadata.name.clone().unwrap();
            job.metadata.uid = Some(name.clone());
            if let Entry::Vacant(free) = self.jobs.entry(name) {
                free.insert(Arc::new(job));
                self.made.push(at);
            }
            plan.status.last_schedule_time = Some(time(at));
        }
        if stops {
            return;
        }
        self.cron.status = Some(plan.status);
        gone(&mut self.jobs, &plan.delete);
    }

    fn check(&self, plan: &Plan) {
        let spec = &self.cron.spec;
        let running = self.running();
        let forbids = spec.concurrency_policy.as_deref() == Some("Forbid");
        if spec.suspend == Some(true) {
            assert!(plan.create.is_none() && plan.replace.is_empty() && plan.again.is_none());
            return;
        }
        let status = self.cron.status.as_ref();
        let last = status.and_then(|s| time_of(s.last_schedule_time.as_ref()));
        let created = time_of(self.cron.metadata.creation_timestamp.as_ref()).unwrap();
        let oldest = spec
            .starting_deadline_seconds
            .map(|s| Timestamp(self.now.0 - jiff::SignedDuration::from_secs(s)));
        let from = last.unwrap_or(created).max(oldest.unwrap_or(created));
        let (due, next) = self.times.around(from, self.now);
        let has_job = due.is_some_and(|due| self.jobs.contains_key(&job_name(&self.cron, due)));
        let wanted = due.filter(|_| !has_job && (!forbids || running.is_empty()));
        assert_eq!(plan.create, wanted, "due {due:?} after {from} at {}", self.now);
        if spec.concurrency_policy.as_deref() == Some("Replace") && wanted.is_some() {
            assert_eq!(plan.replace.len(), running.len(), "the new one runs alone");
        } else {
            assert!(plan.replace.is_empty());
        }
        let again = self.now.after(plan.again.expect("a schedule that goes on"));
        assert!(
            again > next && again < next.after(Duration::from_secs(1)),
            "{again} is not just after {next}"
        );
        let told = plan.events.iter().any(|e| e.1 == "JobAlreadyActive");
        assert_eq!(told, forbids && due.is_some() && !has_job && !running.is_empty());
    }
}

proptest! {
    // Each looks at many thousands of minutes.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_time_has_two_jobs_and_none_is_forgotten(
        times in times(),
        policy in prop::sample::select(vec!["Allow", "Forbid", "Replace"]),
        deadline in prop::option::of(30..50_000_i64),
        history in 0..3,
        // Around the changes of the clocks of 2026, in seconds before the second day after.
        change in prop::sample::select(vec!["2026-03-09T00:00:00Z", "2026-03-30T00:00:00Z", "2026-10-26T00:00:00Z", "2026-06-01T00:00:00Z"]),
        earlier in 0..172_800_u32,
        acts in acts(),
    ) {
        let change: Timestamp = change.parse().unwrap();
        let start = Timestamp(change.0 - jiff::SignedDuration::from_secs(i64::from(earlier)));
        let mut world = World::new(times, policy, deadline, history, start);
        for act in &acts {
            world.act(act);
            prop_assert!(policy == "Allow" || world.running().len() <= 1, "{policy} lets jobs run beside each other");
        }
        // In order, each once.
        prop_assert!(world.made.is_sorted_by(|a, b| a < b), "{:?}", world.made);
    }
}

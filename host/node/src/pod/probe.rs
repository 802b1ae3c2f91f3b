//! Readiness, liveness and startup probes.

use std::time::Duration;

use wasmk_api::k8s_openapi::api::core::v1::{Container, Probe};

use super::actions::Reach;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Startup,
    Liveness,
    Readiness,
}

impl Which {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What a probe found out.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Finding {
    /// One attempt failed; for the event.
    Failed(String),
    /// So many in a row that the verdict is good.
    Good,
    /// So many in a row that the verdict is bad.
    Bad(String),
}

/// Counts attempts in a row up to the thresholds. Pure.
#[derive(Debug)]
struct Tally {
    good_at: i32,
    bad_at: i32,
    streak: i32,
    verdict: Option<bool>,
}

impl Tally {
    fn new(probe: &Probe, verdict: Option<bool>) -> Self {
        let at_least_one = |n: Option<i32>, default: i32| n.unwrap_or(default).max(1);
        Self {
            good_at: at_least_one(probe.success_threshold, 1),
            bad_at: at_least_one(probe.failure_threshold, 3),
            streak: 0,
            verdict,
        }
    }

    /// The new verdict, if this attempt makes one.
    fn add(&mut self, good: bool) -> Option<bool> {
        self.streak = match (good, self.streak) {
            (true, n) if n > 0 => n.saturating_add(1),
            (true, _) => 1,
            (false, n) if n < 0 => n.saturating_sub(1),
            (false, _) => -1,
        };
        let reached = if good { self.streak >= self.good_at } else { -self.streak >= self.bad_at };
        if !reached || self.verdict == Some(good) {
            return None;
        }
        self.verdict = Some(good);
        Some(good)
    }
}

/// Takes findings; says whether more are wanted.
pub(super) trait Tell: Sync {
    fn tell(&self, which: Which, finding: Finding) -> impl Future<Output = bool> + Send;
}

/// Runs one kind of probe of a container: the startup probe to its first verdict, the others
/// for ever, or until nothing more is wanted. Of a container that is `found` running, nothing is
/// assumed but that it is alive.
pub(super) async fn watch(which: Which, reach: &Reach<'_>, found: bool, listener: &impl Tell) {
    let Some(probe) = which.of(reach.container) else { return };
    let seconds = |n: Option<i32>, default: u64| {
        Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default))
    };
    let (period, limit) = (seconds(probe.period_seconds, 10), seconds(probe.timeout_seconds, 1));
    let initial = u64::try_from(probe.initial_delay_seconds.unwrap_or(0)).unwrap_or(0);
    tokio::time::sleep(Duration::from_secs(initial)).await;
    // A container counts as alive and as not ready until the probe says otherwise.
    let mut tally = Tally::new(
        probe,
        match which {
            Which::Startup => None,
            Which::Liveness => Some(true),
            Which::Readiness => (!found).then_some(false),
        },
    );
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome = reach.probe(probe, limit).await;
        let text = outcome.as_ref().err().map(|e| format!("{} probe failed: {e}", which.name()));
        let verdict = tally.add(outcome.is_ok());
        if let Some(text) = &text
            && !listener.tell(which, Finding::Failed(text.clone())).await
        {
            return;
        }
        let finding = match verdict {
            Some(true) => Finding::Good,
            Some(false) => Finding::Bad(text.unwrap_or_default()),
            None => continue,
        };
        if !listener.tell(which, finding).await || which == Which::Startup {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn verdicts_need_their_thresholds() {
        let probe: Probe =
            serde_json::from_value(json!({"successThreshold": 2, "failureThreshold": 3})).unwrap();
        let mut tally = Tally::new(&probe, Some(false));
        let attempts = [1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0];
        let verdicts: Vec<_> = attempts.iter().map(|a| tally.add(*a == 1)).collect();
        let mut expect = vec![None; 12];
        (expect[3], expect[10]) = (Some(true), Some(false));
        assert_eq!(verdicts, expect);
    }
}

//! Gradual rollouts: a new revision gets its target's traffic little by little.
//!
//! How far each rollout is stands in an annotation of the Route, so that it goes on after a restart and the
//! gateway needs no clock. [`plan`] is pure: from what was, to what is now.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use wasmk_api::{
    Timestamp,
    knative::{ROLLOUT_ANNOTATION, Route, TrafficTarget, annotation},
};

/// Steps of a rollout at the most, and what a new revision begins with in percent.
const STEPS: u32 = 100;

/// The rollouts of a route that are under way, by the tag of their target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Rollouts(BTreeMap<String, Moving>);

/// A target whose traffic moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Moving {
    /// The revision that gets more and more.
    to: String,
    /// Its share of the target's traffic, in percent.
    share: u32,
    /// Who has the rest, by weights.
    from: Vec<(String, u32)>,
    /// When it began.
    since: Timestamp,
}

impl Rollouts {
    /// The rollouts that a route's annotation tells of.
    pub(crate) fn of(route: &Route) -> Self {
        annotation(&route.metadata, ROLLOUT_ANNOTATION)
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The revisions of a target with their weights; the weights of all of a route's targets have one measure.
    pub(crate) fn weights(&self, target: &TrafficTarget) -> Vec<(String, u32)> {
        let percent = u32::try_from(target.percent.unwrap_or(0)).unwrap_or(0).min(100);
        let revision = target.revision_name.clone().unwrap_or_default();
        let moving =
            self.0.get(&target.tag).filter(|m| target.latest_revision == Some(true) && m.to == revision);
        let Some(moving) = moving else { return vec![(revision, percent * STEPS * 100)] };
        let whole: u32 = moving.from.iter().map(|(_, weight)| weight).sum::<u32>().max(1);
        let mut all = vec![(revision, percent * moving.share * 100)];
        let rest = percent * (STEPS - moving.share.min(STEPS)) * 100;
        all.extend(moving.from.iter().map(|(name, weight)| (name.clone(), rest * weight / whole)));
        all
    }

    /// The revisions that still have a part, besides the targets' own.
    pub(crate) fn revisions(&self) -> impl Iterator<Item = &str> {
        self.0.values().flat_map(|m| m.from.iter().map(|(name, _)| name.as_str()))
    }

    /// As the value of the annotation; nothing when no rollout is under way.
    pub(crate) fn text(&self) -> Option<String> {
        if self.0.is_empty() { None } else { serde_json::to_string(&self.0).ok() }
    }
}

/// The rollouts of a route whose targets were `old` and are `new` now.
pub(crate) fn plan(
    rollouts: &Rollouts,
    old: &[TrafficTarget],
    new: &[TrafficTarget],
    span: Duration,
    now: Timestamp,
) -> Rollouts {
    let followed =
        |target: &&TrafficTarget| target.latest_revision == Some(true) && target.percent.unwrap_or(0) > 0;
    let mut next = Rollouts::default();
    for target in new.iter().filter(followed) {
        let Some(to) = target.revision_name.clone() else { continue };
        let before = old.iter().filter(followed).find(|t| t.tag == target.tag);
        let moving = match (rollouts.0.get(&target.tag), before) {
            (Some(moving), _) if moving.to == to => moving.clone(),
            (moving, Some(before)) if before.revision_name.as_ref() != Some(&to) => {
                Moving { to, share: 0, from: mix(moving, before), since: now }
            }
            _ => continue,
        };
        let elapsed = now.since(moving.since).as_secs_f64();
        let share =
            if span.is_zero() { f64::from(STEPS) } else { elapsed / span.as_secs_f64() * f64::from(STEPS) };
        let share = (share as u32).clamp(1, STEPS);
        if share < STEPS {
            next.0.insert(target.tag.clone(), Moving { share, ..moving });
        }
    }
    next
}

/// Who had a target's traffic until now.
fn mix(moving: Option<&Moving>, before: &TrafficTarget) -> Vec<(String, u32)> {
    let last = before.revision_name.clone().unwrap_or_default();
    let Some(moving) = moving.filter(|m| m.to == last) else { return vec![(last, STEPS)] };
    let rest = STEPS - moving.share.min(STEPS);
    let whole: u32 = moving.from.iter().map(|(_, weight)| weight).sum::<u32>().max(1);
    let mut all = vec![(last, moving.share)];
    all.extend(moving.from.iter().map(|(name, weight)| (name.clone(), rest * weight / whole)));
    all.retain(|(_, weight)| *weight > 0);
    all
}

/// Until the next step of a rollout that takes so long.
pub(crate) fn step(span: Duration) -> Duration {
    (span / STEPS).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latest(revision: &str) -> Vec<TrafficTarget> {
        vec![TrafficTarget {
            revision_name: Some(revision.into()),
            latest_revision: Some(true),
            percent: Some(100),
            ..TrafficTarget::default()
        }]
    }

    fn at(seconds: u64) -> Timestamp {
        let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        begin.after(Duration::from_secs(seconds))
    }

    const SPAN: Duration = Duration::from_secs(200);

    #[test]
    fn a_new_revision_gets_its_traffic_by_and_by() {
        let none = Rollouts::default();
        assert!(plan(&none, &[], &latest("a"), SPAN, at(0)).is_empty(), "the first gets everything");
        assert!(plan(&none, &latest("a"), &latest("b"), Duration::ZERO, at(0)).is_empty());
        let first = plan(&none, &latest("a"), &latest("b"), SPAN, at(0));
        assert_eq!(first.weights(&latest("b")[0]), [("b".into(), 10_000), ("a".into(), 990_000)]);
        let half = plan(&first, &latest("b"), &latest("b"), SPAN, at(100));
        assert_eq!(half.weights(&latest("b")[0]), [("b".into(), 500_000), ("a".into(), 500_000)]);
        assert_eq!(half.revisions().collect::<Vec<_>>(), ["a"]);
        assert!(plan(&half, &latest("b"), &latest("b"), SPAN, at(200)).is_empty());
    }

    #[test]
    fn a_rollout_can_be_overtaken() {
        let first = plan(&Rollouts::default(), &latest("a"), &latest("b"), SPAN, at(0));
        let half = plan(&first, &latest("b"), &latest("b"), SPAN, at(100));
        let second = plan(&half, &latest("b"), &latest("c"), SPAN, at(100));
        let weights = second.weights(&latest("c")[0]);
        assert_eq!(weights, [("c".into(), 10_000), ("b".into(), 495_000), ("a".into(), 495_000)]);
    }
}

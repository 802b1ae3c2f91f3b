//! Why a pod got no node, in the words kubectl users know.

use std::{borrow::Cow, collections::BTreeMap};

/// The filters, by the names that Kubernetes users know. A set of them is a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Plugin {
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    RuntimeHandler,
    NodePorts,
    NodeResourcesFit,
    VolumeBinding,
    VolumeZone,
    VolumeRestrictions,
    NodeVolumeLimits,
    PodTopologySpread,
    InterPodAffinity,
}

/// A set of filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Plugins(u16);

impl Plugins {
    pub(super) const ALL: Self = Self(u16::MAX);

    pub(super) const fn of(names: &[Plugin]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < names.len() {
            bits |= 1 << names[i] as u16;
            i += 1;
        }
        Self(bits)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why one node was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    /// The filter that said no.
    pub(super) filter: Plugin,
    /// Its reasons; resources can lack in several ways.
    pub(super) reasons: Vec<Cow<'static, str>>,
    /// Whether the removal of pods could change its mind.
    pub(super) resolvable: bool,
}

impl Rejection {
    /// That other pods stand in the way of.
    pub(super) fn by_pods(filter: Plugin, reasons: Vec<Cow<'static, str>>) -> Self {
        Self { filter, reasons, resolvable: true }
    }

    /// That no removal of pods changes.
    pub(super) fn by_node(filter: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { filter, reasons: vec![reason.into()], resolvable: false }
    }
}

/// The message of event and condition.
pub(super) fn message(nodes: usize, rejections: &[Rejection]) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in rejections.iter().flat_map(|r| &r.reasons) {
        *counts.entry(reason).or_insert(0) += 1;
    }
    let mut parts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

/// What became of making room by removing others, as a sentence after [`message`].
pub(super) fn preemption(nodes: usize, rejections: &[Rejection]) -> String {
    let hopeless = rejections.iter().filter(|r| !r.resolvable).count();
    let mut parts = Vec::new();
    if nodes > hopeless {
        parts.push(format!("{} No preemption victims found for incoming pod", nodes - hopeless));
    }
    if hopeless > 0 {
        parts.push(format!("{hopeless} Preemption is not helpful for scheduling"));
    }
    parts.sort();
    format!(" preemption: 0/{nodes} nodes are available: {}.", parts.join(", "))
}

/// Why nobody was asked to make room, as a sentence after [`message`].
pub(super) fn no_preemption(why: &str) -> String {
    format!(" preemption: not eligible due to {why}.")
}

/// The filters that said no.
pub(super) fn filters(rejections: &[Rejection]) -> Plugins {
    rejections.iter().fold(Plugins::default(), |all, r| all.with(Plugins::of(&[r.filter])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_reason() {
        let fit = |reasons: &[&str]| {
            Rejection::by_pods(
                Plugin::NodeResourcesFit,
                reasons.iter().map(|r| (*r).to_owned().into()).collect(),
            )
        };
        let all = [
            fit(&["Insufficient cpu"]),
            fit(&["Insufficient cpu", "Insufficient memory"]),
            Rejection::by_node(Plugin::NodeUnschedulable, "node(s) were unschedulable"),
        ];
        assert_eq!(
            message(3, &all) + &preemption(3, &all),
            "0/3 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, 2 Insufficient cpu. \
             preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, \
             2 No preemption victims found for incoming pod."
        );
        assert_eq!(message(0, &[]), "no nodes available to schedule pods");
    }
}

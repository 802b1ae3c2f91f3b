//! What is worked out once per pod before nodes are asked: where other pods are.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::node::v1::RuntimeClass;

use super::{
    groups::Said,
    limits::Limits,
    pod::PodInfo,
    rules::{Constraint, Namespaces},
    snapshot::Snapshot,
    tally::{Question, Tallies, Tally},
    volumes::Place,
};

/// What is known of a pod besides itself and the nodes.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Its runtime class.
    pub(super) class: Option<Arc<RuntimeClass>>,
    /// Where its volumes can be reached from.
    pub(super) volumes: Vec<Place>,
    /// How many volumes nodes can have, if that is about its own.
    pub(super) limits: Option<Arc<Limits>>,
}

/// Facts about one pod's attempt.
#[derive(Debug, Default)]
pub(super) struct Cycle {
    /// The handler that the pod's runtime class names.
    pub(super) runtime_handler: Option<String>,
    /// The nodes that the runtime class is for.
    pub(super) class_selector: Option<BTreeMap<String, String>>,
    /// Where the pod's volumes can be reached from.
    pub(super) volume_places: Vec<Place>,
    /// How many volumes nodes can have, if that is about the pod's own.
    pub(super) volume_limits: Option<Arc<Limits>>,
    /// Spread constraints that had better hold.
    pub(super) soft_spread: Vec<Spread>,
    /// What other pods forbid.
    pub(super) others: Others,
    /// Wishes about other pods, the pod's own and theirs about it: points for each that counts.
    pub(super) wishes: Vec<(i64, Arc<Tally>)>,
}

/// Where the pod may not go because of where others are, or are not.
#[derive(Clone, Debug, Default)]
pub(super) struct Others {
    /// Spread constraints that must hold.
    pub(super) spread: Vec<Spread>,
    /// Pods that it must be near, by term.
    near: Vec<Arc<Tally>>,
    /// It matches its own terms: it may be the first of those that must be near each other.
    own: bool,
    /// Pods that it must not be near.
    far: Vec<Arc<Tally>>,
    /// Pods that it must not be near because they say so.
    shunned: Vec<Arc<Tally>>,
    first: bool,
}

/// A spread constraint with its counts.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    pub(super) max_skew: i64,
    min_domains: Option<i32>,
    /// Whether the pod itself counts where it goes.
    own: i64,
    tally: Arc<Tally>,
    minimum: i64,
}

impl Spread {
    fn new(constraint: &Constraint, tally: Arc<Tally>) -> Self {
        let Constraint { max_skew, min_domains, .. } = *constraint;
        let own = i64::from(constraint.counts_itself);
        Self { max_skew, min_domains, own, minimum: 0, tally }.measured()
    }

    fn measured(mut self) -> Self {
        let (domains, least) = self.tally.least();
        let domains = i32::try_from(domains).unwrap_or(i32::MAX);
        let too_few = self.min_domains.is_some_and(|min| domains < min);
        self.minimum = if too_few { 0 } else { least };
        self
    }

    /// The skew if the pod went to a node; `None` if it has not got the label.
    pub(super) fn skew_at(&self, place: usize) -> Option<i64> {
        Some(self.tally.at(place)? + self.own - self.minimum)
    }

    fn allows(&self, place: usize) -> bool {
        self.skew_at(place).is_some_and(|skew| skew <= self.max_skew)
    }
}

impl Others {
    /// Whether nothing stands in the way of any node.
    pub(super) fn is_empty(&self) -> bool {
        self.spread.is_empty() && self.near.is_empty() && self.far.is_empty() && self.shunned.is_empty()
    }

    /// Whether the pod may go to a node, as far as others are concerned.
    pub(super) fn allow(&self, place: usize) -> bool {
        self.is_spread(place) && self.is_near(place) && self.is_far(place) && self.is_wanted(place)
    }

    fn is_spread(&self, place: usize) -> bool {
        self.spread.iter().all(|s| s.allows(place))
    }

    /// Whether all are there that the pod must be near.
    pub(super) fn is_near(&self, place: usize) -> bool {
        self.near.iter().all(|tally| tally.at(place).is_some_and(|count| self.first || count > 0))
    }

    /// Whether none is there that the pod must not be near.
    pub(super) fn is_far(&self, place: usize) -> bool {
        self.far.iter().all(|tally| tally.at(place).unwrap_or(0) == 0)
    }

    /// Whether none is there that the pod must not be near because that one says so.
    pub(super) fn is_wanted(&self, place: usize) -> bool {
        self.shunned.iter().all(|tally| tally.at(place).unwrap_or(0) == 0)
    }

    /// The same if some pods of a node were gone.
    pub(super) fn without(&self, place: usize, pods: &[Arc<PodInfo>], namespaces: &Namespaces) -> Self {
        let less = |tally: &Arc<Tally>| Arc::new(tally.without(place, pods, namespaces));
        let all = |tallies: &[Arc<Tally>]| tallies.iter().map(less).collect();
        let spread = |s: &Spread| Spread { tally: less(&s.tally), ..s.clone() }.measured();
        let other = Self {
            spread: self.spread.iter().map(spread).collect(),
            near: all(&self.near),
            far: all(&self.far),
            shunned: all(&self.shunned),
            ..*self
        };
        other.begun()
    }

    /// Nobody matches any term yet, and the pod matches its own: it may be the first.
    fn begun(mut self) -> Self {
        self.first = self.own && self.near.iter().all(|tally| tally.total() == 0);
        self
    }
}

impl Cycle {
    /// Counts other pods as far as the pod's rules (or theirs about it) need.
    pub(super) fn new(pod: &PodInfo, snapshot: &Snapshot, given: &Given, tallies: &mut Tallies) -> Self {
        let class = given.class.as_deref();
        let mut cycle = Self {
            runtime_handler: class.map(|c| c.handler.clone()),
            class_selector: class.and_then(|c| c.scheduling.as_ref()?.node_selector.clone()),
            volume_places: given.volumes.clone(),
            volume_limits: given.limits.clone(),
            ..Self::default()
        };
        let mut ask = |question| tallies.ask(question, pod, snapshot);
        let rules = &pod.rules;
        for constraint in &rules.spread {
            let spread = Spread::new(constraint, ask(Question::Crowd(constraint.crowd.clone())));
            if constraint.hard { cycle.others.spread.push(spread) } else { cycle.soft_spread.push(spread) }
        }
        let others = &mut cycle.others;
        others.near = rules.affinity.iter().map(|t| ask(Question::Meant(t.clone()))).collect();
        others.own = rules.affinity.iter().all(|t| t.matches(pod, &snapshot.namespaces));
        others.far = rules.anti_affinity.iter().map(|t| ask(Question::Meant(t.clone()))).collect();
        cycle.wishes =
            rules.preferred.iter().map(|(weight, t)| (*weight, ask(Question::Meant(t.clone())))).collect();
        let sayings = snapshot.groups.sayings.keys();
        for (said, term) in sayings.filter(|(_, term)| term.matches(pod, &snapshot.namespaces)) {
            let tally = ask(Question::Says(*said, term.clone()));
            match said {
                Said::MustNot => others.shunned.push(tally),
                Said::Must | Said::Wish => cycle.wishes.push((1, tally)),
            }
        }
        cycle.others = std::mem::take(&mut cycle.others).begun();
        cycle
    }

    /// The same with other pods elsewhere, as far as filters ask.
    pub(super) fn among(&self, others: Others) -> Self {
        Self {
            runtime_handler: self.runtime_handler.clone(),
            class_selector: self.class_selector.clone(),
            volume_places: self.volume_places.clone(),
            volume_limits: self.volume_limits.clone(),
            others,
            ..Self::default()
        }
    }
}

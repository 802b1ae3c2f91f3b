//! Placed pods as others see them: in groups of those that look the same, with what has changed lately, so that
//! whoever has counted them need not count again.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    pod::{GroupId, PodInfo},
    rules::Term,
};

/// Changes remembered; who has missed more counts again.
const MAX_MOVES: usize = 1024;

/// Pods that look the same to others, and how many of them each node has.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Any of them.
    pub(super) sample: Arc<PodInfo>,
    /// Counts by the node's place in the snapshot.
    pub(super) nodes: HashMap<usize, i64>,
}

/// How a pod says a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Said {
    /// Such pods must be near it.
    Must,
    /// They must not.
    MustNot,
    /// They had better, or better not.
    Wish,
}

/// Something that pods say about others.
pub(super) type Saying = (Said, Arc<Term>);

/// A pod that came to a place (1) or left it (-1).
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) pod: Arc<PodInfo>,
    pub(super) place: usize,
    pub(super) by: i64,
}

/// All groups of placed pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    pub(super) all: HashMap<GroupId, Arc<Group>>,
    /// What placed pods say about others, and how many groups say it.
    pub(super) sayings: HashMap<Saying, usize>,
    /// Changes with what nodes and namespaces are like: counts from before are worth nothing.
    pub(super) epoch: u64,
    /// Placed pods that say anything about others.
    ruled: usize,
    moves: VecDeque<Move>,
    /// Number of the first move that is remembered.
    first: u64,
}

impl Groups {
    pub(super) fn add(&mut self, place: usize, pod: &Arc<PodInfo>) {
        let fresh = || Arc::new(Group { sample: pod.clone(), nodes: HashMap::new() });
        let new = !self.all.contains_key(&pod.group);
        let group = self.all.entry(pod.group).or_insert_with(fresh);
        *Arc::make_mut(group).nodes.entry(place).or_insert(0) += 1;
        if new {
            sayings(pod).for_each(|saying| *self.sayings.entry(saying).or_insert(0) += 1);
        }
        self.ruled += usize::from(!pod.rules.is_empty());
        self.note(Move { pod: pod.clone(), place, by: 1 });
    }

    pub(super) fn remove(&mut self, place: usize, pod: &Arc<PodInfo>) {
        let Some(group) = self.all.get_mut(&pod.group) else { return };
        let group = Arc::make_mut(group);
        let Some(count) = group.nodes.get_mut(&place) else { return };
        *count -= 1;
        if *count <= 0 {
            group.nodes.remove(&place);
        }
        if group.nodes.is_empty() {
            self.all.remove(&pod.group);
            sayings(pod).for_each(|saying| self.unsay(&saying));
        }
        self.note(Move { pod: pod.clone(), place, by: -1 });
        self.ruled -= usize::from(!pod.rules.is_empty());
    }

    fn unsay(&mut self, saying: &Saying) {
        if let Some(count) = self.sayings.get_mut(saying) {
            *count -= 1;
            if *count == 0 {
                self.sayings.remove(saying);
            }
        }
    }

    /// Counts are to be made afresh.
    pub(super) fn turn(&mut self) {
        self.epoch += 1;
        self.first = self.version();
        self.moves.clear();
    }

    /// Number of the move that comes next.
    pub(super) fn version(&self) -> u64 {
        self.first + self.moves.len() as u64
    }

    /// What moved from that number on; `None` if not all of it is remembered.
    pub(super) fn since(&self, version: u64) -> Option<impl Iterator<Item = &Move>> {
        let skipped = usize::try_from(version.checked_sub(self.first)?).ok()?;
        Some(self.moves.iter().skip(skipped))
    }

    /// While nobody says anything about others, nobody counts.
    fn note(&mut self, change: Move) {
        if self.ruled == 0 {
            self.first = self.version() + 1;
            self.moves.clear();
            return;
        }
        if self.moves.len() >= MAX_MOVES {
            self.moves.pop_front();
            self.first += 1;
        }
        self.moves.push_back(change);
    }
}

/// What a pod says about others, each term once for each way of saying it.
fn sayings(pod: &PodInfo) -> impl Iterator<Item = Saying> {
    let rules = &pod.rules;
    let must = rules.affinity.iter().map(|t| (Said::Must, t.clone()));
    let must_not = rules.anti_affinity.iter().map(|t| (Said::MustNot, t.clone()));
    let wish = rules.preferred.iter().map(|(_, t)| (Said::Wish, t.clone()));
    must.chain(must_not).chain(wish)
}

//! How many pods are where, as far as rules ask: counted once, then kept from one choice to the next by what has
//! moved in between.

use std::{collections::HashMap, sync::Arc};

use super::{
    groups::{Move, Said},
    pod::PodInfo,
    rules::{Crowd, Namespaces, Term},
    snapshot::Snapshot,
};

/// Counts kept; beyond it those go that were not asked for the longest time.
const MAX_TALLIES: usize = 256;
/// The domain of a node that has not got the label.
const NONE: u32 = u32::MAX;

/// The values of one label on all nodes, as numbers.
#[derive(Debug)]
pub(super) struct Topology {
    /// By the node's place in the snapshot.
    domains: Vec<u32>,
    /// How many there are.
    count: usize,
}

impl Topology {
    fn of(key: &str, snapshot: &Snapshot) -> Self {
        let mut known: HashMap<&str, u32> = HashMap::new();
        let mut number = |value| {
            let next = u32::try_from(known.len()).unwrap_or(NONE);
            *known.entry(value).or_insert(next)
        };
        let domains = snapshot.nodes.iter().map(|node| node.label(key).map_or(NONE, &mut number)).collect();
        Self { domains, count: known.len() }
    }

    fn domain(&self, place: usize) -> Option<usize> {
        let domain = *self.domains.get(place)?;
        (domain != NONE).then_some(domain as usize)
    }
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// Pods that a term means.
    Meant(Arc<Term>),
    /// Pods that say a term; wishes by their weight.
    Says(Said, Arc<Term>),
    /// Pods of a crowd, on nodes that take part.
    Crowd(Arc<Crowd>),
}

impl Question {
    fn topology(&self) -> &str {
        match self {
            Self::Meant(term) | Self::Says(_, term) => &term.topology,
            Self::Crowd(crowd) => &crowd.topology,
        }
    }

    /// What one pod counts for.
    fn worth(&self, pod: &PodInfo, namespaces: &Namespaces) -> i64 {
        let rules = &pod.rules;
        match self {
            Self::Meant(term) => i64::from(term.matches(pod, namespaces)),
            Self::Says(Said::Must, term) => times(&rules.affinity, term),
            Self::Says(Said::MustNot, term) => times(&rules.anti_affinity, term),
            Self::Says(Said::Wish, term) => {
                rules.preferred.iter().filter(|(_, t)| t == term).map(|(weight, _)| weight).sum()
            }
            Self::Crowd(crowd) => i64::from(crowd.counts(pod)),
        }
    }
}

fn times(terms: &[Arc<Term>], term: &Arc<Term>) -> i64 {
    terms.iter().map(|t| i64::from(t == term)).sum()
}

/// The nodes that take part in a crowd.
#[derive(Debug)]
struct Taking {
    /// By the node's place in the snapshot.
    places: Vec<bool>,
    /// Domains of which any node takes part.
    domains: Vec<usize>,
}

/// The answer to a question, by domain.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    question: Question,
    topology: Arc<Topology>,
    taking: Option<Arc<Taking>>,
    counts: Vec<i64>,
    total: i64,
}

impl Tally {
    /// Counts all that is there. `asker` is the pod whose rule the question is.
    fn new(question: &Question, topology: Arc<Topology>, asker: &PodInfo, snapshot: &Snapshot) -> Self {
        let taking = match question {
            Question::Crowd(crowd) => Some(Arc::new(taking(crowd, asker, &topology, snapshot))),
            _ => None,
        };
        let counts = vec![0; topology.count];
        let mut tally = Self { question: question.clone(), topology, taking, counts, total: 0 };
        for group in snapshot.groups.all.values() {
            let worth = tally.question.worth(&group.sample, &snapshot.namespaces);
            if worth != 0 {
                group.nodes.iter().for_each(|(place, count)| tally.add(*place, worth * count));
            }
        }
        tally
    }

    fn add(&mut self, place: usize, amount: i64) {
        if self.taking.as_ref().is_some_and(|t| !t.places.get(place).copied().unwrap_or(false)) {
            return;
        }
        if let Some(domain) = self.topology.domain(place) {
            self.counts[domain] += amount;
            self.total += amount;
        }
    }

    fn follow(&mut self, change: &Move, namespaces: &Namespaces) {
        let worth = self.question.worth(&change.pod, namespaces);
        if worth != 0 {
            self.add(change.place, worth * change.by);
        }
    }

    /// The same without some pods of a node.
    pub(super) fn without(&self, place: usize, pods: &[Arc<PodInfo>], namespaces: &Namespaces) -> Self {
        let mut other = self.clone();
        for pod in pods {
            other.add(place, -other.question.worth(pod, namespaces));
        }
        other
    }

    /// What counts where a node is; `None` if it has not got the label.
    pub(super) fn at(&self, place: usize) -> Option<i64> {
        Some(self.counts[self.topology.domain(place)?])
    }

    /// What counts anywhere.
    pub(super) fn total(&self) -> i64 {
        self.total
    }

    /// How many domains take part, and what counts in that of them where it is least.
    pub(super) fn least(&self) -> (usize, i64) {
        let Some(taking) = &self.taking else { return (0, 0) };
        let least = taking.domains.iter().map(|domain| self.counts[*domain]).min();
        (taking.domains.len(), least.unwrap_or(0))
    }
}

fn taking(crowd: &Crowd, asker: &PodInfo, topology: &Topology, snapshot: &Snapshot) -> Taking {
    let places: Vec<bool> = snapshot.nodes.iter().map(|node| crowd.takes_in(asker, node)).collect();
    let mut seen = vec![false; topology.count];
    let taken = places.iter().enumerate().filter(|(_, takes)| **takes);
    taken.filter_map(|(place, _)| topology.domain(place)).for_each(|domain| seen[domain] = true);
    let domains = seen.iter().enumerate().filter(|(_, seen)| **seen).map(|(domain, _)| domain).collect();
    Taking { places, domains }
}

#[derive(Debug)]
struct Kept {
    tally: Arc<Tally>,
    /// Number of the first move that is not in it.
    version: u64,
    /// When it was last asked for, in questions.
    asked: u64,
}

/// All that has been counted.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    epoch: u64,
    topologies: HashMap<String, Arc<Topology>>,
    kept: HashMap<Question, Kept>,
    asked: u64,
}

impl Tallies {
    /// The answer for a snapshot, which must not be older than that of the question before. `asker` is the pod
    /// whose rule the question is.
    pub(super) fn ask(&mut self, question: Question, asker: &PodInfo, snapshot: &Snapshot) -> Arc<Tally> {
        let groups = &snapshot.groups;
        if self.epoch != groups.epoch {
            *self = Self { epoch: groups.epoch, ..Self::default() };
        }
        self.asked += 1;
        let version = groups.version();
        if let Some(kept) = self.kept.get_mut(&question)
            && let Some(moves) = groups.since(kept.version)
        {
            kept.asked = self.asked;
            kept.version = version;
            let mut moves = moves.peekable();
            if moves.peek().is_some() {
                let tally = Arc::make_mut(&mut kept.tally);
                moves.for_each(|change| tally.follow(change, &snapshot.namespaces));
            }
            return kept.tally.clone();
        }
        let topology = self.topology(question.topology(), snapshot);
        let tally = Arc::new(Tally::new(&question, topology, asker, snapshot));
        self.make_room();
        self.kept.insert(question, Kept { tally: tally.clone(), version, asked: self.asked });
        tally
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    fn topology(&mut self, key: &str, snapshot: &Snapshot) -> Arc<Topology> {
        if let Some(known) = self.topologies.get(key) {
            return known.clone();
        }
        let fresh = Arc::new(Topology::of(key, snapshot));
        if self.topologies.len() >= MAX_TALLIES {
            self.topologies.clear();
        }
        self.topologies.insert(key.to_owned(), fresh.clone());
        fresh
    }

    fn make_room(&mut self) {
        while self.kept.len() >= MAX_TALLIES {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.asked).map(|(q, _)| q.clone());
            oldest.and_then(|question| self.kept.remove(&question));
        }
    }
}

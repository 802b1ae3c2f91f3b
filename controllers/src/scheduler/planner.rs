//! The scheduler's choice without an API: nodes and pods go in, names of nodes come out. For
//! simulations, benches and questions of the kind "would it fit".

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::base::uid;

use super::{
    Cluster, Cycle, Given, PodInfo, Profile, Tallies, choose,
    explain::{self, Rejection},
};

/// An account of nodes and the pods on them, and where the next search begins.
#[derive(Debug, Default)]
pub struct Planner {
    cluster: Cluster,
    tallies: Tallies,
    profile: Profile,
    start: usize,
}

impl Planner {
    /// Chooses in the way of a profile.
    pub fn new(profile: Profile) -> Self {
        Self { profile, ..Self::default() }
    }

    /// Takes a node in, or its newer state.
    pub fn put_node(&mut self, node: Node) {
        self.cluster.put_node(Arc::new(node));
    }

    /// Chooses a node for a pod, which counts on it from now on.
    ///
    /// # Errors
    /// Why there is none, in the words of the event that users know.
    pub fn assign(&mut self, pod: Pod) -> Result<String, String> {
        let pod = Arc::new(PodInfo::new(Arc::new(pod)));
        let snapshot = self.cluster.snapshot();
        let cycle = Cycle::new(&pod, &snapshot, &Given::default(), &mut self.tallies);
        match choose(&pod, &snapshot, &cycle, &self.profile, self.start) {
            Ok((place, next)) => {
                let node = snapshot.nodes[place].name.clone();
                drop((snapshot, cycle));
                self.start = next;
                self.cluster.place(&node, pod);
                Ok(node)
            }
            Err(rejections) => {
                let all: Vec<Rejection> = rejections.into_iter().map(|(_, r)| r).collect();
                Err(explain::message(snapshot.nodes.len(), &all))
            }
        }
    }

    /// Takes a pod off its node; whether it was on one.
    pub fn remove(&mut self, pod: &Pod) -> bool {
        self.cluster.remove_pod(uid(pod)).is_some()
    }
}

//! How the scheduler runs, and what its profiles prefer.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::{
    pod::{DEFAULT_SCHEDULER, scheduler_of},
    score,
};
use crate::base::{Error, Result};

/// How full nodes are to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Pods go where most is free.
    #[default]
    LeastAllocated,
    /// Nodes are filled one by one.
    MostAllocated,
}

/// A way of choosing, under a name that pods ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// `schedulerName` of its pods.
    pub name: String,
    /// How full nodes are to be.
    pub strategy: Strategy,
    /// Weights of scores by the name of their plugin, where they are not the usual ones; 0 for none.
    pub weights: BTreeMap<String, i64>,
}

impl Default for Profile {
    fn default() -> Self {
        Self { name: DEFAULT_SCHEDULER.into(), strategy: Strategy::default(), weights: BTreeMap::new() }
    }
}

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its profiles. Pods of other names are somebody else's.
    pub profiles: Vec<Profile>,
    /// Bindings, and reports about pods that fit nowhere, under way at once.
    pub max_in_flight: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { profiles: vec![Profile::default()], max_in_flight: 256 }
    }
}

impl Settings {
    /// Checks names and weights.
    ///
    /// # Errors
    /// When there is no profile, two have the same name, or one weighs what is not there.
    pub fn check(&self) -> Result<()> {
        if self.profiles.is_empty() {
            return Err(Error::Invalid("the scheduler has no profile".into()));
        }
        for (i, profile) in self.profiles.iter().enumerate() {
            if self.profiles[..i].iter().any(|other| other.name == profile.name) {
                return Err(Error::Invalid(format!("two profiles are named {:?}", profile.name)));
            }
            if let Some((name, weight)) =
                profile.weights.iter().find(|(name, w)| !score::is_known(name) || **w < 0)
            {
                let message =
                    format!("profile {:?}: {weight} is no weight of a score plugin {name:?}", profile.name);
                return Err(Error::Invalid(message));
            }
        }
        Ok(())
    }

    pub(super) fn profile_of(&self, pod: &Pod) -> Option<&Profile> {
        let name = scheduler_of(pod);
        self.profiles.iter().find(|p| p.name == name)
    }
}

//! Sees to it that of many processes one leads: by a Lease that the leader renews.
//!
//! Whether a lease has run out is judged on this process's clock, from when its holder was
//! last seen to renew it, so that clocks of different machines do not matter. A leader that
//! cannot renew in time stops what it leads, and cuts off what does not stop, before another
//! may begin.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::{Clock, Error, Key, Result};

/// What is run for, and as whom.
#[derive(Clone, Debug)]
pub struct Election {
    /// The lease's namespace.
    pub namespace: String,
    /// The lease's name: what is led.
    pub name: String,
    /// Who this is: another process must not have the same.
    pub identity: String,
    /// How long a lease is good without being renewed.
    pub lease: Duration,
    /// How long a leader tries to renew before it gives up; less than `lease`.
    pub renew: Duration,
    /// How long between two tries.
    pub retry: Duration,
}

impl Election {
    /// With kube-controller-manager's times.
    pub fn new(name: &str, identity: String) -> Self {
        Self {
            namespace: "kube-system".into(),
            name: name.into(),
            identity,
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }

    fn key(&self) -> Key {
        Key::new(&*self.namespace, &*self.name)
    }
}

/// A lease as last seen, and when it was first seen so.
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

struct Candidate<'a> {
    api: Api<Lease>,
    election: &'a Election,
    clock: Clock,
    seen: Option<Seen>,
}

/// Runs `work` whenever this process leads, until `stop`; the token it is given ends when it
/// leads no longer, and what has not ended when the lease runs out is dropped. Gives the lease
/// back at the end.
///
/// # Errors
/// What `work` fails with. That the API cannot be reached is waited out.
pub async fn lead<F, Fut>(
    client: Client,
    election: &Election,
    clock: Clock,
    stop: CancellationToken,
    work: F,
) -> Result<()>
where
    F: Fn(CancellationToken) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let api = Api::namespaced(client, &election.namespace);
    let mut candidate = Candidate { api, election, clock, seen: None };
    while stop.run_until_cancelled(candidate.win()).await.is_some() {
        tracing::info!(lease = %election.key(), identity = election.identity, "leads");
        let term = stop.child_token();
        let mut working = Box::pin(work(term.clone()));
        let ended = tokio::select! {
            ended = &mut working => Some(ended),
            () = candidate.keep() => None,
            () = stop.cancelled() => None,
        };
        term.cancel();
        let outcome = match ended {
            Some(outcome) => outcome,
            // So much is left of the lease at least.
            None => {
                let left = election.lease.saturating_sub(election.renew);
                tokio::time::timeout(left, &mut working).await.unwrap_or_else(|_| {
                    tracing::error!(lease = %election.key(), "what was led did not end in time");
                    Ok(())
                })
            }
        };
        // Also what did not end.
        drop(working);
        if stop.is_cancelled() || outcome.is_err() {
            candidate.resign().await;
            return outcome;
        }
        tracing::warn!(lease = %election.key(), "leads no longer");
    }
    Ok(())
}

impl Candidate<'_> {
    /// Returns once the lease is ours.
    async fn win(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot run for the lease");
                }
            }
            tokio::time::sleep(self.election.retry).await;
        }
    }

    /// Renews the lease; returns once that has failed for too long or somebody else has it.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.election.retry).await;
            let left = (renewed + self.election.renew).saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot renew the lease");
                }
            }
            if renewed.elapsed() >= self.election.renew {
                return;
            }
        }
    }

    /// One try to get or to renew the lease; whether it is ours now.
    async fn attempt(&mut self) -> Result<bool> {
        let found = self.api.get_opt(&self.election.name).await.map_err(|e| self.failed("read", e))?;
        let now = MicroTime(self.clock.now().0);
        let Some(mut lease) = found else {
            return self.write(None, claim(self.election, None, now)).await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|s| s.spec != spec) {
            self.seen = Some(Seen { spec: spec.clone(), at: Instant::now() });
        }
        if !is_free(&spec, self.election, self.seen.as_ref().map(|s| s.at.elapsed()).unwrap_or_default()) {
            return Ok(false);
        }
        lease.spec = Some(claim(self.election, Some(&spec), now));
        let wanted = lease.spec.clone().unwrap_or_default();
        self.write(Some(lease), wanted).await
    }

    async fn write(&mut self, old: Option<Lease>, spec: LeaseSpec) -> Result<bool> {
        let written = match old {
            Some(lease) => self.api.replace(&self.election.name, &PostParams::default(), &lease).await,
            None => {
                let metadata = ObjectMeta { name: Some(self.election.name.clone()), ..Default::default() };
                let lease = Lease { metadata, spec: Some(spec) };
                self.api.create(&PostParams::default(), &lease).await
            }
        };
        match written.map_err(|e| self.failed("write", e)) {
            Ok(lease) => {
                self.seen = lease.spec.map(|spec| Seen { spec, at: Instant::now() });
                Ok(true)
            }
            // Somebody else was quicker.
            Err(error) if error.is_conflict() || error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets the next one begin at once.
    async fn resign(&mut self) {
        let give_back = async {
            let Ok(Some(mut lease)) = self.api.get_opt(&self.election.name).await else { return };
            let Some(spec) =
                lease.spec.as_mut().filter(|s| s.holder_identity.as_ref() == Some(&self.election.identity))
            else {
                return;
            };
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            if let Err(error) = self.api.replace(&self.election.name, &PostParams::default(), &lease).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the lease was not given back");
            }
        };
        let _ = tokio::time::timeout(self.election.retry, give_back).await;
    }

    fn failed(&self, verb: &'static str, error: kube::Error) -> Error {
        Error::api(verb, "Lease", self.election.key(), error)
    }
}

/// Whether a lease that has been as it is for `unchanged` may be taken, or is ours.
fn is_free(spec: &LeaseSpec, election: &Election, unchanged: Duration) -> bool {
    let holder = spec.holder_identity.as_deref().unwrap_or("");
    let good = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    holder.is_empty() || holder == election.identity || unchanged >= Duration::from_secs(good)
}

/// The lease as its holder writes it.
fn claim(election: &Election, old: Option<&LeaseSpec>, now: MicroTime) -> LeaseSpec {
    let ours = old.is_some_and(|o| o.holder_identity.as_ref() == Some(&election.identity));
    let count = old.and_then(|o| o.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(election.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(election.lease.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: old.filter(|_| ours).and_then(|o| o.acquire_time.clone()).or(Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(if ours || old.is_none() { count } else { count.saturating_add(1) }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(who: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(who.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..Default::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_has_run_out() {
        let me = Election::new("x", "me".into());
        let free = |who: &str, seconds| is_free(&held_by(who), &me, Duration::from_secs(seconds));
        assert!(free("me", 0) && free("", 0) && free("other", 15));
        assert!(!free("other", 14));
    }

    #[test]
    fn a_change_of_hands_is_counted() {
        let me = Election::new("x", "me".into());
        let now = MicroTime("2026-01-01T00:00:00Z".parse().unwrap());
        let transitions = |old: Option<&LeaseSpec>| claim(&me, old, now.clone()).lease_transitions;
        assert_eq!(transitions(None), Some(0));
        assert_eq!(transitions(Some(&held_by("other"))), Some(4));
        assert_eq!(transitions(Some(&held_by("me"))), Some(3));
    }
}

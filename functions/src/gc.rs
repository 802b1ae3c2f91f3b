//! Which revisions of a configuration are marked as routed to, and which are deleted.

use std::{sync::Arc, time::Duration};

use kube::ResourceExt;
use wasmk_api::{
    Timestamp,
    knative::{
        NO_GC_ANNOTATION, ROUTES_ANNOTATION, ROUTING_MODIFIED_ANNOTATION, ROUTING_STATE_LABEL, Revision,
        Route, annotation, label,
    },
};

use crate::{config::Gc, rollout::Rollouts};

/// Whether routes lead to a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    /// It is new, and none has led to it yet.
    Pending,
    /// These lead to it.
    Active(Vec<String>),
    /// None does.
    Reserve,
}

/// The state of a revision, given its namespace's routes. `latest`: it is its configuration's newest.
pub(crate) fn routing<'a>(
    revision: &Revision,
    latest: bool,
    routes: impl Iterator<Item = &'a Route>,
) -> Routing {
    let name = revision.name_any();
    let leads = |route: &&Route| {
        let status = route.status.iter().flat_map(|s| &s.traffic);
        let mut targets = route.spec.traffic.iter().chain(status);
        targets.any(|t| t.revision_name.as_ref() == Some(&name))
            || Rollouts::of(route).revisions().any(|r| r == name)
    };
    let mut names: Vec<String> = routes.filter(leads).map(ResourceExt::name_any).collect();
    names.sort();
    let routed = matches!(label(&revision.metadata, ROUTING_STATE_LABEL), Some("active" | "reserve"));
    match names.is_empty() {
        false => Routing::Active(names),
        true if latest && !routed => Routing::Pending,
        true => Routing::Reserve,
    }
}

impl Routing {
    fn label(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active(_) => "active",
            Self::Reserve => "reserve",
        }
    }

    /// What must change in a revision's metadata to say so; nothing when it does.
    pub(crate) fn patch(&self, revision: &Revision, now: Timestamp) -> Option<serde_json::Value> {
        let routes = match self {
            Self::Active(routes) => Some(routes.join(",")),
            _ => None,
        };
        let same = label(&revision.metadata, ROUTING_STATE_LABEL) == Some(self.label());
        if same && annotation(&revision.metadata, ROUTES_ANNOTATION) == routes.as_deref() {
            return None;
        }
        let mut annotations = serde_json::json!({ROUTES_ANNOTATION: routes});
        if !same {
            annotations[ROUTING_MODIFIED_ANNOTATION] = now.to_string().into();
        }
        Some(serde_json::json!({"labels": {ROUTING_STATE_LABEL: self.label()}, "annotations": annotations}))
    }
}

/// When a revision last had a route, or was made.
fn last_active(revision: &Revision) -> Option<Timestamp> {
    let modified = annotation(&revision.metadata, ROUTING_MODIFIED_ANNOTATION).and_then(|t| t.parse().ok());
    modified.or_else(|| created(revision))
}

fn created(revision: &Revision) -> Option<Timestamp> {
    revision.metadata.creation_timestamp.as_ref().and_then(|t| t.0.to_string().parse().ok())
}

/// The revisions that are to go, oldest first. `latest_ready` always stays.
pub(crate) fn surplus(
    revisions: &[Arc<Revision>],
    latest_ready: Option<&str>,
    rules: &Gc,
    now: Timestamp,
) -> Vec<String> {
    let idle = |r: &&Arc<Revision>| {
        Some(&*r.name_any()) != latest_ready
            && label(&r.metadata, ROUTING_STATE_LABEL) == Some("reserve")
            && !annotation(&r.metadata, NO_GC_ANNOTATION).is_some_and(|v| v.eq_ignore_ascii_case("true"))
    };
    let mut idle: Vec<&Arc<Revision>> = revisions.iter().filter(idle).collect();
    idle.sort_by_key(|r| last_active(r));
    let past = |time: Option<Timestamp>, kept: Option<Duration>| match (time, kept) {
        (_, None) => true,
        (Some(time), Some(kept)) => now.since(time) >= kept,
        (None, Some(_)) => false,
    };
    let timed = rules.since_create.is_some() || rules.since_active.is_some();
    let stale = |r: &&Arc<Revision>| {
        timed && past(created(r), rules.since_create) && past(last_active(r), rules.since_active)
    };
    let most = idle.len().saturating_sub(rules.min);
    let (old, rest): (Vec<_>, Vec<_>) = idle.into_iter().partition(stale);
    let mut gone: Vec<_> = old.iter().copied().take(most).collect();
    if gone.len() < most
        && let Some(max) = rules.max
    {
        let left = rest.len() + old.len() - gone.len();
        gone.extend(rest.into_iter().take(left.saturating_sub(max).min(most - gone.len())));
    }
    gone.into_iter().map(|r| r.name_any()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Hours since the beginning of the tests' time.
    const NOW: u32 = 240;

    fn at(hours: u32) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap().after(HOUR * hours)
    }

    fn now() -> Timestamp {
        at(NOW)
    }

    /// A revision made and last active so many hours ago.
    fn revision(name: &str, state: &str, made: u32, active: u32) -> Revision {
        let ago = |hours: u32| at(NOW - hours).to_string();
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": ago(made), "labels": {ROUTING_STATE_LABEL: state},
                "annotations": {ROUTING_MODIFIED_ANNOTATION: ago(active)}},
            "spec": {"containers": []},
        }))
        .unwrap()
    }

    fn check(rules: Gc, revisions: &[Revision], expected: &[&str]) {
        let revisions: Vec<_> = revisions.iter().cloned().map(Arc::new).collect();
        assert_eq!(surplus(&revisions, Some("latest"), &rules, now()), expected, "{rules:?}");
    }

    #[test]
    fn only_what_is_old_idle_and_too_much_goes() {
        let all = [
            revision("a", "reserve", 100, 90),
            revision("b", "reserve", 100, 95),
            revision("busy", "active", 100, 100),
            revision("young", "reserve", 10, 1),
            revision("latest", "reserve", 100, 100),
        ];
        let rules = Gc { min: 1, ..Gc::default() };
        check(rules.clone(), &all, &["b", "a"]);
        check(Gc { min: 2, ..rules.clone() }, &all, &["b"]);
        check(Gc { min: 20, ..rules.clone() }, &all, &[]);
        check(Gc { since_create: None, since_active: None, ..rules.clone() }, &all, &[]);
        check(Gc { min: 0, max: Some(0), ..rules }, &all, &["b", "a", "young"]);
    }

    #[test]
    fn what_must_not_go_says_so() {
        let mut kept = revision("kept", "reserve", 100, 100);
        kept.annotations_mut().insert(NO_GC_ANNOTATION.into(), "true".into());
        check(Gc { min: 0, ..Gc::default() }, &[kept, revision("a", "reserve", 99, 99)], &["a"]);
    }

    #[test]
    fn routes_make_revisions_active() {
        let route: Route = serde_json::from_value(json!({
            "metadata": {"name": "hello"}, "spec": {},
            "status": {"traffic": [{"revisionName": "a", "percent": 100}]},
        }))
        .unwrap();
        let of = |revision: &Revision, latest| routing(revision, latest, [&route].into_iter());
        let state = |name: &str, latest| of(&revision(name, "", 1, 1), latest);
        assert_eq!(state("a", true), Routing::Active(vec!["hello".into()]));
        assert_eq!(state("b", true), Routing::Pending);
        assert_eq!(state("b", false), Routing::Reserve);
        let mut ready = revision("b", "pending", 1, 1);
        ready.status =
            serde_json::from_value(json!({"conditions": [{"type": "Ready", "status": "True"}]})).ok();
        assert_eq!(of(&ready, true), Routing::Pending, "a route is about to lead to it");
        assert_eq!(of(&revision("b", "active", 1, 1), true), Routing::Reserve, "none does any more");
        let patch = state("a", true).patch(&revision("a", "pending", 1, 1), now()).unwrap();
        assert_eq!(patch["annotations"][ROUTES_ANNOTATION], "hello");
        assert_eq!(patch["labels"][ROUTING_STATE_LABEL], "active");
    }
}

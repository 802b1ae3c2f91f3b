//! Conditions in Knative's manner: a set of them decides over `Ready`.

use wasmk_api::{Timestamp, knative::Condition};

/// What is known of one aspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It holds.
    True,
    /// It does not, and will not without a change: reason and message.
    False(String, String),
    /// Not known yet: reason and message.
    Unknown(String, String),
}

impl State {
    /// Fails for that reason.
    pub(crate) fn failed(reason: &str, message: impl Into<String>) -> Self {
        Self::False(reason.into(), message.into())
    }

    /// Not known yet for that reason.
    pub(crate) fn waiting(reason: &str, message: impl Into<String>) -> Self {
        Self::Unknown(reason.into(), message.into())
    }

    fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Self::True => ("True", "", ""),
            Self::False(reason, message) => ("False", reason, message),
            Self::Unknown(reason, message) => ("Unknown", reason, message),
        }
    }
}

/// The conditions of an object, sorted by type, with `Ready` computed from those that count: false when
/// one is false, unknown when one is unknown, else true. Times stay where the status stays.
pub(crate) fn assemble(
    old: &[Condition],
    counting: &[(&str, State)],
    info: &[(&str, State)],
    now: Timestamp,
) -> Vec<Condition> {
    let ready = counting
        .iter()
        .map(|(_, s)| s)
        .find(|s| matches!(s, State::False(..)))
        .or_else(|| counting.iter().map(|(_, s)| s).find(|s| matches!(s, State::Unknown(..))))
        .cloned()
        .unwrap_or(State::True);
    let mut all: Vec<Condition> = counting.iter().map(|(t, s)| one(old, t, s, "", now)).collect();
    all.extend(info.iter().map(|(t, s)| one(old, t, s, "Info", now)));
    all.push(one(old, "Ready", &ready, "", now));
    all.sort_by(|a, b| a.type_.cmp(&b.type_));
    all
}

/// The one condition of an object that has no other.
pub(crate) fn only(old: &[Condition], type_: &str, state: &State, now: Timestamp) -> Vec<Condition> {
    vec![one(old, type_, state, "", now)]
}

fn one(old: &[Condition], type_: &str, state: &State, severity: &str, now: Timestamp) -> Condition {
    let (status, reason, message) = state.parts();
    let since =
        old.iter().find(|c| c.type_ == type_ && c.status == status).map(|c| c.last_transition_time.clone());
    Condition {
        type_: type_.into(),
        status: status.into(),
        severity: severity.into(),
        last_transition_time: since.unwrap_or_else(|| now.to_string()),
        reason: reason.into(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(states: &[State]) -> String {
        let names = ["A", "B", "C"];
        let counting: Vec<_> = names.into_iter().zip(states.iter().cloned()).collect();
        let all = assemble(&[], &counting, &[("Z", State::failed("Off", ""))], Timestamp::now());
        all.into_iter().find(|c| c.type_ == "Ready").unwrap().status
    }

    #[test]
    fn ready_is_the_worst_that_counts() {
        let (yes, no, maybe) = (State::True, State::failed("No", "n"), State::waiting("Wait", "w"));
        assert_eq!(ready(&[yes.clone(), yes.clone()]), "True");
        assert_eq!(ready(&[yes.clone(), maybe.clone()]), "Unknown");
        assert_eq!(ready(&[maybe, no, yes]), "False");
    }

    #[test]
    fn times_stay_while_the_status_stays() {
        let early: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let late: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let first = assemble(&[], &[("A", State::True)], &[], early);
        let same = assemble(&first, &[("A", State::True)], &[], late);
        assert_eq!(first, same);
        let changed = assemble(&first, &[("A", State::failed("X", ""))], &[], late);
        assert!(changed.iter().all(|c| c.last_transition_time == late.to_string()));
    }
}

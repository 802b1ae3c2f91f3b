//! How often each call was made, how it went, and how long it took.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

/// What was seen of one kind of call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls that are over.
    pub calls: u64,
    /// Those of them that did not succeed.
    pub errors: u64,
    /// Their time together.
    pub time: Duration,
}

/// Tallies by name; there are as many as the interface has calls. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(Arc<Mutex<BTreeMap<&'static str, Tally>>>);

impl Calls {
    pub(crate) fn add(&self, call: &'static str, took: Duration, succeeded: bool) {
        tracing::trace!(call, succeeded, micros = took.as_micros(), "asked the container runtime");
        let mut all = self.0.lock();
        let tally = all.entry(call).or_default();
        tally.calls += 1;
        tally.errors += u64::from(!succeeded);
        tally.time += took;
    }

    pub(crate) fn list(&self) -> Vec<(&'static str, Tally)> {
        self.0.lock().iter().map(|(call, tally)| (*call, *tally)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_name() {
        let calls = Calls::default();
        for (call, millis, succeeded) in [("b", 5, true), ("a", 1, true), ("b", 7, false)] {
            calls.clone().add(call, Duration::from_millis(millis), succeeded);
        }
        let tally = |calls, errors, millis| Tally { calls, errors, time: Duration::from_millis(millis) };
        assert_eq!(calls.list(), [("a", tally(1, 0, 1)), ("b", tally(2, 1, 12))]);
    }
}

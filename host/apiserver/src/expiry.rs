//! The end of events: what nobody has written for a while is deleted.
//!
//! Events say nothing to a machine that it could not find out otherwise, and there is no end to them. How old one is
//! is told by its revision alone: one task remembers which revisions there were when, and reads no object.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use wasmk_store::Txn;

use crate::{
    cache::{self, Filter, ROOT},
    server::Core,
};

/// Where events are, of either group.
pub(crate) const EVENTS: &str = "core/events";
/// How often is looked within the time an event lives: it may live longer by so much of it.
const LOOKS: u32 = 12;
/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(50);

/// The revisions of the last looks, oldest first.
#[derive(Default)]
struct Marks(VecDeque<u64>);

impl Marks {
    /// Notes the present revision; answers that of [`LOOKS`] looks before, once there were as many.
    fn look(&mut self, revision: u64) -> Option<u64> {
        self.0.push_back(revision);
        if self.0.len() > LOOKS as usize { self.0.pop_front() } else { None }
    }
}

/// Deletes events that were not written for `life`, for as long as the server runs. Those that are there when it
/// starts live once more as long; several servers on one store do each other no harm.
pub(crate) async fn follow(core: Arc<Core>, life: Duration) {
    let mut marks = Marks::default();
    loop {
        if let Some(revision) = marks.look(core.caches.revision()) {
            expire(&core, revision).await;
        }
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            () = tokio::time::sleep((life / LOOKS).max(SHORTEST)) => {}
        }
    }
}

/// Deletes the events that have not changed since a revision.
async fn expire(core: &Core, revision: u64) {
    let events = core.caches.of(EVENTS).list(&Filter::default());
    for event in events.iter().filter(|event| event.revision <= revision) {
        let key = format!("{ROOT}{EVENTS}/{}", cache::key(&event.namespace, &event.name));
        // One that is written in this moment stays: then the condition does not hold.
        let deleted = core.config.store.txn(Txn::delete(key, event.revision).relaxed()).await;
        if let Err(error) = deleted {
            return tracing::warn!(%error, "old events could not be deleted; it is tried again later");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_old_after_all_looks() {
        let mut marks = Marks::default();
        for at in 0..u64::from(LOOKS) {
            assert_eq!(marks.look(at + 1), None);
        }
        assert_eq!(marks.look(50), Some(1));
        assert_eq!(marks.look(51), Some(2));
    }
}

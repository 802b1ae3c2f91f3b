//! Room for events that are being delivered, shared out so that one slow subscriber does not take it all.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// Events under way at a time. Clones are the same room.
#[derive(Clone)]
pub(super) struct UnderWay(Arc<Inner>);

struct Inner {
    most: usize,
    share: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    /// By who has any.
    by_owner: HashMap<String, usize>,
}

/// Room for one event, until it is dropped.
pub(super) struct Room {
    inner: Arc<Inner>,
    owner: String,
}

impl UnderWay {
    /// For `most` events. Every owner can have `share` of them as long as there is any room, and more
    /// while more than half of it is free.
    pub(super) fn new(most: usize, share: usize) -> Self {
        Self(Arc::new(Inner { most, share, taken: Mutex::default() }))
    }

    /// Room for an event of a broker or source; `None` when it has too many under way.
    pub(super) fn take(&self, owner: &str) -> Option<Room> {
        let mut taken = self.0.taken.lock();
        let free = self.0.most - taken.all;
        let own = taken.by_owner.get(owner).copied().unwrap_or(0);
        if free == 0 || (own >= self.0.share && free <= self.0.most / 2) {
            return None;
        }
        taken.all += 1;
        taken.by_owner.insert(owner.to_owned(), own + 1);
        Some(Room { inner: self.0.clone(), owner: owner.to_owned() })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = self.inner.taken.lock();
        taken.all -= 1;
        if let Some(own) = taken.by_owner.get_mut(&self.owner) {
            *own -= 1;
            if *own == 0 {
                taken.by_owner.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_much_leaves_room_for_the_others() {
        let under_way = UnderWay::new(16, 2);
        let take = |owner: &str| std::iter::from_fn(|| under_way.take(owner)).collect::<Vec<_>>();
        let greedy = take("greedy");
        assert_eq!(greedy.len(), 8, "half of it is for who has less");
        let others: Vec<_> = ["a", "b", "c", "d", "e"].map(take).into();
        assert_eq!(others.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 2, 0]);
        drop(greedy);
        assert_eq!(take("a").len(), 0, "it has its share, and half is taken");
        drop(others);
        assert!(under_way.0.taken.lock().by_owner.is_empty());
        assert_eq!(take("a").len(), 8);
    }
}

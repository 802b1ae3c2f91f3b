//! The queues of priority levels: who gets a seat, who waits, and who is turned away.
//!
//! Each level has a number of seats; what others lend it while they do not need it comes on top. Requests that find
//! no seat wait in one of a few queues that their flow is dealt, the shortest of them; free seats go round the
//! queues fairly, so that a flow which fills its queues leaves the others' alone.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The settings of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Seats of its own.
    pub(super) seats: usize,
    /// How many of them others may use while it does not.
    pub(super) lendable: usize,
    /// Queues, how many of them a flow is dealt, and their longest length; `None`: nobody waits.
    pub(super) queuing: Option<(usize, usize, usize)>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<oneshot::Sender<Seat>>,
    /// How much service it has had, in the level's virtual time.
    served: u64,
}

struct Level {
    limits: Limits,
    taken: usize,
    queues: Vec<Queue>,
    waiting: usize,
    clock: u64,
    dispatched: u64,
    rejected: u64,
}

/// All levels.
#[derive(Default)]
pub(super) struct Levels(Mutex<HashMap<Box<str>, Level>>);

/// A seat in a level, given back when it is dropped.
pub(super) struct Seat {
    levels: Arc<Levels>,
    level: Box<str>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.levels.free(&self.level);
    }
}

/// A place in a queue, given up when it is dropped.
pub(super) struct Place {
    levels: Arc<Levels>,
    level: Box<str>,
    queue: usize,
    receiver: oneshot::Receiver<Seat>,
    /// Whether the queue has let go of it.
    left: bool,
}

impl Place {
    /// Waits for a seat; `None` when there will be none.
    pub(super) async fn seat(mut self) -> Option<Seat> {
        let seat = (&mut self.receiver).await;
        self.left = true;
        seat.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.left {
            self.receiver.close();
            self.levels.leave(&self.level, self.queue);
        }
    }
}

/// What a request finds.
pub(super) enum Admission {
    /// A seat.
    Seat(Seat),
    /// A place in a queue.
    Wait(Place),
    /// Neither.
    Full,
}

/// Numbers of a level, for metrics.
pub(super) struct Numbers {
    pub(super) level: Box<str>,
    pub(super) seats: usize,
    pub(super) executing: usize,
    pub(super) waiting: usize,
    pub(super) dispatched: u64,
    pub(super) rejected: u64,
}

impl Level {
    fn new(limits: Limits) -> Self {
        let queues = limits.queuing.map_or(0, |q| q.0);
        Self {
            limits,
            taken: 0,
            queues: (0..queues).map(|_| Queue::default()).collect(),
            waiting: 0,
            clock: 0,
            dispatched: 0,
            rejected: 0,
        }
    }

    /// Seats it lends while it does not need them itself.
    fn spare(&self) -> usize {
        let idle = if self.waiting > 0 { 0 } else { self.limits.seats.saturating_sub(self.taken) };
        idle.min(self.limits.lendable)
    }

    fn borrowed(&self) -> usize {
        self.taken.saturating_sub(self.limits.seats)
    }

    /// The queue a flow waits in: the shortest of those it is dealt.
    fn queue(&self, flow: u64) -> Option<usize> {
        let (queues, hand, length) = self.limits.queuing?;
        let mut left: Vec<usize> = (0..queues).collect();
        let mut cards = flow;
        let mut best: Option<usize> = None;
        for dealt in 0..hand.min(queues) {
            let remaining = (queues - dealt) as u64;
            let at = usize::try_from(cards % remaining).unwrap_or(0);
            cards /= remaining;
            let queue = left.swap_remove(at);
            if best.is_none_or(|b| self.queues[queue].waiting.len() < self.queues[b].waiting.len()) {
                best = Some(queue);
            }
        }
        best.filter(|b| self.queues[*b].waiting.len() < length)
    }

    /// The next that waits: of the queue that has been served least.
    fn next(&mut self) -> Option<oneshot::Sender<Seat>> {
        let waiting = self.queues.iter_mut().filter(|q| !q.waiting.is_empty());
        let queue = waiting.min_by_key(|q| q.served)?;
        self.clock = queue.served;
        queue.served += 1;
        self.waiting -= 1;
        queue.waiting.pop_front()
    }
}

impl Levels {
    /// Takes new settings over. Requests that wait in a level whose queues change are let in; others, as far as there
    /// are seats for them now.
    pub(super) fn set(self: &Arc<Self>, wanted: HashMap<Box<str>, Limits>) {
        let mut let_in = Vec::new();
        let mut all = self.0.lock();
        for (name, limits) in wanted.iter() {
            match all.get_mut(name) {
                Some(level) if level.limits.queuing == limits.queuing => level.limits = limits.clone(),
                Some(level) => {
                    while let Some(next) = level.next() {
                        level.taken += 1;
                        let_in.push((name.clone(), next));
                    }
                    *level = Level { taken: level.taken, ..Level::new(limits.clone()) };
                }
                None => drop(all.insert(name.clone(), Level::new(limits.clone()))),
            }
        }
        // A level that is gone keeps its numbers for as long as requests are in it.
        all.retain(|name, level| wanted.contains_key(name) || level.taken > 0 || level.waiting > 0);
        let_in.extend(dispatch(&mut all, ""));
        drop(all);
        self.seat(let_in);
    }

    /// Asks for a seat for a request of a flow.
    pub(super) fn ask(self: &Arc<Self>, name: &str, schema: &str, distinguisher: &str) -> Admission {
        let mut all = self.0.lock();
        if !all.contains_key(name) {
            return Admission::Full;
        }
        if may_take(&all, name) {
            let Some(level) = all.get_mut(name) else { return Admission::Full };
            level.taken += 1;
            level.dispatched += 1;
            return Admission::Seat(Seat { levels: self.clone(), level: name.into() });
        }
        let Some(level) = all.get_mut(name) else { return Admission::Full };
        let mut hasher = DefaultHasher::new();
        (schema, distinguisher).hash(&mut hasher);
        let Some(at) = level.queue(hasher.finish()) else {
            level.rejected += 1;
            return Admission::Full;
        };
        let (sender, receiver) = oneshot::channel();
        let clock = level.clock;
        let queue = &mut level.queues[at];
        if queue.waiting.is_empty() {
            // Whoever was away has no claim to what it did not use.
            queue.served = queue.served.max(clock);
        }
        queue.waiting.push_back(sender);
        level.waiting += 1;
        Admission::Wait(Place { levels: self.clone(), level: name.into(), queue: at, receiver, left: false })
    }

    /// Counts a request that waited too long.
    pub(super) fn gave_up(&self, name: &str) {
        if let Some(level) = self.0.lock().get_mut(name) {
            level.rejected += 1;
        }
    }

    fn free(self: &Arc<Self>, name: &str) {
        let mut all = self.0.lock();
        if let Some(level) = all.get_mut(name) {
            level.taken = level.taken.saturating_sub(1);
        }
        let given = dispatch(&mut all, name);
        drop(all);
        self.seat(given);
    }

    /// Makes room in a queue that somebody has left.
    fn leave(self: &Arc<Self>, name: &str, queue: usize) {
        let mut all = self.0.lock();
        let Some(level) = all.get_mut(name) else { return };
        let Some(queue) = level.queues.get_mut(queue) else { return };
        let before = queue.waiting.len();
        queue.waiting.retain(|waiter| !waiter.is_closed());
        level.waiting -= before - queue.waiting.len();
        // A level nobody waits in any more may lend its seats again.
        let given = if level.waiting == 0 { dispatch(&mut all, "") } else { Vec::new() };
        drop(all);
        self.seat(given);
    }

    /// Gives out seats that are counted already. Not under the lock: a seat that nobody takes comes back at once.
    fn seat(self: &Arc<Self>, given: Vec<Given>) {
        for (level, sender) in given {
            // Whoever stopped waiting in this moment gives the seat back by dropping it.
            let _ = sender.send(Seat { levels: self.clone(), level });
        }
    }

    /// The numbers of all levels.
    pub(super) fn numbers(&self) -> Vec<Numbers> {
        let all = self.0.lock();
        let one = |(name, level): (_, &Level)| Numbers {
            level: Box::clone(name),
            seats: level.limits.seats,
            executing: level.taken,
            waiting: level.waiting,
            dispatched: level.dispatched,
            rejected: level.rejected,
        };
        all.iter().map(one).collect()
    }
}

/// A seat in a level, and who gets it.
type Given = (Box<str>, oneshot::Sender<Seat>);

/// Counts free seats as taken by those who wait: first in one level, then in those it lends to.
fn dispatch(all: &mut HashMap<Box<str>, Level>, first: &str) -> Vec<Given> {
    let mut given = Vec::new();
    let others = all.iter().filter(|(name, level)| level.waiting > 0 && name.as_ref() != first);
    let others: Vec<Box<str>> = others.map(|(name, _)| name.clone()).collect();
    for candidate in std::iter::once(Box::from(first)).chain(others) {
        while all.get(&candidate).is_some_and(|level| level.waiting > 0) && may_take(all, &candidate) {
            let Some(level) = all.get_mut(&candidate) else { break };
            let Some(next) = level.next() else { break };
            if next.is_closed() {
                continue;
            }
            level.taken += 1;
            level.dispatched += 1;
            given.push((candidate.clone(), next));
        }
    }
    given
}

/// Whether a level has a seat left, of its own or lent by others.
fn may_take(all: &HashMap<Box<str>, Level>, name: &str) -> bool {
    let Some(level) = all.get(name) else { return false };
    if level.taken < level.limits.seats {
        // Seats lent out are missed until they come back.
        return true;
    }
    let spare: usize = all.iter().filter(|(n, _)| n.as_ref() != name).map(|(_, l)| l.spare()).sum();
    let borrowed: usize = all.values().map(Level::borrowed).sum();
    spare > borrowed
}

#[cfg(test)]
mod tests {
    use super::*;

    type Queuing = Option<(usize, usize, usize)>;

    fn levels(all: &[(&str, usize, usize, Queuing)]) -> Arc<Levels> {
        let levels = Arc::new(Levels::default());
        let limits = |(name, seats, lendable, queuing): &(&str, usize, usize, Queuing)| {
            (Box::from(*name), Limits { seats: *seats, lendable: *lendable, queuing: *queuing })
        };
        levels.set(all.iter().map(limits).collect());
        levels
    }

    fn seat(admission: Admission) -> Seat {
        match admission {
            Admission::Seat(seat) => seat,
            Admission::Wait(_) => panic!("it has to wait"),
            Admission::Full => panic!("it is turned away"),
        }
    }

    fn place(admission: Admission) -> Place {
        match admission {
            Admission::Wait(place) => place,
            _ => panic!("it does not wait"),
        }
    }

    #[test]
    fn a_flow_that_fills_its_queue_leaves_others_alone() {
        let levels = levels(&[("a", 1, 0, Some((64, 1, 3)))]);
        let first = seat(levels.ask("a", "s", "loud"));
        let mut loud: Vec<_> = (0..3).map(|_| place(levels.ask("a", "s", "loud"))).collect();
        assert!(matches!(levels.ask("a", "s", "loud"), Admission::Full));
        // Some other user is dealt another queue.
        let quiet =
            (0..100).map(|i| format!("quiet-{i}")).find_map(|user| match levels.ask("a", "s", &user) {
                Admission::Wait(place) => Some(place),
                _ => None,
            });
        let mut quiet = quiet.expect("every queue is the loud one's");
        drop(first);
        let mut order = Vec::new();
        for _ in 0..4 {
            let (who, seat) = loud
                .iter_mut()
                .map(|p| ("loud", p))
                .chain([("quiet", &mut quiet)])
                .find_map(|(who, place)| place.receiver.try_recv().ok().map(|seat| (who, seat)))
                .expect("somebody is next");
            order.push(who);
            drop(seat);
        }
        assert!(order[..2].contains(&"quiet"), "{order:?}");
        assert_eq!(levels.numbers()[0].executing, 0);
    }

    #[test]
    fn idle_levels_lend_seats_and_get_them_back() {
        let levels = levels(&[("busy", 1, 0, Some((1, 1, 10))), ("idle", 4, 2, Some((1, 1, 10)))]);
        let own = seat(levels.ask("busy", "s", ""));
        let lent: Vec<_> = (0..2).map(|_| seat(levels.ask("busy", "s", ""))).collect();
        let mut waits = place(levels.ask("busy", "s", ""));
        let used: Vec<_> = (0..4).map(|_| seat(levels.ask("idle", "s", ""))).collect();
        drop(lent);
        assert!(waits.receiver.try_recv().is_err(), "the lender needs its seats itself");
        drop(own);
        assert!(waits.receiver.try_recv().is_ok());
        drop(used);
    }

    #[test]
    fn those_who_left_are_passed_over_and_changes_let_everybody_in() {
        let levels = levels(&[("a", 1, 0, Some((2, 2, 5)))]);
        let first = seat(levels.ask("a", "s", "x"));
        drop(place(levels.ask("a", "s", "x")));
        let mut second = place(levels.ask("a", "s", "x"));
        drop(first);
        let held = second.receiver.try_recv().unwrap();
        let mut third = place(levels.ask("a", "s", "x"));
        levels.set(HashMap::from([("a".into(), Limits { seats: 1, lendable: 0, queuing: None })]));
        assert!(third.receiver.try_recv().is_ok());
        assert!(matches!(levels.ask("a", "s", "x"), Admission::Full));
        drop(held);
        assert!(matches!(levels.ask("a", "s", "x"), Admission::Seat(_)));
        assert!(matches!(levels.ask("gone", "s", "x"), Admission::Full));
    }

    #[test]
    fn those_who_left_take_no_place_and_keep_no_seat_from_being_lent() {
        let levels = levels(&[("a", 1, 0, Some((1, 1, 2))), ("lender", 2, 2, Some((1, 1, 2)))]);
        let _first = seat(levels.ask("a", "s", ""));
        let _lent: Vec<_> = (0..2).map(|_| seat(levels.ask("a", "s", ""))).collect();
        for _ in 0..5 {
            drop(place(levels.ask("a", "s", "")));
        }
        let _waits = place(levels.ask("a", "s", ""));
        assert_eq!(levels.numbers().iter().map(|n| n.waiting).sum::<usize>(), 1);
        assert_eq!(levels.numbers().iter().map(|n| n.rejected).sum::<u64>(), 0);
    }

    #[test]
    fn more_seats_are_for_those_who_wait() {
        let limits = |seats| Limits { seats, lendable: 0, queuing: Some((1, 1, 5)) };
        let levels = levels(&[("a", 0, 0, limits(0).queuing)]);
        let mut waiting: Vec<Place> = (0..3).map(|_| place(levels.ask("a", "s", ""))).collect();
        levels.set(HashMap::from([("a".into(), limits(2))]));
        let seats: Vec<_> = waiting.iter_mut().filter_map(|place| place.receiver.try_recv().ok()).collect();
        assert_eq!((seats.len(), levels.numbers()[0].executing, levels.numbers()[0].waiting), (2, 2, 1));
    }
}

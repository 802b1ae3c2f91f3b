//! The objects of one resource, in order, with the latest changes.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::{sync::watch, time::Instant};

use super::entry::{Entry, Filter, Reader};

/// The most changes a resource remembers for watchers that resume.
pub(crate) const MAX_EVENTS: usize = 16_384;
/// The most bytes those changes may keep alive.
pub(crate) const MAX_EVENT_BYTES: usize = 16 << 20;
/// Changes that are remembered however old they are.
pub(crate) const LASTING_EVENTS: usize = 128;
/// Changes forgotten at a time, while readers wait.
const FORGET: usize = 1024;

/// A change of one object.
#[derive(Debug)]
pub(crate) struct Event {
    /// Its revision in the store.
    pub(crate) revision: u64,
    /// The object before, if it was there.
    pub(crate) before: Option<Arc<Entry>>,
    /// The object after; for a deletion its last state at the revision of the deletion.
    pub(crate) after: Arc<Entry>,
    /// Whether it was deleted.
    pub(crate) deleted: bool,
    /// When it got here.
    at: Instant,
    /// The object after in protobuf, written once for all who watch in it.
    binary: OnceLock<Option<Bytes>>,
}

/// What a change means to somebody who sees only what a filter lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    /// The event's type on the wire.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

impl Event {
    /// A change.
    pub(crate) fn new(revision: u64, before: Option<Arc<Entry>>, after: Arc<Entry>, deleted: bool) -> Self {
        Self { revision, before, after, deleted, at: Instant::now(), binary: OnceLock::new() }
    }

    /// The object after as `write` makes it, which is called once.
    pub(crate) fn binary(&self, write: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Option<Bytes> {
        self.binary.get_or_init(|| write(&self.after.body()).map(Bytes::from)).clone()
    }

    /// What it means under a filter; `None` when it is out of sight.
    pub(crate) fn seen(&self, filter: &Filter) -> Option<Change> {
        let before = self.before.as_ref().is_some_and(|e| filter.matches(e));
        let after = !self.deleted && filter.matches(&self.after);
        match (before, after) {
            (false, true) => Some(Change::Added),
            (true, true) => Some(Change::Modified),
            (true, false) => Some(Change::Deleted),
            (false, false) => None,
        }
    }
}

/// A state that is no longer known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compacted {
    /// The oldest revision that still is.
    pub(crate) oldest: u64,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Box<str>, Arc<Entry>>,
    events: VecDeque<Arc<Event>>,
    event_bytes: usize,
    /// Every change after this revision is in `events`.
    floor: u64,
    /// How many changes there have been, those forgotten included.
    count: u64,
}

/// Objects as they were before the changes that are to be undone; `None` for those that were not there.
type Undo = BTreeMap<Box<str>, Option<Arc<Entry>>>;

/// Which part of a list is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Part<'a> {
    /// Only what follows this key.
    pub(crate) start: Option<&'a str>,
    /// At most so many objects; 0 for all.
    pub(crate) limit: usize,
    /// How many objects there are from here on, where the page before has told.
    pub(crate) left: Option<usize>,
}

/// A page of a list.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// The objects.
    pub(crate) entries: Vec<Arc<Entry>>,
    /// The key of the last one, when more follow.
    pub(crate) more: Option<Box<str>>,
    /// How many follow; known only without selectors.
    pub(crate) remaining: Option<usize>,
}

/// The watch cache of one resource.
pub(crate) struct Cache {
    reader: Reader,
    state: RwLock<State>,
    changed: watch::Sender<u64>,
}

impl Cache {
    /// An empty cache that knows every change after `floor`.
    pub(crate) fn new(reader: Reader, floor: u64) -> Self {
        Self {
            reader,
            state: RwLock::new(State { floor, ..State::default() }),
            changed: watch::Sender::new(0),
        }
    }

    /// Takes an object that was there before watching began. `key` as in [`Entry::read`].
    pub(crate) fn load(&self, key: &str, value: &Bytes, revision: u64) {
        if let Some(entry) = self.read(key, value, revision) {
            self.state.write().entries.insert(key.into(), entry);
        }
    }

    /// A stored value as an entry: the one that is here, if it has not changed. `None` when the value is no object.
    pub(crate) fn entry(&self, key: &str, value: &Bytes, revision: u64) -> Option<Arc<Entry>> {
        if let Some(known) = self.get(key).filter(|entry| entry.revision == revision) {
            return Some(known);
        }
        self.read(key, value, revision)
    }

    fn read(&self, key: &str, value: &Bytes, revision: u64) -> Option<Arc<Entry>> {
        let entry = Entry::read(key, value, revision, self.reader).map(Arc::new);
        if entry.is_none() {
            tracing::error!(key, "a stored value is no JSON object; it is left out");
        }
        entry
    }

    /// Applies a change; `None` deletes. Changes come in the order of their revisions. A value that cannot be read
    /// hides the object: what it was before would be wrong.
    pub(crate) fn apply(&self, key: &str, value: Option<&Bytes>, revision: u64) {
        let entry = value.and_then(|value| self.read(key, value, revision));
        let mut state = self.state.write();
        let before = match &entry {
            Some(entry) => state.entries.insert(key.into(), entry.clone()),
            None => state.entries.remove(key),
        };
        let (after, deleted) = match (entry, &before) {
            (Some(entry), _) => (entry, false),
            (None, Some(before)) => (Arc::new(before.tombstone(revision)), true),
            (None, None) => return,
        };
        state.remember(Event::new(revision, before, after, deleted));
        let count = state.count;
        drop(state);
        self.changed.send_replace(count);
    }

    /// The object at that key.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.read().entries.get(key).cloned()
    }

    /// How many changes there have been: equal numbers mean an equal state.
    pub(crate) fn count(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Wakes at every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Number of objects.
    pub(crate) fn len(&self) -> usize {
        self.state.read().entries.len()
    }

    /// All objects that a filter selects.
    pub(crate) fn list(&self, filter: &Filter) -> Vec<Arc<Entry>> {
        self.list_then(filter).0
    }

    /// All objects that a filter selects, and the position in the log of changes that follows them.
    pub(crate) fn list_then(&self, filter: &Filter) -> (Vec<Arc<Entry>>, u64) {
        let state = self.state.read();
        (state.page(&Undo::new(), filter, Part::default()).entries, state.count)
    }

    /// A page of the present objects, and the revision of the last change of any: the page shows it.
    pub(super) fn page(&self, filter: &Filter, part: Part<'_>) -> (Page, u64) {
        let state = self.state.read();
        (state.page(&Undo::new(), filter, part), state.last())
    }

    /// A page of the objects as they were at a revision.
    pub(crate) fn page_at(&self, filter: &Filter, part: Part<'_>, revision: u64) -> Result<Page, Compacted> {
        let state = self.state.read();
        if revision < state.floor {
            return Err(Compacted { oldest: state.floor });
        }
        Ok(state.page(&state.undo(revision), filter, part))
    }

    /// Where in the log of changes the first one after `revision` stands.
    pub(crate) fn position_after(&self, revision: u64) -> Result<u64, Compacted> {
        let state = self.state.read();
        if revision < state.floor {
            return Err(Compacted { oldest: state.floor });
        }
        let known = state.events.partition_point(|e| e.revision <= revision) as u64;
        Ok(state.count - state.events.len() as u64 + known)
    }

    /// At most `limit` changes from a position on.
    pub(crate) fn events_from(&self, position: u64, limit: usize) -> Result<Vec<Arc<Event>>, Compacted> {
        let state = self.state.read();
        let first = state.count - state.events.len() as u64;
        let Some(skip) = position.checked_sub(first) else {
            return Err(Compacted { oldest: state.floor });
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Ok(state.events.iter().skip(skip).take(limit).cloned().collect())
    }

    /// Forgets every change up to a revision.
    pub(crate) fn forget(&self, revision: u64) {
        let mut state = self.state.write();
        while state.events.front().is_some_and(|e| e.revision <= revision) {
            state.drop_oldest();
        }
        state.floor = state.floor.max(revision);
    }

    /// Forgets changes from before a moment, but for the last [`LASTING_EVENTS`].
    pub(crate) fn age(&self, before: Instant) {
        let is_old = |state: &State| {
            state.events.len() > LASTING_EVENTS && state.events.front().is_some_and(|e| e.at < before)
        };
        while is_old(&self.state.read()) {
            let mut state = self.state.write();
            for _ in 0..FORGET {
                if !is_old(&state) {
                    break;
                }
                state.drop_oldest();
            }
            let room = 2 * state.events.len();
            state.events.shrink_to(room);
        }
    }

    /// Takes the state of a revision over as it is. Every position and revision before is forgotten: how it came to
    /// that is not known.
    pub(crate) fn replace(&self, entries: BTreeMap<Box<str>, Arc<Entry>>, revision: u64) {
        let mut state = self.state.write();
        *state = State { entries, floor: revision, count: state.count + 1, ..State::default() };
        let count = state.count;
        drop(state);
        self.changed.send_replace(count);
    }
}

impl State {
    fn remember(&mut self, event: Event) {
        self.count += 1;
        self.event_bytes += event.after.size();
        self.events.push_back(Arc::new(event));
        while self.events.len() > MAX_EVENTS || (self.event_bytes > MAX_EVENT_BYTES && self.events.len() > 1)
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.event_bytes -= event.after.size();
            self.floor = event.revision;
        }
    }

    /// The revision of the last change.
    fn last(&self) -> u64 {
        self.events.back().map_or(self.floor, |event| event.revision)
    }

    /// What has to be undone to be back at a revision.
    fn undo(&self, revision: u64) -> Undo {
        let mut undo = Undo::new();
        for event in self.events.iter().rev().take_while(|event| event.revision > revision) {
            undo.insert(key_of(&event.after), event.before.clone());
        }
        undo
    }

    /// The objects from a key on, in order, with changes undone.
    fn walk<'a>(
        &'a self,
        undo: &'a Undo,
        from: Bound<&'a str>,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<Entry>)> {
        let range: (Bound<&str>, Bound<&str>) = (from, Bound::Unbounded);
        let mut now = self.entries.range::<str, _>(range).peekable();
        let mut then = undo.range::<str, _>(range).peekable();
        std::iter::from_fn(move || {
            loop {
                let order = match (now.peek(), then.peek()) {
                    (_, None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some((present, _)), Some((past, _))) => present.cmp(past),
                };
                if order.is_lt() {
                    return now.next().map(|(key, entry)| (&**key, entry));
                }
                if order.is_eq() {
                    now.next();
                }
                if let (key, Some(entry)) = then.next()? {
                    return Some((&**key, entry));
                }
            }
        })
    }

    /// A page of the objects as they were before what is to be undone.
    fn page(&self, undo: &Undo, filter: &Filter, part: Part<'_>) -> Page {
        if let (Some(name), None) = (filter.single_name(), part.start) {
            let key = key(&filter.namespace, name);
            let found = undo.get(&*key).map_or_else(|| self.entries.get(&*key), Option::as_ref);
            // Over all namespaces the name says nothing about the key.
            if found.is_some() || !filter.namespace.is_empty() {
                let entries = found.filter(|entry| filter.matches(entry)).cloned().into_iter().collect();
                return Page { entries, ..Page::default() };
            }
        }
        let mut page = Page::default();
        let prefix =
            if filter.namespace.is_empty() { String::new() } else { format!("{}/", filter.namespace) };
        let from = match part.start {
            Some(key) => Bound::Excluded(key),
            None => Bound::Included(prefix.as_str()),
        };
        let all = self.walk(undo, from).take_while(|(key, _)| key.starts_with(&*prefix));
        let mut rest = all.filter(|(_, entry)| filter.matches(entry));
        while let Some((key, entry)) = rest.next() {
            page.entries.push(entry.clone());
            if part.limit == 0 || page.entries.len() < part.limit {
                continue;
            }
            let counted = filter.labels.is_empty() && filter.fields.is_empty();
            if rest.next().is_some() {
                page.more = Some(key.into());
                let known = part.left.map(|left| left.saturating_sub(part.limit).max(1));
                page.remaining = counted.then(|| known.unwrap_or_else(|| 1 + rest.count()));
            }
            break;
        }
        page
    }
}

fn key_of(entry: &Entry) -> Box<str> {
    key(&entry.namespace, &entry.name).into()
}

/// The key of an object below its resource's prefix.
pub(crate) fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(label: &str) -> Bytes {
        format!(r#"{{"kind":"T","apiVersion":"v1","metadata":{{"name":"x","labels":{{"l":"{label}"}}}}}}"#)
            .into()
    }

    fn names(page: &Page) -> Vec<&str> {
        page.entries.iter().map(|e| &*e.name).collect()
    }

    fn filled() -> Cache {
        let cache = Cache::new(Reader::Plain, 0);
        for (revision, key) in ["a/x", "a/y", "b/x", "b/z"].iter().enumerate() {
            cache.apply(key, Some(&value("1")), revision as u64 + 1);
        }
        cache
    }

    #[test]
    fn pages_follow_each_other_at_one_revision() {
        let cache = filled();
        let all = Filter::default();
        let part = |start, limit, left| Part { start, limit, left };
        let (first, revision) = cache.page(&all, part(None, 3, None));
        assert_eq!((first.more.as_deref(), first.remaining, revision), (Some("b/x"), Some(1), 4));
        cache.apply("b/z", None, 5);
        cache.apply("b/q", Some(&value("1")), 6);
        let second = cache.page_at(&all, part(first.more.as_deref(), 3, first.remaining), 4).unwrap();
        assert_eq!((names(&second), second.more.as_deref()), (vec!["z"], None));
        let (now, revision) = cache.page(&all, part(Some("b/a"), 0, None));
        assert_eq!((names(&now), revision), (vec!["q", "x"], 6));
    }

    #[test]
    fn the_past_is_what_it_was() {
        let cache = filled();
        let all = Filter::default();
        for (revision, key, label) in [
            (5, "a/x", Some("2")),
            (6, "a/x", None),
            (7, "a/w", Some("1")),
            (8, "b/x", None),
            (9, "a/x", Some("3")),
        ] {
            cache.apply(key, label.map(value).as_ref(), revision);
        }
        let at = |revision, filter: &Filter, part: Part<'_>| -> Vec<String> {
            let page = cache.page_at(filter, part, revision).unwrap();
            page.entries.iter().map(|e| format!("{}/{}@{}", e.namespace, e.name, e.revision)).collect()
        };
        for (revision, expect) in [
            (4, vec!["a/x@1", "a/y@2", "b/x@3", "b/z@4"]),
            (5, vec!["a/x@5", "a/y@2", "b/x@3", "b/z@4"]),
            (6, vec!["a/y@2", "b/x@3", "b/z@4"]),
            (7, vec!["a/w@7", "a/y@2", "b/x@3", "b/z@4"]),
            (8, vec!["a/w@7", "a/y@2", "b/z@4"]),
            (9, vec!["a/w@7", "a/x@9", "a/y@2", "b/z@4"]),
        ] {
            assert_eq!(at(revision, &all, Part::default()), expect, "at {revision}");
            let tail = Part { start: Some("a/x"), ..Part::default() };
            let after: Vec<_> = expect.iter().filter(|e| **e > "a/x@:").copied().collect();
            assert_eq!(at(revision, &all, tail), after, "after a/x at {revision}");
        }
        let one = |namespace: &str| Filter {
            namespace: namespace.into(),
            fields: wasmk_api::FieldSelector::parse("metadata.name=x").unwrap(),
            ..Filter::default()
        };
        assert_eq!(at(4, &one("b"), Part::default()), ["b/x@3"]);
        assert_eq!(at(6, &one("a"), Part::default()), [""; 0]);
        assert_eq!(at(7, &one(""), Part::default()), ["b/x@3"]);
    }

    #[test]
    fn a_value_that_cannot_be_read_hides_the_object() {
        let cache = filled();
        let from = cache.position_after(4).unwrap();
        cache.apply("a/x", Some(&"k8s:enc:aesgcm:v1:new:".into()), 5);
        assert!(cache.get("a/x").is_none());
        let seen = cache.events_from(from, 9).unwrap();
        assert_eq!((seen.len(), seen[0].deleted, seen[0].revision), (1, true, 5));
        cache.apply("a/x", Some(&value("1")), 6);
        assert_eq!(cache.get("a/x").unwrap().revision, 6);
    }

    #[test]
    fn another_state_is_no_change_anybody_may_resume_from() {
        let cache = filled();
        let (mut woken, at) = (cache.subscribe(), cache.position_after(4).unwrap());
        woken.mark_unchanged();
        let kept = cache.entry("a/y", &value("1"), 2).unwrap();
        assert!(Arc::ptr_eq(&kept, &cache.get("a/y").unwrap()), "what is the same is not read again");
        cache.replace(BTreeMap::from([("a/y".into(), kept)]), 9);
        assert!(woken.has_changed().unwrap());
        assert_eq!(cache.events_from(at, 9).unwrap_err(), Compacted { oldest: 9 });
        assert_eq!(cache.position_after(8), Err(Compacted { oldest: 9 }));
        let (page, revision) = cache.page(&Filter::default(), Part::default());
        assert_eq!((names(&page), revision), (vec!["y"], 9));
        let at = cache.position_after(9).unwrap();
        cache.apply("a/z", Some(&value("1")), 10);
        assert_eq!(cache.events_from(at, 9).unwrap().len(), 1);
    }

    #[test]
    fn a_filter_turns_changes_into_what_it_sees() {
        let cache = filled();
        let filter = Filter { labels: selector("l=2"), ..Filter::default() };
        let from = cache.position_after(4).unwrap();
        for (i, label) in ["2", "2", "3"].iter().enumerate() {
            cache.apply("a/x", Some(&value(label)), 5 + i as u64);
        }
        cache.apply("a/x", None, 8);
        let seen: Vec<_> = cache.events_from(from, 10).unwrap().iter().map(|e| e.seen(&filter)).collect();
        assert_eq!(seen, [Some(Change::Added), Some(Change::Modified), Some(Change::Deleted), None]);
    }

    #[test]
    fn forgotten_changes_are_said_to_be() {
        let cache = filled();
        cache.forget(2);
        assert_eq!(cache.position_after(1), Err(Compacted { oldest: 2 }));
        assert_eq!(cache.position_after(2), Ok(2));
        assert_eq!(cache.events_from(1, 9).unwrap_err(), Compacted { oldest: 2 });
        assert!(cache.page_at(&Filter::default(), Part::default(), 1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_goes_but_for_the_last_changes() {
        let cache = Cache::new(Reader::Plain, 0);
        let change = |revisions: std::ops::RangeInclusive<u64>| {
            revisions.for_each(|revision| cache.apply("a/x", Some(&value("1")), revision));
        };
        let most = LASTING_EVENTS as u64;
        change(1..=most);
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
        cache.age(Instant::now());
        assert_eq!(cache.position_after(0), Ok(0), "few as they are, they stay");
        change(most + 1..=most + 1500);
        cache.age(Instant::now());
        assert_eq!(cache.position_after(most - 1), Err(Compacted { oldest: most }));
        assert_eq!(cache.position_after(most), Ok(most), "what is young stays");
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
        cache.age(Instant::now());
        assert_eq!(cache.position_after(0), Err(Compacted { oldest: 1500 }));
        assert_eq!(cache.events_from(1500, 999).unwrap().len(), LASTING_EVENTS);
    }

    #[test]
    fn one_namespace_alone() {
        let cache = filled();
        let filter = Filter { namespace: "a".into(), ..Filter::default() };
        assert_eq!(names(&cache.page(&filter, Part::default()).0), ["x", "y"]);
        assert_eq!(cache.len(), 4);
    }

    fn selector(text: &str) -> wasmk_api::LabelSelector {
        wasmk_api::LabelSelector::parse(text).unwrap()
    }
}

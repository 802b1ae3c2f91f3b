//! The objects of one resource, in order, with the latest changes.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::entry::{Entry, Filter, Reader};

/// The most changes a resource remembers for watchers that resume.
pub(crate) const MAX_EVENTS: usize = 16_384;
/// The most bytes those changes may keep alive.
pub(crate) const MAX_EVENT_BYTES: usize = 16 << 20;

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
    pub(crate) fn load(&self, key: &str, value: &[u8], revision: u64) {
        match Entry::read(key, value, revision, self.reader) {
            Some(entry) => {
                self.state.write().entries.insert(key.into(), Arc::new(entry));
            }
            None => tracing::error!(key, "a stored value is no JSON object; it is left out"),
        }
    }

    /// Applies a change; `None` deletes. Changes come in the order of their revisions.
    pub(crate) fn apply(&self, key: &str, value: Option<&[u8]>, revision: u64) {
        let entry = match value {
            Some(value) => match Entry::read(key, value, revision, self.reader) {
                Some(entry) => Some(Arc::new(entry)),
                None => return tracing::error!(key, "a stored value is no JSON object; it is left out"),
            },
            None => None,
        };
        let mut state = self.state.write();
        let before = match &entry {
            Some(entry) => state.entries.insert(key.into(), entry.clone()),
            None => state.entries.remove(key),
        };
        let (after, deleted) = match (entry, &before) {
            (Some(entry), _) => (entry, false),
            (None, Some(before)) => match before.tombstone(revision) {
                Some(gone) => (Arc::new(gone), true),
                None => return,
            },
            (None, None) => return,
        };
        state.remember(Event { revision, before, after, deleted });
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
        self.page(filter, None, 0).entries
    }

    /// All objects that a filter selects, and the position in the log of changes that follows them.
    pub(crate) fn list_then(&self, filter: &Filter) -> (Vec<Arc<Entry>>, u64) {
        let state = self.state.read();
        (state.page(filter, None, 0).entries, state.count)
    }

    /// A page of the present objects: those after the key `start`, at most `limit` (0: all).
    pub(crate) fn page(&self, filter: &Filter, start: Option<&str>, limit: usize) -> Page {
        self.state.read().page(filter, start, limit)
    }

    /// A page of the objects as they were at a revision.
    pub(crate) fn page_at(
        &self,
        filter: &Filter,
        start: Option<&str>,
        limit: usize,
        revision: u64,
    ) -> Result<Page, Compacted> {
        let state = self.state.read();
        if revision < state.floor {
            return Err(Compacted { oldest: state.floor });
        }
        if state.events.back().is_none_or(|last| last.revision <= revision) {
            return Ok(state.page(filter, start, limit));
        }
        let mut past = State { entries: state.entries.clone(), ..State::default() };
        for event in state.events.iter().rev().take_while(|e| e.revision > revision) {
            let key = key_of(&event.after);
            match &event.before {
                Some(before) => past.entries.insert(key, before.clone()),
                None => past.entries.remove(&key),
            };
        }
        drop(state);
        Ok(past.page(filter, start, limit))
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

    fn page(&self, filter: &Filter, start: Option<&str>, limit: usize) -> Page {
        if let (Some(name), None) = (filter.single_name(), start) {
            let key = if filter.namespace.is_empty() {
                name.to_owned()
            } else {
                format!("{}/{name}", filter.namespace)
            };
            if let Some(entry) = self.entries.get(&*key) {
                let entries = if filter.matches(entry) { vec![entry.clone()] } else { Vec::new() };
                return Page { entries, ..Page::default() };
            }
        }
        let mut page = Page::default();
        let prefix =
            if filter.namespace.is_empty() { String::new() } else { format!("{}/", filter.namespace) };
        let from = match start {
            Some(key) => Bound::Excluded(key),
            None => Bound::Included(prefix.as_str()),
        };
        let mut rest = self
            .entries
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&*prefix))
            .filter(|(_, entry)| filter.matches(entry));
        while let Some((key, entry)) = rest.next() {
            page.entries.push(entry.clone());
            if limit > 0 && page.entries.len() == limit {
                let left = rest.count();
                if left > 0 {
                    page.more = Some(key.clone());
                    page.remaining = (filter.labels.is_empty() && filter.fields.is_empty()).then_some(left);
                }
                break;
            }
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

    fn value(label: &str) -> Vec<u8> {
        format!(r#"{{"kind":"T","apiVersion":"v1","metadata":{{"name":"x","labels":{{"l":"{label}"}}}}}}"#)
            .into_bytes()
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
        let first = cache.page(&all, None, 3);
        assert_eq!((first.more.as_deref(), first.remaining), (Some("b/x"), Some(1)));
        cache.apply("b/z", None, 5);
        cache.apply("b/q", Some(&value("1")), 6);
        let second = cache.page_at(&all, first.more.as_deref(), 3, 4).unwrap();
        assert_eq!(names(&second), ["z"]);
        assert_eq!(names(&cache.page(&all, Some("b/a"), 0)), ["q", "x"]);
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
        assert!(cache.page_at(&Filter::default(), None, 0, 1).is_err());
    }

    #[test]
    fn one_namespace_alone() {
        let cache = filled();
        let filter = Filter { namespace: "a".into(), ..Filter::default() };
        assert_eq!(names(&cache.page(&filter, None, 0)), ["x", "y"]);
        assert_eq!(cache.len(), 4);
    }

    fn selector(text: &str) -> wasmk_api::LabelSelector {
        wasmk_api::LabelSelector::parse(text).unwrap()
    }
}

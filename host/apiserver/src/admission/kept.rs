//! What was made from an object, kept for as long as the object does not change.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::cache::Entry;

/// Most objects for which something is kept when nothing else is said.
const MAX_KEPT: usize = 1024;

/// What was made from objects, by name, each with the revision it was made from; of so many at most.
pub(crate) struct Kept<T, const MOST: usize = MAX_KEPT>(Mutex<HashMap<Box<str>, Made<T>>>);

/// A revision and what was made from it.
type Made<T> = (u64, Arc<T>);

impl<T, const MOST: usize> Default for Kept<T, MOST> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T, const MOST: usize> Kept<T, MOST> {
    /// What was made from an object, or is made now.
    pub(crate) fn get(&self, entry: &Entry, make: impl FnOnce() -> T) -> Arc<T> {
        if let Some((revision, kept)) = self.0.lock().get(&entry.name)
            && *revision == entry.revision
        {
            return kept.clone();
        }
        let made = Arc::new(make());
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(entry.name.clone(), (entry.revision, made.clone()));
        made
    }

    /// Forgets what was made from objects of other names.
    pub(crate) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().retain(|name, _| is_there(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Reader;

    #[test]
    fn what_was_made_stays_until_its_object_changes_or_goes() {
        let entry = |name: &str, revision| {
            let value = r#"{"kind":"T","apiVersion":"v1","metadata":{}}"#.into();
            Entry::read(name, &value, revision, Reader::Plain).unwrap()
        };
        let kept: Kept<u64, 2> = Kept::default();
        let get = |name: &str, revision, fresh| *kept.get(&entry(name, revision), || fresh);
        assert_eq!((get("a", 1, 10), get("a", 1, 11), get("a", 2, 12)), (10, 10, 12));
        assert_eq!((get("b", 1, 20), get("a", 2, 13)), (20, 12));
        kept.retain(|name| name != "a");
        assert_eq!((get("a", 2, 14), get("b", 1, 21)), (14, 20));
        get("c", 1, 30);
        assert!(kept.0.lock().len() <= 2);
    }
}

//! What was made from an object, kept for as long as the object does not change.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::cache::Entry;

/// Most objects for which something is kept.
const MAX_KEPT: usize = 1024;

/// What was made from objects, by name, each with the revision it was made from.
pub(crate) struct Kept<T>(Mutex<HashMap<Box<str>, Made<T>>>);

/// A revision and what was made from it.
type Made<T> = (u64, Arc<T>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    /// What was made from an object, or is made now.
    pub(super) fn get(&self, entry: &Entry, make: impl FnOnce() -> T) -> Arc<T> {
        if let Some((revision, kept)) = self.0.lock().get(&entry.name)
            && *revision == entry.revision
        {
            return kept.clone();
        }
        let made = Arc::new(make());
        let mut all = self.0.lock();
        if all.len() >= MAX_KEPT {
            all.clear();
        }
        all.insert(entry.name.clone(), (entry.revision, made.clone()));
        made
    }
}

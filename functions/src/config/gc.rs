//! `config-gc`: which revisions nobody needs are deleted.

use std::time::Duration;

use super::{Wrong, duration, read::Values};

/// How long and how many revisions without traffic are kept. What is `None` is no reason to delete or keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gc {
    /// Kept this long after it was made.
    pub since_create: Option<Duration>,
    /// Kept this long after it last had a route.
    pub since_active: Option<Duration>,
    /// Always kept.
    pub min: usize,
    /// Never more than this many.
    pub max: Option<usize>,
}

impl Default for Gc {
    fn default() -> Self {
        let hours = |n: u64| Some(Duration::from_secs(n * 3600));
        Self { since_create: hours(48), since_active: hours(15), min: 20, max: Some(1000) }
    }
}

impl Gc {
    pub(super) fn read(values: &Values<'_>) -> Result<Self, Wrong> {
        let or = Self::default();
        let max = "max-non-active-revisions";
        let read = Self {
            since_create: span(values, "retain-since-create-time", or.since_create)?,
            since_active: span(values, "retain-since-last-active-time", or.since_active)?,
            min: values.number("min-non-active-revisions", or.min, "a whole number, 0 or more", |_| true)?,
            max: match values.get(max) {
                Some(text) if text.eq_ignore_ascii_case("disabled") => None,
                _ => Some(values.number(max, 1000, "a whole number or `disabled`", |_| true)?),
            },
        };
        if read.max.is_some_and(|max| max < read.min) {
            let why = format!("must not be less than min-non-active-revisions ({})", read.min);
            return Err(Wrong::new(max, &values.text(max), why));
        }
        Ok(read)
    }
}

fn span(values: &Values<'_>, key: &str, default: Option<Duration>) -> Result<Option<Duration>, Wrong> {
    match values.get(key) {
        None => Ok(default),
        Some(text) if text.eq_ignore_ascii_case("disabled") => Ok(None),
        Some(text) => {
            let wrong = || Wrong::new(key, text, "a duration like 48h or `disabled` was expected");
            duration(text).map(Some).ok_or_else(wrong)
        }
    }
}

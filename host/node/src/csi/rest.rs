//! Rests between calls that fail: each is twice as long as the one before.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The first rest.
const FIRST: Duration = Duration::from_millis(500);
/// The longest rest.
const LONGEST: Duration = Duration::from_secs(122);
/// Failures remembered at most; others are tried again at once.
const MOST: usize = 10_000;

/// When what failed may be tried again.
#[derive(Debug)]
pub(super) struct BackOff {
    next: Duration,
    until: Instant,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { next: FIRST, until: Instant::now() }
    }
}

impl BackOff {
    /// Whether it rests now.
    pub(super) fn rests(&self) -> bool {
        self.until > Instant::now()
    }

    /// It failed (again).
    pub(super) fn failed(&mut self) {
        self.until = Instant::now() + self.next;
        self.next = (self.next * 2).min(LONGEST);
    }
}

/// What failed lately, by what it was, with the words.
#[derive(Default)]
pub(super) struct Rest(Mutex<HashMap<String, (BackOff, String)>>);

impl Rest {
    /// Makes a call unless it rests; then it is the earlier error again.
    ///
    /// # Errors
    /// What the call says, now or before.
    pub(super) async fn call<T, E: std::fmt::Display>(
        &self,
        key: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        if let Some((_, why)) = self.0.lock().get(key).filter(|(rest, _)| rest.rests()) {
            return Err(why.clone());
        }
        match work.await {
            Ok(value) => {
                self.0.lock().remove(key);
                Ok(value)
            }
            Err(error) => Err(self.failed(key, error.to_string())),
        }
    }

    fn failed(&self, key: &str, why: String) -> String {
        let mut all = self.0.lock();
        let mut rest = all.remove(key).map(|(rest, _)| rest).unwrap_or_default();
        rest.failed();
        if all.len() >= MOST {
            all.retain(|_, (rest, _)| rest.rests());
        }
        if all.len() < MOST {
            all.insert(key.into(), (rest, why.clone()));
        }
        why
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_fails_rests_longer_each_time() {
        let rest = Rest::default();
        let mut calls = 0;
        let mut call = async |rest: &Rest, outcome: Result<(), &'static str>| {
            let work = async {
                calls += 1;
                outcome
            };
            let said = rest.call("v", work).await;
            (said.err(), calls)
        };
        assert_eq!(call(&rest, Err("no")).await, (Some("no".into()), 1));
        assert_eq!(call(&rest, Ok(())).await, (Some("no".into()), 1), "it rests");
        rest.0.lock().get_mut("v").unwrap().0.until = Instant::now();
        assert_eq!(call(&rest, Err("still not")).await, (Some("still not".into()), 2));
        assert_eq!(rest.0.lock()["v"].0.next, FIRST * 4);
        rest.0.lock().get_mut("v").unwrap().0.until = Instant::now();
        assert_eq!(call(&rest, Ok(())).await, (None, 3));
        assert_eq!(call(&rest, Err("again")).await, (Some("again".into()), 4));
        assert_eq!(rest.0.lock()["v"].0.next, FIRST * 2, "a success forgets");
    }
}

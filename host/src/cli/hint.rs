//! What to try next, carried beside an error.

use std::fmt;

/// An error that knows what the user can do about it; printed as `hint: …`.
#[derive(Debug)]
pub(crate) struct Hint {
    error: anyhow::Error,
    hint: String,
}

impl Hint {
    /// The advice.
    pub(crate) fn text(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Hint {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Adds advice to a failure.
pub(crate) trait WithHint<T> {
    /// The same result; a failure gets the advice.
    fn hint(self, hint: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithHint<T> for Result<T, E> {
    fn hint(self, hint: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|e| anyhow::Error::new(Hint { error: e.into(), hint: hint() }))
    }
}

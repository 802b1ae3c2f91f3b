//! Lines of a function's log, as `wasmk fn logs` and `kubectl logs` print them.

use std::fmt::Display;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Only of use to its author.
    Debug,
    /// What happened.
    Info,
    /// What should not have, but does no harm.
    Warn,
    /// What failed.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// The level that the variable `LOG_LEVEL` names; [`Level::Info`] where it names none.
    pub fn wanted() -> Self {
        let all = [Self::Debug, Self::Info, Self::Warn, Self::Error];
        let name = crate::env("LOG_LEVEL").unwrap_or_default();
        all.into_iter().find(|level| level.name().eq_ignore_ascii_case(&name)).unwrap_or(Self::Info)
    }
}

/// Writes a line, if lines of its level are wanted.
///
/// ```
/// use wasmk_guest::{Level, log};
/// log(Level::Info, format_args!("took {} ms", 3));
/// ```
pub fn log(level: Level, message: impl Display) {
    if level >= Level::wanted() {
        eprintln!("{} {message}", level.name());
    }
}

//! Reading the values of a ConfigMap, and durations as Go writes them.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use thiserror::Error;

/// A value that is not what its key takes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key}: invalid value {value:?}: {why}")]
pub struct Wrong {
    key: String,
    value: String,
    why: String,
}

impl Wrong {
    pub(super) fn new(key: &str, value: &str, why: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into(), why: why.into() }
    }
}

/// The values of a map.
pub(super) struct Values<'a>(pub &'a BTreeMap<String, String>);

impl Values<'_> {
    /// The text of a key, or none.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    /// The text of a key, or empty.
    pub(super) fn text(&self, key: &str) -> String {
        self.get(key).unwrap_or("").into()
    }

    /// A number, `default` where the key is missing, that `fits`.
    pub(super) fn number<T: FromStr + Copy>(
        &self,
        key: &str,
        default: T,
        what: &str,
        fits: impl FnOnce(T) -> bool,
    ) -> Result<T, Wrong> {
        let Some(text) = self.get(key) else { return Ok(default) };
        let number = text.parse().ok().filter(|n| fits(*n));
        number.ok_or_else(|| Wrong::new(key, text, format!("{what} was expected")))
    }

    /// A duration.
    pub(super) fn span(&self, key: &str, default: Duration) -> Result<Duration, Wrong> {
        let Some(text) = self.get(key) else { return Ok(default) };
        duration(text).ok_or_else(|| Wrong::new(key, text, "a duration like 30s or 1m was expected"))
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, Wrong> {
        match self.get(key).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(Wrong::new(key, other, "true or false was expected")),
        }
    }
}

/// A duration as Go writes it, that is not negative.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    Duration::try_from(wasmk_api::parse_duration(text)?).ok()
}

/// A duration as Go prints it: `1h0m0s`, `6s`.
pub(crate) fn go_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1m30.5s"), Some(Duration::from_millis(90_500)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for wrong in ["5", "", "s", "1x", "-1s", "99999999999999999999h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
        for (seconds, text) in [(6, "6s"), (90, "1m30s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
        }
    }
}

//! What is wrong with an object, in the form Knative reports it.

use std::{collections::BTreeMap, fmt};

/// Everything that is wrong with one object.
#[derive(Debug, Default)]
pub(super) struct Problems(BTreeMap<(String, String), Vec<String>>);

impl Problems {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A problem at a path.
    pub(super) fn add(&mut self, message: impl Into<String>, path: impl Into<String>) {
        self.detailed(message, path, "");
    }

    /// The same with more to say. Problems of the same words are one, with several paths.
    pub(super) fn detailed(&mut self, message: impl Into<String>, path: impl Into<String>, details: &str) {
        let paths = self.0.entry((message.into(), details.into())).or_default();
        let path = path.into();
        if !paths.contains(&path) {
            paths.push(path);
            paths.sort();
        }
    }

    pub(super) fn missing(&mut self, path: impl Into<String>) {
        self.add("missing field(s)", path);
    }

    pub(super) fn disallowed(&mut self, path: impl Into<String>) {
        self.add("must not set the field(s)", path);
    }

    pub(super) fn invalid(&mut self, value: impl fmt::Display, path: impl Into<String>) {
        self.add(format!("invalid value: {value}"), path);
    }

    pub(super) fn bounds(
        &mut self,
        value: impl fmt::Display,
        low: impl fmt::Display,
        high: impl fmt::Display,
        path: impl Into<String>,
    ) {
        self.add(format!("expected {low} <= {value} <= {high}"), path);
    }

    /// None of the fields is there, and one must be.
    pub(super) fn neither(&mut self, base: &str, fields: &[&str]) {
        fields.iter().for_each(|f| self.add("expected exactly one, got neither", format!("{base}.{f}")));
    }

    /// Several of the fields are there, and only one may be.
    pub(super) fn both(&mut self, base: &str, fields: &[&str]) {
        fields.iter().for_each(|f| self.add("expected exactly one, got both", format!("{base}.{f}")));
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ((message, details), paths)) in self.0.iter().enumerate() {
            let line = if i > 0 { "\n" } else { "" };
            write!(f, "{line}{message}: {}", paths.join(", "))?;
            if !details.is_empty() {
                write!(f, "\n{details}")?;
            }
        }
        Ok(())
    }
}

/// Why a text is no DNS label (RFC 1035); empty when it is one.
pub(super) fn label_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 63 {
        faults.push("must be no more than 63 characters".to_string());
    }
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits =
        text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(inner) && !text.ends_with('-');
    if !fits {
        faults.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
             validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_string(),
        );
    }
    faults
}

/// Faults as they stand in messages: `[one two]`.
pub(super) fn listed(faults: &[String]) -> String {
    format!("[{}]", faults.join(" "))
}

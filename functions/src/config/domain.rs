//! `config-domain`: which suffix a route's host names have, by its labels.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Wrong, read::Values};

/// Suffixes with the labels a route needs for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Domains {
    fallback: String,
    known: Vec<(String, BTreeMap<String, String>)>,
}

#[derive(Deserialize)]
struct Selector {
    #[serde(default)]
    selector: BTreeMap<String, String>,
}

impl Domains {
    pub(super) fn new(fallback: &str) -> Self {
        Self { fallback: fallback.into(), known: Vec::new() }
    }

    pub(super) fn read(self, values: &Values<'_>) -> Result<Self, Wrong> {
        let mut known = Vec::new();
        for (domain, text) in values.0.iter().filter(|(key, _)| *key != "_example") {
            let label = |l: &str| {
                !l.is_empty() && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            };
            if domain.len() > 253 || !domain.split('.').all(label) {
                return Err(Wrong::new(domain, text, "the key is no domain name"));
            }
            let selector = match text.trim() {
                "" => Ok(Selector { selector: BTreeMap::new() }),
                text => serde_yaml::from_str::<Selector>(text),
            };
            let wrong = |_| Wrong::new(domain, text, "`selector:` with labels, or nothing, was expected");
            known.push((domain.clone(), selector.map_err(wrong)?.selector));
        }
        // The most specific selector that fits wins; of equal ones the first by name.
        known.sort_by_key(|(_, selector)| std::cmp::Reverse(selector.len()));
        Ok(Self { known, ..self })
    }

    /// The suffix for an object with these labels.
    pub(crate) fn of(&self, labels: Option<&BTreeMap<String, String>>) -> &str {
        let has = |(key, value): (&String, &String)| labels.and_then(|l| l.get(key)) == Some(value);
        let fits = |(_, selector): &&(String, BTreeMap<String, String>)| selector.iter().all(has);
        self.known.iter().find(fits).map_or(&self.fallback, |(domain, _)| domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_selector_wins() {
        let map: BTreeMap<String, String> = [
            ("example.org", "selector:\n  app: nonprofit\n"),
            ("example.net", "selector:\n  app: nonprofit\n  tier: gold\n"),
            ("example.dev", ""),
        ]
        .map(|(k, v)| (k.into(), v.into()))
        .into();
        let domains = Domains::new("example.com").read(&Values(&map)).unwrap();
        let of = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            domains.of(Some(&labels)).to_string()
        };
        assert_eq!(of(&[("app", "nonprofit")]), "example.org");
        assert_eq!(of(&[("app", "nonprofit"), ("tier", "gold")]), "example.net");
        assert_eq!(of(&[("app", "shop")]), "example.dev");
        assert_eq!(Domains::new("example.com").of(None), "example.com");
    }
}

//! The table of features and their proofs.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

/// One feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its short name, unique.
    pub id: String,
    /// The part of the product it belongs to.
    pub area: String,
    /// `core`, `expected` or `periphery`.
    pub weight: String,
    /// What it is.
    pub feature: String,
    /// `FILE::TEST` for each test that would fail without it; empty when there is none yet.
    pub proofs: Vec<String>,
}

/// The table as it stands in the repository.
pub fn rows() -> Vec<Row> {
    parse(include_str!("../ledger/features.tsv"))
}

fn parse(text: &str) -> Vec<Row> {
    text.lines()
        .skip(1)
        .map(|line| row(line).unwrap_or_else(|| panic!("not a row of the ledger: {line}")))
        .collect()
}

fn row(line: &str) -> Option<Row> {
    let mut cells = line.split('\t').map(String::from);
    let mut next = || cells.next();
    let (id, area, weight, feature) = (next()?, next()?, next()?, next()?);
    let proofs = match next()?.as_str() {
        "not yet" => Vec::new(),
        proofs => proofs.split(", ").map(String::from).collect(),
    };
    Some(Row { id, area, weight, feature, proofs })
}

/// Proven and all features per area, and in total.
pub fn summary(rows: &[Row]) -> String {
    let mut areas: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for row in rows {
        for area in [row.area.as_str(), "~total"] {
            let (proven, all) = areas.entry(area).or_default();
            *proven += usize::from(!row.proofs.is_empty());
            *all += 1;
        }
    }
    let mut text = String::new();
    for (area, (proven, all)) in areas {
        let _ = writeln!(text, "{:20} {proven:4} of {all:4}", area.trim_start_matches('~'));
    }
    text
}

/// Whether the proof `FILE::TEST` names a test that is in that file of the repository.
pub fn stands(repository: &Path, proof: &str) -> bool {
    let Some((file, test)) = proof.split_once("::") else { return false };
    std::fs::read_to_string(repository.join(file)).is_ok_and(|text| has_test(&text, test))
}

/// Whether a source has a function of that name that is marked as a test, or a macro that makes tests of a list
/// and has `MODULE::NAME` in a line of it.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let (function, entry) = (format!("fn {name}("), format!("::{name}"));
    let is_listed = |line: &str| text.contains("macro_rules!") && line.ends_with(&entry);
    lines
        .iter()
        .enumerate()
        .any(|(at, line)| line.contains(&function) && is_marked(&lines[..at]) || is_listed(line))
}

/// Whether the attributes right above a function make it a test.
fn is_marked(above: &[&str]) -> bool {
    let mut attributes =
        above.iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    attributes.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::repository;

    #[test]
    fn every_proof_is_a_test_that_exists() {
        let rows = rows();
        let missing: Vec<_> = rows
            .iter()
            .flat_map(|row| row.proofs.iter().map(move |proof| (&row.id, proof)))
            .filter(|(_, proof)| !stands(repository(), proof))
            .collect();
        assert!(missing.is_empty(), "proofs that name no test: {missing:?}");
    }

    #[test]
    fn helpers_and_words_are_no_tests() {
        let source = "fn helper() {}\n#[test]\n/// Why.\n#[ignore]\nfn plain() {}\n    #[tokio::test(start_paused = true)]\n    \
                      async fn paused() {}\n// fn word()\n#[test]\nfn last() { helper() }\n";
        for (name, expected) in [
            ("helper", false),
            ("plain", true),
            ("paused", true),
            ("word", false),
            ("last", true),
            ("las", false),
        ] {
            assert_eq!(has_test(source, name), expected, "{name}");
        }
        assert!(has_test("macro_rules! each {\n  suite::listed\n", "listed"));
        assert!(!has_test("suite::listed\n", "listed"));
    }

    #[test]
    fn ids_are_unique() {
        let mut ids: Vec<_> = rows().into_iter().map(|r| r.id).collect();
        let all = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }
}

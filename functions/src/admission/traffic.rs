//! How traffic is split.

use std::collections::HashMap;

use serde_json::Value;

use super::problem::{Problems, label_faults, listed};

/// Checks a list of targets. In a Service the configuration is its own and is not named.
pub(super) fn check(targets: &Value, base: &str, in_service: bool, problems: &mut Problems) {
    let (mut sum, mut tags) = (0, HashMap::new());
    for (i, target) in targets.as_array().into_iter().flatten().enumerate() {
        let at = format!("{base}[{i}]");
        one(target, &at, in_service, problems);
        sum += target["percent"].as_i64().unwrap_or(0);
        let tag = target["tag"].as_str().unwrap_or("");
        if tag.is_empty() {
            continue;
        }
        let faults = label_faults(tag);
        if !faults.is_empty() {
            problems.invalid(format!("not a DNS 1035 label: {}", listed(&faults)), format!("{at}.tag"));
        }
        if let Some(first) = tags.insert(tag, i) {
            for index in [first, i] {
                problems.add(format!("Multiple definitions for {tag:?}"), format!("{base}[{index}].tag"));
            }
        }
    }
    if sum != 100 {
        problems.add(format!("Traffic targets sum to {sum}, want 100"), base);
    }
}

fn one(target: &Value, at: &str, in_service: bool, problems: &mut Problems) {
    let text = |key: &str| target[key].as_str().unwrap_or("");
    let (revision, configuration) = (text("revisionName"), text("configurationName"));
    if let Some(latest) = target["latestRevision"].as_bool()
        && latest != revision.is_empty()
    {
        let message = format!("may not set revisionName {revision:?} when latestRevision is {latest}");
        problems.add(message, format!("{at}.latestRevision"));
    }
    let names = ["revisionName", "configurationName"];
    match (revision.is_empty(), configuration.is_empty()) {
        (_, false) if in_service => problems.disallowed(format!("{at}.configurationName")),
        (false, false) => problems.both(at, &names),
        (true, true) if !in_service => problems.neither(at, &names),
        _ => {}
    }
    for (key, name) in [("revisionName", revision), ("configurationName", configuration)] {
        let fits = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && name.len() <= 63;
        if !fits {
            problems.add(format!("invalid key name {name:?}"), format!("{at}.{key}"));
        }
    }
    if let Some(percent) = target["percent"].as_i64().filter(|p| !(0..=100).contains(p)) {
        problems.bounds(percent, 0, 100, format!("{at}.percent"));
    }
    if !text("url").is_empty() {
        problems.disallowed(format!("{at}.url"));
    }
}

//! Which devices a container gets when their plugin has an opinion.

use std::collections::BTreeSet;

/// The preferred devices as far as they are still free, the rest from those `reserved` and those that were free.
pub(super) fn better(
    reserved: &[String],
    preferred: &[String],
    free: &[String],
    taken: &BTreeSet<&str>,
) -> Vec<String> {
    let mut chosen: Vec<String> = Vec::new();
    let offered: BTreeSet<&String> = free.iter().collect();
    for id in preferred.iter().filter(|id| offered.contains(id)).chain(reserved).chain(free) {
        if chosen.len() < reserved.len() && !taken.contains(id.as_str()) && !chosen.contains(id) {
            chosen.push(id.clone());
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opinions_count_as_far_as_they_can() {
        let list = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let check = |reserved: &str, preferred: &str, taken: &str, expect: &str| {
            let found = better(
                &list(reserved),
                &list(preferred),
                &list("a b c d"),
                &taken.split_whitespace().collect(),
            );
            assert_eq!(found, list(expect), "{reserved} {preferred} {taken}");
        };
        check("a b", "c d", "", "c d");
        check("a b", "d", "", "d a");
        check("a b", "", "", "a b");
        check("a b", "x y", "", "a b");
        check("a b", "c d", "c", "d a");
        check("a", "c d", "", "c");
    }
}

//! Sets of completion indexes in their text form: `0,2-4,7`.

use std::collections::BTreeSet;

/// Indexes a job may have; more in a text are ignored.
const MAX_INDEX: i32 = 1_000_000;

/// Reads a text; parts that are not indexes, or not below `completions`, are left out.
pub(super) fn parse(text: &str, completions: i32) -> BTreeSet<i32> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
        all.extend(first.max(0)..=last.min(completions.min(MAX_INDEX) - 1));
    }
    all
}

/// The shortest text: three and more in a row become a range, as do two.
pub(super) fn print(indexes: &BTreeSet<i32>) -> String {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for &index in indexes {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => parts.push((index, index)),
        }
    }
    let part = |&(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for text in ["", "0", "0,1", "0,2-4,7", "1-3,9"] {
            assert_eq!(print(&parse(text, 10)), text);
        }
        assert_eq!(print(&parse("8-99999999999,3,x,-1", 10)), "3");
        assert_eq!(print(&parse("7-99", 10)), "7-9");
    }
}

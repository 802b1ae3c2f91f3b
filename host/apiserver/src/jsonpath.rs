//! The JSON paths of printed columns: `.spec.x`, `.a[0].b`, `.a[*].b`, `.a[?(@.type=="Ready")].status`, `.m['k']`.

use serde_json::{Map, Value};

/// Most values a path may lead to.
const MAX_FOUND: usize = 256;

/// The values a path leads to; none when the path cannot be read.
pub(crate) fn find<'a>(object: &'a Map<String, Value>, path: &str) -> Vec<&'a Value> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut rest = path;
    let mut found: Option<Vec<&'a Value>> = None;
    while !rest.is_empty() {
        let Some((step, after)) = step(rest) else { return Vec::new() };
        let mut next = Vec::new();
        match &found {
            None => match step {
                Step::Key(key) => next.extend(object.get(key)),
                Step::All => next.extend(object.values()),
                _ => return Vec::new(),
            },
            Some(values) => values.iter().for_each(|value| follow(value, &step, &mut next)),
        }
        next.truncate(MAX_FOUND);
        found = Some(next);
        rest = after;
    }
    found.unwrap_or_default()
}

enum Step<'a> {
    Key(&'a str),
    Index(i64),
    All,
    Where(Vec<&'a str>, &'a str),
}

fn step(text: &str) -> Option<(Step<'_>, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let end = if rest.starts_with('?') { rest.find(")]").map(|at| at + 1)? } else { rest.find(']')? };
        return Some((bracket(&rest[..end])?, &rest[end + 1..]));
    }
    let rest = text.strip_prefix('.').unwrap_or(text);
    let mut end = rest.len();
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        if !escaped && matches!(c, '.' | '[') {
            end = at;
            break;
        }
        escaped = c == '\\';
    }
    if end == 0 {
        return None;
    }
    let key = &rest[..end];
    Some((if key == "*" { Step::All } else { Step::Key(key) }, &rest[end..]))
}

fn bracket(inner: &str) -> Option<Step<'_>> {
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(condition) = inner.strip_prefix("?(").and_then(|c| c.strip_suffix(')')) {
        let (path, value) = condition.split_once("==")?;
        let path = path.trim().strip_prefix("@.")?.split('.').collect();
        return Some(Step::Where(path, value.trim().trim_matches(['"', '\''])));
    }
    match inner.parse() {
        Ok(index) => Some(Step::Index(index)),
        Err(_) => Some(Step::Key(inner.trim_matches(['"', '\'']))),
    }
}

fn follow<'a>(value: &'a Value, step: &Step<'_>, out: &mut Vec<&'a Value>) {
    match (step, value) {
        (Step::Key(key), Value::Object(map)) => {
            let plain = key.contains('\\').then(|| key.replace('\\', ""));
            out.extend(map.get(plain.as_deref().unwrap_or(key)));
        }
        (Step::Index(index), Value::Array(items)) => {
            let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
            let at = if *index < 0 { length + index } else { *index };
            out.extend(usize::try_from(at).ok().and_then(|at| items.get(at)));
        }
        (Step::All, Value::Array(items)) => out.extend(items),
        (Step::All, Value::Object(map)) => out.extend(map.values()),
        (Step::Where(path, wanted), Value::Array(items)) => {
            out.extend(items.iter().filter(|item| {
                let at = path.iter().try_fold(*item, |v, key| v.get(*key));
                at.is_some_and(|v| show(v) == *wanted)
            }));
        }
        _ => {}
    }
}

/// A value as columns print it.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(path: &str, expect: &str) {
        let object = json!({
            "spec": {"x": 1, "list": [{"n": "a", "v": 1}, {"n": "b", "v": 2}]},
            "metadata": {"annotations": {"a.b/c": "note"}},
        });
        let found = find(object.as_object().unwrap(), path);
        assert_eq!(found.iter().map(|v| show(v)).collect::<Vec<_>>().join(" "), expect, "{path}");
    }

    #[test]
    fn paths_lead_to_values() {
        check(".spec.x", "1");
        check("{.spec.x}", "1");
        check(".spec.list[1].n", "b");
        check(".spec.list[-1].n", "b");
        check(".spec.list[*].n", "a b");
        check(".spec.list[?(@.n==\"b\")].v", "2");
        check(r".metadata.annotations.a\.b/c", "note");
        check(".metadata.annotations['a.b/c']", "note");
        check(".spec.nothing.there", "");
        check("..", "");
        check("[", "");
    }
}

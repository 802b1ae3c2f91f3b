//! Label selectors: what is wrong with one, what it selects, how tables show it.

use serde_json::Value;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::meta;
use crate::value::{entries, list, map, text, texts};

/// Checks a label selector; null is fine.
pub(crate) fn check(selector: &Value, at: &At<'_>, errors: &mut Errors) {
    meta::label_map(entries(selector, "matchLabels"), &at.field("matchLabels"), errors);
    let terms = at.field("matchExpressions");
    for (i, term) in list(selector, "matchExpressions").iter().enumerate() {
        check_term(term, &terms.index(i), errors);
    }
}

/// Checks the labels of a selector that is a plain map.
pub(crate) fn plain_selector(holder: &Value, key: &str, at: &At<'_>, errors: &mut Errors) {
    meta::label_map(entries(holder, key), &at.field(key), errors);
}

fn check_term(term: &Value, at: &At<'_>, errors: &mut Errors) {
    let values = list(term, "values");
    match text(term, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&at.field("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(&at.field("values"), why);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.invalid_text(&at.field("operator"), other, "not a valid selector operator"),
    }
    meta::label_key(text(term, "key"), &at.field("key"), errors);
    let at = at.field("values");
    for (i, value) in texts(term, "values").enumerate() {
        for why in names::label_value(value) {
            errors.invalid_text(&at.index(i), value, &why);
        }
    }
}

/// Whether it selects everything, for it states nothing.
pub(crate) fn is_empty(selector: &Value) -> bool {
    entries(selector, "matchLabels").next().is_none() && list(selector, "matchExpressions").is_empty()
}

/// Whether a selector (null selects nothing) selects these labels.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    if !selector.is_object() {
        return false;
    }
    let label = |key: &str| text_of(labels, key);
    entries(selector, "matchLabels").all(|(key, value)| label(key) == value.as_str())
        && list(selector, "matchExpressions").iter().all(|term| {
            let found = label(text(term, "key"));
            let among = || found.is_some_and(|value| texts(term, "values").any(|v| v == value));
            match text(term, "operator") {
                "In" => among(),
                "NotIn" => !among(),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

fn text_of<'a>(labels: &'a Value, key: &str) -> Option<&'a str> {
    labels.get(key)?.as_str()
}

/// A selector as tables show it; `<none>` when it states nothing.
pub(crate) fn shown(selector: &Value) -> String {
    let mut parts: Vec<(&str, String)> = entries(selector, "matchLabels")
        .map(|(key, value)| (key.as_str(), format!("{key}={}", value.as_str().unwrap_or(""))))
        .collect();
    for term in list(selector, "matchExpressions") {
        let key = text(term, "key");
        let mut values: Vec<&str> = texts(term, "values").collect();
        values.sort_unstable();
        let values = values.join(",");
        parts.push((
            key,
            match text(term, "operator") {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "DoesNotExist" => format!("!{key}"),
                _ => key.into(),
            },
        ));
    }
    parts.sort_by(|a, b| a.0.cmp(b.0));
    or_none(parts.into_iter().map(|(_, part)| part).collect())
}

/// Labels as tables show them; `<none>` when there are none.
pub(crate) fn shown_labels(holder: &Value, key: &str) -> String {
    let mut parts: Vec<String> = map(holder, key)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    parts.sort_unstable();
    or_none(parts)
}

fn or_none(parts: Vec<String>) -> String {
    if parts.is_empty() { "<none>".into() } else { parts.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selects_by_labels_and_expressions() {
        let labels = json!({"app": "web", "tier": "front"});
        let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
        for (selector, want) in [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (expression("In", json!(["web"])), true),
            (expression("NotIn", json!(["web"])), false),
            (expression("Exists", json!([])), true),
            (expression("DoesNotExist", json!([])), false),
        ] {
            assert_eq!(selects(&selector, &labels), want, "{selector}");
        }
        assert_eq!(shown(&expression("In", json!(["b", "a"]))), "app in (a,b)");
        assert_eq!(shown(&json!({})), "<none>");
    }
}

//! Query strings: their pairs, and the options that Kubernetes' verbs read from them.

use std::borrow::Cow;

use wasmk_api::{Cause, FieldSelector, GroupKind, LabelSelector, Operator, Status};
use wasmk_machinery::names;

use super::request::decode;

/// The pairs of a query string, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string; a pair without `=` has an empty value.
    pub(crate) fn parse(text: &str) -> Self {
        let decoded = |s: &str| -> String {
            let spaced: Cow<'_, str> = if s.contains('+') { s.replace('+', " ").into() } else { s.into() };
            decode(&spaced)
        };
        let pairs = text
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|p| p.split_once('=').unwrap_or((p, "")))
            .map(|(k, v)| (decoded(k), decoded(v)))
            .collect();
        Self(pairs)
    }

    /// The first value of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// All values of that name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// The value, or empty.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or("")
    }

    /// Whether a flag is set: present, and neither `0` nor `false` in any case.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| !(v == "0" || v.eq_ignore_ascii_case("false")))
    }

    /// A whole number.
    ///
    /// # Errors
    /// When the value is not one.
    pub(crate) fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
            }),
        }
    }
}

/// How a list's `resourceVersion` is to be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// The newest state.
    Newest,
    /// Whatever the server has.
    Any,
    /// That revision or a later one.
    NotOlderThan(u64),
    /// Exactly that revision.
    Exact(u64),
}

/// The options of list, watch and deletecollection.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    /// Which labels objects must have.
    pub(crate) labels: LabelSelector,
    /// Which field values objects must have.
    pub(crate) fields: FieldSelector,
    /// The most items of a page; 0 for all.
    pub(crate) limit: usize,
    /// Where the page starts, from the page before.
    pub(crate) cont: String,
    /// `resourceVersion` as it was sent.
    pub(crate) resource_version: String,
    /// `resourceVersionMatch` as it was sent.
    pub(crate) version_match: String,
    /// Seconds after which a watch ends.
    pub(crate) timeout_seconds: Option<u64>,
    /// Whether a watch wants bookmarks.
    pub(crate) bookmarks: bool,
    /// Whether a watch starts with the present objects.
    pub(crate) send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Reads and checks them.
    ///
    /// # Errors
    /// 400 for what cannot be read, 422 for what does not go together.
    pub(crate) fn parse(query: &Query, watch: bool) -> Result<Self, Status> {
        let limit = query.number("limit")?.unwrap_or(0);
        let options = Self {
            labels: labels(query.text("labelSelector"))?,
            fields: FieldSelector::parse(query.text("fieldSelector"))
                .map_err(|e| Status::bad_request(e.to_string()))?,
            limit: usize::try_from(limit).unwrap_or(0),
            cont: query.text("continue").into(),
            resource_version: query.text("resourceVersion").into(),
            version_match: query.text("resourceVersionMatch").into(),
            timeout_seconds: query.number("timeoutSeconds")?.and_then(|n| u64::try_from(n).ok()),
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents")),
        };
        let causes = if watch { options.watch_causes() } else { options.list_causes() };
        if causes.is_empty() { Ok(options) } else { Err(invalid(&causes)) }
    }

    fn list_causes(&self) -> Vec<Cause> {
        let mut causes = Vec::new();
        let field = "resourceVersionMatch";
        if !self.version_match.is_empty() {
            if self.resource_version.is_empty() {
                causes.push(forbidden(
                    field,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.cont.is_empty() {
                causes.push(forbidden(field, "resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(&*self.version_match, "Exact" | "NotOlderThan") {
                causes.push(unsupported(field, &self.version_match, r#""Exact", "NotOlderThan", """#));
            }
            if self.version_match == "Exact" && self.resource_version == "0" {
                causes.push(forbidden(
                    field,
                    r#"resourceVersionMatch "exact" is forbidden for resourceVersion "0""#,
                ));
            }
        }
        if self.send_initial_events.is_some() {
            causes.push(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        causes
    }

    fn watch_causes(&self) -> Vec<Cause> {
        let mut causes = Vec::new();
        let field = "resourceVersionMatch";
        if self.send_initial_events.is_some() && self.version_match != "NotOlderThan" {
            causes.push(forbidden(
                field,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if !self.version_match.is_empty() {
            if self.send_initial_events.is_none() {
                causes.push(forbidden(
                    field,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if self.version_match != "NotOlderThan" {
                causes.push(unsupported(field, &self.version_match, r#""NotOlderThan""#));
            }
            if !self.cont.is_empty() {
                causes.push(forbidden(field, "resourceVersionMatch is forbidden when continue is provided"));
            }
        }
        causes
    }

    /// How the list's revision is to be met.
    ///
    /// # Errors
    /// When `resourceVersion` is no number.
    pub(crate) fn wanted(&self) -> Result<Match, Status> {
        let version = match &*self.resource_version {
            "" => return Ok(Match::Newest),
            text => parse_version(text)?,
        };
        Ok(match (&*self.version_match, version) {
            ("Exact", version) => Match::Exact(version),
            (_, 0) => Match::Any,
            ("", version) if self.limit > 0 => Match::Exact(version),
            (_, version) => Match::NotOlderThan(version),
        })
    }
}

/// Reads a label selector and checks its keys and values.
///
/// # Errors
/// In Kubernetes' words.
pub(crate) fn labels(text: &str) -> Result<LabelSelector, Status> {
    let selector = LabelSelector::parse(text).map_err(|error| {
        let message = error.to_string();
        let bare = match message.contains(", expected: identifier") {
            true => message.strip_prefix("unable to parse requirement: ").unwrap_or(&message),
            false => &message,
        };
        // At the very start there may also be nothing at all.
        let start = text.trim_start().starts_with([',', '=', '(', ')']);
        Status::bad_request(match start {
            true => bare.replace("expected: identifier", "expected: !, identifier, or 'end of string'"),
            false => bare.to_owned(),
        })
    })?;
    for requirement in &selector.requirements {
        let refuse = |field: &str, value: &str, why: &[String]| {
            let why: Vec<String> =
                why.iter().map(|w| format!("{field}: Invalid value: {value:?}: {w}")).collect();
            Status::bad_request(format!("unable to parse requirement: {}", why.join(", ")))
        };
        let wrong = names::qualified_name(&requirement.key);
        if !wrong.is_empty() {
            return Err(refuse("<nil>", &requirement.key, &wrong));
        }
        let (Operator::In(values) | Operator::NotIn(values)) = &requirement.operator else { continue };
        for (i, value) in values.iter().enumerate() {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                return Err(refuse(&format!("values[{i}][{}]", requirement.key), value, &wrong));
            }
        }
    }
    Ok(selector)
}

/// Reads a resource version.
///
/// # Errors
/// In the words of Kubernetes, when it is no number.
pub(crate) fn parse_version(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        let message = format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        );
        Status::new(wasmk_api::Reason::Unknown, message)
    })
}

fn invalid(causes: &[Cause]) -> Status {
    Status::invalid(&GroupKind { group: "meta.k8s.io".into(), kind: "ListOptions".into() }, "", causes)
}

fn forbidden(field: &str, why: &str) -> Cause {
    Cause { reason: "FieldValueForbidden".into(), message: format!("Forbidden: {why}"), field: field.into() }
}

fn unsupported(field: &str, value: &str, supported: &str) -> Cause {
    Cause {
        reason: "FieldValueNotSupported".into(),
        message: format!("Unsupported value: {value:?}: supported values: {supported}"),
        field: field.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, watch: bool, expect: Result<Match, &str>) {
        let got = ListOptions::parse(&Query::parse(query), watch).and_then(|o| o.wanted());
        match (got, expect) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{query}"),
            (Err(status), Err(text)) => assert!(status.message.contains(text), "{query}: {status}"),
            (got, want) => panic!("{query}: {got:?} instead of {want:?}"),
        }
    }

    #[test]
    fn revisions_of_lists() {
        check("", false, Ok(Match::Newest));
        check("resourceVersion=0", false, Ok(Match::Any));
        check("resourceVersion=5", false, Ok(Match::NotOlderThan(5)));
        check("resourceVersion=5&limit=2", false, Ok(Match::Exact(5)));
        check("resourceVersion=5&resourceVersionMatch=Exact", false, Ok(Match::Exact(5)));
        check("resourceVersion=x", false, Err("strconv.ParseUint"));
        check("resourceVersionMatch=Exact", false, Err("forbidden unless resourceVersion is provided"));
        check("resourceVersion=1&resourceVersionMatch=Odd", false, Err("supported values: \"Exact\""));
        check("sendInitialEvents=true", true, Err("requires setting resourceVersionMatch"));
        check("resourceVersionMatch=NotOlderThan", true, Err("unless sendInitialEvents is provided"));
        check("limit=x", false, Err("strconv.ParseInt"));
    }

    #[test]
    fn pairs_are_decoded() {
        let query = Query::parse("a=b%3Dc&flag&off=False&s=x+y");
        assert_eq!(query.text("a"), "b=c");
        assert!(query.flag("flag") && !query.flag("off") && !query.flag("none"));
        assert_eq!(query.text("s"), "x y");
    }
}

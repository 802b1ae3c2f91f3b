//! Replaces what must differ between two runs by words that stay the same.
//!
//! One [`Normal`] serves one case: a uid or revision keeps its number throughout. What the case itself spells out
//! stays as it is.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::{Map, Value};

fn regex(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

static UUID: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"));
static TIME: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\b(20\d\d-\d\d-\d\d)T\d\d:\d\d:\d\d(\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)"));
static ADDRESS: LazyLock<Regex> = LazyLock::new(|| regex(r"\b10\.96\.\d{1,3}\.\d{1,3}\b"));
static PORT: LazyLock<Regex> = LazyLock::new(|| regex(r"(\d:)(3[0-2]\d{3})(/(?:TCP|UDP|SCTP))"));
static AGE: LazyLock<Regex> = LazyLock::new(|| regex(r"^(<invalid>|<unknown>|(\d+(y|d|h|m|s))+)$"));
/// Texts with what takes the place of their matches.
static PLAIN: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    vec![
        (regex(r"\bkube-api-access-[a-z0-9]{5}\b"), "kube-api-access-<generated>"),
        (regex(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"), "<token>"),
        (regex(r"\bhash=[0-9A-Z]{32,}"), "hash=<hash>"),
        (regex(r"(too old resource version: )\d+( \()\d+(\))"), "${1}<rv>${2}<rv>${3}"),
        (regex(r"(Too large resource version: \d+, current: )\d+"), "${1}<rv>"),
        (regex(r"(in object meta: )\d+\b"), "${1}<rv>"),
        (regex(r#"(\\*"resourceVersion\\*":\\*")\d+(\\*")"#), "${1}<rv>${2}"),
        (regex(r#"(resourceVersion: ")\d+(")"#), "${1}<rv>${2}"),
        (regex(r"(in record \()\d+(\))"), "${1}<rv>${2}"),
        (regex(r#"(in scheme \\*")[^"\\]+"#), "${1}<scheme>"),
    ]
});
const AGE_COLUMNS: [&str; 5] = ["Age", "First Seen", "Last Seen", "Duration", "Last Schedule"];

/// The rules, with what was numbered so far.
pub(crate) struct Normal {
    word: String,
    own: String,
    uids: Vec<String>,
    revisions: Vec<String>,
    /// Generated names with what stands for them.
    names: Vec<(String, String)>,
    prefixes: Vec<String>,
    custom: bool,
}

fn number(known: &mut Vec<String>, raw: &str) -> usize {
    if let Some(at) = known.iter().position(|k| k == raw) {
        return at + 1;
    }
    known.push(raw.into());
    known.len()
}

impl Normal {
    /// For a case with that unique word; `own` is its text without what is expected.
    pub(crate) fn new(word: &str, own: String) -> Self {
        Self {
            word: word.into(),
            own,
            uids: Vec::new(),
            revisions: Vec::new(),
            names: Vec::new(),
            prefixes: Vec::new(),
            custom: false,
        }
    }

    /// Normalises text.
    pub(crate) fn text(&mut self, text: &str) -> String {
        let mut text = text.replace(&self.word, "{u}");
        for (name, shown) in &self.names {
            text = text.replace(name, shown);
        }
        let own = &self.own;
        let kept =
            |c: &Captures<'_>, shown: String| if own.contains(&c[0]) { c[0].to_owned() } else { shown };
        let uids = &mut self.uids;
        text = UUID
            .replace_all(&text, |c: &Captures<'_>| {
                if own.contains(&c[0]) { c[0].to_owned() } else { format!("<uid:{}>", number(uids, &c[0])) }
            })
            .into_owned();
        let today = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
        text = TIME
            .replace_all(&text, |c: &Captures<'_>| {
                let near =
                    c[1].parse::<jiff::civil::Date>().is_ok_and(|day| (day - today).get_days().abs() <= 3);
                match (near, c.get(2)) {
                    (false, _) => c[0].to_owned(),
                    (true, None) => kept(c, "<time>".into()),
                    (true, Some(_)) => kept(c, "<microtime>".into()),
                }
            })
            .into_owned();
        text = ADDRESS.replace_all(&text, |c: &Captures<'_>| kept(c, "<clusterIP>".into())).into_owned();
        text = PORT
            .replace_all(&text, |c: &Captures<'_>| {
                let port = if own.contains(&c[2]) { &c[2] } else { "<nodePort>" };
                format!("{}{port}{}", &c[1], &c[3])
            })
            .into_owned();
        for prefix in &self.prefixes {
            let generated = regex(&format!(r"{}[a-z0-9]{{5}}\b", regex::escape(prefix)));
            text = generated.replace_all(&text, format!("{prefix}<generated>")).into_owned();
        }
        for (found, shown) in PLAIN.iter() {
            text = found.replace_all(&text, *shown).into_owned();
        }
        text
    }

    /// Normalises an answer to a request with a body.
    pub(crate) fn body(&mut self, answer: &Value, sent: &Value) -> Value {
        self.learn(answer);
        self.custom = answer["groupVersion"].as_str().is_some_and(|g| g.contains(&self.word));
        let prefix = sent["metadata"]["generateName"].as_str().unwrap_or("");
        if answer["kind"] == "Status" && !prefix.is_empty() {
            self.prefixes.push(prefix.replace(&self.word, "{u}"));
        }
        self.walk(answer)
    }

    /// Notes generated names.
    pub(crate) fn learn(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            Value::Object(map) => {
                let at = |key: &str| value["metadata"][key].as_str().unwrap_or("").replace(&self.word, "{u}");
                let (prefix, name) = (at("generateName"), at("name"));
                let new = !prefix.is_empty()
                    && name.starts_with(&prefix)
                    && !self.own.contains(&name)
                    && !self.names.iter().any(|(known, _)| *known == name);
                if new {
                    let start = format!("{prefix}<generated");
                    let count = self.names.iter().filter(|(_, shown)| shown.starts_with(&start)).count() + 1;
                    self.names.push((name, format!("{start}:{count}>")));
                }
                map.values().for_each(|value| self.learn(value));
            }
            _ => {}
        }
    }

    fn walk(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(text).into(),
            Value::Array(items) => items.iter().map(|item| self.walk(item)).collect(),
            Value::Object(map) => self.map(map),
            other => other.clone(),
        }
    }

    fn map(&mut self, map: &Map<String, Value>) -> Value {
        let kind = map.get("kind").and_then(Value::as_str).unwrap_or("").to_owned();
        let mut out = Map::new();
        for (key, value) in map {
            let shown = match (key.as_str(), value) {
                ("metadata", Value::Object(meta)) => self.metadata(meta, map, &kind),
                ("resourceVersion", Value::String(v)) if v.parse::<u64>().is_ok() => "<rv>".into(),
                ("causes", Value::Array(_)) => sorted(self.walk(value), &["field", "message", "reason"]),
                ("storageVersionHash", _) if self.custom => "<hash>".into(),
                ("rows", _) if kind == "Table" => self.rows(map),
                ("token", Value::String(v)) if kind != "Secret" && !self.own.contains(v) => "<token>".into(),
                ("spec", Value::Object(_)) if kind == "Service" => {
                    let spec = self.walk(value);
                    self.service(spec)
                }
                _ => self.walk(value),
            };
            out.insert(self.text(key), shown);
        }
        Value::Object(out)
    }

    fn metadata(&mut self, meta: &Map<String, Value>, owner: &Map<String, Value>, kind: &str) -> Value {
        let list =
            kind.ends_with("List") || matches!(kind, "Table" | "Status") || owner.contains_key("items");
        let mut out = Map::new();
        for (key, value) in meta {
            let shown = match (key.as_str(), value) {
                ("resourceVersion", Value::String(v)) if matches!(v.as_str(), "" | "0") => value.clone(),
                ("resourceVersion", _) if list => "<rv>".into(),
                ("resourceVersion", Value::String(v)) => {
                    format!("<rv:{}>", number(&mut self.revisions, v)).into()
                }
                ("uid", Value::String(v)) if !UUID.is_match(v) => value.clone(),
                ("managedFields", Value::Array(_)) => {
                    sorted(self.walk(value), &["operation", "manager", "subresource", "apiVersion"])
                }
                ("continue", Value::String(v)) if !v.is_empty() => "<continue>".into(),
                _ => self.walk(value),
            };
            out.insert(self.text(key), shown);
        }
        Value::Object(out)
    }

    fn rows(&mut self, table: &Map<String, Value>) -> Value {
        let none = Vec::new();
        let list = |key: &str| table.get(key).and_then(Value::as_array).unwrap_or(&none);
        let columns = list("columnDefinitions");
        let is_age = |at: usize| match columns.get(at) {
            None => columns.is_empty(),
            Some(column) => {
                column["type"] == "date" || AGE_COLUMNS.iter().any(|name| column["name"] == *name)
            }
        };
        let mut rows = Vec::new();
        for row in list("rows") {
            let mut row = row.clone();
            for (at, cell) in row["cells"].as_array_mut().into_iter().flatten().enumerate() {
                if is_age(at) && cell.as_str().is_some_and(|c| AGE.is_match(c)) {
                    *cell = "<age>".into();
                }
            }
            rows.push(self.walk(&row));
        }
        Value::Array(rows)
    }

    /// Allocated ports have no text around them by which to find them.
    fn service(&self, mut spec: Value) -> Value {
        let allocated =
            |port: &Value| port.as_u64().is_some_and(|p| p > 0 && !self.own.contains(&p.to_string()));
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if port.get("nodePort").is_some_and(allocated) {
                port["nodePort"] = "<nodePort>".into();
            }
        }
        if spec.get("healthCheckNodePort").is_some_and(allocated) {
            spec["healthCheckNodePort"] = "<nodePort>".into();
        }
        spec
    }
}

fn sorted(list: Value, keys: &[&str]) -> Value {
    let Value::Array(mut items) = list else { return list };
    items.sort_by_cached_key(|item| {
        keys.iter().map(|k| item[*k].as_str().unwrap_or("").to_owned()).collect::<Vec<_>>()
    });
    Value::Array(items)
}

//! `config-network`: how host names are built and traffic moves.

use std::{collections::BTreeMap, time::Duration};

use super::{Wrong, read::Values};

/// Host names and schemes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    domain: Template,
    tag: Template,
    /// The scheme of external URLs.
    pub scheme: String,
    /// How long a new revision takes to get all of its traffic.
    pub rollout: Duration,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            domain: Template::read("{{.Name}}.{{.Namespace}}.{{.Domain}}", &DOMAIN_FIELDS)
                .expect("a template"),
            tag: Template::read("{{.Tag}}-{{.Name}}", &TAG_FIELDS).expect("a template"),
            scheme: "http".into(),
            rollout: Duration::ZERO,
        }
    }
}

/// Fields of the template of hosts.
const DOMAIN_FIELDS: [&str; 3] = ["Name", "Namespace", "Domain"];
/// Fields of the template that puts a tag into a name.
const TAG_FIELDS: [&str; 2] = ["Name", "Tag"];

impl Network {
    pub(super) fn read(values: &Values<'_>) -> Result<Self, Wrong> {
        let or = Self::default();
        let template = |key: &str, fields: &[&str], default: Template| match values.get(key) {
            None => Ok(default),
            Some(text) => Template::read(text, fields).map_err(|why| Wrong::new(key, text, why)),
        };
        let one_of = |key: &str, known: &[&str]| match values.get(key).map(str::to_ascii_lowercase) {
            Some(text) if !known.contains(&text.as_str()) => {
                Err(Wrong::new(key, &text, format!("one of {} was expected", known.join(", "))))
            }
            text => Ok(text),
        };
        one_of("http-protocol", &["enabled", "redirected"])?;
        let scheme = one_of("default-external-scheme", &["http", "https"])?;
        let rollout = values.number("rollout-duration", 0_u64, "whole seconds, 0 or more", |_| true)?;
        Ok(Self {
            domain: template("domain-template", &DOMAIN_FIELDS, or.domain)?,
            tag: template("tag-template", &TAG_FIELDS, or.tag)?,
            scheme: scheme.unwrap_or(or.scheme),
            rollout: Duration::from_secs(rollout),
        })
    }

    /// The name of a route, or of one of its tags.
    pub(crate) fn name(&self, route: &Named<'_>, tag: &str) -> String {
        match tag {
            "" => route.name.to_string(),
            tag => self.tag.text(route, &[("Name", route.name), ("Tag", tag)]),
        }
    }

    /// The host of a route, or of one of its tags, under a suffix.
    pub(crate) fn host(&self, route: &Named<'_>, tag: &str, domain: &str) -> String {
        let name = self.name(route, tag);
        self.domain.text(route, &[("Name", &name), ("Namespace", route.namespace), ("Domain", domain)])
    }
}

/// What templates may name of an object.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Named<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub labels: Option<&'a BTreeMap<String, String>>,
    pub annotations: Option<&'a BTreeMap<String, String>>,
}

/// A text with fields in double braces: `{{.Name}}`, `{{index .Annotations "key"}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(String),
    Label(String),
    Annotation(String),
}

impl Template {
    fn read(text: &str, fields: &[&str]) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (inside, behind) = after.split_once("}}").ok_or("a field does not end with }}")?;
            pieces.push(Piece::Text(before.into()));
            pieces.push(Piece::read(inside.trim(), fields)?);
            rest = behind;
        }
        pieces.push(Piece::Text(rest.into()));
        pieces.retain(|p| !matches!(p, Piece::Text(text) if text.is_empty()));
        Ok(Self(pieces))
    }

    fn text(&self, of: &Named<'_>, fields: &[(&str, &str)]) -> String {
        let in_map = |map: Option<&BTreeMap<String, String>>, key: &str| {
            map.and_then(|m| m.get(key)).cloned().unwrap_or_default()
        };
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Field(name) => {
                fields.iter().find(|(n, _)| n == name).map_or_else(String::new, |(_, v)| v.to_string())
            }
            Piece::Label(key) => in_map(of.labels, key),
            Piece::Annotation(key) => in_map(of.annotations, key),
        };
        self.0.iter().map(piece).collect()
    }
}

impl Piece {
    fn read(inside: &str, fields: &[&str]) -> Result<Self, String> {
        if let Some(name) = inside.strip_prefix('.').filter(|name| fields.contains(name)) {
            return Ok(Self::Field(name.into()));
        }
        let quoted = |rest: &str| rest.trim().strip_prefix('"')?.strip_suffix('"').map(String::from);
        if let Some(key) = inside.strip_prefix("index .Annotations").and_then(quoted) {
            return Ok(Self::Annotation(key));
        }
        if let Some(key) = inside.strip_prefix("index .Labels").and_then(quoted) {
            return Ok(Self::Label(key));
        }
        Err(format!("`{inside}` is no field; known are {}", fields.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(data: &[(&str, &str)], tag: &str) -> String {
        let data = data.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let network = Network::read(&Values(&data)).unwrap();
        let labels = [("team".to_string(), "red".to_string())].into();
        let route =
            Named { name: "hello", namespace: "default", labels: Some(&labels), ..Default::default() };
        network.host(&route, tag, "example.com")
    }

    #[test]
    fn hosts_follow_the_templates() {
        assert_eq!(host(&[], ""), "hello.default.example.com");
        assert_eq!(host(&[], "v1"), "v1-hello.default.example.com");
        let short = ("domain-template", "{{.Name}}.{{ .Domain }}");
        assert_eq!(host(&[short], ""), "hello.example.com");
        assert_eq!(host(&[short, ("tag-template", "{{.Name}}-{{.Tag}}")], "v1"), "hello-v1.example.com");
        let team = ("domain-template", "{{.Name}}.{{index .Labels \"team\"}}.{{.Domain}}");
        assert_eq!(host(&[team], ""), "hello.red.example.com");
    }
}

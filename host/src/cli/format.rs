//! `-o`: how objects are printed.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;
use wasmk_machinery::yaml;

use super::{jsonpath::Template, output::aligned};

/// A form that whole objects are printed in.
#[derive(Clone, Debug)]
pub(super) enum Format {
    /// Indented JSON.
    Json,
    /// YAML.
    Yaml,
    /// `pod/name`.
    Name,
    /// A text made by a template.
    Template(Template),
    /// A table of the user's own columns: header and path of each.
    Columns(Vec<(String, Template)>),
}

impl Format {
    /// Reads `-o`'s value, with `--template` for those that want one; `None` for the server's tables.
    ///
    /// # Errors
    /// In kubectl's words, when there is no such form or its template is not understood.
    pub(super) fn parse(output: Option<&str>, template: Option<&str>) -> Result<Option<Self>> {
        let Some(output) = output else {
            return template.map(Template::parse_go).transpose().map(|t| t.map(Self::Template));
        };
        let (form, inline) = output.split_once('=').map_or((output, None), |(form, text)| (form, Some(text)));
        let text = || {
            inline
                .or(template)
                .with_context(|| format!("template format specified but no template given for {form}"))
        };
        Ok(Some(match form {
            "wide" => return Ok(None),
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "name" => Self::Name,
            "jsonpath" => Self::Template(Template::parse(text()?)?),
            "go-template" => Self::Template(Template::parse_go(text()?)?),
            "custom-columns" => Self::Columns(columns(text()?)?),
            other => bail!(
                "unable to match a printer suitable for the output format \"{other}\", allowed formats are: custom-columns,go-template,json,jsonpath,name,wide,yaml"
            ),
        }))
    }

    /// The object, or the list of objects, as text; for [`Format::Name`] of objects named so.
    ///
    /// # Errors
    /// When a template does not fit.
    pub(super) fn text(
        &self,
        value: &Value,
        header: bool,
        named: impl Fn(&Value) -> String,
    ) -> Result<String> {
        let items = value.get("items").and_then(Value::as_array);
        let each = || -> Vec<&Value> { items.map_or_else(|| vec![value], |items| items.iter().collect()) };
        Ok(match self {
            Self::Json => json_text(&sorted(value))?,
            Self::Yaml => yaml::write(value),
            Self::Name => each().into_iter().map(|o| format!("{}\n", named(o))).collect(),
            Self::Template(template) => template.render(value)?,
            Self::Columns(columns) => {
                let head: Vec<String> = columns.iter().map(|(head, _)| head.clone()).collect();
                let mut rows = if header { vec![head] } else { Vec::new() };
                for object in each() {
                    rows.push(
                        columns.iter().map(|(_, path)| cell(&path.find(object)?)).collect::<Result<_>>()?,
                    );
                }
                aligned(&rows)
            }
        })
    }
}

/// Four blanks a level, as kubectl has it.
fn json_text(value: &Value) -> Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    out.push(b'\n');
    Ok(String::from_utf8(out)?)
}

/// The value with the keys of every map in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(sorted).collect(),
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(pairs.into_iter().collect())
        }
        plain => plain.clone(),
    }
}

/// `NAME:path,...`.
fn columns(text: &str) -> Result<Vec<(String, Template)>> {
    text.split(',')
        .map(|part| {
            let (head, path) = part.split_once(':').with_context(|| {
                format!("unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>")
            })?;
            Ok((head.to_string(), Template::parse_path(path)?))
        })
        .collect()
}

fn cell(found: &[Value]) -> Result<String> {
    Ok(match found {
        [] => "<none>".into(),
        found => found.iter().map(go).collect::<Vec<_>>().join(","),
    })
}

/// A value as Go prints it.
fn go(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".into(),
        Value::Array(list) => format!("[{}]", list.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{}", go(v))).collect();
            pairs.sort();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn own_columns() {
        let list = json!({"items": [{"metadata": {"name": "a", "labels": {"y": "2", "x": "1"}}}, {"metadata": {"name": "b"}}]});
        let format = Format::parse(Some("custom-columns=NAME:metadata.name,LABELS:.metadata.labels"), None)
            .unwrap()
            .unwrap();
        let text = format.text(&list, true, |_| String::new()).unwrap();
        assert_eq!(text, "NAME   LABELS\na      map[x:1 y:2]\nb      <none>\n");
    }

    #[test]
    fn whole_objects_have_their_keys_in_order() {
        let object = json!({"b": {"z": 1, "a": []}, "a": "x"});
        let text = |form: &str| {
            Format::parse(Some(form), None).unwrap().unwrap().text(&object, true, |_| String::new()).unwrap()
        };
        assert_eq!(
            text("json"),
            "{\n    \"a\": \"x\",\n    \"b\": {\n        \"a\": [],\n        \"z\": 1\n    }\n}\n"
        );
        assert!(text("yaml").starts_with("a: x\nb:\n  a: []\n  z: 1"), "{}", text("yaml"));
    }

    #[test]
    fn unknown_forms_are_refused() {
        for bad in ["xml", "jsonpath", "custom-columns=x"] {
            assert!(Format::parse(Some(bad), None).is_err(), "{bad}");
        }
        assert!(Format::parse(Some("wide"), None).unwrap().is_none());
    }
}

//! The server's tables as text.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::Value;

use super::output::aligned;

/// Rows of one resource, gathered from one or more `Table` answers.
#[derive(Debug, Default)]
pub(super) struct Table {
    wide: bool,
    namespaces: bool,
    /// A last column with all labels.
    pub(super) show_labels: bool,
    /// Printed before each name (`pod/`), where several resources are listed.
    pub(super) prefix: Option<String>,
    /// The list's revision, where a watch goes on.
    pub(super) revision: String,
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug)]
struct Column {
    name: String,
    is_date: bool,
    shown: bool,
}

impl Table {
    /// With all columns (`wide`), with a column of namespaces.
    pub(super) fn new(wide: bool, namespaces: bool) -> Self {
        Self { wide, namespaces, ..Self::default() }
    }

    /// Takes the rows of an answer. Later answers may leave the columns out.
    pub(super) fn add(&mut self, answer: &Value) -> Result<()> {
        if let Some(columns) = answer["columnDefinitions"].as_array().filter(|c| !c.is_empty()) {
            self.columns = columns.iter().map(|c| column(c, self.wide)).collect();
        }
        if let Some(revision) = answer["metadata"]["resourceVersion"].as_str() {
            self.revision = revision.into();
        }
        let rows = answer["rows"].as_array().context("the server sent no table")?;
        self.rows.extend(rows.iter().map(|row| self.row(row)).collect::<Vec<_>>());
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Forgets the rows and keeps the columns.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }

    /// The rows as aligned text.
    pub(super) fn text(&self, header: bool) -> String {
        let mut lines = Vec::with_capacity(self.rows.len() + 1);
        if header {
            lines.push(self.header());
        }
        lines.extend(self.rows.iter().cloned());
        aligned(&lines)
    }

    fn header(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        names.extend(self.namespaces.then(|| "NAMESPACE".into()));
        names.extend(self.columns.iter().filter(|c| c.shown).map(|c| c.name.to_uppercase()));
        names.extend(self.show_labels.then(|| "LABELS".into()));
        names
    }

    fn row(&self, row: &Value) -> Vec<String> {
        let metadata = &row["object"]["metadata"];
        let mut cells = Vec::new();
        if self.namespaces {
            cells.push(metadata["namespace"].as_str().unwrap_or("").into());
        }
        let values = row["cells"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (i, (column, value)) in self.columns.iter().zip(values).enumerate() {
            if column.shown {
                let text = cell(value, column.is_date);
                let prefix = self.prefix.as_deref().filter(|_| i == 0).unwrap_or("");
                cells.push(format!("{prefix}{text}"));
            }
        }
        if self.show_labels {
            cells.push(labels(&metadata["labels"]));
        }
        cells
    }
}

fn column(definition: &Value, wide: bool) -> Column {
    Column {
        name: definition["name"].as_str().unwrap_or("").into(),
        is_date: definition["type"] == "date",
        shown: wide || definition["priority"].as_i64().unwrap_or(0) == 0,
    }
}

fn cell(value: &Value, is_date: bool) -> String {
    match value {
        Value::Null => "<none>".into(),
        Value::String(text) if is_date => age(text).unwrap_or_else(|| text.clone()),
        Value::String(text) => text.lines().next().unwrap_or("").into(),
        other => other.to_string(),
    }
}

fn age(time: &str) -> Option<String> {
    let then = wasmk_api::Timestamp(time.parse().ok()?);
    Some(wasmk_api::human_duration(wasmk_api::Timestamp(Timestamp::now()).since(then)))
}

fn labels(labels: &Value) -> String {
    match labels.as_object().filter(|l| !l.is_empty()) {
        None => "<none>".into(),
        Some(labels) => labels
            .iter()
            .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or("")))
            .collect::<Vec<_>>()
            .join(","),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wide_shows_columns_of_lower_priority() {
        let answer = json!({
            "columnDefinitions": [{"name": "Name", "type": "string", "priority": 0}, {"name": "IP", "type": "string", "priority": 1}],
            "rows": [{"cells": ["web", "127.42.0.2"], "object": {"metadata": {"namespace": "default"}}}],
        });
        let text = |wide, namespaces| {
            let mut table = Table::new(wide, namespaces);
            table.add(&answer).unwrap();
            table.text(true)
        };
        assert_eq!(text(false, false), "NAME\nweb\n");
        assert_eq!(text(true, true), "NAMESPACE   NAME   IP\ndefault     web    127.42.0.2\n");
    }
}

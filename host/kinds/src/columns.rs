//! The columns of tables, as facts: one line each in `data/columns.tsv`.
//!
//! A line holds `group/Kind`, heading, type, format, priority and description, separated by tabs; the
//! descriptions `%name` and `%created` stand for those of the metadata fields.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::Column;

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The columns of kinds that have none of their own.
pub(crate) static DEFAULT: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", description: NAME, priority: 0 },
    Column { name: "Created At", kind: "date", format: "", description: CREATED, priority: 0 },
];

static TABLE: LazyLock<HashMap<&'static str, Vec<Column>>> =
    LazyLock::new(|| parse(include_str!("../data/columns.tsv")));

/// The columns of `group/Kind`.
pub(crate) fn of(key: &str) -> &'static [Column] {
    TABLE.get(key).map_or(DEFAULT, Vec::as_slice)
}

fn parse(text: &'static str) -> HashMap<&'static str, Vec<Column>> {
    let mut table: HashMap<_, Vec<Column>> = HashMap::new();
    for line in text.lines() {
        if let [key, name, kind, format, priority, description] = *line.split('\t').collect::<Vec<_>>() {
            let description = match description {
                "%name" => NAME,
                "%created" => CREATED,
                text => unescape(text),
            };
            let priority = priority.parse().unwrap_or(0);
            table.entry(key).or_default().push(Column { name, kind, format, description, priority });
        }
    }
    table
}

/// The table is read once and lives as long as the program, so its few escaped texts may too.
fn unescape(text: &'static str) -> &'static str {
    if !text.contains('\\') {
        return text;
    }
    serde_json::from_str::<String>(&format!("\"{text}\"")).map_or(text, |text| &*text.leak())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_column_that_names_itself() {
        let lines = include_str!("../data/columns.tsv").lines().count();
        assert_eq!(TABLE.values().map(Vec::len).sum::<usize>(), lines);
        assert!(TABLE.values().flatten().all(|c| !c.name.is_empty() && !c.description.is_empty()));
    }
}

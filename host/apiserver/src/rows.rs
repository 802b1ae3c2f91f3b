//! The built-in rows of the table, read from data.

use std::collections::HashMap;

use wasmk_api::{GroupVersion, Gvk};

use crate::{
    cache::{Caches, Reader},
    discovery::rank,
    special,
    table::{Nature, Resource, Subresource, Table},
};

const ROWS: &str = include_str!("../data/resources.tsv");

/// The verbs by their letters in the data.
const VERBS: [(char, &str); 8] = [
    ('c', "create"),
    ('d', "delete"),
    ('x', "deletecollection"),
    ('g', "get"),
    ('l', "list"),
    ('p', "patch"),
    ('u', "update"),
    ('w', "watch"),
];

struct Row<'a> {
    gv: GroupVersion,
    name: &'a str,
    kind: &'a str,
    kind_gv: Option<GroupVersion>,
    singular: &'a str,
    short_names: Vec<String>,
    namespaced: bool,
    categories: Vec<String>,
    verbs: Vec<String>,
}

fn read(line: &str) -> Option<Row<'_>> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [gv, name, kind, kind_gv, singular, short, scope, categories, verbs] = columns.as_slice() else {
        return None;
    };
    let text = |field: &'static str, value: &str| if value == "-" { field.into() } else { value.to_owned() };
    let list = |value: &str| -> Vec<String> {
        text("", value).split(',').filter(|v| !v.is_empty()).map(Into::into).collect()
    };
    Some(Row {
        gv: GroupVersion::parse(gv)?,
        name,
        kind,
        kind_gv: if *kind_gv == "-" { None } else { GroupVersion::parse(kind_gv) },
        singular: if *singular == "-" { "" } else { singular },
        short_names: list(short),
        namespaced: *scope == "n",
        categories: list(categories),
        verbs: verbs
            .chars()
            .filter_map(|c| VERBS.iter().find(|(letter, _)| *letter == c))
            .map(|(_, verb)| (*verb).into())
            .collect(),
    })
}

fn rows() -> impl Iterator<Item = Row<'static>> {
    ROWS.lines().filter(|l| !l.starts_with('#')).filter_map(read)
}

/// The key of a resource's cache and of its objects in the store.
pub(crate) fn storage(group: &str, plural: &str) -> String {
    let group = special::stored_elsewhere(group, plural).map_or(group, |(g, _)| g);
    format!("{}/{plural}", if group.is_empty() { "core" } else { group })
}

/// How objects of a stored resource are read into the cache.
pub(crate) fn reader(storage: &str) -> Reader {
    let (group, plural) = storage.split_once('/').unwrap_or(("", storage));
    let group = if group == "core" { "" } else { group };
    rows()
        .find(|row| row.gv.group == group && row.name == plural)
        .map_or(Reader::Plain, |row| Reader::Kind(wasmk_kinds::kind(group, row.kind)))
}

/// The version objects of each resource are stored in: the one Kubernetes prefers.
fn stored() -> HashMap<(String, String), GroupVersion> {
    let mut best: HashMap<(String, String), GroupVersion> = HashMap::new();
    for row in rows() {
        let key = (row.gv.group.clone(), row.name.to_owned());
        let better = best.get(&key).is_none_or(|known| rank(&row.gv.version) > rank(&known.version));
        if better {
            best.insert(key, row.gv);
        }
    }
    best
}

/// The table of all built-in resources.
pub(crate) fn table(caches: &Caches) -> Table {
    let stored = stored();
    let mut resources: Vec<Resource> = Vec::new();
    for row in rows() {
        if let Some((owner, sub)) = row.name.split_once('/') {
            let gvk = row.kind_gv.as_ref().unwrap_or(&row.gv).kind(row.kind);
            if let Some(resource) =
                resources.iter_mut().find(|r| r.plural == owner && r.gvk.group_version() == row.gv)
            {
                resource.subresources.push(Subresource { name: sub.into(), gvk, verbs: row.verbs });
            }
            continue;
        }
        resources.push(resource(caches, &stored, row));
    }
    let mut table = Table::default();
    for resource in resources {
        table.add(resource);
    }
    table
}

fn resource(caches: &Caches, stored: &HashMap<(String, String), GroupVersion>, row: Row<'_>) -> Resource {
    let storage = storage(&row.gv.group, row.name);
    let home = special::stored_elsewhere(&row.gv.group, row.name).map(|(g, v)| GroupVersion::new(g, v));
    let own = stored.get(&(row.gv.group.clone(), row.name.to_owned())).cloned();
    Resource {
        gvk: Gvk::new(row.gv.group.clone(), row.gv.version.clone(), row.kind),
        plural: row.name.into(),
        singular: row.singular.into(),
        short_names: row.short_names,
        categories: row.categories,
        namespaced: row.namespaced,
        verbs: row.verbs,
        subresources: Vec::new(),
        list_kind: format!("{}List", row.kind),
        stored: home.or(own).unwrap_or_else(|| row.gv.clone()),
        cache: caches.of(&storage),
        nature: Nature::Builtin(wasmk_kinds::kind(&row.gv.group, row.kind)),
        deprecation: special::deprecation(&row.gv.group, &row.gv.version, row.name).map(Into::into),
        storage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_row() {
        let lines = ROWS.lines().filter(|l| !l.starts_with('#')).count();
        assert_eq!(rows().count(), lines);
        assert!(rows().all(|row| !row.verbs.is_empty()));
    }

    #[test]
    fn resources_are_stored_in_their_best_version() {
        let stored = stored();
        assert_eq!(stored[&("autoscaling".into(), "horizontalpodautoscalers".into())].version, "v2");
        assert_eq!(storage("events.k8s.io", "events"), "core/events");
        assert_eq!(storage("apps", "deployments"), "apps/deployments");
    }
}

//! The table of built-in types (`data/types.tsv`), parsed type by type when first used.

use std::{
    collections::HashMap,
    sync::{LazyLock, OnceLock},
};

use wasmk_api::Gvk;

use super::node::{Kind, ListType, MapType, Node, Presence};

/// The table; `data/README.md` describes the format.
const TABLE: &str = include_str!("../../data/types.tsv");

struct Slot {
    name: &'static str,
    /// The header's columns after the name, and the field lines.
    head: &'static str,
    body: &'static str,
    node: OnceLock<Node>,
}

struct Index {
    /// Sorted by name.
    slots: Vec<Slot>,
    by_gvk: HashMap<&'static str, u32>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index { slots: Vec::new(), by_gvk: HashMap::new() };
    for block in TABLE.split("\n=") {
        let block = block.strip_prefix('=').unwrap_or(block);
        let (head, body) = block.split_once('\n').unwrap_or((block, ""));
        let (name, head) = head.split_once('\t').unwrap_or((head, ""));
        for gvk in kind_columns(head) {
            index.by_gvk.insert(gvk, index.slots.len() as u32);
        }
        index.slots.push(Slot { name, head, body, node: OnceLock::new() });
    }
    index
});

fn kind_columns(head: &'static str) -> impl Iterator<Item = &'static str> {
    head.split('\t').filter_map(|column| column.strip_prefix("k="))
}

fn position(name: &str) -> Option<u32> {
    INDEX.slots.binary_search_by(|slot| slot.name.cmp(name)).ok().map(|at| at as u32)
}

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    INDEX.slots.iter().map(|slot| slot.name)
}

pub(super) fn name(id: u32) -> &'static str {
    INDEX.slots[id as usize].name
}

/// The type's root; `id` must come from this table.
pub(super) fn node(id: u32) -> &'static Node {
    let slot = &INDEX.slots[id as usize];
    slot.node.get_or_init(|| parse(id, slot))
}

pub(super) fn by_name(name: &str) -> Option<&'static Node> {
    position(name).map(node)
}

/// The place that refers to a type, for schemas built elsewhere.
pub(super) fn reference(name: &str) -> Node {
    Node { reference: position(name), presence: Presence::Always, ..Node::default() }
}

pub(super) fn by_gvk(gvk: &Gvk) -> Option<&'static Node> {
    let key = format!("{}/{}/{}", gvk.group, gvk.version, gvk.kind);
    INDEX.by_gvk.get(&*key).map(|id| node(*id))
}

pub(super) fn kinds_of(name: &str) -> Vec<Gvk> {
    let Some(id) = position(name) else { return Vec::new() };
    let gvk = |text: &'static str| {
        let mut parts = text.split('/');
        Some(Gvk::new(parts.next()?, parts.next()?, parts.next()?))
    };
    kind_columns(INDEX.slots[id as usize].head).filter_map(gvk).collect()
}

fn parse(id: u32, slot: &'static Slot) -> Node {
    let mut columns = slot.head.split('\t');
    let kind = match columns.next().unwrap_or_default() {
        "object" => Kind::Object,
        "quantity" => Kind::Quantity,
        "int-or-string" => Kind::IntOrString,
        "time" => Kind::Time,
        "micro-time" => Kind::MicroTime,
        "raw" => Kind::Raw,
        "schema-or-array" => Kind::SchemaOrArray,
        "schema-or-bool" => Kind::SchemaOrBool,
        "schema-or-strings" => Kind::SchemaOrStrings,
        _ => Kind::Any,
    };
    let mut node = Node { kind, own: Some(id), ..Node::default() };
    if columns.any(|column| column == "m=atomic") {
        node.map_type = Some(MapType::Atomic);
    }
    let package = slot.name.rsplit_once('.').map_or("", |(package, _)| package);
    for line in slot.body.lines() {
        let mut columns = line.split('\t');
        let (Some(name), Some(spelling)) = (columns.next(), columns.next()) else { continue };
        let mut field = spelled(spelling, package);
        for attribute in columns.next().unwrap_or("").split(' ') {
            attribute_of(&mut field, name, attribute, &mut node.required);
        }
        node.fields.insert(name.into(), field);
    }
    node
}

fn spelled(spelling: &'static str, package: &str) -> Node {
    let plain = |kind| Node { kind, ..Node::default() };
    match spelling.split_at_checked(1) {
        Some(("[", rest)) => {
            Node { kind: Kind::Array, items: Some(Box::new(spelled(rest, package))), ..Node::default() }
        }
        Some(("{", rest)) => {
            Node { kind: Kind::Object, values: Some(Box::new(spelled(rest, package))), ..Node::default() }
        }
        Some(("@", rest)) if rest.contains('.') => Node { reference: position(rest), ..Node::default() },
        Some(("@", rest)) => Node { reference: position(&format!("{package}.{rest}")), ..Node::default() },
        _ => match spelling {
            "s" => plain(Kind::String),
            "i32" => plain(Kind::Integer32),
            "i64" => plain(Kind::Integer64),
            "b" => plain(Kind::Boolean),
            "f" => plain(Kind::Number),
            "y" => plain(Kind::Bytes),
            _ => plain(Kind::Any),
        },
    }
}

fn attribute_of(field: &mut Node, name: &str, attribute: &'static str, required: &mut Vec<Box<str>>) {
    match attribute.split_once('=') {
        None => match attribute {
            "!" => required.push(name.into()),
            "a" => field.presence = Presence::Always,
            "p" => field.presence = Presence::Pointer,
            "n" => field.presence = Presence::Null,
            _ => (),
        },
        Some(("l", list)) => {
            let (kind, keys) = list.split_once(':').unwrap_or((list, ""));
            field.list_type = match kind {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            };
            field.list_keys = keys.split(',').filter(|key| !key.is_empty()).map(Into::into).collect();
        }
        Some(("ps", strategy)) => field.patch_strategy = Some(strategy.into()),
        Some(("pk", key)) => field.patch_key = Some(key.into()),
        Some(("m", "atomic")) => field.map_type = Some(MapType::Atomic),
        Some(("m", _)) => field.map_type = Some(MapType::Granular),
        Some(("g", go)) => field.go = Some(go),
        Some(("d", json)) => field.default = serde_json::from_str(json).ok().map(Box::new),
        Some(_) => (),
    }
}

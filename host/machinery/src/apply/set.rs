//! Sets of fields, and the `fieldsV1` form in which objects keep them.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::{Element, error::FieldsError};

/// Deepest nesting of a set that is read; deeper than any object that is accepted.
const MAX_DEPTH: usize = 512;

/// A set of paths, kept as a tree whose siblings are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(Vec<Node>);

/// One element: whether the path to it is a member, and the members below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) element: Element,
    pub(super) member: bool,
    pub(super) below: Set,
}

impl Set {
    /// The set of these paths.
    pub fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path.iter().map(|name| Element::field(name)).collect::<Vec<_>>());
        }
        set
    }

    /// From siblings in any order, each element at most once; those that hold nothing are left out.
    pub(super) fn from_nodes(mut nodes: Vec<Node>) -> Self {
        nodes.retain(|node| node.member || !node.below.is_empty());
        nodes.sort_by(|a, b| a.element.cmp(&b.element));
        Self(nodes)
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.0
    }

    pub(super) fn get(&self, element: &Element) -> Option<&Node> {
        self.0.binary_search_by(|node| node.element.cmp(element)).ok().map(|at| &self.0[at])
    }

    /// As [`Set::get`] for a field, without making an element.
    pub(super) fn get_field(&self, name: &str) -> Option<&Node> {
        let order = |node: &Node| match &node.element {
            Element::Field(field) => (**field).cmp(name),
            _ => Ordering::Greater,
        };
        self.0.binary_search_by(order).ok().map(|at| &self.0[at])
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|node| usize::from(node.member) + node.below.len()).sum()
    }

    /// Adds a path. The empty path, the whole object, is no member of any set.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else { return };
        let at = match self.0.binary_search_by(|node| node.element.cmp(first)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, Node { element: first.clone(), member: false, below: Self::default() });
                at
            }
        };
        match rest {
            [] => self.0[at].member = true,
            rest => self.0[at].below.insert(rest),
        }
    }

    /// Whether that path is a member.
    pub fn has(&self, path: &[Element]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        self.get(first).is_some_and(|node| if rest.is_empty() { node.member } else { node.below.has(rest) })
    }

    /// The paths that are members of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.zip(other, |a, b| match (a, b) {
            (Some(a), Some(b)) => Some((a.element.clone(), a.member || b.member, a.below.union(&b.below))),
            (Some(node), None) | (None, Some(node)) => {
                Some((node.element.clone(), node.member, node.below.clone()))
            }
            (None, None) => None,
        })
    }

    /// The paths that are members of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let (a, b) = (a?, b?);
            Some((a.element.clone(), a.member && b.member, a.below.intersection(&b.below)))
        })
    }

    /// The paths that are members of this set and not of the other. A member's children stay when only
    /// the member itself is in the other set.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let a = a?;
            Some(match b {
                None => (a.element.clone(), a.member, a.below.clone()),
                Some(b) => (a.element.clone(), a.member && !b.member, a.below.difference(&b.below)),
            })
        })
    }

    /// As [`Set::difference`], but a member of the other set takes everything below it along.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let a = a?;
            match b {
                None => Some((a.element.clone(), a.member, a.below.clone())),
                Some(b) if b.member => None,
                Some(b) => Some((a.element.clone(), a.member, a.below.recursive_difference(&b.below))),
            }
        })
    }

    /// Only the paths that start with one of these.
    #[must_use]
    pub fn under(&self, prefixes: &Self) -> Self {
        self.zip(prefixes, |a, b| {
            let (a, b) = (a?, b?);
            match b.member {
                true => Some((a.element.clone(), a.member, a.below.clone())),
                false => Some((a.element.clone(), a.member, a.below.under(&b.below))),
            }
        })
    }

    /// Walks both sets' siblings in order; `pick` says what becomes of each pair.
    fn zip(
        &self,
        other: &Self,
        pick: impl Fn(Option<&Node>, Option<&Node>) -> Option<(Element, bool, Self)>,
    ) -> Self {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut nodes = Vec::with_capacity(self.0.len().max(other.0.len()));
        loop {
            let order = match (left.peek(), right.peek()) {
                (Some(a), Some(b)) => a.element.cmp(&b.element),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return Self(nodes),
            };
            let a = if order.is_le() { left.next() } else { None };
            let b = if order.is_ge() { right.next() } else { None };
            if let Some((element, member, below)) = pick(a, b)
                && (member || !below.is_empty())
            {
                nodes.push(Node { element, member, below });
            }
        }
    }

    /// Calls `visit` with every member: at each level the members, then what is below them.
    pub fn each(&self, visit: &mut impl FnMut(&[Element])) {
        self.each_below(&mut Vec::new(), visit);
    }

    fn each_below(&self, path: &mut Vec<Element>, visit: &mut impl FnMut(&[Element])) {
        for node in self.0.iter().filter(|node| node.member) {
            path.push(node.element.clone());
            visit(path);
            path.pop();
        }
        for node in self.0.iter().filter(|node| !node.below.is_empty()) {
            path.push(node.element.clone());
            node.below.each_below(path, visit);
            path.pop();
        }
    }

    /// The `fieldsV1` form.
    pub fn to_value(&self) -> Value {
        Value::Object(self.to_map(false))
    }

    fn to_map(&self, this_too: bool) -> Map<String, Value> {
        let mut map = Map::new();
        if this_too && !self.is_empty() {
            map.insert(".".into(), json!({}));
        }
        for node in &self.0 {
            map.insert(node.element.serialize(), Value::Object(node.below.to_map(node.member)));
        }
        map
    }

    /// Reads the `fieldsV1` form. Kinds of elements not known are ignored.
    ///
    /// # Errors
    /// When it is no tree of objects, nested beyond all bounds, or an element is malformed.
    pub fn from_value(value: &Value) -> Result<Self, FieldsError> {
        Ok(Self::read(value, 0)?.0)
    }

    /// The set and whether the element it stands at is itself a member.
    fn read(value: &Value, depth: usize) -> Result<(Self, bool), FieldsError> {
        let map = match value {
            Value::Object(map) => map,
            Value::Null => return Ok((Self::default(), true)),
            _ => return Err(FieldsError::Shape),
        };
        if depth > MAX_DEPTH {
            return Err(FieldsError::TooDeep);
        }
        let mut nodes = Vec::with_capacity(map.len());
        let mut this_too = false;
        for (key, value) in map {
            if key == "." {
                this_too = true;
                continue;
            }
            let Some(element) = Element::parse(key)? else { continue };
            let (below, member) = Self::read(value, depth + 1)?;
            nodes.push(Node { element, member, below });
        }
        let mut set = Self::from_nodes(nodes);
        set.0.dedup_by(|a, b| a.element == b.element);
        let member = this_too || set.is_empty();
        Ok((set, member))
    }
}

/// A path as conflicts show it: `.spec.containers[name="a"].image`.
pub fn show_path(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(value: Value) -> Set {
        Set::from_value(&value).unwrap()
    }

    #[test]
    fn reads_and_writes_fields_v1() {
        let value =
            json!({"f:data": {".": {}, "f:a": {}}, "f:metadata": {"f:labels": {"f:x": {}}}, "f:spec": {}});
        let read = set(value.clone());
        assert_eq!(read.to_value(), value);
        assert_eq!(read.len(), 4);
        assert!(read.has(&[Element::field("data")]) && !read.has(&[Element::field("metadata")]));
        assert!(Set::from_value(&json!({"f:a": 1})).is_err());
        assert_eq!(set(json!({"z:new": {}, "f:a": {}})), Set::of(&[&["a"]]));
    }

    #[test]
    fn differences() {
        let all = Set::of(&[&["a"], &["a", "b"], &["c", "d"]]);
        let a = Set::of(&[&["a"]]);
        assert_eq!(all.difference(&a), Set::of(&[&["a", "b"], &["c", "d"]]));
        assert_eq!(all.recursive_difference(&a), Set::of(&[&["c", "d"]]));
        assert_eq!(all.under(&Set::of(&[&["a"]])), Set::of(&[&["a"], &["a", "b"]]));
        let mut seen = Vec::new();
        all.each(&mut |path| seen.push(show_path(path)));
        assert_eq!(seen, [".a", ".a.b", ".c.d"]);
    }

    fn any_set() -> impl Strategy<Value = Set> {
        let element = prop_oneof![
            "[a-c]".prop_map(|name| Element::field(&name)),
            (0..3i64).prop_map(Element::Index),
            "[a-c]".prop_map(|text| Element::Value(text.into())),
            (0..3u8).prop_map(|n| Element::key(vec![("k".into(), n.into())])),
        ];
        let path = prop::collection::vec(element, 1..4);
        prop::collection::vec(path, 0..10).prop_map(|paths| {
            let mut set = Set::default();
            paths.iter().for_each(|path| set.insert(path));
            set
        })
    }

    proptest! {
        #[test]
        fn algebra(a in any_set(), b in any_set(), c in any_set()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(a.union(&b).union(&c), a.union(&b.union(&c)));
            prop_assert_eq!(a.intersection(&b.union(&c)), a.intersection(&b).union(&a.intersection(&c)));
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            prop_assert!(a.difference(&a).is_empty() && a.union(&a) == a);
            prop_assert_eq!(a.recursive_difference(&b).union(&a.under(&b)).difference(&a), Set::default());
            prop_assert_eq!(a.len() + b.len(), a.union(&b).len() + a.intersection(&b).len());
            prop_assert_eq!(Set::from_value(&a.to_value()).unwrap(), a);
        }
    }
}

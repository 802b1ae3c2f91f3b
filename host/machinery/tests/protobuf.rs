//! What is written in protobuf is read again as it was, for generated objects of every kind that is served.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use wasmk_api::Gvk;
use wasmk_machinery::{
    decode::{self, from_protobuf},
    protobuf::{self, Type},
    resources::Registry,
    schema::{Kind, KindSchema, Schema},
};

/// Levels of an object that are filled.
const DEPTH: usize = 9;

/// A small generator of choices from one seed.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    fn text(&mut self) -> String {
        (*self.of(&["a", "web-1", "", "ü \"\\", "long text that takes more than one byte to count, because there are more than a hundred and twenty-seven characters in all of it"])).into()
    }

    /// A value of a field; none where nothing more is filled.
    fn value(&mut self, schema: Schema<'_>, depth: usize) -> Option<Value> {
        let some = self.below(3) + 1;
        Some(match schema.kind() {
            Kind::Object => match schema.values() {
                Some(values) if depth > 0 => {
                    let entries =
                        (0..some).filter_map(|at| Some((format!("k{at}"), self.value(values, depth - 1)?)));
                    Value::Object(entries.collect::<Map<_, _>>())
                }
                None if depth > 0 => self.object(schema, depth - 1),
                _ => return None,
            },
            // Protobuf does not tell an empty list from none.
            Kind::Array if depth > 0 => {
                let items: Vec<Value> =
                    (0..some).filter_map(|_| self.value(schema.items()?, depth - 1)).collect();
                if items.is_empty() { return None } else { items.into() }
            }
            Kind::Array => return None,
            Kind::String => self.text().into(),
            Kind::Integer32 => (*self.of(&[0, 1, -1, 300, i32::MAX, i32::MIN])).into(),
            Kind::Integer64 => (*self.of(&[0, 1, -1, 1 << 40, i64::MAX, i64::MIN])).into(),
            Kind::Number => (*self.of(&[0.5, -1.25, 1e10])).into(),
            Kind::Boolean => (self.below(2) == 0).into(),
            Kind::Bytes => (*self.of(&["", "aGk=", "AAEC/w=="])).into(),
            Kind::IntOrString => self.of(&[json!(0), json!(80), json!("http"), json!("")]).clone(),
            Kind::Quantity => (*self.of(&["0", "100m", "64Mi", "1500", "12e6"])).into(),
            Kind::Time => (*self.of(&["2026-01-02T03:04:05Z", "1969-12-31T23:59:59Z"])).into(),
            Kind::MicroTime => {
                (*self.of(&["2026-01-02T03:04:05.000006Z", "1969-12-31T23:59:58.500000Z"])).into()
            }
            Kind::Raw => json!({"a": [1, "x", null, {"b": 0.5}], "f:c": {}}),
            Kind::SchemaOrArray => match (self.below(2), depth) {
                (0, _) => json!({"type": "string"}),
                _ => json!([{"type": "string"}, {"minimum": 3.0}]),
            },
            Kind::SchemaOrBool => self.of(&[json!(true), json!(false), json!({"type": "integer"})]).clone(),
            Kind::SchemaOrStrings => self.of(&[json!(["a", "b"]), json!({"type": "integer"})]).clone(),
            Kind::Any => {
                self.of(&[json!(1), json!("x"), json!({"a": null}), json!([true]), json!(0.25)]).clone()
            }
        })
    }

    fn object(&mut self, schema: Schema<'_>, depth: usize) -> Value {
        let mut map = Map::new();
        for (name, field) in schema.fields() {
            if self.below(3) > 0
                && let Some(value) = self.value(field, depth)
            {
                map.insert(name.into(), value);
            }
        }
        Value::Object(map)
    }
}

fn without_kind(value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|key, _| key != "kind" && key != "apiVersion");
    }
}

fn check(gvk: &Gvk, choices: &mut Choices) {
    let (Some(schema), Some(of)) = (KindSchema::built_in(gvk), Type::of(gvk)) else {
        panic!("{gvk:?} has no message");
    };
    let mut given = choices.object(schema.schema(), DEPTH);
    // The kind of an object within another is no part of its message.
    let templates = given.pointer_mut("/spec/volumeClaimTemplates").and_then(Value::as_array_mut);
    templates.into_iter().flatten().for_each(without_kind);
    given.get_mut("deleteOptions").into_iter().for_each(without_kind);
    given["kind"] = gvk.kind.clone().into();
    given["apiVersion"] = gvk.api_version().into();
    let object = decode::convert(given, &schema).unwrap_or_else(|e| panic!("{gvk:?}: {e}")).object;
    let mut object = object.into_value();
    object["kind"] = gvk.kind.clone().into();
    object["apiVersion"] = gvk.api_version().into();
    let json = serde_json::to_vec(&object).unwrap();
    let written = protobuf::object(gvk, of, &json).unwrap_or_else(|e| panic!("{gvk:?}: {e} in {object}"));
    assert_eq!(from_protobuf(&written).unwrap().into_value(), object, "{gvk:?}");
    assert_eq!(protobuf::value(&object).unwrap(), written, "{gvk:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn every_kind_is_read_as_it_was_written(seed in 1..u64::MAX) {
        let mut choices = Choices(seed);
        for row in Registry::built_in().all() {
            check(&row.gvk(), &mut choices);
            for sub in &row.subresources {
                if Type::of(&sub.kind).is_some() {
                    check(&sub.kind, &mut choices);
                }
            }
        }
        check(&Gvk::new("", "v1", "Status"), &mut choices);
    }

    #[test]
    fn odd_objects_are_errors(text in "\\PC{0,40}") {
        let of = Type::of(&Gvk::new("", "v1", "Pod")).unwrap();
        let odd = json!({"metadata": {"name": 1, "creationTimestamp": text}, "spec": {"containers": {"a": text}}});
        prop_assert!(protobuf::object(&Gvk::new("", "v1", "Pod"), of, odd.to_string().as_bytes()).is_err());
    }
}

#[test]
fn bytes_are_those_of_kubernetes() {
    // A namespace as a server of Kubernetes writes it, but for the fields of zero value, which it spells out.
    let object = json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {"name": "a", "uid": "u", "creationTimestamp": "2020-01-01T00:00:00Z", "labels": {"k": "v"}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    });
    let expect = [
        &b"k8s\0\n\x0f\n\x02v1\x12\x09Namespace\x12\x32"[..],
        b"\n\x18\n\x01a\x2a\x01u\x42\x08\x08\x80\xc2\xaf\xf0\x05\x10\x00\x5a\x06\n\x01k\x12\x01v",
        b"\x12\x0c\n\nkubernetes\x1a\x08\n\x06Active\x1a\0\x22\0",
    ]
    .concat();
    assert_eq!(protobuf::value(&object).unwrap(), expect);
    assert_eq!(from_protobuf(&expect).unwrap().into_value(), object);
}

#[test]
fn what_has_no_message_is_refused() {
    for (version, kind) in [("example.com/v1", "Thing"), ("meta.k8s.io/v1", "Table"), ("", "")] {
        assert!(protobuf::value(&json!({"apiVersion": version, "kind": kind})).is_err(), "{kind}");
    }
}

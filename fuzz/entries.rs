// Where bytes of strangers enter: one function for each, with nothing to say but that it comes back. They are
// called by the fuzz targets beside this file, and by `host/machinery/tests/hostile.rs` on bounded input.

use serde_json::Value;
use wasmk_api::{FieldSelector, Gvk, LabelSelector, Object};
use wasmk_machinery::{
    apply, cel,
    decode::{self, FieldValidation, Format},
    patch::{self, PatchType},
    protobuf,
    schema::KindSchema,
    validate,
};

/// Largest input: bodies are bounded before they come here.
pub(crate) const MAX_INPUT: usize = 64 << 10;

/// An entry: its name and what it does.
pub(crate) type Entry = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const ENTRIES: [Entry; 8] = [
    ("bodies", bodies),
    ("plain", plain),
    ("patches", patches),
    ("applies", applies),
    ("selectors", selectors),
    ("expressions", expressions),
    ("definitions", definitions),
    ("messages", messages),
];

fn deployment() -> (Gvk, KindSchema) {
    let gvk = Gvk::new("apps", "v1", "Deployment");
    let schema = KindSchema::built_in(&gvk).expect("a built-in kind");
    (gvk, schema)
}

fn live() -> Value {
    serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d", "labels": { "a": "b" } },
        "spec": { "replicas": 1, "template": { "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
    })
}

/// Bodies of requests in every encoding.
pub(crate) fn bodies(input: &[u8]) {
    let (gvk, schema) = deployment();
    for format in [Format::Json, Format::Yaml, Format::Protobuf] {
        let _ = decode::decode(input, format, &gvk, &schema, FieldValidation::Strict);
        let _ = decode::decode(input, format, &gvk, &KindSchema::any(), FieldValidation::Warn);
    }
}

/// Bodies that are of no kind.
pub(crate) fn plain(input: &[u8]) {
    for format in [Format::Json, Format::Yaml] {
        let _ = decode::plain(input, format);
    }
}

/// Patches of every type.
pub(crate) fn patches(input: &[u8]) {
    let (_, schema) = deployment();
    for kind in [PatchType::Json, PatchType::Merge, PatchType::Strategic] {
        let Ok(parsed) = patch::parse(kind, input) else { continue };
        match kind {
            PatchType::Json => drop(patch::json(live(), &parsed.patch)),
            PatchType::Merge => drop(patch::merge(live(), parsed.patch)),
            PatchType::Strategic => drop(patch::strategic(schema.schema(), live(), parsed.patch)),
        }
    }
}

/// Configurations that are applied.
pub(crate) fn applies(input: &[u8]) {
    let (_, schema) = deployment();
    if let Ok((config, _)) = decode::plain(input, Format::Yaml) {
        let _ = apply::merged(&schema, &live(), &config);
    }
}

/// Selectors of labels and fields.
pub(crate) fn selectors(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(selector) = LabelSelector::parse(&text) {
        // What is written can be read again.
        assert!(LabelSelector::parse(&selector.to_string()).is_ok(), "{text}");
    }
    let _ = FieldSelector::parse(&text);
}

/// Expressions in CEL.
pub(crate) fn expressions(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    // The bound on turns is the caller's; a value of one part keeps loops short.
    if let Ok(expression) = cel::compile(&text)
        && expression.loops() <= 2
    {
        let _ = expression.run([("self", cel::plain(&live())), ("oldSelf", cel::plain(&live()))]);
    }
}

/// Definitions of custom resources, and objects of theirs.
pub(crate) fn definitions(input: &[u8]) {
    let Ok((value, _)) = decode::plain(input, Format::Yaml) else { return };
    if let Some(definition) = Object::from_value(value.clone()) {
        let _ = validate::definition::validate(&definition, None);
    }
    let schema = value.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap_or(&value);
    if let Ok(schema) = KindSchema::custom(schema)
        && let Some(object) = Object::from_value(live())
    {
        let _ = validate::resource(&object, Some(&object), &schema, Vec::new());
        let _ = decode::convert(live(), &schema);
    }
}

/// Objects written in protobuf, and messages that name their kind themselves.
pub(crate) fn messages(input: &[u8]) {
    let (gvk, _) = deployment();
    if let Some(of) = protobuf::Type::of(&gvk) {
        let _ = protobuf::object(&gvk, of, input);
    }
    // What was read can be written, and is read the same again.
    if let Ok(object) = decode::from_protobuf(input) {
        let object = object.into_value();
        if let Ok(written) = protobuf::value(&object) {
            let again = decode::from_protobuf(&written).map(Object::into_value);
            assert_eq!(again.as_ref(), Ok(&object));
        }
    }
}

use serde_json::json;

use super::*;

fn config_map() -> (Gvk, KindSchema) {
    let gvk = Gvk::new("", "v1", "ConfigMap");
    let schema = KindSchema::built_in(&gvk).unwrap();
    (gvk, schema)
}

fn refused(body: &str, format: Format, validation: FieldValidation) -> String {
    let (gvk, schema) = config_map();
    decode(body.as_bytes(), format, &gvk, &schema, validation).unwrap_err().message
}

#[test]
fn bodies_that_are_refused() {
    use FieldValidation::{Strict, Warn};
    use Format::{Json, Protobuf, Yaml};
    let unrecognized = "the object provided is unrecognized (must be of type ConfigMap): ";
    for (body, format, validation, says) in [
        (
            "",
            Json,
            Warn,
            "couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
        ),
        (
            "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"c\"}}{\"a\":1}",
            Json,
            Warn,
            "couldn't get version/kind; json parse error: invalid character '{' after top-level value ({\"apiVersion\":\"v1\",\"kind\":\"Con ...)",
        ),
        (
            "true",
            Json,
            Warn,
            "couldn't get version/kind; json parse error: json: cannot unmarshal bool into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (74727565)",
        ),
        ("a: [b", Yaml, Warn, "yaml: line 1: did not find expected ',' or ']' (613a205b62)"),
        (
            "abc",
            Protobuf,
            Strict,
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] (616263)",
        ),
    ] {
        assert_eq!(refused(body, format, validation), format!("{unrecognized}{says}"));
    }
    for (body, format, validation, says) in [
        (
            r#"{"apiVersion":"v1","kind":"List","items":[]}"#,
            Json,
            Warn,
            "List in version \"v1\" cannot be handled as a ConfigMap: converting (v1.List) to (core.ConfigMap): unknown conversion",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Deployment"}"#,
            Json,
            Warn,
            "Deployment in version \"v1\" cannot be handled as a ConfigMap: no kind \"Deployment\" is registered for version \"v1\" in scheme \"wasmk\"",
        ),
        (
            r#"{"data":{"a":5}}"#,
            Json,
            Warn,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            r#"{"data":{"a":"1","a":"2"},"x":1}"#,
            Json,
            Strict,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.a\", unknown field \"x\"",
        ),
        (
            "data: {a: x}\ndata: {b: z}",
            Yaml,
            Strict,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:\n  line 2: key \"data\" already set in map",
        ),
    ] {
        assert_eq!(refused(body, format, validation), says);
    }
}

#[test]
fn deep_bodies_are_refused_without_harm() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let message = refused(&format!("{{\"data\":{deep}}}"), Format::Json, FieldValidation::Warn);
    assert!(
        message.ends_with(
            "cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string"
        )
    );
}

#[test]
fn bodies_that_are_read() {
    let (gvk, schema) = config_map();
    for (body, format, object, warnings) in [
        ("null", Format::Json, json!({"kind": "ConfigMap", "apiVersion": "v1"}), &[][..]),
        (
            r#"{"metadata":{"name":"c","nothing":1},"data":{"a":"b"}}"#,
            Format::Json,
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c"}, "data": {"a": "b"}}),
            &[r#"unknown field "metadata.nothing""#],
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: ya\ndata:\n  a: b\n",
            Format::Yaml,
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "ya"}, "data": {"a": "b"}}),
            &[],
        ),
    ] {
        let decoded = decode(body.as_bytes(), format, &gvk, &schema, FieldValidation::Warn).unwrap();
        assert_eq!(decoded.object.into_value(), object);
        assert_eq!(decoded.warnings, warnings);
    }
}

#[test]
fn custom_resources_are_pruned() {
    let gvk = Gvk::new("example.com", "v1", "Thing");
    let schema = KindSchema::custom(&json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"size": {"type": "integer"}, "note": {"type": "string"}}}}}))
    .unwrap();
    let body = r#"{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"name":"t","nothing":1},
        "spec":{"size":1,"size":2.0,"z":1,"note":null},"extra":1}"#;
    let decode = |body: &str, validation| decode(body.as_bytes(), Format::Json, &gvk, &schema, validation);
    let decoded = decode(body, FieldValidation::Warn).unwrap();
    assert_eq!(
        decoded.object.into_value(),
        json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"size": 2}})
    );
    assert_eq!(
        decoded.warnings,
        [
            r#"duplicate field "spec.size""#,
            r#"unknown field "metadata.nothing""#,
            r#"unknown field "extra""#,
            r#"unknown field "spec.z""#
        ]
    );
    let other =
        decode(r#"{"apiVersion":"example.com/v2","kind":"Thing"}"#, FieldValidation::Ignore).unwrap_err();
    assert_eq!(
        other.message,
        "the API version in the data (example.com/v2) does not match the expected API version (example.com/v1)"
    );
}

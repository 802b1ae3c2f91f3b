use serde_json::json;

use super::*;

fn kind(spec: Value) -> KindSchema {
    KindSchema::custom(&json!({"type": "object", "properties": {"spec": spec}})).unwrap()
}

fn thing(spec: &Value) -> Object {
    Object::from_value(
        json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": spec}),
    )
    .unwrap()
}

/// `field: message` of each cause.
fn causes(spec: Value, value: &Value) -> Vec<String> {
    let outcome = resource(&thing(value), None, &kind(spec), Vec::new());
    outcome.causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

/// A schema with one field `x`, a value for it, and what is said of it; nothing when it is valid.
fn check(x: Value, value: Value, says: &[&str]) {
    let found = causes(json!({"type": "object", "properties": {"x": x}}), &json!({"x": value}));
    assert_eq!(found, says, "{x} with {value}");
}

#[test]
fn types_and_bounds() {
    let text = json!({"type": "string", "minLength": 2, "maxLength": 5, "pattern": "^[a-z]+$"});
    check(text.clone(), json!("abc"), &[]);
    check(
        text.clone(),
        json!("a"),
        &[r#"spec.x: Invalid value: "a": spec.x in body should be at least 2 chars long"#],
    );
    check(
        text.clone(),
        json!("A1"),
        &[r#"spec.x: Invalid value: "A1": spec.x in body should match '^[a-z]+$'"#],
    );
    check(text.clone(), json!("abcdef"), &["spec.x: Too long: may not be more than 5 bytes"]);
    check(
        text,
        json!(5),
        &[r#"spec.x: Invalid value: "integer": spec.x in body must be of type string: "integer""#],
    );
    let number = json!({"type": "number", "minimum": 0, "exclusiveMinimum": true, "multipleOf": 0.5});
    check(number.clone(), json!(1.5), &[]);
    check(
        number.clone(),
        json!(0.7),
        &["spec.x: Invalid value: 0.7: spec.x in body should be a multiple of 0.5"],
    );
    check(number, json!(0), &["spec.x: Invalid value: 0: spec.x in body should be greater than 0"]);
    check(
        json!({"type": "integer", "format": "int32"}),
        json!(3_000_000_000u64),
        &[r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.x"#],
    );
    check(
        json!({"x-kubernetes-int-or-string": true}),
        json!(1.5),
        &[r#"spec.x: Invalid value: "number": spec.x in body must be of type integer,string: "number""#],
    );
    check(
        json!({"type": "string", "format": "date-time"}),
        json!("noon"),
        &[r#"spec.x: Invalid value: "noon": spec.x in body must be of type date-time: "noon""#],
    );
    check(
        json!({"type": "string", "enum": ["a", "b"]}),
        json!("c"),
        &[r#"spec.x: Unsupported value: "c": supported values: "a", "b""#],
    );
}

#[test]
fn containers() {
    let map = json!({"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}});
    check(map.clone(), json!({"a": "b", "c": "d"}), &["spec.x: Too many: 2: must have at most 1 item"]);
    check(
        map,
        json!({"a": 1}),
        &[r#"spec.x.a: Invalid value: "integer": spec.x.a in body must be of type string: "integer""#],
    );
    let keyed = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}});
    check(keyed.clone(), json!([{"k": "a"}, {"k": "a"}]), &[r#"spec.x[1]: Duplicate value: {"k":"a"}"#]);
    check(keyed, json!([{}]), &["spec.x[0].k: Required value"]);
    check(
        json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
        json!(["x", "x"]),
        &[r#"spec.x[1]: Duplicate value: "x""#],
    );
    let one = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
    check(one.clone(), json!({"a": "1"}), &[]);
    check(
        one,
        json!({"a": "1", "b": "2"}),
        &[
            r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
        ],
    );
    let embedded = json!({"type": "object", "x-kubernetes-embedded-resource": true,
        "x-kubernetes-preserve-unknown-fields": true});
    check(embedded, json!({"kind": "Pod"}), &["spec.x.apiVersion: Required value"]);
}

#[test]
fn names_may_be_restricted() {
    let kind = KindSchema::custom(&json!({"type": "object", "properties": {"metadata": {"type": "object",
        "properties": {"name": {"type": "string", "maxLength": 3}}}}}))
    .unwrap();
    let object =
        |name: &str| Object::from_value(json!({"metadata": {"name": name, "labels": {"a": "b"}}})).unwrap();
    assert_eq!(resource(&object("abc"), None, &kind, Vec::new()).causes, []);
    let causes = resource(&object("abcd"), None, &kind, Vec::new()).causes;
    assert_eq!(causes[0].field, "metadata.name");
    assert_eq!(causes[0].message, "Too long: may not be more than 3 bytes");
}

#[test]
fn rules() {
    let rule = |kind: Value, rule: Value| {
        let mut schema = kind;
        schema["x-kubernetes-validations"] = json!([rule]);
        schema
    };
    let integer = || json!({"type": "integer"});
    let plain = rule(integer(), json!({"rule": "self > 3"}));
    check(plain.clone(), json!(5), &[]);
    check(plain, json!(2), &["spec.x: Invalid value: 2: failed rule: self > 3"]);
    check(
        rule(
            integer(),
            json!({"rule": "self > 3", "messageExpression": "'got ' + string(self)", "message": "no"}),
        ),
        json!(2),
        &["spec.x: Invalid value: 2: got 2"],
    );
    check(
        rule(integer(), json!({"rule": "self > 3", "reason": "FieldValueForbidden", "message": "not that"})),
        json!(2),
        &["spec.x: Forbidden: not that"],
    );
    check(
        rule(integer(), json!({"rule": "10 / self > 1"})),
        json!(0),
        &[r#"spec.x: Invalid value: "integer": division by zero evaluating rule: 10 / self > 1"#],
    );
    let list = json!({"type": "array", "items": {"type": "integer"}});
    check(
        rule(list.clone(), json!({"rule": "self.all(v, v > 0)"})),
        json!([1, 0]),
        &["spec.x: Invalid value: failed rule: self.all(v, v > 0)"],
    );
    check(
        rule(list.clone(), json!({"rule": "self[1] == 1"})),
        json!([2]),
        &[r#"spec.x: Invalid value: "array": index out of bounds: 1 evaluating rule: self[1] == 1"#],
    );
    let long: Vec<u32> = (0..20_000).collect();
    check(
        rule(list, json!({"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"})),
        json!(long),
        &[
            r#"spec.x: Invalid value: "array": no further validation rules will be run due to call cost exceeds limit for rule: self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"#,
        ],
    );
    let object = json!({"type": "object", "properties": {"a-b": {"type": "string"}}});
    check(
        rule(
            object,
            json!({"rule": "has(self.a__dash__b)", "fieldPath": "['a-b']", "reason": "FieldValueRequired", "message": "needed"}),
        ),
        json!({}),
        &["spec.x.a-b: Required value: needed"],
    );
}

#[test]
fn rules_wait_for_a_sound_object() {
    let spec = json!({"type": "object", "required": ["y"], "properties": {"x": {"type": "integer",
        "x-kubernetes-validations": [{"rule": "self > 3"}]}}});
    assert_eq!(
        causes(spec, &json!({"x": 1})),
        [
            "spec.y: Required value",
            "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
        ]
    );
}

#[test]
fn updates_are_ratcheted() {
    let spec = json!({"type": "object", "properties": {
        "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self.size() < 4", "message": "too long"}]},
        "size": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "shrinks"}]},
        "k": {"type": "string", "enum": ["a"]}}});
    let kind = kind(spec);
    let old = thing(&json!({"name": "LONGNAME", "size": 2, "k": "old"}));
    let update = |spec: Value| resource(&thing(&spec), Some(&old), &kind, Vec::new());
    let outcome = update(json!({"name": "LONGNAME", "size": 3, "k": "old"}));
    assert_eq!(outcome.causes, []);
    assert_eq!(outcome.warnings, [r#"spec.name: Invalid value: "LONGNAME": too long"#]);
    let outcome = update(json!({"name": "OTHER", "size": 1, "k": "old"}));
    let says: Vec<_> = outcome.causes.iter().map(|cause| &*cause.message).collect();
    assert_eq!(says, [r#"Invalid value: "OTHER": too long"#, "Invalid value: 1: shrinks"]);
    assert_eq!(update(json!({"k": "new"})).causes.len(), 2);
}

mod definitions {
    use super::*;

    fn definition(schema: &Value) -> Object {
        let mut definition = Object::from_value(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "foos.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
                     "versions": [{"name": "v1", "served": true, "storage": true,
                                   "schema": {"openAPIV3Schema": schema}}]},
        }))
        .unwrap();
        definition::default(&mut definition);
        definition::prepare(&mut definition, None);
        definition
    }

    fn found(definition: &Object) -> Vec<String> {
        let causes = definition::validate(definition, None);
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    /// A schema for the field `a`, and what is said of it below that field.
    fn check(a: Value, says: &[&str]) {
        let prefix = "spec.validation.openAPIV3Schema.properties[a].";
        let found = found(&definition(&json!({"type": "object", "properties": {"a": a}})));
        let below: Vec<_> = found.iter().map(|text| text.strip_prefix(prefix).unwrap_or(text)).collect();
        assert_eq!(below, says);
    }

    #[test]
    fn names_are_filled_in() {
        let definition = definition(&json!({"type": "object"}));
        assert_eq!(
            definition.at(&["spec", "names"]),
            Some(&json!({"plural": "foos", "kind": "Foo", "singular": "foo", "listKind": "FooList"}))
        );
        assert_eq!(definition.at(&["spec", "conversion"]), Some(&json!({"strategy": "None"})));
        assert_eq!(definition.at(&["status", "storedVersions"]), Some(&json!(["v1"])));
        assert_eq!(found(&definition), Vec::<String>::new());
    }

    #[test]
    fn schemas() {
        check(json!({}), &["type: Required value: must not be empty for specified object fields"]);
        check(
            json!({"type": "number64"}),
            &[
                r#"type: Unsupported value: "number64": supported values: "array", "boolean", "integer", "number", "object", "string""#,
            ],
        );
        check(json!({"$ref": "#/x"}), &["$ref: Forbidden: $ref is not supported"]);
        check(
            json!({"type": "integer", "minimum": 5, "default": 3}),
            &["default: Invalid value: 3:  in body should be greater than or equal to 5"],
        );
        check(
            json!({"type": "string", "allOf": [{"nullable": true}]}),
            &["allOf[0].nullable: Forbidden: must be false to be structural"],
        );
        check(
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}}),
            &[
                "items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
            ],
        );
        check(
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}),
            &["x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined"],
        );
        check(
            json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self + 1"}]}),
            &[
                r#"x-kubernetes-validations[0].rule: Invalid value: {"Rule":"self + 1","Message":"","MessageExpression":"","Reason":null,"FieldPath":"","OptionalOldSelf":null}: cel expression must evaluate to a bool"#,
            ],
        );
        check(
            json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true}),
            &[],
        );
    }

    #[test]
    fn objects() {
        let change = |pointer: &str, value: Value| {
            let mut whole = definition(&json!({"type": "object"})).into_value();
            *whole.pointer_mut(pointer).unwrap() = value;
            found(&Object::from_value(whole).unwrap())
        };
        assert_eq!(
            change("/spec/scope", json!("Universal")),
            [r#"spec.scope: Unsupported value: "Universal": supported values: "Cluster", "Namespaced""#]
        );
        assert_eq!(
            change("/spec/conversion", json!({"strategy": "Webhook"})),
            [
                "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
                "spec.conversion.conversionReviewVersions: Required value"
            ]
        );
        assert_eq!(
            change("/spec/versions/0/storage", json!(false)).len(),
            1,
            "one version must be the storage version"
        );
        assert_eq!(
            change("/metadata/name", json!("other")),
            [r#"metadata.name: Invalid value: "other": must be spec.names.plural+"."+spec.group"#]
        );
    }
}

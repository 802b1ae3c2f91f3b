//! What one object costs the API layer: decode, default, validate, strategic patch, server-side apply.
//!
//! Promise: together well under the 100 µs of CPU that a write may take. `cargo bench -p wasmk-benches --bench objects`

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use wasmk_api::{Gvk, Object, Timestamp};
use wasmk_machinery::{
    apply::{FieldManager, Reset},
    decode::{self, FieldValidation, Format},
    patch,
    schema::KindSchema,
};

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "web", "image": "registry.example/web:1",
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                    "ports": [{"containerPort": 8080, "name": "http"}],
                    "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                    "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
                }]},
            },
        },
    })
}

fn objects(c: &mut Criterion) {
    let gvk = Gvk::new("apps", "v1", "Deployment");
    let schema = KindSchema::built_in(&gvk).expect("a built-in kind");
    let kind = wasmk_kinds::kind("apps", "Deployment");
    let body = serde_json::to_vec(&deployment()).expect("JSON");

    c.bench_function("decode a deployment, strictly", |b| {
        b.iter(|| {
            decode::decode(&body, Format::Json, &gvk, &schema, FieldValidation::Strict).expect("a deployment")
        });
    });
    let object = Object::from_value(deployment()).expect("a map");
    c.bench_function("default and validate it", |b| {
        b.iter(|| {
            let mut object = object.clone();
            kind.default(&mut object);
            assert!(kind.validate(&object).is_empty());
        });
    });
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "registry.example/web:2"}]}}}});
    c.bench_function("patch its image strategically", |b| {
        b.iter(|| patch::strategic(schema.schema(), deployment(), change.clone()).expect("a patch"));
    });
    let reset = Reset::of(&gvk.group_kind(), "", true);
    let now = Timestamp::now();
    let manager =
        FieldManager { gvk: &gvk, kind: &schema, subresource: "", reset: &reset, versions: None, now };
    let live = manager.apply(None, &deployment(), "bench", false).expect("a first apply");
    c.bench_function("apply it again", |b| {
        b.iter(|| manager.apply(Some(&live), &deployment(), "bench", false).expect("an apply"));
    });
}

criterion_group!(benches, objects);
criterion_main!(benches);

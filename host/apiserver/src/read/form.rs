//! Other forms of objects: tables, as `kubectl get` prints them, and metadata alone.

use serde_json::{Map, Value, json};
use wasmk_api::Object;

use crate::{
    call::Call,
    server::Core,
    special,
    table::{Nature, Resource},
};

/// Makes tables of a resource's objects.
pub(crate) struct Former {
    /// What the objects are; none for scales.
    nature: Option<Nature>,
    now: wasmk_api::Timestamp,
    include: String,
}

impl Former {
    /// For scales.
    pub(crate) fn scale(core: &Core, call: &Call) -> Self {
        Self::of(core, call, None)
    }

    /// For the objects of a call.
    pub(crate) fn new(core: &Core, call: &Call, resource: &Resource) -> Self {
        Self::of(core, call, Some(resource.nature.clone()))
    }

    fn of(core: &Core, call: &Call, nature: Option<Nature>) -> Self {
        let include = match call.query.text("includeObject") {
            "" => "Metadata",
            given => given,
        };
        Self { nature, now: (core.config.clock)(), include: include.into() }
    }

    fn columns(&self) -> Vec<Value> {
        match &self.nature {
            None => scale_columns(),
            Some(Nature::Builtin(kind)) => kind
                .columns()
                .iter()
                .map(|c| {
                    json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
                })
                .collect(),
            Some(Nature::Custom(version)) => version.column_definitions(),
        }
    }

    fn row(&self, object: &Object, version: &str) -> Value {
        let (cells, conditions) = match &self.nature {
            None => (scale_row(object, self.now), Vec::new()),
            Some(Nature::Builtin(kind)) => (kind.row(object, self.now), kind.row_conditions(object)),
            Some(Nature::Custom(custom)) => (custom.row(object, self.now), Vec::new()),
        };
        let mut row = Map::new();
        row.insert("cells".into(), cells.into());
        if !conditions.is_empty() {
            row.insert("conditions".into(), conditions.into());
        }
        let whole = match &*self.include {
            "None" => Value::Null,
            "Object" => Value::Object(object.0.clone()),
            _ => partial(object, version),
        };
        row.insert("object".into(), whole);
        Value::Object(row)
    }

    /// A table. `head` says whether it carries the column definitions.
    pub(crate) fn table(
        &self,
        version: &str,
        objects: &[Object],
        resource_version: &str,
        cont: Option<&str>,
        remaining: Option<usize>,
        head: bool,
    ) -> Value {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), resource_version.into());
        if let Some(cont) = cont {
            metadata.insert("continue".into(), cont.into());
        }
        if let Some(remaining) = remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
        let rows: Vec<Value> = objects.iter().map(|o| self.row(o, version)).collect();
        json!({
            "kind": "Table",
            "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": metadata,
            "columnDefinitions": if head { Value::Array(self.columns()) } else { Value::Null },
            "rows": rows,
        })
    }
}

/// The columns of scales: those of every kind, with numbers between.
fn scale_columns() -> Vec<Value> {
    let usual = wasmk_kinds::kind("", "").columns();
    let column = |name: &str, kind: &str, description: &str| json!({"name": name, "type": kind, "format": "", "description": description, "priority": 0});
    vec![
        column("Name", "string", usual[0].description),
        column("Desired", "integer", "replicas is the desired number of instances for the scaled object."),
        column(
            "Available",
            "integer",
            "replicas is the actual number of observed instances of the scaled object.",
        ),
        column("Age", "string", usual[1].description),
    ]
}

fn scale_row(scale: &Object, now: wasmk_api::Timestamp) -> Vec<Value> {
    let number = |section: &str| scale.at(&[section, "replicas"]).and_then(Value::as_i64).unwrap_or(0);
    let created = scale.meta("creationTimestamp").parse::<wasmk_api::Timestamp>();
    let age = created.map_or("<unknown>".into(), |then| wasmk_api::human_duration(now.since(then)));
    vec![scale.name().into(), number("spec").into(), number("status").into(), age.into()]
}

/// An object's metadata alone.
pub(crate) fn partial(object: &Object, version: &str) -> Value {
    let mut metadata = object.metadata().cloned().unwrap_or_default();
    if let Some(mirror) = special::mirrored_annotation(object.kind())
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.shift_remove(mirror);
        if annotations.is_empty() {
            metadata.shift_remove("annotations");
        }
    }
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
    })
}

//! Paths and operations of a resource.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use wasmk_api::Gvk;

use super::{Form, schemas};
use crate::{
    resources::{Resource, Subresource},
    schema::{KindSchema, Schema},
};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const JSON_TYPES: [&str; 1] = ["application/json"];

/// Query parameters: name, whether a whole number or boolean (else text), what for.
const READ: [(&str, &str, &str); 1] = [("pretty", "string", "Whether the answer is indented.")];
const LIST: [(&str, &str, &str); 10] = [
    ("allowWatchBookmarks", "boolean", "Whether a watch may send bookmarks."),
    ("continue", "string", "The token with which the previous page ended."),
    ("fieldSelector", "string", "Which objects, by their fields."),
    ("labelSelector", "string", "Which objects, by their labels."),
    ("limit", "integer", "The most objects of a page."),
    ("resourceVersion", "string", "The version to answer at."),
    ("resourceVersionMatch", "string", "How the version is meant."),
    ("sendInitialEvents", "boolean", "Whether a watch begins with what is there."),
    ("timeoutSeconds", "integer", "How long a watch may last."),
    ("watch", "boolean", "Whether to go on with changes."),
];
const WRITE: [(&str, &str, &str); 3] = [
    ("dryRun", "string", "`All` to do everything but store it."),
    ("fieldManager", "string", "Who owns the fields that change."),
    ("fieldValidation", "string", "What to do about unknown and repeated fields: Ignore, Warn or Strict."),
];
const FORCE: (&str, &str, &str) =
    ("force", "boolean", "Whether to take fields from other managers in an apply.");
const DELETE: [(&str, &str, &str); 4] = [
    ("dryRun", "string", "`All` to do everything but store it."),
    ("gracePeriodSeconds", "integer", "How long the object may take to end."),
    ("orphanDependents", "boolean", "Whether dependents stay; deprecated."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];

struct Paths<'a> {
    resource: &'a Resource,
    form: Form,
    wanted: &'a mut BTreeSet<String>,
}

/// Adds the paths of a resource; the built-in types they speak go to `wanted`.
pub(super) fn add(
    out: &mut Map<String, Value>,
    resource: &Resource,
    form: Form,
    wanted: &mut BTreeSet<String>,
) {
    let base = resource.group_version().path();
    let plural = &resource.plural;
    let place = if resource.namespaced { format!("{base}/namespaces/{{namespace}}") } else { base.clone() };
    let mut paths = Paths { resource, form, wanted };
    let collection = paths.collection();
    paths.insert(out, format!("{place}/{plural}"), collection, false);
    let item = paths.item(None);
    paths.insert(out, format!("{place}/{plural}/{{name}}"), item, true);
    for sub in &resource.subresources {
        let operations = paths.item(Some(sub));
        paths.insert(out, format!("{place}/{plural}/{{name}}/{}", sub.name), operations, true);
    }
    if resource.namespaced && resource.has_verb("list") {
        let mut operations = Map::new();
        let list = paths.list();
        operations.insert("get".into(), list);
        paths.insert_open(out, format!("{base}/{plural}"), operations);
    }
}

impl Paths<'_> {
    fn insert(
        &self,
        out: &mut Map<String, Value>,
        path: String,
        mut operations: Map<String, Value>,
        named: bool,
    ) {
        if operations.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        if named {
            parameters.push(self.path_parameter("name"));
        }
        if self.resource.namespaced {
            parameters.push(self.path_parameter("namespace"));
        }
        if !parameters.is_empty() {
            operations.insert("parameters".into(), parameters.into());
        }
        out.insert(path, operations.into());
    }

    /// A path across namespaces.
    fn insert_open(&self, out: &mut Map<String, Value>, path: String, operations: Map<String, Value>) {
        out.entry(path).or_insert_with(|| operations.into());
    }

    fn path_parameter(&self, name: &str) -> Value {
        match self.form {
            Form::V2 => {
                json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true})
            }
            Form::V3 => {
                json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})
            }
        }
    }

    fn parameters(&self, lists: &[&[(&str, &str, &str)]]) -> Value {
        let parameter = |(name, kind, what): &(&str, &str, &str)| match self.form {
            Form::V2 => {
                json!({"name": name, "in": "query", "description": what, "type": kind, "uniqueItems": true})
            }
            Form::V3 => json!({"name": name, "in": "query", "description": what,
                               "schema": {"type": kind, "uniqueItems": true}}),
        };
        lists.iter().flat_map(|list| list.iter()).map(parameter).collect()
    }

    fn collection(&mut self) -> Map<String, Value> {
        let mut operations = Map::new();
        if self.resource.has_verb("list") {
            operations.insert("get".into(), self.list());
        }
        if self.resource.has_verb("create") {
            let gvk = self.resource.gvk();
            let parameters = self.parameters(&[&READ, &WRITE]);
            let body = self.body(&gvk, &JSON_TYPES);
            operations.insert("post".into(), self.operation("post", &gvk, parameters, body, Some(&gvk)));
        }
        if self.resource.has_verb("deletecollection") {
            let gvk = self.resource.gvk();
            let parameters = self.parameters(&[&READ, &LIST, &DELETE]);
            let body = self.named_body(DELETE_OPTIONS, &JSON_TYPES);
            operations
                .insert("delete".into(), self.operation("deletecollection", &gvk, parameters, body, None));
        }
        operations
    }

    fn list(&mut self) -> Value {
        let gvk = self.resource.gvk();
        let parameters = self.parameters(&[&READ, &LIST]);
        let mut list = gvk.clone();
        list.kind = self.resource.list_kind.clone();
        self.operation("list", &gvk, parameters, None, Some(&list))
    }

    fn item(&mut self, sub: Option<&Subresource>) -> Map<String, Value> {
        let gvk = sub.map_or_else(|| self.resource.gvk(), |sub| sub.kind.clone());
        let has = |verb: &str| match sub {
            Some(sub) => sub.verbs.iter().any(|v| v == verb),
            None => self.resource.has_verb(verb),
        };
        let verbs = ["get", "create", "update", "patch", "delete"].map(|verb| (verb, has(verb)));
        let mut operations = Map::new();
        for (verb, served) in verbs {
            // Objects are created in the collection, only subresources in their own path.
            if !served || verb == "create" && sub.is_none() {
                continue;
            }
            let (method, action) = match verb {
                "create" => ("post", "post"),
                "update" => ("put", "put"),
                same => (same, same),
            };
            let (parameters, body) = match verb {
                "get" => (self.parameters(&[&READ]), None),
                "delete" => {
                    (self.parameters(&[&READ, &DELETE]), self.named_body(DELETE_OPTIONS, &JSON_TYPES))
                }
                "patch" => {
                    let types: &[&str] = match self.resource.is_custom() {
                        true => &[
                            "application/json-patch+json",
                            "application/merge-patch+json",
                            "application/apply-patch+yaml",
                        ],
                        false => &[
                            "application/json-patch+json",
                            "application/merge-patch+json",
                            "application/strategic-merge-patch+json",
                            "application/apply-patch+yaml",
                        ],
                    };
                    (self.parameters(&[&READ, &WRITE, &[FORCE]]), self.named_body(PATCH, types))
                }
                _ => (self.parameters(&[&READ, &WRITE]), self.body(&gvk, &JSON_TYPES)),
            };
            let operation = self.operation(action, &gvk, parameters, body, Some(&gvk));
            operations.insert(method.into(), operation);
        }
        operations
    }

    /// The component that describes a kind, if there is one.
    fn component(&mut self, gvk: &Gvk) -> Option<String> {
        if self.resource.is_custom() && gvk.group == self.resource.group {
            return Some(schemas::custom_name(self.resource, &gvk.kind));
        }
        let kind = KindSchema::built_in(gvk)?;
        let name = Schema::type_name(kind.schema())?.to_string();
        self.wanted.insert(name.clone());
        Some(name)
    }

    fn body(&mut self, gvk: &Gvk, types: &[&str]) -> Option<Value> {
        let name = self.component(gvk)?;
        Some(self.body_of(&name, types))
    }

    fn named_body(&mut self, name: &str, types: &[&str]) -> Option<Value> {
        self.wanted.insert(name.into());
        Some(self.body_of(name, types))
    }

    fn body_of(&self, name: &str, types: &[&str]) -> Value {
        let schema = self.form.reference(name);
        match self.form {
            Form::V2 => json!({"name": "body", "in": "body", "required": true, "schema": schema}),
            Form::V3 => {
                let content: Map<String, Value> =
                    types.iter().map(|kind| ((*kind).into(), json!({"schema": schema}))).collect();
                json!({"content": content})
            }
        }
    }

    fn operation(
        &mut self,
        action: &str,
        gvk: &Gvk,
        mut parameters: Value,
        body: Option<Value>,
        answer: Option<&Gvk>,
    ) -> Value {
        let answer = answer.and_then(|gvk| self.component(gvk)).unwrap_or_else(|| {
            self.wanted.insert(STATUS.into());
            STATUS.into()
        });
        let schema = self.form.reference(&answer);
        let mut map = Map::new();
        map.insert("x-kubernetes-action".into(), action.into());
        map.insert("x-kubernetes-group-version-kind".into(), json!(gvk));
        match self.form {
            Form::V2 => {
                if let (Some(list), Some(body)) = (parameters.as_array_mut(), body) {
                    list.push(body);
                }
                map.insert("parameters".into(), parameters);
                map.insert("responses".into(), json!({"200": {"description": "OK", "schema": schema}}));
            }
            Form::V3 => {
                map.insert("parameters".into(), parameters);
                if let Some(body) = body {
                    map.insert("requestBody".into(), body);
                }
                let content = json!({"application/json": {"schema": schema}});
                map.insert("responses".into(), json!({"200": {"description": "OK", "content": content}}));
            }
        }
        Value::Object(map)
    }
}

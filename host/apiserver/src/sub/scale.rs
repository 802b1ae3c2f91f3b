//! `scale`: the number of replicas of whatever has one.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};
use wasmk_api::{Gvk, LabelSelector, Object, Status};
use wasmk_kinds::ScaleSelector;
use wasmk_machinery::apply::scale::{self as owners, ReplicaPaths};

use crate::{
    http::{Answer, negotiate, respond},
    machine, read,
    table::{Nature, Resource},
    write::{Mode, Sent, Work, patched_as, read_patch, update_object},
};

/// Where the numbers of a scalable object are.
struct Paths {
    spec: Vec<String>,
    status: Vec<String>,
    selector: Selector,
}

enum Selector {
    Labels(Vec<String>),
    Map(Vec<String>),
    Text(Vec<String>),
    None,
}

fn owned(path: &[&str]) -> Vec<String> {
    path.iter().map(|p| (*p).to_owned()).collect()
}

fn paths(resource: &Resource) -> Option<Paths> {
    match &resource.nature {
        Nature::Builtin(kind) => kind.scale().map(|scale| Paths {
            spec: owned(scale.spec_replicas),
            status: owned(scale.status_replicas),
            selector: match scale.selector {
                ScaleSelector::LabelSelector(path) => Selector::Labels(owned(path)),
                ScaleSelector::Map(path) => Selector::Map(owned(path)),
            },
        }),
        Nature::Custom(version) => version.scale.as_ref().map(|scale| Paths {
            spec: scale.spec_replicas.clone(),
            status: scale.status_replicas.clone(),
            selector: scale.selector.clone().map_or(Selector::None, Selector::Text),
        }),
    }
}

fn at<'a>(object: &'a Object, path: &[String]) -> Option<&'a Value> {
    let keys: Vec<&str> = path.iter().map(String::as_str).collect();
    object.at(&keys)
}

fn selector_text(object: &Object, selector: &Selector) -> Option<String> {
    match selector {
        Selector::None => None,
        Selector::Text(path) => at(object, path).and_then(Value::as_str).map(Into::into),
        Selector::Map(path) => {
            let map = at(object, path)?.as_object()?;
            let mut pairs: Vec<String> =
                map.iter().filter_map(|(k, v)| Some(format!("{k}={}", v.as_str()?))).collect();
            pairs.sort();
            Some(pairs.join(","))
        }
        Selector::Labels(path) => {
            let typed = serde_json::from_value(at(object, path)?.clone()).ok()?;
            let mut all = LabelSelector::from_api(&typed).ok()?;
            all.requirements.sort_by(|a, b| a.key.cmp(&b.key));
            Some(all.to_string())
        }
    }
}

/// The `Scale` of an object.
fn scale_of(object: &Object, paths: &Paths) -> Object {
    let mut metadata = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.metadata().and_then(|m| m.get(key)) {
            metadata.insert(key.into(), value.clone());
        }
    }
    let number = |path: &[String]| at(object, path).and_then(Value::as_i64).unwrap_or(0);
    let wanted = number(&paths.spec);
    let mut status = json!({ "replicas": number(&paths.status) });
    if let Some(text) = selector_text(object, &paths.selector).filter(|t| !t.is_empty()) {
        status["selector"] = text.into();
    }
    let spec = if wanted == 0 { json!({}) } else { json!({ "replicas": wanted }) };
    let value = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status,
    });
    Object::from_value(value).unwrap_or_default()
}

/// The scale of an object, as admission sees it; `None` for what has none.
pub(crate) fn seen(resource: &Resource, object: &Object) -> Option<Object> {
    Some(scale_of(object, &paths(resource)?))
}

/// Gives an object the number of replicas that its scale has.
pub(crate) fn put(resource: &Resource, scale: &Object, object: &mut Object) {
    let wanted = scale.at(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(0);
    let Some(paths) = paths(resource) else { return };
    if at(object, &paths.spec).and_then(Value::as_i64).unwrap_or(0) != wanted {
        set(&mut object.0, &paths.spec, wanted.into());
    }
}

/// Answers get, update and patch of a scale.
///
/// # Errors
/// When the object does not exist or the number is refused.
pub(crate) async fn serve(work: &Work<'_>, body: &Bytes, verb: &str) -> Result<Answer, Status> {
    let paths = paths(work.resource).ok_or_else(Status::no_such_path)?;
    if verb == "get" {
        let entry = read::current(work.core, work.call, work.resource).await?;
        let object = work.resource.shown(&entry);
        return Ok(answer(work, &scale_of(&object, &paths)));
    }
    let gvk = Gvk::new("autoscaling", "v1", "Scale");
    let name = work.call.info.name.clone();
    let whole = if verb == "update" {
        let mut sent = work.decode_as(body, negotiate::body_type(&work.call.headers)?, &gvk)?;
        work.place(&mut sent, &name)?;
        Some(sent)
    } else {
        None
    };
    let patch = if whole.is_none() { Some(read_patch(work, body)?) } else { None };
    let done = update_object(work, &name, Mode::Scale, false, |old| {
        let owners = Owners::new(work, &paths);
        let mut present = scale_of(old, &paths);
        owners.to_scale(old, &mut present);
        let mut scale = match (&whole, &patch) {
            (Some(sent), _) => sent.clone(),
            (None, Some(patch)) => patched_as(work, &present, patch, &gvk, "scale")?,
            (None, None) => return Err(Status::bad_request("a scale was expected")),
        };
        if !matches!(patch, Some(Sent::Apply(_))) {
            owners.record(work, &present, &mut scale, &gvk)?;
        }
        let wanted = scale.at(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(0);
        if wanted < 0 {
            return Err(negative(work, &name, wanted));
        }
        let mut new = old.clone();
        new.set_meta("resourceVersion", scale.resource_version());
        set(&mut new.0, &paths.spec, wanted.into());
        owners.to_parent(&scale, &mut new);
        Ok(new)
    })
    .await?;
    Ok(answer(work, &scale_of(&done.into_object(), &paths)))
}

/// Keeps the owners of the scale in its parent.
struct Owners {
    version: String,
    path: Vec<String>,
}

impl Owners {
    fn new(work: &Work<'_>, paths: &Paths) -> Self {
        Self { version: work.resource.gvk.api_version(), path: paths.spec.clone() }
    }

    fn with_paths<T>(&self, use_them: impl FnOnce(&ReplicaPaths<'_>) -> T) -> T {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        use_them(&ReplicaPaths::from([(&*self.version, Some(&*path))]))
    }

    fn entries(object: &Object) -> Vec<Value> {
        object
            .metadata()
            .and_then(|m| m.get("managedFields"))
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    }

    fn put(object: &mut Object, entries: Vec<Value>) {
        object.set_meta("managedFields", if entries.is_empty() { Value::Null } else { entries.into() });
    }

    fn to_scale(&self, parent: &Object, scale: &mut Object) {
        let entries = self.with_paths(|paths| owners::to_scale(&Self::entries(parent), paths));
        Self::put(scale, entries);
    }

    /// Enters who changes the scale.
    fn record(&self, work: &Work<'_>, present: &Object, scale: &mut Object, gvk: &Gvk) -> Result<(), Status> {
        let schema = machine::schema(work.resource, gvk)?;
        let live = Value::Object(present.0.clone());
        let mut value = Value::Object(std::mem::take(&mut scale.0));
        machine::field_manager(work, gvk, &schema, "scale", |fields| {
            fields.update(Some(&live), &mut value, &work.manager);
        });
        if let Value::Object(map) = value {
            scale.0 = map;
        }
        Ok(())
    }

    fn to_parent(&self, scale: &Object, parent: &mut Object) {
        let (before, after) = (Self::entries(parent), Self::entries(scale));
        let entries = self.with_paths(|paths| owners::to_parent(&before, &after, &self.version, paths));
        Self::put(parent, entries);
    }
}

/// The refusal of a negative number, which custom resources word in another way.
fn negative(work: &Work<'_>, name: &str, wanted: i64) -> Status {
    let custom = work.resource.custom().is_some();
    let (kind, field, why) = if custom {
        (work.resource.group_kind(), ".spec.replicas", "should be a non-negative integer")
    } else {
        (
            Gvk::new("autoscaling", "v1", "Scale").group_kind(),
            "spec.replicas",
            "must be greater than or equal to 0",
        )
    };
    let cause = wasmk_api::Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {wanted}: {why}"),
        field: field.into(),
    };
    Status::invalid(&kind, name, &[cause])
}

fn set(map: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => {
            map.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = map.entry(first.clone()).or_insert_with(|| json!({}));
            if let Some(inner) = inner.as_object_mut() {
                set(inner, rest, value);
            }
        }
    }
}

fn answer(work: &Work<'_>, scale: &Object) -> Answer {
    let value = read::scale_form(work.core, work.call, scale);
    respond::value_as(StatusCode::OK, work.call.wanted, &value)
}

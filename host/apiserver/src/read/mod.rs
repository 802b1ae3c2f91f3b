//! Reading objects: get, list and watch, all from the watch cache.

mod components;
mod form;
mod list;
mod watch;

use http::StatusCode;
use wasmk_api::{Object, Status};
use wasmk_machinery::protobuf;

use crate::{
    cache::{Entry, Filter},
    call::Call,
    http::{Answer, Form, Format, ListOptions, query::parse_version, respond},
    server::Core,
    table::Resource,
};

pub(crate) use form::{Former, partial};
pub(crate) use list::list;
pub(crate) use watch::watch;

/// The object of a `get`, as current as the request wants.
pub(crate) async fn current(
    core: &Core,
    call: &Call,
    resource: &Resource,
) -> Result<std::sync::Arc<Entry>, Status> {
    match call.query.text("resourceVersion") {
        "" => {
            core.caches.catch_up().await?;
        }
        "0" => {}
        text => core.caches.wait_for(parse_version(text)?).await?,
    }
    let key = crate::cache::key(namespace_of(call, resource), &call.info.name);
    let found = if components::are(resource) {
        components::entries(core).into_iter().find(|entry| *entry.name == *call.info.name)
    } else {
        resource.cache.get(&key)
    };
    let found = found.ok_or_else(|| Status::not_found(&resource.group_resource(), &call.info.name))?;
    resource.present_one(core, found).await
}

/// The namespace objects of the call's resource are in; empty for cluster-scoped ones.
pub(crate) fn namespace_of<'a>(call: &'a Call, resource: &Resource) -> &'a str {
    if resource.namespaced { &call.info.namespace } else { "" }
}

/// Answers `get`.
pub(crate) async fn get(core: &Core, call: &Call, resource: &Resource) -> Result<Answer, Status> {
    let entry = current(core, call, resource).await?;
    match call.wanted.form {
        Form::Whole if resource.serves(&entry) => match (call.wanted.format, resource.binary) {
            (Format::Protobuf, Some(of)) => {
                let body = protobuf::object(&resource.gvk, of, &entry.body()).map_err(Status::internal)?;
                Ok(respond::compressed(StatusCode::OK, call.wanted, body.into()))
            }
            _ => Ok(respond::encoded(StatusCode::OK, call.wanted, entry.body())),
        },
        _ => object(core, call, resource, StatusCode::OK, &resource.served(entry.object())),
    }
}

/// Answers with one object, in the form the client wants.
pub(crate) fn object(
    core: &Core,
    call: &Call,
    resource: &Resource,
    code: StatusCode,
    object: &Object,
) -> Result<Answer, Status> {
    let former = Former::new(core, call, resource);
    let value = match call.wanted.form {
        Form::Whole => {
            return Ok(respond::value_as(code, call.wanted, object));
        }
        Form::Partial(version) => partial(object, version),
        Form::Table(version) => {
            former.table(version, std::slice::from_ref(object), object.resource_version(), None, None, true)
        }
    };
    Ok(respond::value_as(code, call.wanted, &value))
}

/// A scale in the form the client wants.
pub(crate) fn scale_form(core: &Core, call: &Call, object: &Object) -> serde_json::Value {
    match call.wanted.form {
        Form::Whole => serde_json::Value::Object(object.0.clone()),
        Form::Partial(version) => partial(object, version),
        Form::Table(version) => {
            let former = Former::scale(core, call);
            former.table(version, std::slice::from_ref(object), object.resource_version(), None, None, true)
        }
    }
}

/// What a list or watch selects.
///
/// # Errors
/// When a field cannot be selected by.
pub(crate) fn filter(call: &Call, resource: &Resource, options: &ListOptions) -> Result<Filter, Status> {
    let mut filter = Filter {
        namespace: namespace_of(call, resource).into(),
        labels: options.labels.clone(),
        fields: options.fields.clone(),
        custom: Vec::new(),
    };
    if !call.info.name.is_empty() {
        filter.fields.terms.push(("metadata.name".into(), call.info.name.clone(), true));
    }
    for (field, _, _) in &options.fields.terms {
        if matches!(field.as_str(), "metadata.name" | "metadata.namespace") {
            continue;
        }
        match resource.custom() {
            Some(version) => match version.selectable.iter().find(|(name, _)| name == field) {
                Some(found) => filter.custom.push(found.clone()),
                None => return Err(Status::bad_request(format!("field label not supported: {field}"))),
            },
            None if resource.kind().field_names().contains(&field.as_str()) => {}
            None => return Err(Status::bad_request(unknown_field(resource, field))),
        }
    }
    Ok(filter)
}

/// Kinds with fields of their own and kinds without word it differently.
fn unknown_field(resource: &Resource, field: &str) -> String {
    if resource.kind().field_names().is_empty() {
        format!("\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {field}")
    }
}

//! Everything that is no resource: discovery, API descriptions, health, version, metrics.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use wasmk_api::{GroupVersion, Reason, Status};

use crate::{
    call::Call,
    dispatch::not_found_page,
    health,
    http::{Answer, Wanted, negotiate::Format, respond},
    openapi,
    server::Core,
    table::{Resource, Subresource, Table},
};

/// Documents made from the table, kept until it changes.
#[derive(Default)]
pub(crate) struct Documents(Mutex<Option<(Arc<Table>, HashMap<String, Bytes>)>>);

impl Documents {
    /// The document of that name, made with `make` when it is not there yet.
    pub(crate) fn get(
        &self,
        table: &Arc<Table>,
        name: &str,
        make: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Bytes> {
        if let Some((known, documents)) = &*self.0.lock()
            && Arc::ptr_eq(known, table)
            && let Some(document) = documents.get(name)
        {
            return Some(document.clone());
        }
        let made = Bytes::from(make()?);
        let mut slot = self.0.lock();
        match &mut *slot {
            Some((known, documents)) if Arc::ptr_eq(known, table) => {
                documents.insert(name.into(), made.clone());
            }
            other => *other = Some((table.clone(), HashMap::from([(name.into(), made.clone())]))),
        }
        Some(made)
    }
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers requests for anything but resources.
///
/// # Errors
/// 405 for methods other than GET and HEAD, 406 for encodings that are not offered.
pub(crate) async fn other(
    core: &Arc<Core>,
    call: &Arc<Call>,
    _request: axum::extract::Request,
) -> Result<Answer, Status> {
    let path = call.info.path.trim_end_matches('/');
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return if known(path) { Err(Status::method_not_allowed()) } else { Ok(not_found_page()) };
    }
    let table = core.table.load_full();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        [] | [""] | ["index.html"] => Ok(paths(&table)),
        ["api"] => groups(core, call, &table, true),
        ["apis"] => groups(core, call, &table, false),
        ["apis", group] => group_document(call, &table, group),
        ["api", version] => resources(call, &table, &GroupVersion::new("", *version)),
        ["apis", group, version] => resources(call, &table, &GroupVersion::new(*group, *version)),
        ["openapi", ..] => openapi::serve(core, call, &table, &parts[1..]),
        _ => Ok(health::serve(core, call, &parts)),
    }
}

fn known(path: &str) -> bool {
    let first = path.split('/').nth(1).unwrap_or("");
    matches!(first, "api" | "apis" | "openapi" | "version" | "healthz" | "livez" | "readyz" | "metrics" | "")
}

fn paths(table: &Table) -> Answer {
    let mut paths = vec!["/.well-known/openid-configuration".to_owned(), "/api".into(), "/apis".into()];
    for (gv, _) in table.versions() {
        if !gv.group.is_empty() {
            paths.push(format!("/apis/{}", gv.group));
        }
        paths.push(gv.path());
    }
    for path in [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(path.into());
    }
    paths.sort();
    paths.dedup();
    respond::value_as(
        StatusCode::OK,
        Wanted { pretty: true, ..Wanted::default() },
        &json!({ "paths": paths }),
    )
}

/// The versions of each group, preferred first.
fn by_group(table: &Table) -> Vec<(&str, Vec<&(GroupVersion, Vec<Arc<Resource>>)>)> {
    let mut groups: Vec<(&str, Vec<_>)> = Vec::new();
    for version in table.versions() {
        match groups.iter_mut().find(|(name, _)| *name == version.0.group) {
            Some((_, versions)) => versions.push(version),
            None => groups.push((&version.0.group, vec![version])),
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by(|a, b| rank(&b.0.version).cmp(&rank(&a.0.version)));
    }
    groups
}

/// How Kubernetes ranks versions: v2 before v1 before v1beta2 before v1alpha1.
pub(crate) fn rank(version: &str) -> (u8, u64, u64) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse() else { return (0, 0, 0) };
    let stage = &rest[digits..];
    for (word, weight) in [("beta", 2), ("alpha", 1)] {
        if let Some(minor) = stage.strip_prefix(word) {
            return minor.parse().map_or((0, 0, 0), |minor| (weight, major, minor));
        }
    }
    if stage.is_empty() { (3, major, 0) } else { (0, 0, 0) }
}

fn group_value(name: &str, versions: &[&(GroupVersion, Vec<Arc<Resource>>)]) -> Value {
    let one = |gv: &GroupVersion| json!({ "groupVersion": gv.to_string(), "version": gv.version });
    json!({
        "name": name,
        "versions": versions.iter().map(|(gv, _)| one(gv)).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(|(gv, _)| one(gv)),
    })
}

fn groups(core: &Core, call: &Call, table: &Arc<Table>, core_group: bool) -> Result<Answer, Status> {
    let accept = call.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2") {
        return Ok(aggregated(core, call, table, core_group));
    }
    refuse_odd(accept)?;
    let value = if core_group {
        json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{
                "clientCIDR": "0.0.0.0/0",
                "serverAddress": format!("{}:{}", core.config.advertise_address, core.config.advertise_port),
            }],
        })
    } else {
        let groups: Vec<Value> = by_group(table)
            .iter()
            .filter(|(name, _)| !name.is_empty())
            .map(|(n, v)| group_value(n, v))
            .collect();
        json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
    };
    Ok(respond::value_as(StatusCode::OK, plain(call), &value))
}

/// Documents have no tables and no metadata.
fn plain(call: &Call) -> Wanted {
    Wanted { form: crate::http::Form::Whole, ..call.wanted }
}

fn refuse_odd(accept: &str) -> Result<(), Status> {
    let known = [
        "*/*",
        "application/*",
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
    ];
    let acceptable = accept.is_empty()
        || accept.split(',').any(|c| known.contains(&c.split(';').next().unwrap_or("").trim()));
    if acceptable {
        return Ok(());
    }
    Err(Status::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    ))
}

fn group_document(call: &Call, table: &Table, group: &str) -> Result<Answer, Status> {
    let groups = by_group(table);
    let Some((name, versions)) = groups.iter().find(|(name, _)| *name == group && !group.is_empty()) else {
        return Ok(not_found_page());
    };
    let Value::Object(map) = group_value(name, versions) else { return Ok(not_found_page()) };
    let mut value = Map::new();
    value.insert("kind".into(), "APIGroup".into());
    value.insert("apiVersion".into(), "v1".into());
    value.extend(map);
    Ok(respond::value_as(StatusCode::OK, plain(call), &Value::Object(value)))
}

fn resources(call: &Call, table: &Table, gv: &GroupVersion) -> Result<Answer, Status> {
    let Some((_, rows)) = table.versions().iter().find(|(known, _)| known == gv) else {
        return Ok(not_found_page());
    };
    let mut list: Vec<Value> = Vec::new();
    for resource in rows {
        if !resource.verbs.is_empty() {
            list.push(resource_value(resource));
        }
        list.extend(resource.subresources.iter().map(|sub| subresource_value(resource, sub)));
    }
    let mut value = json!({ "kind": "APIResourceList" });
    if !gv.group.is_empty() {
        value["apiVersion"] = "v1".into();
    }
    value["groupVersion"] = gv.to_string().into();
    value["resources"] = list.into();
    Ok(respond::value_as(StatusCode::OK, plain(call), &value))
}

fn resource_value(resource: &Resource) -> Value {
    let mut value = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.gvk.kind,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    if resource.verbs.iter().any(|v| v == "watch") {
        value["storageVersionHash"] = storage_hash(resource).into();
    }
    value
}

/// Changes when objects begin to be stored in another version.
fn storage_hash(resource: &Resource) -> String {
    let name = format!("{}/{}/{}", resource.stored.group, resource.stored.version, resource.gvk.kind);
    STANDARD.encode(&Sha256::digest(name.as_bytes())[..8])
}

fn subresource_value(resource: &Resource, sub: &Subresource) -> Value {
    let mut value = json!({
        "name": format!("{}/{}", resource.plural, sub.name),
        "singularName": "",
        "namespaced": resource.namespaced,
    });
    if sub.gvk.group_version() != resource.gvk.group_version() {
        value["group"] = sub.gvk.group.clone().into();
        value["version"] = sub.gvk.version.clone().into();
    }
    value["kind"] = sub.gvk.kind.clone().into();
    value["verbs"] = json!(sub.verbs);
    value
}

fn aggregated(core: &Core, call: &Call, table: &Arc<Table>, core_group: bool) -> Answer {
    let name = if core_group { "aggregated-api" } else { "aggregated-apis" };
    let made = core.documents.get(table, name, || {
        let items: Vec<Value> = by_group(table)
            .iter()
            .filter(|(name, _)| name.is_empty() == core_group)
            .map(|(name, versions)| aggregated_group(name, versions))
            .collect();
        let list = json!({
            "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
        });
        serde_json::to_vec(&list).ok()
    });
    let body = made.unwrap_or_default();
    let tag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
    let matches = call.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    let mut answer = if matches {
        respond::bytes(StatusCode::NOT_MODIFIED, AGGREGATED, Bytes::new())
    } else {
        respond::encoded(StatusCode::OK, Wanted { format: Format::Json, pretty: false, ..plain(call) }, body)
    };
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

fn aggregated_group(name: &str, versions: &[&(GroupVersion, Vec<Arc<Resource>>)]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|(gv, rows)| {
            let resources: Vec<Value> = rows.iter().map(|r| aggregated_resource(r)).collect();
            json!({ "version": gv.version, "resources": resources, "freshness": "Current" })
        })
        .collect();
    let metadata = if name.is_empty() {
        json!({ "creationTimestamp": null })
    } else {
        json!({ "name": name, "creationTimestamp": null })
    };
    json!({ "metadata": metadata, "versions": versions })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |gvk: &wasmk_api::Gvk| json!({ "group": gvk.group, "version": gvk.version, "kind": gvk.kind });
    let mut value = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.gvk),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        let subs: Vec<Value> = resource
            .subresources
            .iter()
            .map(|s| json!({ "subresource": s.name, "responseKind": kind(&s.gvk), "verbs": s.verbs }))
            .collect();
        value["subresources"] = subs.into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_the_order_of_preference() {
        let mut versions = vec!["v1alpha1", "v2", "v1beta2", "foo", "v1", "v1beta1", "v10"];
        versions.sort_by_key(|v| std::cmp::Reverse(rank(v)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}

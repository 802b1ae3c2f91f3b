//! APIs that other servers bring: requests for their groups are passed on, with who makes them.
//!
//! `APIService` objects say which server has which group and version. One task looks whether each answers and writes
//! what it finds to the object and into the table of what is served; a server that does not answer takes nothing
//! else with it.

mod check;
mod local;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::extract::Request;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use wasmk_api::{Gvk, Reason, Status};
use wasmk_kinds::value::text;
use wasmk_machinery::resources::{self, Subresource};

use crate::{
    auth::User,
    cache::Filter,
    call::Call,
    crd,
    http::{Answer, respond},
    remote::{Endpoint, Trust},
    server::Core,
    sub,
};

const SERVICES: &str = "apiregistration.k8s.io/apiservices";
/// How often every server is looked at, whether or not anything changed.
const EVERY: Duration = Duration::from_secs(30);
/// Pause before a change is acted on, so that several count as one.
const SETTLE: Duration = Duration::from_millis(50);

/// A group and version another server has.
#[derive(Debug, PartialEq)]
pub(crate) struct Aggregated {
    group: String,
    version: String,
    /// Which service it is behind, as the `APIService` has it.
    service: Value,
    trust: Trust,
    /// What it serves, as it says itself; `None` while it does not answer.
    resources: Option<Value>,
}

/// All of them, by group and version.
pub(crate) type Servers = BTreeMap<(String, String), Arc<Aggregated>>;

impl Aggregated {
    /// From the spec of an `APIService`; `None` when the group is the server's own.
    fn read(spec: &Value) -> Option<Self> {
        let service = spec.get("service").filter(|s| s.is_object())?;
        let trust = match (spec.get("insecureSkipTLSVerify"), text(spec, "caBundle")) {
            (Some(Value::Bool(true)), _) => Trust::Anyone,
            (_, "") => Trust::System,
            (_, bundle) => Trust::Bundle(STANDARD.decode(bundle).ok()?),
        };
        let (group, version) = (text(spec, "group"), text(spec, "version"));
        // The core group cannot be given away: everything hangs on it.
        (!group.is_empty()).then(|| Self {
            group: group.into(),
            version: version.into(),
            service: service.clone(),
            trust,
            resources: None,
        })
    }

    fn endpoint(&self, core: &Core) -> Result<Endpoint, String> {
        Endpoint::of_service(core, &self.service, self.trust.clone())
    }

    fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }

    /// Its resources as rows of the registry, for discovery alone.
    pub(crate) fn rows(&self) -> Vec<Arc<resources::Resource>> {
        let all = self.resources.as_ref().and_then(|r| r.get("resources")?.as_array());
        let mut rows: BTreeMap<&str, resources::Resource> = BTreeMap::new();
        let words = |value: &Value, key: &str| -> Vec<String> {
            let items = value.get(key).and_then(Value::as_array);
            items.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
        };
        for item in all.into_iter().flatten() {
            let or = |key: &str, usual: &str| match text(item, key) {
                "" => usual.to_owned(),
                given => given.to_owned(),
            };
            let gvk = Gvk::new(or("group", &self.group), or("version", &self.version), text(item, "kind"));
            match text(item, "name").split_once('/') {
                None => {
                    let mut row = resources::Resource::default();
                    row.group.clone_from(&self.group);
                    row.version.clone_from(&self.version);
                    row.plural = text(item, "name").into();
                    row.singular = text(item, "singularName").into();
                    row.list_kind = format!("{}List", gvk.kind);
                    row.kind = gvk.kind;
                    row.namespaced = item.get("namespaced") == Some(&Value::Bool(true));
                    row.short_names = words(item, "shortNames");
                    row.categories = words(item, "categories");
                    row.verbs = words(item, "verbs");
                    row.storage = row.group_version();
                    row.custom = Some(wasmk_machinery::schema::KindSchema::any());
                    rows.insert(text(item, "name"), row);
                }
                Some((plural, sub)) => {
                    if let Some(row) = rows.get_mut(plural) {
                        let verbs = words(item, "verbs");
                        row.subresources.push(Subresource { name: sub.into(), kind: gvk, verbs });
                    }
                }
            }
        }
        rows.into_values().map(Arc::new).collect()
    }
}

/// The servers of all `APIService` objects, with what is known of those that were there before.
fn registered(core: &Core) -> Vec<(Box<str>, Aggregated)> {
    let all = core.caches.of(SERVICES).list(&Filter::default());
    all.iter()
        .filter_map(|entry| {
            let spec = entry.object().0.get("spec").cloned()?;
            Some((entry.name.clone(), Aggregated::read(&spec)?))
        })
        .collect()
}

/// Looks after servers and `APIService` objects for as long as the server runs.
pub(crate) async fn follow(core: Arc<Core>) {
    let mut services = core.caches.of(SERVICES).subscribe();
    let mut slices = core.caches.of("discovery.k8s.io/endpointslices").subscribe();
    let mut definitions = core.defined.subscribe();
    loop {
        services.mark_unchanged();
        slices.mark_unchanged();
        definitions.mark_unchanged();
        local::register(&core).await;
        check::all(&core).await;
        // Without servers to look at, changes of endpoints mean nothing here.
        let watched = !core.aggregated.load().is_empty();
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            _ = services.changed() => {}
            _ = definitions.changed() => {}
            _ = slices.changed(), if watched => {}
            () = tokio::time::sleep(EVERY), if watched => {}
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Swaps in what was found, and has the table made anew when it differs.
fn publish(core: &Core, servers: Servers) {
    let changed = **core.aggregated.load() != servers;
    if changed {
        core.aggregated.store(Arc::new(servers));
        crd::refresh(core);
    }
}

/// The server a path belongs to, if another one has it.
pub(crate) fn server_of(core: &Core, path: &str) -> Option<Arc<Aggregated>> {
    let servers = core.aggregated.load();
    if servers.is_empty() {
        return None;
    }
    let rest = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/openapi/v3/apis/"))?;
    let mut parts = rest.split('/');
    let key = (parts.next()?.to_owned(), parts.next()?.to_owned());
    servers.get(&key).cloned()
}

/// Passes a request on.
///
/// # Errors
/// 503 when the server cannot be reached.
pub(crate) async fn pass_on(
    core: &Arc<Core>,
    call: &Call,
    server: &Aggregated,
    mut request: Request,
) -> Result<Answer, Status> {
    if server.resources.is_none() {
        return Ok(respond::text(StatusCode::SERVICE_UNAVAILABLE, "service unavailable\n"));
    }
    let unreachable = |why: String| {
        Status::new(Reason::ServiceUnavailable, format!("error trying to reach service: {why}"))
    };
    let endpoint = server.endpoint(core).map_err(unreachable)?;
    let stream = core.remote.connect(&endpoint).await.map_err(unreachable)?;
    let headers = request.headers_mut();
    introduce(headers, &call.user);
    if let Ok(host) = HeaderValue::from_str(&endpoint.authority) {
        headers.insert(header::HOST, host);
    }
    let target = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
    sub::over(TokioIo::new(stream), &endpoint.authority, &target, request).await
}

/// Says in the request's headers who makes it, and leaves out what the client said about that.
fn introduce(headers: &mut HeaderMap, user: &User) {
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-") || name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    claimed.into_iter().for_each(|name| drop(headers.remove(name)));
    headers.remove(header::AUTHORIZATION);
    let mut add = |name: &str, value: &str| {
        let pair = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value));
        if let (Ok(name), Ok(value)) = pair {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    user.groups.iter().for_each(|group| add("x-remote-group", group));
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        values.iter().for_each(|value| add(&name, value));
    }
}

/// A key as it can stand in a header's name: percent-encoded where it must be.
fn escaped(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.!#$&'*+^`|~".contains(&b);
    let mut out = String::with_capacity(key.len());
    for b in key.bytes() {
        if plain(b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02x}"));
        }
    }
    out
}

/// Adds the groups and versions whose servers do not answer to an aggregated discovery document.
pub(crate) fn add_stale(servers: &Servers, document: &mut Value) {
    let Some(items) = document.get_mut("items").and_then(Value::as_array_mut) else { return };
    for server in servers.values().filter(|s| s.rows().is_empty()) {
        let version = serde_json::json!({ "version": server.version, "resources": [], "freshness": "Stale" });
        let known =
            items.iter_mut().find(|i| i.pointer("/metadata/name") == Some(&server.group.clone().into()));
        match known.and_then(|group| group.get_mut("versions")?.as_array_mut()) {
            Some(versions) => versions.push(version),
            None => items.push(serde_json::json!({
                "metadata": { "name": server.group }, "versions": [version],
            })),
        }
    }
}

/// The same for the plain list of groups.
pub(crate) fn add_missing(servers: &Servers, document: &mut Value) {
    let Some(groups) = document.get_mut("groups").and_then(Value::as_array_mut) else { return };
    for server in servers.values().filter(|s| s.rows().is_empty()) {
        let group_version = format!("{}/{}", server.group, server.version);
        let version = serde_json::json!({ "groupVersion": group_version, "version": server.version });
        match groups.iter_mut().find(|g| text(g, "name") == server.group) {
            Some(group) => {
                if let Some(versions) = group.get_mut("versions").and_then(Value::as_array_mut) {
                    versions.push(version);
                }
            }
            None => groups.push(serde_json::json!({
                "name": server.group, "preferredVersion": version, "versions": [version],
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_cannot_say_who_they_are() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-a", HeaderValue::from_static("b"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        let mut user = User::new("jane", ["staff"]);
        user.extra.insert("example.com/Key".into(), vec!["1".into()]);
        introduce(&mut headers, &user);
        assert_eq!(headers.get_all("x-remote-user").iter().collect::<Vec<_>>(), ["jane"]);
        assert_eq!(headers["x-remote-extra-example.com%2f%4bey"], "1");
        assert!(!headers.contains_key("x-remote-extra-a") && !headers.contains_key("authorization"));
        assert_eq!(headers.get_all("x-remote-group").iter().count(), 2);
    }
}

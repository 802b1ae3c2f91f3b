//! ApiServerSource: an event for each change of objects of the API, read as the service account that it names.

use std::{collections::HashMap, collections::HashSet, sync::Arc, time::Duration};

use futures::StreamExt;
use http::{HeaderName, HeaderValue};
use kube::{
    Api, Client, ResourceExt,
    api::DynamicObject,
    core::{ApiResource, GroupVersion, TypeMeta},
    discovery,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use super::{Eventing, event::Event};

/// Sources at the most.
const MAX_SOURCES: usize = 200;
/// Kinds that one source follows at the most.
const MAX_KINDS: usize = 32;
/// Pause after which sources are looked at in any case, and a kind that is not served is asked for again.
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps a watch for each kind that each source names.
pub(super) async fn run(eventing: Arc<Eventing>) {
    let mut running: HashMap<(String, i64), DropGuard> = HashMap::new();
    loop {
        let changed = eventing.changed.notified();
        let sources = eventing.api_sources.all();
        let key = |s: &DynamicObject| (s.uid().unwrap_or_default(), s.metadata.generation.unwrap_or(0));
        let wanted: HashSet<_> = sources.iter().map(|s| key(s)).collect();
        // Dropping the guard ends the watches of a source that is gone or has changed.
        running.retain(|key, _| wanted.contains(key));
        for source in sources.iter().take(MAX_SOURCES) {
            running.entry(key(source)).or_insert_with(|| start(&eventing, source));
        }
        tokio::select! {
            () = changed => {}
            () = sleep(AGAIN) => {}
        }
    }
}

fn start(eventing: &Arc<Eventing>, source: &Arc<DynamicObject>) -> DropGuard {
    let stop = CancellationToken::new();
    let account = source.data["spec"]["serviceAccountName"].as_str().filter(|a| !a.is_empty());
    let client =
        as_account(&eventing.client, &source.namespace().unwrap_or_default(), account.unwrap_or("default"));
    let kinds = source.data["spec"]["resources"].as_array().cloned().unwrap_or_default();
    for kind in kinds.into_iter().take(MAX_KINDS) {
        let following = follow(eventing.clone(), source.clone(), client.clone(), kind);
        tokio::spawn(stop.clone().run_until_cancelled_owned(following));
    }
    stop.drop_guard()
}

/// A client that acts as a service account: it sees what that may see.
fn as_account(client: &Client, namespace: &str, account: &str) -> Client {
    const USER: HeaderName = HeaderName::from_static("impersonate-user");
    let user = HeaderValue::from_str(&format!("system:serviceaccount:{namespace}:{account}"))
        .unwrap_or(HeaderValue::from_static("system:anonymous"));
    let client = client.clone();
    let service = tower::service_fn(move |mut request: http::Request<kube::client::Body>| {
        request.headers_mut().insert(USER, user.clone());
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(service, namespace.to_string())
}

async fn follow(eventing: Arc<Eventing>, source: Arc<DynamicObject>, client: Client, kind: Value) {
    let resource = loop {
        match find(&client, &kind).await {
            Ok(resource) => break resource,
            Err(why) => warn!(source = source.name_any(), "cannot follow {}: {why}", kind["kind"]),
        }
        sleep(AGAIN).await;
    };
    let namespace = source.namespace().unwrap_or_default();
    let api = Api::<DynamicObject>::namespaced_with(client, &namespace, &resource);
    let labels = selector(&kind["selector"]);
    let config = if labels.is_empty() {
        watcher::Config::default()
    } else {
        watcher::Config::default().labels(&labels)
    };
    let events = watcher(api, config).default_backoff();
    let mut events = std::pin::pin!(events.filter_map(|e| async move { e.ok() }));
    let mut known = HashSet::new();
    while let Some(event) = events.next().await {
        // What is there at the start is no change.
        let (what, object) = match event {
            watcher::Event::InitApply(object) => {
                known.insert(object.uid());
                continue;
            }
            watcher::Event::Apply(object) => {
                (if known.insert(object.uid()) { "add" } else { "update" }, object)
            }
            watcher::Event::Delete(object) => {
                known.remove(&object.uid());
                ("delete", object)
            }
            watcher::Event::Init | watcher::Event::InitDone => continue,
        };
        eventing.emit(&source, change(&source, &resource, what, object));
    }
}

async fn find(client: &Client, kind: &Value) -> Result<ApiResource, String> {
    let text = |key: &str| kind[key].as_str().unwrap_or("");
    let version: GroupVersion = text("apiVersion").parse().map_err(|e| format!("{e}"))?;
    let gvk = version.with_kind(text("kind"));
    discovery::pinned_kind(client, &gvk).await.map(|(resource, _)| resource).map_err(|e| e.to_string())
}

/// A label selector as text; expressions that are not understood select nothing.
fn selector(selector: &Value) -> String {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> =
        equal.filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    for one in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = one["key"].as_str().unwrap_or("");
        let values: Vec<&str> =
            one["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match one["operator"].as_str().unwrap_or("") {
            "Exists" => key.to_string(),
            "DoesNotExist" => format!("!{key}"),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            _ => format!("{key} in ({})", values.join(",")),
        });
    }
    parts.join(",")
}

fn change(source: &DynamicObject, resource: &ApiResource, what: &str, mut object: DynamicObject) -> Event {
    object.types = Some(TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() });
    let whole = source.data["spec"]["mode"] == "Resource";
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let data = match whole {
        true => serde_json::to_value(&object).unwrap_or_default(),
        false => {
            json!({"apiVersion": resource.api_version, "kind": resource.kind, "namespace": namespace, "name": name})
        }
    };
    let form = if whole { "resource" } else { "ref" };
    let kind = format!("dev.knative.apiserver.{form}.{what}");
    let mut event = Event::new(&kind, "https://kubernetes.default.svc", "application/json", data.to_string());
    let subject = format!("/apis/{}/namespaces/{namespace}/{}/{name}", resource.api_version, resource.plural);
    for (key, value) in [
        ("subject", subject.as_str()),
        ("apiversion", &resource.api_version),
        ("kind", &resource.kind),
        ("name", &name),
        ("namespace", &namespace),
    ] {
        event.attributes.insert(key.into(), value.into());
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let given = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        assert_eq!(selector(&given), "a=b,c in (d,e),!f");
        assert_eq!(selector(&Value::Null), "");
    }

    #[test]
    fn changes_are_events() {
        let object = |value: Value| serde_json::from_value::<DynamicObject>(value).unwrap();
        let source = object(json!({"metadata": {}, "spec": {"mode": "Reference"}}));
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
        let map = object(json!({"metadata": {"name": "m", "namespace": "default"}, "data": {"a": "b"}}));
        let event = change(&source, &resource, "add", map);
        assert_eq!(event.get("type"), Some("dev.knative.apiserver.ref.add"));
        assert_eq!(event.get("subject"), Some("/apis/v1/namespaces/default/configmaps/m"));
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(
            data,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "namespace": "default", "name": "m"})
        );
    }
}

//! Whether the servers of aggregated APIs answer.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use wasmk_api::{Object, Status};

use super::{Aggregated, Servers, publish, registered, text};
use crate::{
    auth::User,
    crd::own_call,
    server::Core,
    write::{Mode, Work, update_object},
};

/// Longest wait for a server's answer.
const WITHIN: Duration = Duration::from_secs(5);
/// Servers that are asked at the same time.
const AT_ONCE: usize = 16;

/// What was found out about a server: its condition's status, reason and message.
type Finding = (bool, &'static str, String);

/// Looks at every server, publishes what they serve, and writes their conditions.
pub(super) async fn all(core: &Arc<Core>) {
    let looked: Vec<(Box<str>, Aggregated, Finding)> = stream::iter(registered(core))
        .map(|(name, mut server)| async move {
            let finding = match look(core, &server).await {
                Ok(resources) => {
                    server.resources = Some(resources);
                    (true, "Passed", "all checks passed".to_owned())
                }
                Err((reason, message)) => (false, reason, message),
            };
            (name, server, finding)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut servers = Servers::new();
    let mut findings = Vec::new();
    for (name, server, finding) in looked {
        servers.insert((server.group.clone(), server.version.clone()), Arc::new(server));
        findings.push((name, finding));
    }
    publish(core, servers);
    for (name, finding) in findings {
        if let Err(status) = write(core, &name, &finding).await
            && status.code != 404
        {
            tracing::warn!(service = &*name, error = %status, "the condition of an API service was not written");
        }
    }
}

/// What a server serves, or why it cannot be used.
async fn look(core: &Arc<Core>, server: &Aggregated) -> Result<Value, (&'static str, String)> {
    let (namespace, name) = (text(&server.service, "namespace"), text(&server.service, "name"));
    let port = server.service.get("port").and_then(Value::as_u64).unwrap_or(443);
    let services = core.caches.of("core/services");
    let Some(service) = services.get(&crate::cache::key(namespace, name)) else {
        return Err(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    let spec = service.object().0.get("spec").cloned().unwrap_or_default();
    let ports = spec.get("ports").and_then(Value::as_array);
    let listens = ports.into_iter().flatten().any(|p| p.get("port").and_then(Value::as_u64) == Some(port));
    if !listens && text(&spec, "type") != "ExternalName" {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Err(("ServicePortError", why));
    }
    let mut endpoint = server.endpoint(core).map_err(|_| {
        let why =
            format!("endpoints for service/{name} in {namespace:?} have no addresses with port name \"\"");
        ("MissingEndpoints", why)
    })?;
    endpoint.path = server.path();
    let failed = |why: String| {
        let url = format!("https://{}:{}{}", endpoint.dial.0, endpoint.dial.1, endpoint.path);
        ("FailedDiscoveryCheck", format!("failing or missing response from {url}: {why}"))
    };
    let me = User::new("system:kube-aggregator", ["system:masters"]);
    let mut headers = vec![("x-remote-user", me.name)];
    headers.extend(me.groups.into_iter().map(|group| ("x-remote-group", group)));
    let (code, body) = core.remote.send(&endpoint, "", &headers, None, WITHIN).await.map_err(&failed)?;
    if !code.is_success() {
        return Err(failed(format!("bad status from server: {}", code.as_u16())));
    }
    let list: Value = serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))?;
    match list.get("resources") {
        Some(Value::Array(_)) => Ok(list),
        _ => Err(failed("the answer lists no resources".into())),
    }
}

async fn write(core: &Arc<Core>, name: &str, finding: &Finding) -> Result<(), Status> {
    let Some(resource) = core.table.load().get("apiregistration.k8s.io", "v1", "apiservices").cloned() else {
        return Ok(());
    };
    if resource.cache.get(name).is_some_and(|e| says(&e.object(), finding)) {
        return Ok(());
    }
    let call = own_call(&resource, name);
    let work = Work { trusted: true, ..Work::new(core, &call, &resource)? };
    update_object(&work, name, Mode::Free("status"), false, |old| {
        let mut new = old.clone();
        let (good, reason, message) = finding;
        let status = if *good { "True" } else { "False" };
        let before = condition(old).filter(|c| text(c, "status") == status);
        let since = before.map_or(work.now.to_string(), |c| text(c, "lastTransitionTime").to_owned());
        new.0.insert(
            "status".into(),
            json!({ "conditions": [{
                "type": "Available", "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
            }] }),
        );
        crate::machine::manage_as(&work, &resource.gvk, &mut new, Some(old), "status")?;
        Ok(new)
    })
    .await
    .map(|_| ())
}

fn condition(service: &Object) -> Option<&Value> {
    service.at(&["status", "conditions"])?.as_array()?.iter().find(|c| text(c, "type") == "Available")
}

fn says(service: &Object, (good, reason, message): &Finding) -> bool {
    condition(service).is_some_and(|c| {
        text(c, "status") == if *good { "True" } else { "False" }
            && text(c, "reason") == *reason
            && text(c, "message") == message
    })
}

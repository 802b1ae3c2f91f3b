//! From a service to what is behind it.

use serde_json::Value;
use wasmk_api::Object;
use wasmk_kinds::value::text;

use crate::{cache::Filter, server::Core};

/// What a service lacks to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The port that is asked for.
    Port,
    /// A ready endpoint.
    Endpoint,
}

/// The address of a ready endpoint, one of them at random. The port is a name, a number, or empty for the first.
pub(crate) fn address(core: &Core, service: &Object, port: &str) -> Result<(String, u16), Missing> {
    let mut ports = service.at(&["spec", "ports"]).and_then(Value::as_array).into_iter().flatten();
    let number = |p: &Value| p.get("port").and_then(Value::as_u64).unwrap_or(0).to_string();
    let chosen = ports.find(|p| port.is_empty() || text(p, "name") == port || number(p) == port);
    let mut all = endpoints(core, service, text(chosen.ok_or(Missing::Port)?, "name"));
    match all.len() {
        0 => Err(Missing::Endpoint),
        many => Ok(all.swap_remove(rand::random_range(0..many))),
    }
}

/// The ready endpoints of a service's port.
fn endpoints(core: &Core, service: &Object, port: &str) -> Vec<(String, u16)> {
    let filter = Filter { namespace: service.namespace().into(), ..Filter::default() };
    let mut all = Vec::new();
    for entry in core.caches.of("discovery.k8s.io/endpointslices").list(&filter) {
        if entry.label("kubernetes.io/service-name") != Some(service.name()) {
            continue;
        }
        let slice = entry.object();
        let list = |key| slice.at(&[key]).and_then(Value::as_array).into_iter().flatten();
        let number = list("ports")
            .find(|p| text(p, "name") == port)
            .and_then(|p| p.get("port")?.as_u64())
            .and_then(|p| u16::try_from(p).ok());
        let Some(number) = number else { continue };
        let ready = list("endpoints").filter(|e| e.pointer("/conditions/ready") != Some(&Value::Bool(false)));
        let addresses = ready.filter_map(|e| e.pointer("/addresses/0")?.as_str());
        all.extend(addresses.map(|a| (a.to_owned(), number)));
    }
    all
}

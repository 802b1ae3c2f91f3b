//! Says of each DomainMapping whether its host name leads somewhere.
//! Reads domain mappings, services, routes. Writes domainmappings/status.
//! The gateway's table takes the host from the mapping and the split from the route.

use std::sync::Arc;

use kube::ResourceExt;
use wasmk_api::{
    Timestamp,
    knative::{Address, Condition, DomainMapping, DomainMappingStatus, Reference, Route, condition},
};

use crate::{
    conditions::{State, assemble},
    context::{Context, Error},
    fleet::Key,
    passes::Again,
};

/// One pass.
pub(crate) async fn reconcile(key: Key, cx: Arc<Context>) -> Result<Again, Error> {
    let Some(mapping) = cx.there.mappings.get(&key) else { return Ok(Again::OnChange) };
    if mapping.metadata.deletion_timestamp.is_some() {
        return Ok(Again::OnChange);
    }
    let route = match target(&mapping) {
        Some(target) => cx.known(&cx.there.routes, &target).await?,
        None => None,
    };
    // Host names are one space over all namespaces: the first to claim one has it.
    let same_host = cx.there.mappings.under(&host(&mapping));
    let claimed = same_host.iter().any(|other| before(other, &mapping));
    let status = status(&mapping, route.as_deref(), claimed, cx.now());
    cx.write_status(&*mapping, mapping.status.as_ref(), &status).await?;
    Ok(Again::OnChange)
}

/// Under what mappings are found: their host, in no namespace, and the route they lead to.
pub(crate) fn found_under(mapping: &DomainMapping) -> Vec<Key> {
    [host(mapping)].into_iter().chain(target(mapping)).collect()
}

/// The host that a mapping claims.
pub(crate) fn host(mapping: &DomainMapping) -> Key {
    Key::new("", mapping.name_any())
}

/// The route that a mapping leads to: a Service's has its name.
pub(crate) fn target(mapping: &DomainMapping) -> Option<Key> {
    let reference = Some(&mapping.spec.reference).filter(|r| leads_to_route(r))?;
    Some(Key::new(mapping.namespace().unwrap_or_default(), &reference.name))
}

fn before(one: &DomainMapping, other: &DomainMapping) -> bool {
    let key = |m: &DomainMapping| (m.metadata.creation_timestamp.clone(), m.namespace());
    key(one) < key(other)
}

/// Whether a reference names something the gateway knows.
pub(crate) fn leads_to_route(reference: &Reference) -> bool {
    reference.api_version.starts_with("serving.knative.dev/")
        && ["Service", "Route"].contains(&reference.kind.as_str())
}

/// What a DomainMapping has come to. `claimed`: another has its host name.
pub(crate) fn status(
    mapping: &DomainMapping,
    route: Option<&Route>,
    claimed: bool,
    now: Timestamp,
) -> DomainMappingStatus {
    let old: Vec<Condition> = mapping.status.clone().unwrap_or_default().conditions;
    let (host, reference) = (mapping.name_any(), &mapping.spec.reference);
    let resolved = match route {
        Some(_) => State::True,
        None if leads_to_route(reference) => {
            let plural = if reference.kind == "Service" { "services" } else { "routes" };
            let why = format!("{plural}.serving.knative.dev {:?} not found", reference.name);
            State::failed("ResolveFailed", why)
        }
        None => State::failed(
            "ResolveFailed",
            format!(
                "{} {:?}: a Service or Route of serving.knative.dev was expected",
                reference.kind, reference.name
            ),
        ),
    };
    let domain = match claimed {
        true => State::failed("DomainAlreadyClaimed", format!("The domain name {host:?} is already in use")),
        false => State::True,
    };
    let routed = route.and_then(|r| r.status.as_ref());
    let ingress = match routed.is_some_and(|s| condition(&s.conditions, "Ready") == Some(true)) {
        true if !claimed => State::True,
        _ => State::waiting("IngressNotConfigured", "Its target has no traffic yet."),
    };
    let counting = [
        ("CertificateProvisioned", State::True),
        ("DomainClaimed", domain),
        ("IngressReady", ingress),
        ("ReferenceResolved", resolved),
    ];
    let url = format!("http://{host}");
    DomainMappingStatus {
        observed_generation: mapping.metadata.generation,
        conditions: assemble(&old, &counting, &[], now),
        url: Some(url.clone()),
        address: Some(Address { url }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(reference: Value, route: Option<Value>, claimed: bool, expected: (&str, &str)) {
        let mapping: DomainMapping = serde_json::from_value(
            json!({"metadata": {"name": "a.example.org", "namespace": "default"}, "spec": {"ref": reference}}),
        )
        .unwrap();
        let route: Option<Route> = route.map(|r| serde_json::from_value(r).unwrap());
        let status = status(&mapping, route.as_ref(), claimed, Timestamp::now());
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!((&*ready.status, &*ready.reason), expected);
        assert_eq!(status.url.as_deref(), Some("http://a.example.org"));
    }

    #[test]
    fn readiness() {
        let service = json!({"kind": "Service", "name": "hello", "apiVersion": "serving.knative.dev/v1"});
        let ready = json!({"metadata": {"name": "hello"}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        check(service.clone(), Some(ready.clone()), false, ("True", ""));
        check(service.clone(), Some(ready), true, ("False", "DomainAlreadyClaimed"));
        check(service, None, false, ("False", "ResolveFailed"));
        check(
            json!({"kind": "Service", "name": "x", "apiVersion": "v1"}),
            None,
            false,
            ("False", "ResolveFailed"),
        );
    }
}

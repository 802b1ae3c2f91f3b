//! What Knative fills in where a template is silent.

use wasmk_api::knative::RevisionSpec;

/// Seconds a request may take.
pub(crate) const TIMEOUT_SECONDS: i64 = 300;
/// The port of a container that names none.
pub(crate) const PORT: i32 = 8080;
/// The name of a container that has none.
pub(crate) const CONTAINER: &str = "user-container";

/// A spec with every default set.
pub(crate) fn revision_spec(spec: &RevisionSpec) -> RevisionSpec {
    let mut spec = spec.clone();
    spec.container_concurrency.get_or_insert(0);
    spec.timeout_seconds.get_or_insert(TIMEOUT_SECONDS);
    spec.pod.enable_service_links.get_or_insert(false);
    let several = spec.pod.containers.len() > 1;
    for (i, container) in spec.pod.containers.iter_mut().enumerate() {
        if container.name.is_empty() {
            container.name = if several { format!("{CONTAINER}-{i}") } else { CONTAINER.into() };
        }
        container.resources.get_or_insert_default();
    }
    spec
}

/// The port requests go to: the one port of the container that has any.
pub(crate) fn port(spec: &RevisionSpec) -> i32 {
    let mut ports = spec.pod.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports.next().map_or(PORT, |p| p.container_port)
}

//! What the controllers take where a template is silent, should it have come in without Knative's defaults.

use std::time::Duration;

use wasmk_api::knative::RevisionSpec;

/// Seconds a request may take.
const TIMEOUT_SECONDS: i64 = 300;
/// The port of a container that names none.
pub(crate) const PORT: i32 = 8080;
/// The name of a container that has none.
const CONTAINER: &str = "user-container";

/// A spec whose containers all have names.
pub(crate) fn named(spec: &RevisionSpec) -> RevisionSpec {
    let mut spec = spec.clone();
    let several = spec.pod.containers.len() > 1;
    for (i, container) in spec.pod.containers.iter_mut().enumerate() {
        if container.name.is_empty() {
            container.name = if several { format!("{CONTAINER}-{i}") } else { CONTAINER.into() };
        }
    }
    spec
}

/// The port requests go to: the one port of the container that has any.
pub(crate) fn port(spec: &RevisionSpec) -> i32 {
    let mut ports = spec.pod.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports.next().map_or(PORT, |p| p.container_port)
}

/// The container that requests go to: the one with a port, or the first.
pub(crate) fn serving(spec: &RevisionSpec) -> usize {
    let with_port =
        |c: &k8s_openapi::api::core::v1::Container| c.ports.as_ref().is_some_and(|p| !p.is_empty());
    spec.pod.containers.iter().position(with_port).unwrap_or(0)
}

/// Longest time for a whole answer.
pub(crate) fn timeout(spec: &RevisionSpec) -> Duration {
    span(spec.timeout_seconds).unwrap_or(Duration::from_secs(TIMEOUT_SECONDS.unsigned_abs()))
}

/// A number of seconds that is set and above zero.
pub(crate) fn span(seconds: Option<i64>) -> Option<Duration> {
    let seconds = u64::try_from(seconds?).ok().filter(|s| *s > 0)?;
    Some(Duration::from_secs(seconds))
}

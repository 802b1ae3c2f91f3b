//! Names derived from names: revisions, deployments, and the host a request is for.

pub(crate) use wasmk_api::http::request_host;

/// Domain of hosts that only the cluster itself reaches.
pub(crate) const CLUSTER_DOMAIN: &str = "svc.cluster.local";
/// What the gateway is called in the cluster.
pub(crate) const GATEWAY: &str = "gateway.knative-serving.svc.cluster.local";

/// The revision a configuration makes in a generation: `hello-00003`.
pub(crate) fn revision(configuration: &str, generation: i64) -> String {
    format!("{configuration}-{generation:05}")
}

/// The deployment that runs a revision's pods.
pub(crate) fn deployment(revision: &str) -> String {
    format!("{revision}-deployment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_padded() {
        assert_eq!(revision("hello", 3), "hello-00003");
        assert_eq!(revision("hello", 123_456), "hello-123456");
    }
}

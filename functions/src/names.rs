//! Names derived from names: revisions, deployments, hosts and URLs, as Knative builds them.
/// Domain of hosts that only the cluster itself reaches.
pub(crate) const CLUSTER_DOMAIN: &str = "svc.cluster.local";

/// The revision a configuration makes in a generation: `hello-00003`.
pub(crate) fn revision(configuration: &str, generation: i64) -> String {
    format!("{configuration}-{generation:05}")
}

/// The deployment that runs a revision's pods.
pub(crate) fn deployment(revision: &str) -> String {
    format!("{revision}-deployment")
}

/// The host name of a route, or of one of its tags.
pub(crate) fn host(route: &str, tag: &str, namespace: &str, suffix: &str) -> String {
    match tag {
        "" => format!("{route}.{namespace}.{suffix}"),
        tag => format!("{tag}-{route}.{namespace}.{suffix}"),
    }
}

/// The host a request is for, without port and in lower case.
pub(crate) fn request_host(host: &str) -> String {
    let name = match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert_eq!(host("hello", "", "default", "example.com"), "hello.default.example.com");
        assert_eq!(host("hello", "v1", "default", "example.com"), "v1-hello.default.example.com");
        for given in
            ["Hello.Default.Example.Com:8080", "hello.default.example.com.", "hello.default.example.com"]
        {
            assert_eq!(request_host(given), "hello.default.example.com");
        }
        assert_eq!(request_host("[::1]:80"), "::1");
    }

    #[test]
    fn generations_are_padded() {
        assert_eq!(revision("hello", 3), "hello-00003");
        assert_eq!(revision("hello", 123_456), "hello-123456");
    }
}

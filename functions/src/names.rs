//! Names derived from names: revisions, deployments, and the host a request is for.

use std::borrow::Cow;

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

/// The host a request is for, without port and in lower case; borrowed where nothing is to change.
pub(crate) fn request_host(host: &str) -> Cow<'_, str> {
    let name = match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    let name = name.trim_end_matches('.');
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return name.to_ascii_lowercase().into();
    }
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
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

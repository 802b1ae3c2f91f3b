//! What a request asks for, read from its method, path and query alone.
//!
//! Authorization, limits and dispatch all work on a [`RequestInfo`], so that they cannot disagree about what a
//! path means.

use http::Method;

use super::query::Query;

/// The parts of a request that its path, method and query determine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// Whether the path is below `/api/<version>/` or `/apis/<group>/<version>/` and names a resource.
    pub(crate) is_resource: bool,
    /// The path, percent-decoded only where names are concerned.
    pub(crate) path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the
    /// method in lower case.
    pub(crate) verb: &'static str,
    /// The API group, empty for the core group.
    pub(crate) group: String,
    /// The version within the group.
    pub(crate) version: String,
    /// The namespace, empty for cluster-scoped requests and requests over all namespaces.
    pub(crate) namespace: String,
    /// The plural name of the resource.
    pub(crate) resource: String,
    /// The subresource, or empty.
    pub(crate) subresource: String,
    /// The object's name, or empty.
    pub(crate) name: String,
    /// What follows the subresource, for `proxy`: empty or with a leading slash.
    pub(crate) rest: String,
    /// Whether the deprecated `/watch/` prefix was used.
    pub(crate) legacy_watch: bool,
}

impl RequestInfo {
    /// Reads a request.
    pub(crate) fn new(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self { path: path.into(), verb: lower(method), ..Self::default() };
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).into();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = (*group).into();
                info.version = (*version).into();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        info.verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            Method::GET | Method::HEAD => "get",
            _ => lower(method),
        };
        info.read_resource(rest);
        info.refine_verb(method, query);
        info
    }

    fn read_resource(&mut self, rest: &[&str]) {
        let rest = match rest {
            ["watch", more @ ..] if !more.is_empty() => {
                self.legacy_watch = true;
                more
            }
            all => all,
        };
        let rest = match rest {
            ["namespaces", name] => {
                self.namespace = decode(name);
                rest
            }
            ["namespaces", name, "status" | "finalize"] => {
                self.namespace = decode(name);
                rest
            }
            ["namespaces", namespace, more @ ..] if !more.is_empty() => {
                self.namespace = decode(namespace);
                more
            }
            all => all,
        };
        let mut parts = rest.iter();
        let mut next = || parts.next().map(|p| decode(p)).unwrap_or_default();
        self.resource = next();
        self.name = next();
        self.subresource = next();
        let more: Vec<&str> = rest.iter().skip(3).copied().collect();
        if !more.is_empty() {
            self.rest = format!("/{}", more.join("/"));
            if self.path.ends_with('/') {
                self.rest.push('/');
            }
        } else if self.subresource == "proxy" && self.path.ends_with('/') {
            self.rest = "/".into();
        }
    }

    fn refine_verb(&mut self, method: &Method, query: &Query) {
        if self.legacy_watch && *method == Method::GET {
            self.verb = "watch";
        } else if self.verb == "get" && self.name.is_empty() {
            self.verb = if query.flag("watch") { "watch" } else { "list" };
        } else if self.verb == "delete" && self.name.is_empty() {
            self.verb = "deletecollection";
        }
    }

    /// Whether the request may take as long as it likes: watches, streams and proxied calls.
    pub(crate) fn is_long_running(&self, query: &Query) -> bool {
        self.verb == "watch"
            || matches!(&*self.subresource, "proxy" | "exec" | "attach" | "portforward")
            || (self.subresource == "log" && query.flag("follow"))
    }

    /// `pods` or `pods/log`.
    pub(crate) fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// Percent-decodes one path segment.
pub(crate) fn decode(segment: &str) -> String {
    if !segment.contains('%') {
        return segment.into();
    }
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| segment.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok()))
            .flatten();
        out.push(hex.unwrap_or(bytes[i]));
        i += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn lower(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, target: &str, expect: &str) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::new(&method, path, &Query::parse(query));
        let got = format!(
            "{} {}/{} ns={} {} name={}{}",
            info.verb,
            info.group,
            info.version,
            info.namespace,
            info.full_resource(),
            info.name,
            info.rest
        );
        assert_eq!(got, expect, "{target}");
    }

    #[test]
    fn paths_mean_what_they_mean_in_kubernetes() {
        let get = Method::GET;
        check(get.clone(), "/api/v1/pods", "list /v1 ns= pods name=");
        check(get.clone(), "/api/v1/pods?watch=1", "watch /v1 ns= pods name=");
        check(get.clone(), "/api/v1/watch/pods", "watch /v1 ns= pods name=");
        check(get.clone(), "/api/v1/namespaces/a", "get /v1 ns=a namespaces name=a");
        check(Method::PUT, "/api/v1/namespaces/a/finalize", "update /v1 ns=a namespaces/finalize name=a");
        check(get.clone(), "/api/v1/namespaces/a/pods/b/log", "get /v1 ns=a pods/log name=b");
        check(get.clone(), "/api/v1/namespaces/a/pods/b/proxy/x/y", "get /v1 ns=a pods/proxy name=b/x/y");
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            "deletecollection apps/v1 ns=a deployments name=",
        );
        check(
            get.clone(),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            "get rbac.authorization.k8s.io/v1 ns= clusterroles name=system:node",
        );
        check(get, "/healthz", "get / ns=  name=");
    }
}

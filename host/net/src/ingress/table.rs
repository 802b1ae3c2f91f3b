//! Which backend a request goes to. Pure: Ingresses, Services and EndpointSlices in, a table out.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::HeaderMap;
use regex::Regex;
use wasmk_api::k8s_openapi::api::{
    core::v1::Service,
    networking::v1::{Ingress, IngressBackend},
};

use super::options::{Canary, Options, Rewrite, cookie};
use crate::{plan, slices::Slices};

/// The class of Ingresses that are served here, besides those without one.
pub const CLASS: &str = "wasmk";
/// Where classes were named before `spec.ingressClassName`.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Bytes of a compiled pattern of a path at the most.
const PATTERN: usize = 1 << 20;

/// Where a rule leads.
#[derive(Debug)]
pub struct Backend {
    /// `namespace/service`, for messages.
    pub service: String,
    /// Its pods are spoken to by HTTP/2 without TLS.
    pub http2: bool,
    endpoints: Vec<SocketAddr>,
    turn: AtomicUsize,
}

impl Backend {
    /// The endpoint that a client's cookie names.
    pub fn named(&self, mark: &str) -> Option<SocketAddr> {
        self.endpoints.iter().copied().find(|endpoint| self.mark(*endpoint) == mark)
    }

    /// What a cookie names an endpoint by, which tells nothing of it.
    pub fn mark(&self, endpoint: SocketAddr) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.service, endpoint).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// The endpoint whose turn it is; `None` when none is ready.
    pub fn next(&self) -> Option<SocketAddr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.endpoints.get(turn % self.endpoints.len().max(1)).copied()
    }
}

/// A rule with all its Ingress says.
#[derive(Debug)]
pub struct Rule {
    path: String,
    kind: Kind,
    /// Where it leads.
    backend: Arc<Backend>,
    /// Where a part of its requests is led instead.
    canary: Option<(Canary, Arc<Backend>)>,
    /// The Ingress's own.
    pub way: Arc<Way>,
}

/// What an Ingress says of all its rules.
#[derive(Debug, Default)]
pub struct Way {
    /// `namespace/name` of the Ingress.
    pub ingress: String,
    /// Features.
    pub options: Options,
    /// It has certificates.
    pub tls: bool,
}

#[derive(Debug)]
enum Kind {
    Exact,
    Prefix,
    Pattern(Regex),
}

impl Rule {
    /// How well the rule fits a path: exact before others, longer before shorter.
    fn fit(&self, path: &str) -> Option<(bool, usize)> {
        let fits = match &self.kind {
            Kind::Exact => path == self.path,
            Kind::Prefix => is_below(path, &self.path),
            Kind::Pattern(pattern) => pattern.is_match(path),
        };
        fits.then_some((matches!(self.kind, Kind::Exact), self.path.len()))
    }

    /// Where a request goes.
    pub fn backend(&self, headers: &HeaderMap, draw: impl FnOnce() -> u32) -> &Arc<Backend> {
        match &self.canary {
            Some((canary, backend)) if canary.takes(headers, draw) => backend,
            _ => &self.backend,
        }
    }

    /// The endpoint for a request, and the cookie that keeps its client there if it has none yet; no endpoint when
    /// none is ready.
    pub fn endpoint(&self, backend: &Backend, headers: &HeaderMap) -> (Option<SocketAddr>, Option<String>) {
        let Some(sticky) = &self.way.options.sticky else { return (backend.next(), None) };
        if let Some(kept) = cookie(headers, &sticky.cookie).and_then(|mark| backend.named(mark)) {
            return (Some(kept), None);
        }
        let Some(chosen) = backend.next() else { return (None, None) };
        let age = sticky.age.map(|age| format!("; Max-Age={age}")).unwrap_or_default();
        let mark = backend.mark(chosen);
        (Some(chosen), Some(format!("{}={mark}; Path={}{age}; HttpOnly", sticky.cookie, sticky.path)))
    }

    /// The path that the pod is asked for.
    pub fn rewritten(&self, path: &str) -> String {
        match (&self.way.options.rewrite, &self.kind) {
            (Rewrite::No, _) => path.into(),
            (Rewrite::To(target), Kind::Pattern(pattern)) => match pattern.captures(path) {
                Some(parts) => rooted(&expand(target, |n| parts.get(n).map_or("", |part| part.as_str()))),
                None => path.into(),
            },
            (Rewrite::To(target), _) => {
                rooted(&format!("{}{}", target.trim_end_matches('/'), self.rest(path)))
            }
            (Rewrite::Strip, _) => rooted(self.rest(path)),
        }
    }

    /// What of a path the rule does not match.
    fn rest<'a>(&self, path: &'a str) -> &'a str {
        match &self.kind {
            Kind::Pattern(pattern) => pattern.find(path).map_or(path, |found| &path[found.end()..]),
            _ => path.strip_prefix(self.path.trim_end_matches('/')).unwrap_or(""),
        }
    }
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.into() } else { format!("/{path}") }
}

/// A text with `$1` to `$9` replaced.
fn expand<'a>(text: &str, part: impl Fn(usize) -> &'a str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek().and_then(|next| next.to_digit(10))) {
            ('$', Some(number)) => {
                rest.next();
                out.push_str(part(number as usize));
            }
            _ => out.push(c),
        }
    }
    out
}

/// Whether a path is the prefix or below it, element by element.
fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// All rules, by host.
#[derive(Debug, Default)]
pub struct Routes {
    /// Names, and `*.` with a suffix; the empty one is every host's.
    hosts: HashMap<String, Vec<Arc<Rule>>>,
    default: Option<Arc<Rule>>,
}

impl Routes {
    /// The rule for a request: those of the host itself, then of a wildcard, then of no host, then the default.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Rule>> {
        let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        let hosts = [Some(host), wildcard.as_deref(), Some("")];
        let of_host = |host: &str| {
            let rules = self.hosts.get(host)?;
            // Of equals the first: its Ingress comes first by name.
            let fits = rules.iter().rev().filter_map(|rule| Some((rule.fit(path)?, rule)));
            fits.max_by_key(|(fit, _)| *fit).map(|(_, rule)| rule)
        };
        hosts.into_iter().flatten().find_map(of_host).or(self.default.as_ref())
    }
}

/// Whether an Ingress is to be served here.
pub fn is_ours(ingress: &Ingress) -> bool {
    let named = ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_deref());
    let noted =
        ingress.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION)).map(String::as_str);
    named.or(noted).is_none_or(|class| class == CLASS)
}

/// The table of all Ingresses that are served here.
pub fn routes(ingresses: &[Arc<Ingress>], services: &[Arc<Service>], slices: &Slices) -> Routes {
    let services: HashMap<(&str, &str), &Service> = services
        .iter()
        .filter_map(|s| Some(((s.metadata.namespace.as_deref()?, s.metadata.name.as_deref()?), &**s)))
        .collect();
    let mut sorted: Vec<&Arc<Ingress>> = ingresses.iter().filter(|i| is_ours(i)).collect();
    sorted.sort_by_key(|i| (&i.metadata.namespace, &i.metadata.name));
    let mut routes = Routes::default();
    let way = |ingress: &Arc<Ingress>| {
        let (namespace, name) = (&ingress.metadata.namespace, &ingress.metadata.name);
        Arc::new(Way {
            ingress: format!("{}/{}", namespace.as_deref().unwrap_or(""), name.as_deref().unwrap_or("")),
            options: Options::read(ingress.metadata.annotations.as_ref()),
            tls: ingress.spec.as_ref().is_some_and(|s| s.tls.as_ref().is_some_and(|tls| !tls.is_empty())),
        })
    };
    let ways: Vec<(&Arc<Ingress>, Arc<Way>)> = sorted.into_iter().map(|i| (i, way(i))).collect();
    // Canaries change rules that are there.
    let (canaries, others): (Vec<_>, Vec<_>) =
        ways.into_iter().partition(|(_, w)| w.options.canary.is_some());
    for (ingress, way) in others.into_iter().chain(canaries) {
        let namespace = ingress.metadata.namespace.as_deref().unwrap_or("");
        let http2 = way.options.http2;
        let lead = |backend: &IngressBackend| resolve(namespace, backend, http2, &services, slices);
        match &way.options.canary {
            Some(canary) => join(&mut routes, ingress, canary, lead),
            None => add(&mut routes, ingress, &way, lead),
        }
    }
    routes
}

fn add(
    routes: &mut Routes,
    ingress: &Ingress,
    way: &Arc<Way>,
    lead: impl Fn(&IngressBackend) -> Option<Arc<Backend>>,
) {
    let Some(spec) = &ingress.spec else { return };
    let make = |path: &str, kind, backend| {
        Arc::new(Rule { path: path.into(), kind, backend, canary: None, way: way.clone() })
    };
    for rule in spec.rules.iter().flatten() {
        let rules = routes.hosts.entry(rule.host.clone().unwrap_or_default().to_lowercase()).or_default();
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            let text = path.path.as_deref().unwrap_or("/");
            if let (Some(kind), Some(backend)) = (kind(text, &path.path_type, way), lead(&path.backend)) {
                rules.push(make(text, kind, backend));
            }
        }
    }
    if let (None, Some(backend)) = (&routes.default, &spec.default_backend) {
        routes.default = lead(backend).map(|backend| make("/", Kind::Prefix, backend));
    }
}

/// How a path is compared; `None` for a pattern that is none.
fn kind(path: &str, path_type: &str, way: &Way) -> Option<Kind> {
    if path_type == "Exact" {
        return Some(Kind::Exact);
    }
    if !way.options.patterns {
        return Some(Kind::Prefix);
    }
    let pattern =
        regex::RegexBuilder::new(&format!("^(?:{path})")).case_insensitive(true).size_limit(PATTERN).build();
    pattern
        .inspect_err(|error| tracing::debug!(ingress = way.ingress, path, %error, "the path of an ingress is no pattern"))
        .ok()
        .map(Kind::Pattern)
}

/// Lets a canary have a part of the requests of rules for the same host and path.
fn join(
    routes: &mut Routes,
    ingress: &Ingress,
    canary: &Canary,
    lead: impl Fn(&IngressBackend) -> Option<Arc<Backend>>,
) {
    for rule in ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten()) {
        let Some(rules) = routes.hosts.get_mut(&rule.host.clone().unwrap_or_default().to_lowercase()) else {
            continue;
        };
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            let text = path.path.as_deref().unwrap_or("/");
            let same = rules.iter_mut().filter(|rule| rule.path == text && rule.canary.is_none());
            // Nobody else has the rules before the table is made.
            for rule in same.filter_map(Arc::get_mut) {
                rule.canary = lead(&path.backend).map(|backend| (canary.clone(), backend));
            }
        }
    }
}

/// The ready endpoints behind a backend; none when service or port is not there. `None` for what is no service.
fn resolve(
    namespace: &str,
    backend: &IngressBackend,
    http2: bool,
    services: &HashMap<(&str, &str), &Service>,
    slices: &Slices,
) -> Option<Arc<Backend>> {
    let wanted = backend.service.as_ref()?;
    let key = (namespace, wanted.name.as_str());
    let ports = services.get(&key).and_then(|s| s.spec.as_ref()?.ports.as_ref());
    let port = ports.into_iter().flatten().find(|port| {
        let asked = wanted.port.as_ref();
        let by_number = asked.and_then(|p| p.number).is_some_and(|number| number == port.port);
        by_number || asked.and_then(|p| p.name.as_ref()).is_some_and(|name| Some(name) == port.name.as_ref())
    });
    let slices = slices.of(namespace, &wanted.name);
    let endpoints = port.map(|port| plan::endpoints(slices, port, None)).unwrap_or_default();
    let service = format!("{namespace}/{}", wanted.name);
    let spoken = port.and_then(|port| port.app_protocol.as_deref());
    let http2 = http2 || matches!(spoken, Some("kubernetes.io/h2c" | "grpc"));
    Some(Arc::new(Backend { service, http2, endpoints, turn: AtomicUsize::new(0) }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ingress(name: &str, spec: Value) -> Arc<Ingress> {
        let value = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn to(service: &str) -> Value {
        json!({"service": {"name": service, "port": {"number": 80}}})
    }

    fn rule(host: &str, paths: &[(&str, &str, &str)]) -> Value {
        let paths: Vec<Value> = paths
            .iter()
            .map(|(path, kind, service)| json!({"path": path, "pathType": kind, "backend": to(service)}))
            .collect();
        let mut rule = json!({"http": {"paths": paths}});
        if !host.is_empty() {
            rule["host"] = json!(host);
        }
        rule
    }

    #[test]
    fn hosts_and_paths_choose_the_backend() {
        let all = [
            ingress(
                "a",
                json!({"rules": [
                    rule("blue.example.com", &[("/", "Prefix", "blue")]),
                    rule("example.com", &[("/blue", "Prefix", "blue"), ("/blue/deep", "Prefix", "deep"), ("/blue/exact", "Exact", "exact")]),
                    rule("*.wild.example.com", &[("/", "Prefix", "wild")]),
                    rule("", &[("/any", "ImplementationSpecific", "any")]),
                ]}),
            ),
            ingress(
                "b",
                json!({"rules": [rule("blue.example.com", &[("/", "Prefix", "later")])], "defaultBackend": to("rest")}),
            ),
            ingress(
                "c",
                json!({"ingressClassName": "other", "rules": [rule("other.example.com", &[("/", "Prefix", "other")])]}),
            ),
        ];
        let routes = routes(&all, &[], &Slices::default());
        for (host, path, service) in [
            ("blue.example.com", "/x", "blue"),
            ("example.com", "/blue", "blue"),
            ("example.com", "/blue/", "blue"),
            ("example.com", "/bluely", "rest"),
            ("example.com", "/blue/deep/x", "deep"),
            ("example.com", "/blue/exact", "exact"),
            ("example.com", "/blue/exact/x", "blue"),
            ("one.wild.example.com", "/", "wild"),
            ("two.one.wild.example.com", "/", "rest"),
            ("elsewhere", "/any/x", "any"),
            ("other.example.com", "/", "rest"),
        ] {
            let found = routes.find(host, path).map(|rule| rule.backend.service.clone());
            assert_eq!(found, Some(format!("shop/{service}")), "{host}{path}");
        }
        assert!(super::routes(&all[..1], &[], &Slices::default()).find("nobody", "/").is_none());
    }

    #[test]
    fn backends_are_ready_endpoints_in_turn() {
        let service = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"clusterIP": "None", "ports": [{"port": 80, "name": "http"}]}});
        let slice = json!({
            "metadata": {"namespace": "shop", "labels": {wasmk_api::labels::SERVICE_NAME: "web"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["127.42.0.2"]}, {"addresses": ["127.42.0.1"]}],
        });
        let services = [Arc::new(serde_json::from_value(service).unwrap())];
        let slices = [Arc::new(serde_json::from_value(slice).unwrap())].into_iter().collect();
        for port in [json!({"number": 80}), json!({"name": "http"})] {
            let spec = json!({"defaultBackend": {"service": {"name": "web", "port": port}}});
            let routes = routes(&[ingress("a", spec)], &services, &slices);
            let backend = &routes.find("x", "/").unwrap().backend;
            let mut seen: Vec<String> =
                (0..4).filter_map(|_| backend.next()).map(|a| a.to_string()).collect();
            seen.sort();
            assert_eq!(seen, ["127.42.0.1:8080", "127.42.0.1:8080", "127.42.0.2:8080", "127.42.0.2:8080"]);
        }
        let spec = json!({"defaultBackend": to("none")});
        assert_eq!(
            routes(&[ingress("a", spec)], &services, &slices).find("x", "/").unwrap().backend.next(),
            None
        );
    }

    #[test]
    fn classes_are_respected() {
        let noted = |class: &str| {
            let value = json!({"metadata": {"annotations": {CLASS_ANNOTATION: class}}, "spec": {}});
            is_ours(&serde_json::from_value(value).unwrap())
        };
        assert!(noted(CLASS) && !noted("traefik"));
    }

    fn noted(name: &str, notes: &[(&str, &str)], spec: Value) -> Arc<Ingress> {
        let mut ingress = (*ingress(name, spec)).clone();
        let notes = notes.iter().map(|(k, v)| (format!("nginx.ingress.kubernetes.io/{k}"), v.to_string()));
        ingress.metadata.annotations = Some(notes.collect());
        Arc::new(ingress)
    }

    #[test]
    fn paths_are_rewritten() {
        let check = |notes: &[(&str, &str)], path: &str, asked: &str, expect: &str| {
            let spec = json!({"rules": [rule("", &[(path, "ImplementationSpecific", "web")])]});
            let routes = routes(&[noted("a", notes, spec)], &[], &Slices::default());
            assert_eq!(routes.find("x", asked).unwrap().rewritten(asked), expect, "{notes:?} {path} {asked}");
        };
        check(&[], "/shop", "/shop/a", "/shop/a");
        let to_root = [("rewrite-target", "/")];
        check(&to_root, "/shop", "/shop/a/b", "/a/b");
        check(&to_root, "/shop", "/shop", "/");
        check(&to_root, "/shop/", "/shop/a", "/a");
        check(&[("rewrite-target", "/v2")], "/shop", "/shop/a", "/v2/a");
        check(&[("rewrite-target", "/$2")], "/shop(/|$)(.*)", "/shop/a/b", "/a/b");
        check(&[("rewrite-target", "/$2")], "/shop(/|$)(.*)", "/shop", "/");
        check(&[("use-regex", "true")], "/shop-[0-9]+", "/shop-12/x", "/shop-12/x");
    }

    #[test]
    fn canaries_share_and_cookies_keep() {
        let spec = |service: &str| json!({"rules": [rule("a.example", &[("/", "Prefix", service)])]});
        let canary = [("canary", "true"), ("canary-by-header", "x-new")];
        let all = [
            noted("z-main", &[("affinity", "cookie")], spec("old")),
            noted("a-canary", &canary, spec("new")),
        ];
        let routes = routes(&all, &[], &Slices::default());
        let rule = routes.find("a.example", "/").unwrap();
        let with =
            |value: &'static str| [("x-new".parse().unwrap(), value.parse().unwrap())].into_iter().collect();
        for (headers, expect) in
            [(HeaderMap::new(), "shop/old"), (with("always"), "shop/new"), (with("never"), "shop/old")]
        {
            assert_eq!(rule.backend(&headers, || 0).service, expect);
        }
        let endpoints: Vec<SocketAddr> =
            ["127.42.0.1:80", "127.42.0.2:80"].map(|a| a.parse().unwrap()).into();
        let backend = Backend { service: "s".into(), http2: false, endpoints, turn: AtomicUsize::new(0) };
        let (first, cookie) = rule.endpoint(&backend, &HeaderMap::new());
        let cookie = cookie.unwrap();
        assert!(cookie.starts_with("INGRESSCOOKIE=") && cookie.ends_with("; Path=/; HttpOnly"), "{cookie}");
        let kept = cookie.split(';').next().unwrap().parse().unwrap();
        let headers: HeaderMap = [(http::header::COOKIE, kept)].into_iter().collect();
        for _ in 0..3 {
            assert_eq!(rule.endpoint(&backend, &headers), (first, None));
        }
    }
}

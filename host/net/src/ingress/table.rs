//! Which backend a request goes to. Pure: Ingresses, Services and EndpointSlices in, a table out.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use wasmk_api::k8s_openapi::api::{
    core::v1::Service,
    networking::v1::{Ingress, IngressBackend},
};

use crate::{plan, slices::Slices};

/// The class of Ingresses that are served here, besides those without one.
pub const CLASS: &str = "wasmk";
/// Where classes were named before `spec.ingressClassName`.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Where a rule leads.
#[derive(Debug)]
pub struct Backend {
    /// `namespace/service`, for messages.
    pub service: String,
    endpoints: Vec<SocketAddr>,
    turn: AtomicUsize,
}

impl Backend {
    /// The endpoint whose turn it is; `None` when none is ready.
    pub fn next(&self) -> Option<SocketAddr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.endpoints.get(turn % self.endpoints.len().max(1)).copied()
    }
}

#[derive(Debug)]
struct Rule {
    path: String,
    exact: bool,
    backend: Arc<Backend>,
}

impl Rule {
    /// How well the rule fits a path: exact before prefixes, longer before shorter.
    fn fit(&self, path: &str) -> Option<(bool, usize)> {
        let fits = if self.exact { path == self.path } else { is_below(path, &self.path) };
        fits.then_some((self.exact, self.path.len()))
    }
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
    hosts: HashMap<String, Vec<Rule>>,
    default: Option<Arc<Backend>>,
}

impl Routes {
    /// The backend for a request: rules of the host itself, then of a wildcard, then of no host, then the default.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Backend>> {
        let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        let hosts = [Some(host), wildcard.as_deref(), Some("")];
        let of_host = |host: &str| {
            let rules = self.hosts.get(host)?;
            // Of equals the first: its Ingress comes first by name.
            let fits = rules.iter().rev().filter_map(|rule| Some((rule.fit(path)?, rule)));
            fits.max_by_key(|(fit, _)| *fit).map(|(_, rule)| &rule.backend)
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
    for ingress in sorted {
        let namespace = ingress.metadata.namespace.as_deref().unwrap_or("");
        let lead = |backend: &IngressBackend| resolve(namespace, backend, &services, slices);
        add(&mut routes, ingress, lead);
    }
    routes
}

fn add(routes: &mut Routes, ingress: &Ingress, lead: impl Fn(&IngressBackend) -> Option<Arc<Backend>>) {
    let Some(spec) = &ingress.spec else { return };
    for rule in spec.rules.iter().flatten() {
        let rules = routes.hosts.entry(rule.host.clone().unwrap_or_default().to_lowercase()).or_default();
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            if let Some(backend) = lead(&path.backend) {
                let text = path.path.clone().unwrap_or_else(|| "/".into());
                rules.push(Rule { path: text, exact: path.path_type == "Exact", backend });
            }
        }
    }
    if let (None, Some(backend)) = (&routes.default, &spec.default_backend) {
        routes.default = lead(backend);
    }
}

/// The ready endpoints behind a backend; none when service or port is not there. `None` for what is no service.
fn resolve(
    namespace: &str,
    backend: &IngressBackend,
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
    Some(Arc::new(Backend { service, endpoints, turn: AtomicUsize::new(0) }))
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
            let found = routes.find(host, path).map(|b| b.service.clone());
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
            let backend = routes.find("x", "/").unwrap();
            let mut seen: Vec<String> =
                (0..4).filter_map(|_| backend.next()).map(|a| a.to_string()).collect();
            seen.sort();
            assert_eq!(seen, ["127.42.0.1:8080", "127.42.0.1:8080", "127.42.0.2:8080", "127.42.0.2:8080"]);
        }
        let spec = json!({"defaultBackend": to("none")});
        assert_eq!(routes(&[ingress("a", spec)], &services, &slices).find("x", "/").unwrap().next(), None);
    }

    #[test]
    fn classes_are_respected() {
        let noted = |class: &str| {
            let value = json!({"metadata": {"annotations": {CLASS_ANNOTATION: class}}, "spec": {}});
            is_ours(&serde_json::from_value(value).unwrap())
        };
        assert!(noted(CLASS) && !noted("traefik"));
    }
}

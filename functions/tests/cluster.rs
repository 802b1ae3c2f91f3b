//! Functions on a real API server in this process: what users write in, what the gateway answers out. Functions
//! themselves are stand-ins that say their variable TARGET.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use kube::{Client, client};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wasmk_api::{Object, Reason, Status};
use wasmk_apiserver::{ApiServer, Config, KindHook};
use wasmk_functions::{
    Admission, Body, Executor, Function, Functions, Handler, Live, Peer, Prepared, Refused, Settings,
    config_maps, definitions, full,
};
use wasmk_store::Memory;

/// Looks before something counts as not coming, and the time between two.
const LOOKS: u32 = 600;
const BETWEEN: Duration = Duration::from_millis(50);

struct Hook(Admission);

impl KindHook for Hook {
    fn applies(&self, group: &str, resource: &str) -> bool {
        Admission::applies(group, resource)
    }

    fn mutate(&self, object: &mut Object, old: Option<&Object>, user: &str) {
        self.0.mutate(object, old, user);
    }

    fn validate(&self, object: &Object, old: Option<&Object>) -> Result<(), Status> {
        self.0.validate(object, old).map_err(|why| Status::new(Reason::BadRequest, why))
    }
}

type Seen = Arc<Mutex<Vec<String>>>;

/// Runs stand-ins: an image named `bad…` answers 500.
struct StandIns(Seen);

struct StandIn {
    says: String,
    bad: bool,
    seen: Seen,
}

#[async_trait]
impl Executor for StandIns {
    async fn prepare(&self, function: &Function) -> Result<Prepared, Refused> {
        let container = &function.pod.containers[0];
        let target =
            container.env.iter().flatten().find(|e| e.name == "TARGET").and_then(|e| e.value.clone());
        let image = container.image.clone().unwrap_or_default();
        let (says, bad) = (target.unwrap_or_default(), image.starts_with("bad"));
        Ok(Prepared { handler: Arc::new(StandIn { says, bad, seen: self.0.clone() }), image })
    }

    fn forget(&self, _: &str, _: &str) {}
}

#[async_trait]
impl Handler for StandIn {
    async fn call(&self, request: Request<Body>, _: Duration) -> Response<Body> {
        self.seen.lock().push(format!("{} {}", request.method(), request.uri().path()));
        let mut response = Response::new(full(self.says.clone()));
        if self.bad {
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        }
        response
    }
}

struct Cluster {
    api: ApiServer,
    client: Client,
    functions: Functions,
    seen: Seen,
    asked: Asked,
}

/// What the controllers asked of the API, watches aside: how often each method.
type Asked = Arc<Mutex<BTreeMap<String, usize>>>;

/// A client that counts.
fn counted(client: Client, asked: Asked) -> Client {
    let service = tower::service_fn(move |request: Request<client::Body>| {
        if !request.uri().query().unwrap_or_default().contains("watch=true") {
            *asked.lock().entry(request.method().to_string()).or_default() += 1;
        }
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(service, "default")
}

impl Cluster {
    async fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let live = Live::new("example.com");
        let mut config = Config::new(Arc::new(Memory::new()), key, String::new());
        config.hooks.push(Arc::new(Hook(Admission::new(live.clone()))));
        let api = ApiServer::start(config).await.unwrap();
        let client = api.client("alice", &["system:masters"]);
        let seen = Seen::default();
        let settings = Settings { live, executor: Arc::new(StandIns(seen.clone())), door: None };
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "knative-serving"}});
        let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        send(&client, "POST", "/api/v1/namespaces", &namespace).await.unwrap();
        for definition in definitions() {
            send(&client, "POST", crds, &definition).await.unwrap();
        }
        for map in config_maps() {
            send(&client, "POST", "/api/v1/namespaces/knative-serving/configmaps", &map).await.unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asked = Asked::default();
        let functions =
            Functions::start(counted(client.clone(), asked.clone()), [listener], settings).unwrap();
        Self { api, client, functions, seen, asked }
    }

    async fn until<T: std::fmt::Debug>(
        &self,
        what: &str,
        mut ask: impl AsyncFnMut() -> T,
        good: impl Fn(&T) -> bool,
    ) -> T {
        for _ in 0..LOOKS {
            let answer = ask().await;
            if good(&answer) {
                return answer;
            }
            tokio::time::sleep(BETWEEN).await;
        }
        panic!("{what}: still {:?}", ask().await)
    }

    /// A request at the gateway with headers; status and body.
    async fn call(&self, method: &str, host: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::new(full("x"));
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert("host", HeaderValue::from_str(host).unwrap());
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
        let response = self.functions.gateway.route(request, &peer).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn answers(&self, host: &str, expected: (u16, &str)) {
        let ask = async || self.call("GET", host, "/", &[]).await;
        self.until(host, ask, |(status, body)| {
            (*status, body.as_str()) == expected || (*status == expected.0 && expected.1 == "*")
        })
        .await;
    }

    async fn ready(&self, path: &str) -> Value {
        let ask = async || send(&self.client, "GET", path, &Value::Null).await.unwrap_or_default();
        let is_ready = |object: &Value| {
            let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            object["status"]["observedGeneration"] == object["metadata"]["generation"]
                && conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        self.until(path, ask, is_ready).await
    }

    async fn stop(self) {
        self.functions.shutdown().await;
        self.api.shutdown().await;
    }
}

async fn send(client: &Client, method: &str, path: &str, body: &Value) -> Result<Value, String> {
    let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .body(client::Body::from(bytes))
        .unwrap();
    let response = client.send(request).await.map_err(|e| e.to_string())?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if status.is_success() { Ok(value) } else { Err(value["message"].as_str().unwrap_or("").to_string()) }
}

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

fn service(name: &str, image: &str, target: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [{"image": image, "env": [{"name": "TARGET", "value": target}]}]}}},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_becomes_ready_and_follows_its_template_and_traffic() {
    let cluster = Cluster::start().await;
    send(&cluster.client, "POST", SERVICES, &service("hello", "x", "one")).await.unwrap();
    let path = format!("{SERVICES}/hello");
    let made = cluster.ready(&path).await;
    assert_eq!(made["status"]["url"], "http://hello.default.example.com");
    assert_eq!(made["metadata"]["annotations"]["serving.knative.dev/creator"], "alice");
    assert_eq!(made["spec"]["template"]["spec"]["timeoutSeconds"], 300);
    cluster.answers("hello.default.example.com", (200, "one")).await;
    cluster.answers("nobody.default.example.com", (404, "*")).await;

    let two = json!({"spec": service("hello", "x", "two")["spec"]});
    send(&cluster.client, "PATCH", &path, &two).await.unwrap();
    cluster.answers("hello.default.example.com", (200, "two")).await;
    let traffic = json!({"spec": {"traffic": [
        {"revisionName": "hello-00001", "percent": 100}, {"latestRevision": true, "percent": 0, "tag": "next"}]}});
    send(&cluster.client, "PATCH", &path, &traffic).await.unwrap();
    cluster.answers("hello.default.example.com", (200, "one")).await;
    cluster.answers("next-hello.default.example.com", (200, "two")).await;
    let revision = "/apis/serving.knative.dev/v1/namespaces/default/revisions/hello-00001";
    let state = async || {
        let revision = send(&cluster.client, "GET", revision, &Value::Null).await.unwrap();
        revision["metadata"]["labels"]["serving.knative.dev/routingState"].clone()
    };
    cluster.until("the first revision's routing state", state, |s| s == "active").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_and_settings_hold_at_the_api() {
    let cluster = Cluster::start().await;
    let mut bad = service("bad", "x", "");
    bad["spec"]["template"]["spec"]["containerConcurrency"] = 1001.into();
    let said = send(&cluster.client, "POST", SERVICES, &bad).await.unwrap_err();
    assert!(
        said.ends_with(
            "validation failed: expected 0 <= 1001 <= 1000: spec.template.spec.containerConcurrency"
        ),
        "{said}"
    );

    let maps = "/api/v1/namespaces/knative-serving/configmaps";
    let wrong = json!({"data": {"stable-window": "soon"}});
    let said =
        send(&cluster.client, "PATCH", &format!("{maps}/config-autoscaler"), &wrong).await.unwrap_err();
    assert!(said.contains("stable-window: invalid value \"soon\""), "{said}");
    let domain = json!({"data": {"example.org": "selector:\n  app: nonprofit\n"}});
    send(&cluster.client, "PATCH", &format!("{maps}/config-domain"), &domain).await.unwrap();
    let mut charity = service("charity", "x", "give");
    charity["metadata"]["labels"] = json!({"app": "nonprofit"});
    send(&cluster.client, "POST", SERVICES, &charity).await.unwrap();
    cluster.answers("charity.default.example.org", (200, "give")).await;

    let mapping = json!({"apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
        "metadata": {"name": "shop.example.net"},
        "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "charity"}}});
    let mappings = "/apis/serving.knative.dev/v1beta1/namespaces/default/domainmappings";
    send(&cluster.client, "POST", mappings, &mapping).await.unwrap();
    cluster.answers("shop.example.net", (200, "give")).await;
    cluster.ready(&format!("{mappings}/shop.example.net")).await;
    send(&cluster.client, "DELETE", &format!("{mappings}/shop.example.net"), &Value::Null).await.unwrap();
    cluster.answers("shop.example.net", (404, "*")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_or_end_as_dead_letters_and_spin_apps_are_functions() {
    let cluster = Cluster::start().await;
    for (name, image) in [("listener", "x"), ("thrower", "bad")] {
        send(&cluster.client, "POST", SERVICES, &service(name, image, name)).await.unwrap();
        cluster.ready(&format!("{SERVICES}/{name}")).await;
    }
    let eventing = "/apis/eventing.knative.dev/v1/namespaces/default";
    let broker = json!({"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"}, "spec": {}});
    send(&cluster.client, "POST", &format!("{eventing}/brokers"), &broker).await.unwrap();
    let sink = |name: &str, uri: &str| json!({"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": name}, "uri": uri});
    for (name, subscriber) in [("made", sink("listener", "/made")), ("lost", sink("thrower", "/lost"))] {
        let trigger = json!({"apiVersion": "eventing.knative.dev/v1", "kind": "Trigger", "metadata": {"name": name},
            "spec": {"broker": "default", "filter": {"attributes": {"type": name}}, "subscriber": subscriber,
                "delivery": {"retry": 1, "backoffDelay": "PT0.05S", "deadLetterSink": sink("listener", "/dead")}}});
        send(&cluster.client, "POST", &format!("{eventing}/triggers"), &trigger).await.unwrap();
        cluster.ready(&format!("{eventing}/triggers/{name}")).await;
    }
    let host = "broker-ingress.knative-eventing.svc.cluster.local";
    let post = async |kind: &str| {
        let headers = [("ce-id", "1"), ("ce-source", "/t"), ("ce-specversion", "1.0"), ("ce-type", kind)];
        cluster.call("POST", host, "/default/default", &headers).await.0
    };
    assert_eq!(cluster.call("POST", host, "/default/default", &[]).await.0, 400);
    assert_eq!(cluster.call("POST", host, "/default/none", &[]).await.0, 404);
    assert_eq!((post("made").await, post("lost").await), (202, 202));
    let seen = async || cluster.seen.lock().clone();
    let all = cluster
        .until("both events", seen, |s| {
            s.iter().filter(|l| *l == "POST /made" || *l == "POST /dead").count() == 2
        })
        .await;
    assert_eq!(all.iter().filter(|line| *line == "POST /lost").count(), 2, "once, and once again");

    let app = json!({"apiVersion": "core.spinkube.dev/v1alpha1", "kind": "SpinApp", "metadata": {"name": "simple"},
        "spec": {"image": "x", "replicas": 1, "variables": [{"name": "a", "value": "b"}]}});
    send(&cluster.client, "POST", "/apis/core.spinkube.dev/v1alpha1/namespaces/default/spinapps", &app)
        .await
        .unwrap();
    cluster.answers("simple.default.example.com", (200, "")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_takes_few_requests_however_many_there_are() {
    let cluster = Cluster::start().await;
    for range in [0..10, 10..60] {
        let before = cluster.asked.lock().clone();
        for i in range.clone() {
            send(&cluster.client, "POST", SERVICES, &service(&format!("f{i}"), "x", "")).await.unwrap();
        }
        for i in range.clone() {
            cluster.ready(&format!("{SERVICES}/f{i}")).await;
            let revision = format!("/apis/serving.knative.dev/v1/namespaces/default/revisions/f{i}-00001");
            let state = async || {
                let revision = send(&cluster.client, "GET", &revision, &Value::Null).await.unwrap();
                revision["metadata"]["labels"]["serving.knative.dev/routingState"].clone()
            };
            cluster.until("its routing state", state, |s| s == "active").await;
        }
        let after = cluster.asked.lock().clone();
        let count =
            |method: &str| after.get(method).copied().unwrap_or(0) - before.get(method).copied().unwrap_or(0);
        let n = range.len();
        // Four objects are made, four statuses written, one label changed. The odd attempt meets a cache that is
        // a moment behind.
        for (method, most) in [("POST", 5 * n), ("PATCH", 6 * n - 1), ("GET", 3 * n), ("PUT", 0)] {
            assert!(count(method) <= most, "{method} for {n} services: {before:?} {after:?}");
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_at_rest_has_no_deployment_until_it_is_called() {
    let cluster = Cluster::start().await;
    send(&cluster.client, "POST", SERVICES, &service("still", "x", "here")).await.unwrap();
    cluster.ready(&format!("{SERVICES}/still")).await;
    let deployment = "/apis/apps/v1/namespaces/default/deployments/still-00001-deployment";
    let replicas = async || {
        let deployment = send(&cluster.client, "GET", deployment, &Value::Null).await;
        deployment.ok().map(|d| d["spec"]["replicas"].clone())
    };
    assert_eq!(replicas().await, None);
    cluster.answers("still.default.example.com", (200, "here")).await;
    cluster.until("its deployment", replicas, |r| *r == Some(json!(1))).await;
    let revision = "/apis/serving.knative.dev/v1/namespaces/default/revisions/still-00001";
    let active = async || {
        let revision = send(&cluster.client, "GET", revision, &Value::Null).await.unwrap();
        let conditions = revision["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Active" && c["status"] == "True")
    };
    cluster.until("its revision is active", active, |active| *active).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_function_answers_before_anything_is_written_about_it() {
    let cluster = Cluster::start().await;
    send(&cluster.client, "POST", SERVICES, &service("cold", "x", "here")).await.unwrap();
    cluster.ready(&format!("{SERVICES}/cold")).await;
    let revision = "/apis/serving.knative.dev/v1/namespaces/default/revisions/cold-00001";
    let state = async || {
        let revision = send(&cluster.client, "GET", revision, &Value::Null).await.unwrap();
        revision["metadata"]["labels"]["serving.knative.dev/routingState"].clone()
    };
    cluster.until("its routing state", state, |s| s == "active").await;
    let known = async || cluster.functions.gateway.table.find("cold.default.example.com").is_some();
    cluster.until("its host", known, |known| *known).await;
    let before = cluster.asked.lock().clone();
    let answer = cluster.call("GET", "cold.default.example.com", "/", &[]).await;
    assert_eq!((answer, &*cluster.asked.lock()), ((200, "here".into()), &before));
    let made = async || cluster.asked.lock().get("POST").copied();
    cluster.until("its deployment", made, |made| *made > before.get("POST").copied()).await;
    cluster.stop().await;
}

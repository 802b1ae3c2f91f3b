//! Figures of the API from outside, over TLS, with durable writes: writes a second at 1, 16 and 64 clients, lists of
//! 10,000 objects, 1,000 watchers of 1,000 events, memory of 10,000 objects, handshakes, tokens, and decisions about
//! rights with 1,000 roles and 5,000 bindings.
//!
//! Promises: >= 5x the operations per second of CPU of kube-apiserver 1.36 with etcd (create 587/s alone, 1,550/s from
//! 16 clients at 0.88 ms of CPU each; get 3,750/s; watch p99 10 ms), >= 10x in lists (163 ms for 10,000 objects of
//! 1 KB), no event lost. `cargo bench -p wasmk-benches --bench api`; the machine should be otherwise idle, and the
//! clients' own CPU, which is about as much again, comes from the same machine.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

mod common;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use common::{LOAD, PATIENCE, Process, at, millis, spawn};
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Barrier};

/// Numbers of clients at which each sort of request is made.
const CLIENTS: [usize; 3] = [1, 16, 64];
/// Objects of the lists, of 1 KB each; one in a hundred has the selected label.
const OBJECTS: usize = 10_000;
const LISTS: usize = 20;
const WATCHERS: usize = 1000;
const EVENTS: usize = 1000;
const ROLES: usize = 1000;
const BINDINGS: usize = 5000;

/// A running API without node and controllers.
struct Server {
    process: Process,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    anonymous: Arc<rustls::ClientConfig>,
    dir: PathBuf,
}

fn start(dir: &Path) -> Server {
    let data = dir.join("data");
    let process = spawn(&data, &["--no-node", "--controllers=-*"]);
    let begun = Instant::now();
    while !data.join("run.json").exists() {
        assert!(begun.elapsed() < PATIENCE, "wasmk up was not ready in time");
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = std::fs::read_to_string(data.join("kubeconfig")).expect("a kubeconfig");
    let config: Value = serde_yaml::from_str(&text).expect("a kubeconfig's form");
    let url = config["clusters"][0]["cluster"]["server"].as_str().expect("a URL");
    let address = url.trim_start_matches("https://").parse().expect("an address");
    Server { process, address, tls: client(&config, true), anonymous: client(&config, false), dir: data }
}

/// TLS settings as a kubeconfig has them, with its certificate or without.
fn client(config: &Value, known: bool) -> Arc<rustls::ClientConfig> {
    let pem = |value: &Value| STANDARD.decode(value.as_str().expect("a PEM")).expect("base64");
    let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&pem(&cluster["certificate-authority-data"])) {
        roots.add(root.expect("a certificate")).expect("an authority");
    }
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
    Arc::new(if known {
        let chain = CertificateDer::pem_slice_iter(&pem(&user["client-certificate-data"]))
            .collect::<Result<Vec<_>, _>>()
            .expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])).expect("a key");
        builder.with_client_auth_cert(chain, key).expect("a pair")
    } else {
        builder.with_no_client_auth()
    })
}

impl Server {
    async fn connect(&self) -> Connection {
        Connection::open(self.address, self.tls.clone(), None).await
    }
}

/// One keep-alive connection.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    token: Option<String>,
}

impl Connection {
    async fn open(address: SocketAddr, tls: Arc<rustls::ClientConfig>, token: Option<String>) -> Self {
        let stream = TcpStream::connect(address).await.expect("the API accepts");
        stream.set_nodelay(true).expect("a socket option");
        let name = "127.0.0.1".try_into().expect("a name");
        let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.expect("TLS");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Self { sender, token }
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &Value) -> Request<Full<Bytes>> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1")
            .header("content-type", format!("application/{kind}"));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Full::from(body)).expect("a request")
    }

    /// The answer's body, which must be that of a success.
    async fn send(&mut self, method: &str, path: &str, kind: &str, body: &Value) -> Bytes {
        let request = self.request(method, path, kind, body);
        // The answer before may be read before the connection knows.
        self.sender.ready().await.expect("the connection stays");
        let response = self.sender.send_request(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a whole answer").to_bytes();
        assert!(status.is_success(), "{method} {path}: {}", String::from_utf8_lossy(&body));
        body
    }

    async fn get(&mut self, path: &str) -> Bytes {
        self.send("GET", path, "json", &Value::Null).await
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, label: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": { "share": label } },
        "data": { "text": "x".repeat(800), "count": "0" },
    })
}

/// What is done to object number `at` of a client: method, path, media type and body.
type Make = fn(client: usize, at: usize) -> (&'static str, String, &'static str, Value);

fn path(client: usize, at: usize) -> String {
    format!("{MAPS}/c{client}-{at}")
}

/// Objects that each client changes in turn.
const OWN: usize = 16;

const WRITES: [(&str, Make); 6] = [
    ("create", |client, at| ("POST", MAPS.into(), "json", map(&format!("c{client}-{at}"), "many"))),
    ("get", |client, at| ("GET", path(client, at % OWN), "json", Value::Null)),
    ("update", |client, at| {
        let mut object = map(&format!("c{client}-{}", at % OWN), "many");
        object["data"]["count"] = at.to_string().into();
        ("PUT", path(client, at % OWN), "json", object)
    }),
    ("patch", |client, at| {
        let change = json!({ "data": { "count": at.to_string() } });
        ("PATCH", path(client, at % OWN), "merge-patch+json", change)
    }),
    ("apply", |client, at| {
        let mut object = map(&format!("c{client}-{}", at % OWN), "many");
        object["data"] = json!({ "applied": at.to_string() });
        (
            "PATCH",
            format!("{}?fieldManager=bench&force=true", path(client, at % OWN)),
            "apply-patch+yaml",
            object,
        )
    }),
    ("delete", |client, at| ("DELETE", path(client, at), "json", Value::Null)),
];

/// Every sort of write at one number of clients.
async fn writes(server: &Server, clients: usize) {
    let mut made = vec![usize::MAX; clients];
    for (what, make) in WRITES {
        let deletes = what == "delete";
        let cpu = server.process.cpu();
        let begun = Instant::now();
        let mut workers = Vec::new();
        for (client, most) in made.iter().copied().enumerate() {
            let mut connection = server.connect().await;
            workers.push(tokio::spawn(async move {
                let mut times = Vec::new();
                let end = Instant::now() + LOAD;
                // What was created is deleted to the last.
                while if deletes { times.len() < most } else { Instant::now() < end } {
                    let (method, path, kind, body) = make(client, times.len());
                    let sent = Instant::now();
                    connection.send(method, &path, kind, &body).await;
                    times.push(sent.elapsed());
                }
                times
            }));
        }
        let mut times = Vec::new();
        for (worker, most) in workers.into_iter().zip(&mut made) {
            let done = worker.await.expect("a worker ends");
            if what == "create" {
                *most = done.len();
            }
            times.extend(done);
        }
        let (seconds, cpu, count) =
            (begun.elapsed().as_secs_f64(), server.process.cpu() - cpu, times.len() as f64);
        println!(
            "{what:8} {clients:3} clients {:8.0} /s   p50 {:7.3} ms   p99 {:7.3} ms   {:6.3} ms of CPU each   {:8.0} /s of CPU",
            count / seconds,
            millis(at(&mut times, 0.5)),
            millis(at(&mut times, 0.99)),
            cpu * 1e3 / count,
            count / cpu.max(0.01),
        );
    }
}

async fn lists(server: &Server) {
    let before = server.process.resident();
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for _ in 0..64 {
        let (mut connection, next) = (server.connect().await, next.clone());
        workers.push(tokio::spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= OBJECTS {
                    return;
                }
                let label = if at.is_multiple_of(100) { "few" } else { "many" };
                connection.send("POST", MAPS, "json", &map(&format!("listed-{at}"), label)).await;
            }
        }));
    }
    for worker in workers {
        worker.await.expect("a worker ends");
    }
    println!("memory of {OBJECTS} objects of 1 KB          {:8.1} MiB", server.process.resident() - before);
    let mut connection = server.connect().await;
    for (what, query) in [("full", "".to_owned()), ("1 % by label", "?labelSelector=share%3Dfew".into())] {
        let (mut times, mut size) = (Vec::new(), 0);
        for _ in 0..LISTS {
            let begun = Instant::now();
            size = connection.get(&format!("{MAPS}{query}")).await.len();
            times.push(begun.elapsed());
        }
        let median = at(&mut times, 0.5);
        let rate = size as f64 / 1e6 / median.as_secs_f64();
        println!(
            "list of {OBJECTS}, {what:14} {:8.2} ms   {rate:8.0} MB/s   promise < 16.3 ms",
            millis(median)
        );
    }
    let begun = Instant::now();
    let (mut cont, mut pages) = (String::new(), 0);
    loop {
        let page = connection.get(&format!("{MAPS}?limit=500&continue={cont}")).await;
        let page: Value = serde_json::from_slice(&page).expect("a list");
        pages += 1;
        cont = page["metadata"]["continue"].as_str().unwrap_or("").to_owned();
        if cont.is_empty() {
            break;
        }
    }
    println!(
        "list of {OBJECTS}, {pages} pages      {:8.2} ms, the client's parsing in it",
        millis(begun.elapsed())
    );
}

fn nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_nanos()
}

/// What stands before the time of sending in an event.
const SENT: &[u8] = b"\"sent\":\"";

/// The times that events in a piece of a watch were under way; the rest is an event that is not whole.
fn delays(text: &mut Vec<u8>, into: &mut Vec<Duration>) {
    while let Some(end) = text.iter().position(|b| *b == b'\n') {
        let line: Vec<u8> = text.drain(..=end).collect();
        let Some(found) = line.windows(SENT.len()).position(|part| part == SENT) else { continue };
        let digits: String = line[found + SENT.len()..]
            .iter()
            .map(|b| char::from(*b))
            .take_while(char::is_ascii_digit)
            .collect();
        let sent: u128 = digits.parse().expect("a time");
        into.push(Duration::from_nanos(u64::try_from(nanos().saturating_sub(sent)).unwrap_or(u64::MAX)));
    }
}

async fn watches(server: &Server) {
    let ready = Arc::new(Barrier::new(WATCHERS + 1));
    let mut workers = Vec::new();
    for _ in 0..WATCHERS {
        let (mut connection, ready) = (server.connect().await, ready.clone());
        workers.push(tokio::spawn(async move {
            let path = format!("{MAPS}?watch=true&labelSelector=share%3Dwatched");
            let request = connection.request("GET", &path, "json", &Value::Null);
            let mut body = connection.sender.send_request(request).await.expect("an answer").into_body();
            ready.wait().await;
            let (mut text, mut times) = (Vec::new(), Vec::new());
            while times.len() < EVENTS {
                let Ok(Some(frame)) = tokio::time::timeout(PATIENCE, body.frame()).await else { break };
                if let Ok(data) = frame.expect("a part of the watch").into_data() {
                    text.extend_from_slice(&data);
                }
                delays(&mut text, &mut times);
            }
            times
        }));
    }
    ready.wait().await;
    let (mut connection, cpu, begun) = (server.connect().await, server.process.cpu(), Instant::now());
    for at in 0..EVENTS {
        let mut object = map(&format!("watched-{at}"), "watched");
        object["data"] = json!({ "sent": nanos().to_string() });
        connection.send("POST", MAPS, "json", &object).await;
    }
    let mut times = Vec::new();
    for worker in workers {
        times.extend(worker.await.expect("a watcher ends"));
    }
    let cpu = server.process.cpu() - cpu;
    let (count, seconds) = (times.len(), begun.elapsed().as_secs_f64());
    println!(
        "{WATCHERS} watchers of {EVENTS} events: {:8.0} deliveries/s   p50 {:.2} ms   p99 {:.2} ms   {} lost   {:.1} us of CPU each",
        count as f64 / seconds,
        millis(at(&mut times, 0.5)),
        millis(at(&mut times, 0.99)),
        WATCHERS * EVENTS - count,
        cpu * 1e6 / count as f64,
    );
}

/// Requests over connections of their own, from so many clients.
async fn handshakes(server: &Server, clients: usize) {
    let cpu = server.process.cpu();
    let workers: Vec<_> = (0..clients)
        .map(|_| {
            let (address, tls) = (server.address, server.tls.clone());
            tokio::spawn(async move {
                // Sessions are not taken up again: every handshake is a whole one.
                let mut tls = (*tls).clone();
                tls.resumption = rustls::client::Resumption::disabled();
                let tls = Arc::new(tls);
                let (mut count, end) = (0, Instant::now() + LOAD);
                while Instant::now() < end {
                    Connection::open(address, tls.clone(), None).await.get("/version").await;
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for worker in workers {
        count += worker.await.expect("a worker ends");
    }
    println!(
        "handshakes with a request, {clients:2} clients     {:8.0} /s   {:6.3} ms of CPU each",
        f64::from(count) / LOAD.as_secs_f64(),
        (server.process.cpu() - cpu) * 1e3 / f64::from(count),
    );
}

/// A connection's requests one after the other; times and CPU of each.
async fn requests(server: &Server, what: &str, mut connection: Connection, request: (&str, &str, Value)) {
    let (method, path, body) = request;
    let (cpu, mut times) = (server.process.cpu(), Vec::new());
    let end = Instant::now() + LOAD;
    while Instant::now() < end {
        let sent = Instant::now();
        connection.send(method, path, "json", &body).await;
        times.push(sent.elapsed());
    }
    println!(
        "{what:42} {:8.0} /s   p50 {:6.3} ms   p99 {:6.3} ms   {:6.3} ms of CPU each",
        times.len() as f64 / LOAD.as_secs_f64(),
        millis(at(&mut times, 0.5)),
        millis(at(&mut times, 0.99)),
        (server.process.cpu() - cpu) * 1e3 / times.len() as f64,
    );
}

async fn access(server: &Server) {
    let mut connection = server.connect().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    connection.send("POST", accounts, "json", &json!({ "metadata": { "name": "bench" } })).await;
    let token = connection.send("POST", &format!("{accounts}/bench/token"), "json", &json!({})).await;
    let token: Value = serde_json::from_slice(&token).expect("a token request");
    let token = token["status"]["token"].as_str().expect("a token").to_owned();
    let one = ("GET", "/version", Value::Null);
    requests(server, "/version by client certificate", server.connect().await, one.clone()).await;
    let by_token = Connection::open(server.address, server.anonymous.clone(), Some(token)).await;
    requests(server, "/version by account token", by_token, one).await;

    let group = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    for at in 0..ROLES {
        let rules =
            json!([{ "apiGroups": ["apps"], "resources": [format!("kind{at}")], "verbs": ["get", "list"] }]);
        let role = json!({ "metadata": { "name": format!("r{at}") }, "rules": rules });
        connection.send("POST", &format!("{group}/roles"), "json", &role).await;
    }
    for at in 0..BINDINGS {
        let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": format!("r{}", at % ROLES) });
        let who = json!([{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": format!("u{}", at % 1250) }]);
        let binding = json!({ "metadata": { "name": format!("b{at}") }, "roleRef": role, "subjects": who });
        connection.send("POST", &format!("{group}/rolebindings"), "json", &binding).await;
    }
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    for (what, kind) in [("allowed", "kind7"), ("refused, after all bindings", "pods")] {
        let asked = json!({ "group": "apps", "resource": kind, "verb": "get", "namespace": "default" });
        let review = json!({ "spec": { "user": "u7", "resourceAttributes": asked } });
        let what = format!("access reviews, {what}");
        requests(server, &what, server.connect().await, ("POST", reviews, review)).await;
    }
}

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path());
    println!("data in {}", server.dir.display());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        for clients in CLIENTS {
            writes(&server, clients).await;
        }
        lists(&server).await;
        watches(&server).await;
        for clients in [1, 16] {
            handshakes(&server, clients).await;
        }
        access(&server).await;
    });
}

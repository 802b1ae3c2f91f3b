//! A server whose clock is moved on, with connections that stay open meanwhile.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use wasmk_api::Timestamp;
use wasmk_apiserver::{ApiServer, Config, Serving, serve_tls};

use super::*;

/// The days that everybody here is ahead of the machine's clock.
static AHEAD: AtomicI64 = AtomicI64::new(0);

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::days(AHEAD.load(Ordering::SeqCst))
}

fn stamp() -> Timestamp {
    Timestamp(jiff::Timestamp::from_second(now().unix_timestamp()).unwrap())
}

/// Tells TLS clients the same time.
#[derive(Debug)]
struct Clock;

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// A connection as kubectl makes it, with what the kubeconfig has at that moment.
struct Connection(http1::SendRequest<Empty<bytes::Bytes>>);

impl Connection {
    async fn open(address: SocketAddr, kubeconfig: &Value) -> Result<Self> {
        let pem = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
        let cluster = &kubeconfig["clusters"][0]["cluster"];
        let user = &kubeconfig["users"][0]["user"];
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&pem(&cluster["certificate-authority-data"])) {
            roots.add(root?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = pem(&user["client-certificate-data"]);
        let chain = CertificateDer::pem_slice_iter(&certificate);
        let config = rustls::ClientConfig::builder_with_details(provider, Arc::new(Clock))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                chain.collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"]))?,
            )?;
        let stream = TcpStream::connect(address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect("127.0.0.1".try_into()?, stream).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(Self(sender))
    }

    async fn send(&mut self, path: &str) -> http::Response<Incoming> {
        self.0.ready().await.expect("the connection is open");
        let request = Request::get(path).header("host", "127.0.0.1").body(Empty::new()).unwrap();
        self.0.send_request(request).await.expect("an answer on the same connection")
    }

    async fn code(&mut self, path: &str) -> u16 {
        let answer = self.send(path).await;
        let code = answer.status().as_u16();
        answer.into_body().collect().await.expect("a whole body");
        code
    }
}

struct World {
    renewal: Renewal,
    api: ApiServer,
    address: SocketAddr,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        let pki = Pki::open_at(&data.join("pki"), now).unwrap();
        let store = Arc::new(wasmk_store::Memory::new());
        let mut config = Config::new(store, pki.token_key().unwrap(), pki.ca_cert().into());
        config.clock = stamp;
        let api = ApiServer::start(config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = Running {
            pid: 1,
            api: address,
            gateway: address,
            registry: address,
            ingress: None,
            ingress_tls: None,
            without_ingress: false,
            node: None,
            agents: Vec::new(),
        };
        let names = vec!["127.0.0.1".to_owned()];
        let leaf = serving_leaf(&pki, &names).unwrap();
        let serving = Serving::new(&leaf.cert, &leaf.key).unwrap();
        let stop = CancellationToken::new();
        let tls = serving.config(pki.ca_cert()).unwrap();
        tokio::spawn(serve_tls(listener, tls, api.router(), stop.clone()));
        let renewal = Renewal {
            data,
            running,
            names,
            serving,
            trust: api.trust(),
            more_clients: None,
            authority: watch::Sender::new(Authority::of(&pki).unwrap()),
            client: api.client("admin", &["system:masters"]),
            pki,
        };
        Self { renewal, api, address, stop, _dir: dir }
    }

    /// Looks for what is due, some days after the start; the kubeconfig as it is then.
    async fn on_day(&mut self, days: i64) -> Value {
        AHEAD.store(days, Ordering::SeqCst);
        self.renewal.once().await.unwrap();
        let text = std::fs::read_to_string(self.renewal.data.kubeconfig()).unwrap();
        serde_yaml::from_str(&text).unwrap()
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread")]
async fn four_hundred_days_pass_under_open_connections() {
    let mut world = World::start().await;
    let first = world.on_day(0).await;
    let mut early = Connection::open(world.address, &first).await.unwrap();
    let mut watching = Connection::open(world.address, &first).await.unwrap();
    assert_eq!(early.code(MAPS).await, 200);
    let mut events = watching.send(&format!("{MAPS}?watch=true")).await.into_body();

    // In the last third of life everything is made anew; what is open stays so, and knows no difference.
    let second = world.on_day(250).await;
    assert_ne!(first["users"], second["users"]);
    assert_eq!(early.code(MAPS).await, 200);
    let maps: Api<ConfigMap> = Api::default_namespaced(world.renewal.client.clone());
    let made = serde_json::from_value(json!({"metadata": {"name": "late"}})).unwrap();
    maps.create(&Default::default(), &made).await.unwrap();
    let frame = events.frame().await.expect("the watch goes on").unwrap();
    let event = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
    assert!(event.contains(r#""name":"late""#), "{event}");
    let mut later = Connection::open(world.address, &second).await.unwrap();
    assert_eq!(later.code(MAPS).await, 200);

    // When the first certificates have ended, only who did not take the new ones is turned away, and told so.
    let third = world.on_day(400).await;
    assert_eq!(later.code(MAPS).await, 200);
    assert_eq!(early.code(MAPS).await, 401);
    assert!(Connection::open(world.address, &second).await.unwrap().code(MAPS).await == 200);
    assert!(Connection::open(world.address, &third).await.unwrap().code(MAPS).await == 200);
    world.stop.cancel();
    world.api.shutdown().await;
}

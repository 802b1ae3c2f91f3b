//! What a guest reaches is what its network allows, under the address it was given.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use common::{Fixture, fixture, output, soon, until};
use http::Request;
use http::request::Parts;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use wasmk_runtime::{
    Body, Deny, HttpLimits, HttpService, HttpTarget, Network, NetworkError, Protocol, Spec, StopSignal,
    empty, full,
};

/// The guest's own address; all of 127.0.0.0/8 is local on Linux.
const OWN: &str = "127.42.7.9";
/// The address that exists for guests only, and is redirected.
const VIRTUAL: &str = "127.43.0.99:80";

/// Allows what it redirects, and one real address besides.
#[derive(Clone, Default)]
struct Policy {
    real: Option<SocketAddr>,
    local: Option<Arc<dyn HttpService>>,
    accept: bool,
}

#[async_trait]
impl Network for Policy {
    fn address(&self) -> Option<IpAddr> {
        Some(OWN.parse().unwrap())
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        match name {
            "service.local" => Ok(vec![VIRTUAL.parse::<SocketAddr>().unwrap().ip(), [10, 0, 0, 1].into()]),
            _ => Err(NetworkError::NotFound(name.to_owned())),
        }
    }

    fn bind(&self, _protocol: Protocol, local: SocketAddr) -> Result<(), NetworkError> {
        if local.ip().to_string() == OWN { Ok(()) } else { Err(NetworkError::Denied(local.to_string())) }
    }

    fn connect(&self, _protocol: Protocol, remote: SocketAddr) -> Result<SocketAddr, NetworkError> {
        match self.real {
            Some(real) if remote == VIRTUAL.parse().unwrap() || remote == real => Ok(real),
            _ => Err(NetworkError::Denied(remote.to_string())),
        }
    }

    fn accept(&self, _protocol: Protocol, _remote: SocketAddr) -> bool {
        self.accept
    }

    async fn http(&self, request: &Parts) -> Result<HttpTarget, NetworkError> {
        match (request.uri.host(), &self.local, self.real) {
            (Some("function.local"), Some(local), _) => Ok(HttpTarget::Service(local.clone())),
            (Some("service.local"), _, Some(real)) => Ok(HttpTarget::Connect(vec![real])),
            (Some("nobody.local"), ..) => Err(NetworkError::NotFound("nobody.local".into())),
            _ => Err(NetworkError::Denied(request.uri.to_string())),
        }
    }
}

async fn sockets(fixture: &Fixture, words: &[&str], network: Arc<dyn Network>) -> String {
    let program = fixture.guest("sockets").await;
    let (stdout, stderr, spec) = output();
    let args = ["sockets"].iter().chain(words).map(|word| (*word).to_owned()).collect();
    let exit = soon(program.run(Spec { args, network, ..spec }, StopSignal::new())).await.unwrap();
    assert!(exit.success(), "{exit}: {}", stderr.text());
    stdout.text().trim_end().to_owned()
}

#[tokio::test]
async fn nothing_is_allowed_by_default() {
    let fixture = fixture();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let check = async |words: &[&str], expect: &str| {
        let said = sockets(&fixture, words, Arc::new(Deny)).await;
        assert!(said.contains(expect), "{words:?}: {said}");
    };
    check(&["connect", &address], "access-denied").await;
    check(&["listen", "127.0.0.1:0"], "access-denied").await;
    check(&["listen", "0.0.0.0:0"], "access-denied").await;
    check(&["send", &address], "access-denied").await;
    check(&["resolve", "localhost"], "name-unresolvable").await;
}

#[tokio::test]
async fn connections_start_from_the_own_address_and_are_redirected() {
    let fixture = fixture();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let policy = Policy { real: Some(listener.local_addr().unwrap()), ..Policy::default() };
    let server = tokio::spawn(async move {
        let (mut stream, from) = listener.accept().await.unwrap();
        stream.write_all(b"hello guest").await.unwrap();
        from
    });
    let said = sockets(&fixture, &["connect", VIRTUAL], Arc::new(policy.clone())).await;
    let from = soon(server).await.unwrap();
    assert_eq!(from.ip().to_string(), OWN);
    assert_eq!(said, format!("{from} hello guest"));
    let said = sockets(&fixture, &["connect", "127.0.0.1:1"], Arc::new(policy)).await;
    assert!(said.contains("access-denied"), "{said}");
}

#[tokio::test]
async fn the_wildcard_is_the_own_address_and_strangers_are_kept_out() {
    let fixture = fixture();
    let program = fixture.guest("sockets").await;
    for accept in [true, false] {
        let (stdout, _, spec) = output();
        let args = vec!["sockets".into(), "listen".into(), "0.0.0.0:0".into()];
        let network = Arc::new(Policy { accept, ..Policy::default() });
        let stop = StopSignal::new();
        let running = tokio::spawn({
            let (program, stop) = (program.clone(), stop.clone());
            async move { program.run(Spec { args, network, ..spec }, stop).await }
        });
        let address = until("it listens", || {
            let text = stdout.text();
            let (address, _) = text.strip_prefix("listening ")?.split_once('\n')?;
            address.parse::<SocketAddr>().ok()
        })
        .await;
        assert_eq!(address.ip().to_string(), OWN);
        let greeted = soon(async {
            let mut text = String::new();
            TcpStream::connect(address).await?.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        });
        // A stranger's connection is reset, before or after it seems to stand.
        let greeted = greeted.await.unwrap_or_default();
        assert_eq!(greeted, if accept { "greetings" } else { "" });
        stop.kill();
        soon(running).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn datagrams_go_only_where_they_may() {
    let fixture = fixture();
    let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = receiver.local_addr().unwrap();
    let policy = Arc::new(Policy { real: Some(address), ..Policy::default() });
    let said = sockets(&fixture, &["send", &address.to_string()], policy.clone()).await;
    let mut buffer = [0; 100];
    let (length, from) = soon(receiver.recv_from(&mut buffer)).await.unwrap();
    assert_eq!((&buffer[..length], from.ip().to_string().as_str()), (&b"datagram"[..], OWN));
    assert_eq!(said, format!("{from} sent 1"));
    // A datagram cannot be redirected, so the virtual address is refused.
    let said = sockets(&fixture, &["send", VIRTUAL], policy).await;
    assert!(said.contains("access-denied"), "{said}");
}

#[tokio::test]
async fn names_are_the_networks() {
    let fixture = fixture();
    let resolve = async |name: &str| sockets(&fixture, &["resolve", name], Arc::new(Policy::default())).await;
    assert_eq!(resolve("service.local").await, "127.43.0.99 10.0.0.1");
    assert!(resolve("other.local").await.contains("name-unresolvable"));
    assert!(resolve(&"x".repeat(300)).await.contains("invalid-argument"));
}

async fn fetch(fixture: &Fixture, request: Request<Body>, policy: Policy) -> (u16, String) {
    fetch_within(fixture, request, policy, HttpLimits::default()).await
}

async fn fetch_within(
    fixture: &Fixture,
    request: Request<Body>,
    policy: Policy,
    http: HttpLimits,
) -> (u16, String) {
    let program = fixture.guest("fetch-http").await;
    let handler = program.handler(Spec { network: Arc::new(policy), http, ..Spec::default() }).unwrap();
    let response = soon(handler.call(request)).await.unwrap();
    let status = response.status().as_u16();
    let text = soon(response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8(text.to_vec()).unwrap())
}

#[tokio::test]
async fn outgoing_requests_go_where_the_network_says() {
    let fixture = fixture();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let real = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            let service =
                hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let host = parts.headers["host"].to_str().unwrap().to_owned();
                    let text = format!("{} {host} {} {body:?} from {}", parts.method, parts.uri, from.ip());
                    Ok::<_, hyper::Error>(http::Response::new(full(text)))
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    let policy = Policy { real: Some(real), ..Policy::default() };
    let get = |url: &str| Request::get(format!("/?{url}")).body(empty()).unwrap();
    let (status, text) = fetch(&fixture, get("http://service.local/a?b"), policy.clone()).await;
    assert_eq!((status, text), (200, format!("GET service.local /a?b b\"\" from {OWN}")));
    let post = Request::post("/?http://service.local:81/").body(full("data")).unwrap();
    let (status, text) = fetch(&fixture, post, policy.clone()).await;
    assert_eq!((status, text), (200, format!("POST service.local:81 / b\"data\" from {OWN}")));

    let check = async |url: &str, expect: &str| {
        let (status, text) = fetch(&fixture, get(url), policy.clone()).await;
        assert!(status == 502 && text.contains(expect), "{url}: {status} {text}");
    };
    check("http://elsewhere.example/", "HttpRequestDenied").await;
    check(&format!("http://{real}/"), "HttpRequestDenied").await;
    check("http://nobody.local/", "DnsError").await;
}

#[tokio::test]
async fn a_function_of_this_process_is_called_without_a_socket() {
    let fixture = fixture();
    let hello = fixture.guest("hello").await;
    let spec = Spec { env: vec![("TARGET".into(), "neighbour".into())], ..Spec::default() };
    let local = Arc::new(hello.handler(spec).unwrap());
    let policy = Policy { local: Some(local), ..Policy::default() };
    let request = || Request::post("/?http://function.local/").body(full("1234567890")).unwrap();
    assert_eq!(fetch(&fixture, request(), policy.clone()).await, (200, "hello neighbour\n".into()));

    let within = async |bytes| {
        let limits = HttpLimits { max_egress: Some(bytes), ..HttpLimits::default() };
        fetch_within(&fixture, request(), policy.clone(), limits).await
    };
    assert_eq!(within(1000).await.0, 200);
    let (status, text) = within(10).await;
    assert_eq!(status, 502, "{text}");
}

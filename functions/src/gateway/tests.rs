use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use async_trait::async_trait;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    executor::{BoxError, Handler, Prepared, full},
    fleet::Limits,
};

/// Says its name and counts its calls.
struct Says(&'static str, AtomicUsize);

#[async_trait]
impl Handler for Says {
    async fn call(&self, request: Request<Body>, _: Duration) -> Response<Body> {
        self.1.fetch_add(1, SeqCst);
        let seen = request.headers().get("x-forwarded-for").and_then(|v| v.to_str().ok()).unwrap_or("");
        Response::new(full(format!("{} for {seen}", self.0)))
    }
}

struct World {
    gateway: Arc<Gateway>,
    fleet: Arc<Fleet>,
    live: Live,
}

impl World {
    fn new() -> Self {
        let (fleet, live) = (Arc::new(Fleet::default()), Live::new("example.com"));
        Self { gateway: Arc::new(Gateway::new(fleet.clone(), live.clone())), fleet, live }
    }

    fn route(&self, traffic: serde_json::Value) {
        let route: Route = serde_json::from_value(json!({
            "metadata": {"name": "hello", "namespace": "default"}, "spec": {}, "status": {"traffic": traffic},
        }))
        .unwrap();
        self.gateway.set_routes([route]);
    }

    fn member(&self, name: &str, change: impl FnOnce(&mut Limits)) -> Arc<Member> {
        let mut limits = Limits { timeout: Duration::from_secs(5), ..Limits::default() };
        change(&mut limits);
        self.fleet.member(&Key::new("default", name), limits)
    }

    fn in_place(&self, name: &'static str) -> Arc<Member> {
        let member = self.member(name, |_| {});
        let handler = Arc::new(Says(name, AtomicUsize::new(0)));
        member.set_in_place(Some(Prepared { handler, image: String::new() }));
        member
    }

    async fn call(&self, headers: &[(&str, &str)]) -> (u16, String) {
        self.call_from([10, 0, 0, 1], headers).await
    }

    async fn call_from(&self, address: [u8; 4], headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::new(full(""));
        request.headers_mut().insert("host", HeaderValue::from_static("Hello.default.example.com:80"));
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let peer = Peer::from(SocketAddr::from((address, 1)));
        let response = self.gateway.route(request, &peer).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// A pod that answers every request with its own head; returns its address.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let text = String::from_utf8(head).unwrap();
                if text.to_lowercase().contains("upgrade: websocket") {
                    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                    stream.write_all(switch.as_bytes()).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    return;
                }
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    address
}

#[tokio::test]
async fn what_runs_in_place_answers_and_tags_lead_to_theirs() {
    let world = World::new();
    world.route(
        json!([{"revisionName": "a", "percent": 100}, {"revisionName": "b", "percent": 0, "tag": "next"}]),
    );
    assert_eq!(world.fleet.all().len(), 0);
    world.in_place("a");
    world.in_place("b");
    assert_eq!(world.call(&[]).await, (200, "a for 10.0.0.1".into()));
    let tag = ("knative-serving-tag", "next");
    assert_eq!(world.call(&[tag]).await.1, "a for 10.0.0.1", "the feature is off at first");
    let on = [("tag-header-based-routing".to_string(), "enabled".to_string())].into();
    world.live.take("config-features", &on).unwrap();
    assert_eq!(world.call(&[tag]).await.1, "b for 10.0.0.1");
    assert_eq!(world.call(&[("knative-serving-tag", "none")]).await.1, "a for 10.0.0.1");
    assert_eq!(world.call(&[("x-forwarded-for", "1.2.3.4")]).await.1, "a for 1.2.3.4, 10.0.0.1");
    assert_eq!(world.call(&[("host", "nobody")]).await.0, 404);
}

#[tokio::test]
async fn hosts_of_the_cluster_are_answered_inside_alone() {
    let world = World::new();
    world.route(json!([{"revisionName": "a", "percent": 100}]));
    world.in_place("a");
    struct Broker;
    #[async_trait]
    impl Ingress for Broker {
        async fn receive(&self, _: Request<Body>) -> Response<Body> {
            Response::new(full("taken"))
        }
    }
    world.gateway.set_ingress(Arc::new(Broker));
    let broker = "broker-ingress.knative-eventing.svc.cluster.local";
    for host in ["hello.default.svc.cluster.local", "Hello.Default.svc:80", "Hello.default:80", broker] {
        assert_eq!(world.call(&[("host", host)]).await.0, 404, "{host}");
        assert_eq!(world.call_from([127, 0, 0, 1], &[("host", host)]).await.0, 200, "{host}");
    }
    assert_eq!(world.call_from([127, 0, 0, 1], &[("host", "hello")]).await.0, 404, "of which namespace?");
    assert_eq!(world.call(&[]).await.0, 200, "it has a host outside, too");
}

/// An API whose only pod has that address in the namespace `default`.
fn api_with(pod: &'static str) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let pods = match request.uri().query().unwrap_or_default().contains(pod) {
            true => json!([{"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": []}}]),
            false => json!([]),
        };
        let list = json!({"metadata": {}, "items": pods}).to_string();
        std::future::ready(Ok::<_, std::io::Error>(Response::new(kube::client::Body::from(
            list.into_bytes(),
        ))))
    });
    kube::Client::new(service, "default")
}

#[tokio::test]
async fn a_pod_calls_what_is_in_its_namespace_by_its_mere_name() {
    use wasmk_api::proxy_protocol::header;

    let world = World::new();
    world.route(json!([{"revisionName": "a", "percent": 100}]));
    world.in_place("a");
    world.gateway.set_inside(api_with("10.22.0.5"));
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let (at, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    world.gateway.set_door(at.ip());
    let serving = tokio::spawn(world.gateway.clone().serve(listener, stop.clone()));
    let SocketAddr::V4(to) = at else { panic!("an IPv4 address") };
    let said_to_be = |client: &str| header(client.parse().unwrap(), to).to_vec();
    let pod = said_to_be("10.22.0.5:4000");
    let mut no_client = pod.clone();
    no_client[12] = 0x20;
    for (first, host, expect) in [
        (&pod[..], "hello", "200 OK"),
        (&pod, "Hello:80", "200 OK"),
        (&pod, "hello.default", "200 OK"),
        (&pod, "nobody", "404 Not Found"),
        (&said_to_be("10.22.0.6:4000"), "hello", "404 Not Found"),
        (&said_to_be("10.22.0.6:4000"), "hello.default.svc", "200 OK"),
        (b"", "hello", "404 Not Found"),
        (b"", "hello.default", "200 OK"),
        (&no_client, "hello", ""),
    ] {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        // In pieces, as a network may hand it over.
        for piece in [first, request.as_bytes()].concat().chunks(7) {
            stream.write_all(piece).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.lines().next().unwrap_or("").trim_start_matches("HTTP/1.1 "), expect, "{host}");
        if first == pod && expect == "200 OK" {
            assert!(answer.ends_with("a for 10.22.0.5"), "{answer}");
        }
    }
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn who_does_not_come_by_the_door_cannot_say_whose_a_connection_is() {
    let world = World::new();
    world.gateway.set_inside(api_with("10.22.0.5"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    world.gateway.set_door([127, 0, 0, 2].into());
    let serving = tokio::spawn(world.gateway.clone().serve(listener, stop.clone()));
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let SocketAddr::V4(to) = at else { panic!("an IPv4 address") };
    let first = wasmk_api::proxy_protocol::header("10.22.0.5:4000".parse().unwrap(), to);
    stream.write_all(&[&first[..], b"GET / HTTP/1.1\r\nhost: hello\r\n\r\n"].concat()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "it is no request: {answer:?}");
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_request_waits_for_a_pod_and_finds_another_when_one_is_gone() {
    let world = World::new();
    world.route(json!([{"revisionName": "a", "percent": 100}]));
    let member = world.member("a", |_| {});
    let waiting = async {
        let answer = world.call(&[]).await;
        assert_eq!(member.waiting.load(SeqCst), 0);
        answer
    };
    let come = async {
        while member.waiting.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        member.set_backends(vec![echo().await]);
    };
    let ((status, head), ()) = tokio::join!(waiting, come);
    assert_eq!(status, 200);
    assert!(head.to_lowercase().contains("host: hello.default.example.com:80"), "{head}");
    assert!(head.contains("knative-serving-revision: a"), "{head}");
    // Nobody listens at the first address any more.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    member.set_backends(vec![closed, echo().await]);
    for _ in 0..4 {
        assert_eq!(world.call(&[]).await.0, 200);
    }
    assert!(member.backends.borrow().iter().all(|b| b.in_flight.load(SeqCst) == 0));
}

#[tokio::test(start_paused = true)]
async fn a_pod_with_a_limit_gets_no_more_than_that() {
    let world = World::new();
    let member = world.member("a", |limits| limits.concurrency = 1);
    member.set_backends(vec![SocketAddr::from(([127, 0, 0, 1], 9))]);
    let soon = || Instant::now() + Duration::from_secs(1);
    let first = world.gateway.proxy.way(&member, soon()).await;
    assert!(matches!(first, Ok(Way::Pod(_))));
    assert!(matches!(world.gateway.proxy.way(&member, soon()).await, Err(Refusal::NoPod)));
    let (second, ()) = tokio::join!(world.gateway.proxy.way(&member, soon()), async {
        while member.waiting.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
    });
    assert!(second.is_ok());
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_are_served_in_their_order() {
    let world = World::new();
    let member = world.member("a", |limits| limits.concurrency = 1);
    member.set_backends(vec![SocketAddr::from(([127, 0, 0, 1], 9))]);
    let wait = |millis: u64| {
        let (gateway, member) = (world.gateway.clone(), member.clone());
        let deadline = Instant::now() + Duration::from_millis(millis);
        tokio::spawn(async move { gateway.proxy.way(&member, deadline).await })
    };
    let first = wait(1_000).await.unwrap();
    let mut waiting = Vec::new();
    for before in 0..3 {
        waiting.push(wait(60_000));
        while member.waiting.load(SeqCst) == before {
            tokio::task::yield_now().await;
        }
    }
    drop(first);
    // The pod is free, and the first that waits does not know it yet.
    let newcomer = wait(10);
    let mut waiting = waiting.into_iter();
    let second = waiting.next().unwrap().await.unwrap();
    assert!(matches!(second, Ok(Way::Pod(_))));
    assert!(matches!(newcomer.await.unwrap(), Err(Refusal::NoPod)), "it came last");
    let rest: Vec<_> = waiting.collect();
    assert!(rest.iter().all(|way| !way.is_finished()));
    drop(second);
    for way in rest {
        assert!(matches!(way.await.unwrap(), Ok(Way::Pod(_))), "each frees the pod for the next");
    }
    assert_eq!(member.waiting.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn refusals_name_their_reason() {
    let world = World::new();
    world.route(json!([{"revisionName": "a", "percent": 100}]));
    let (status, text) = world.call(&[]).await;
    assert_eq!((status, text.contains("not known")), (503, true), "{text}");
    world.member("a", |limits| limits.timeout = Duration::from_secs(2));
    let (status, text) = world.call(&[]).await;
    assert_eq!((status, text.as_str()), (504, "no pod of default/a had room within 2 s\n"));
}

#[tokio::test]
async fn times_are_told_to_who_asks() {
    let world = World::new();
    world.route(json!([{"revisionName": "a", "percent": 100}]));
    world.in_place("a");
    let mut request = Request::new(full(""));
    request.headers_mut().insert("host", HeaderValue::from_static("hello.default.example.com"));
    request.headers_mut().insert(TIMING, HeaderValue::from_static("1"));
    let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
    let response = world.gateway.route(request, &peer).await;
    let timing = response.headers()["server-timing"].to_str().unwrap().to_string();
    for part in ["prepare;dur=", "route;dur=", "first-byte;dur="] {
        assert!(timing.contains(part), "{timing}");
    }
}

#[tokio::test]
async fn a_web_socket_reaches_its_pod_through_the_listener() {
    let world = World::new();
    world.route(json!([{"revisionName": "a", "percent": 100}]));
    let member = world.member("a", |_| {});
    member.set_backends(vec![echo().await]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(world.gateway.clone().serve(listener, stop.clone()));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /chat HTTP/1.1\r\nhost: hello.default.example.com\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    client.write_all(b"ping").await.unwrap();
    let mut pong = [0; 4];
    client.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"ping");
    assert_eq!(member.activity.read().in_flight, 1, "the connection counts as a request");
    drop(client);
    stop.cancel();
    serving.await.unwrap();
}

/// A pod that speaks HTTP/2 and ends its answers as gRPC does.
async fn grpc() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                assert_eq!(request.headers()["te"], "trailers");
                let sent = request.into_body().collect().await?.to_bytes();
                let trailers = [("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))];
                let frames = [
                    Ok::<_, hyper::Error>(http_body::Frame::data(sent)),
                    Ok(http_body::Frame::trailers(trailers.into_iter().collect())),
                ];
                Ok::<_, hyper::Error>(Response::new(http_body_util::StreamBody::new(futures::stream::iter(
                    frames,
                ))))
            });
            let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    address
}

#[tokio::test]
async fn grpc_keeps_its_trailers() {
    let world = World::new();
    world.route(json!([{"revisionName": "a", "percent": 100}]));
    let member = world.member("a", |limits| limits.h2c = true);
    member.set_backends(vec![grpc().await]);
    let frames = futures::stream::iter([Ok::<_, BoxError>(http_body::Frame::data("ping".into()))]);
    let mut request = Request::new(http_body_util::StreamBody::new(frames).boxed_unsync());
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = "http://hello.default.example.com/echo.Echo/Say".parse().unwrap();
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
    let answer = world.gateway.route(request, &peer).await.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(answer.to_bytes(), "ping");
}

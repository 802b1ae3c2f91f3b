use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use wasmk_api::labels::SERVICE_NAME;

use super::*;
use crate::slices::Slices;

const LIMIT: Duration = Duration::from_secs(10);

/// Serves an Ingress that leads every request to `pod`.
async fn ingress(pod: SocketAddr) -> SocketAddr {
    let value = json!({
        "metadata": {"namespace": "shop", "name": "all"},
        "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}},
    });
    let all = [Arc::new(serde_json::from_value(value).unwrap())];
    let value = json!({
        "metadata": {"namespace": "shop", "name": "web"}, "spec": {"ports": [{"port": 80}]},
    });
    let services = [Arc::new(serde_json::from_value(value).unwrap())];
    let value = json!({
        "metadata": {"namespace": "shop", "labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": pod.port()}], "endpoints": [{"addresses": [pod.ip().to_string()]}],
    });
    let slices: Slices = [Arc::new(serde_json::from_value(value).unwrap())].into_iter().collect();
    let server = Arc::new(Server::new(Policies::none(), None));
    server.routes.store(Arc::new(routes(&all, &services, &slices)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(Some(listener), None, server));
    address
}

/// The head of a message, in lower case.
async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(bytes).unwrap().to_lowercase()
}

async fn talk(request: &str, answer: &str) -> (TcpStream, TcpStream, String, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut client = TcpStream::connect(ingress(listener.local_addr().unwrap()).await).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut pod, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    let asked = head(&mut pod).await;
    pod.write_all(answer.as_bytes()).await.unwrap();
    let answered = head(&mut client).await;
    (client, pod, asked, answered)
}

#[tokio::test]
async fn a_connection_that_switches_protocols_goes_on_both_ways() {
    let (mut client, mut pod, asked, answered) = talk(
        "GET /chat HTTP/1.1\r\nHost: shop.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    .await;
    assert!(asked.contains("connection: upgrade\r\n") && asked.contains("upgrade: websocket\r\n"), "{asked}");
    assert!(answered.starts_with("http/1.1 101") && answered.contains("upgrade: websocket"), "{answered}");
    let mut bytes = [0; 4];
    client.write_all(b"ping").await.unwrap();
    timeout(LIMIT, pod.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"ping");
    pod.write_all(b"pong").await.unwrap();
    timeout(LIMIT, client.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"pong");
}

#[tokio::test]
async fn a_pod_is_told_where_a_request_came_from() {
    let answer = "HTTP/1.1 204 No Content\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-End: 1\r\n\r\n";
    let (_client, _pod, asked, answered) = talk(
        "GET / HTTP/1.1\r\nHost: Shop.example.com\r\nConnection: x-mine\r\nX-Mine: 1\r\nUpgrade: x\r\n\r\n",
        answer,
    )
    .await;
    for line in [
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "x-forwarded-host: shop.example.com\r\n",
    ] {
        assert!(asked.contains(line), "{line} in {asked}");
    }
    assert!(!asked.contains("x-mine") && !asked.contains("upgrade"), "{asked}");
    assert!(!answered.contains("x-hop") && answered.contains("x-end: 1"), "{answered}");
    let behind_tls = "GET / HTTP/1.1\r\nHost: inner\r\nX-Forwarded-Proto: https\r\n\
                      X-Forwarded-Host: outer\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
    let (_client, _pod, asked, _) = talk(behind_tls, answer).await;
    for line in [
        "x-forwarded-for: 9.9.9.9, 127.0.0.1\r\n",
        "x-forwarded-proto: https\r\n",
        "x-forwarded-host: outer\r\n",
    ] {
        assert!(asked.contains(line), "{line} in {asked}");
    }
}

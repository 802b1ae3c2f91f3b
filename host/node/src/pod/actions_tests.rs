use std::net::Ipv4Addr;

use async_trait::async_trait;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::engine::ExecEnd;

/// Commands are exit codes; `forever` takes that long.
struct Codes;

#[async_trait]
impl Exec for Codes {
    async fn exec(&self, command: &[String], _: Duration) -> Result<ExecEnd, String> {
        if command[0] == "forever" {
            std::future::pending::<()>().await;
        }
        let code = command[0].parse().map_err(|_| "no such program".to_string())?;
        Ok(ExecEnd { code, output: "said".into() })
    }
}

/// Answers `GET /good` with 204 and everything else with 503; then its port.
async fn server() -> (u16, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let n = stream.read(&mut buffer).await.unwrap();
            let code = if buffer[..n].starts_with(b"GET /good") { "204" } else { "503" };
            let answer = format!("HTTP/1.1 {code} x\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, task)
}

#[tokio::test]
async fn attempts_say_what_went_wrong() {
    let (port, server) = server().await;
    let container: Container =
        serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]}))
            .unwrap();
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let policies = Policies::none();
    let reach = Reach { address, exec: &Codes, policies: &policies, container: &container };
    for (probe, expect) in [
        (json!({"httpGet": {"path": "/good", "port": "web"}}), Ok(())),
        (json!({"httpGet": {"path": "bad", "port": port}}), Err("HTTP probe failed with statuscode: 503")),
        (json!({"httpGet": {"port": "other"}}), Err("port String(\"other\") is not one of the container's")),
        (json!({"tcpSocket": {"port": port}}), Ok(())),
        (json!({"exec": {"command": ["0"]}}), Ok(())),
        (json!({"exec": {"command": ["3", "x"]}}), Err("command '3 x' exited with 3: said")),
        (json!({"exec": {"command": ["ls"]}}), Err("no such program")),
        (json!({"exec": {"command": ["forever"]}}), Err("no answer within 0 s")),
        (json!({}), Err("the probe names nothing to ask")),
    ] {
        let typed: Probe = serde_json::from_value(probe.clone()).unwrap();
        let quick = probe["exec"]["command"][0] == "forever";
        let limit = if quick { Duration::from_millis(50) } else { Duration::from_secs(10) };
        assert_eq!(reach.probe(&typed, limit).await, expect.map_err(String::from), "{probe}");
    }
    for (hook, expect) in [
        (json!({"httpGet": {"path": "/good", "port": port}}), true),
        (json!({"exec": {"command": ["1"]}}), false),
        (json!({"sleep": {"seconds": 0}}), true),
    ] {
        let typed: LifecycleHandler = serde_json::from_value(hook.clone()).unwrap();
        assert_eq!(reach.hook(&typed, Duration::from_secs(10)).await.is_ok(), expect, "{hook}");
    }
    server.abort();
}

#[tokio::test]
async fn https_is_asked_without_looking_at_the_certificate() {
    let pair = rcgen::generate_simple_self_signed(vec!["elsewhere".into()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        let mut buffer = [0; 1024];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let _ = stream.shutdown().await;
    });
    let container = Container { name: "c".into(), ..Container::default() };
    let policies = Policies::none();
    let reach = Reach {
        address: Ipv4Addr::LOCALHOST.into(),
        exec: &Codes,
        policies: &policies,
        container: &container,
    };
    let probe = json!({"httpGet": {"path": "/", "port": port, "scheme": "HTTPS"}});
    let probe = serde_json::from_value(probe).unwrap();
    assert_eq!(reach.probe(&probe, Duration::from_secs(10)).await, Ok(()));
    server.await.unwrap();
}

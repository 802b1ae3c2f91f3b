//! Certificates over real sockets: who is believed, who is not, and what changes while connections are open.

use serde_json::{Value, json};
use wasmk_apiserver::RequestHeader;

use crate::world::{Authority, ask, listen, name};

#[tokio::test]
async fn a_certificate_is_its_subject_and_a_foreign_one_is_nobody() {
    let api = listen(|_| {}).await;
    let ann = api.ca.client("users:ann", &["cool-people"]);
    let (code, review) = api.who(Some(&ann), &[]).await;
    assert_eq!((code, name(&review)), (201, "users:ann"));
    let groups = json!(["cool-people", "system:authenticated"]);
    assert_eq!(review["status"]["userInfo"]["groups"], groups);
    let foreign = Authority::new("another").client("users:ann", &["system:masters"]);
    let (code, status) = api.who(Some(&foreign), &[]).await;
    assert_eq!((code, status["reason"].as_str()), (401, Some("Unauthorized")));
    // A good token makes up for a certificate nobody vouches for.
    let bearer = format!("Bearer {}", crate::support::TOKEN);
    let (code, review) = api.who(Some(&foreign), &[("authorization", &bearer)]).await;
    assert_eq!((code, name(&review)), (201, "admin"));
    // Servers' certificates are for servers.
    assert_eq!(api.who(Some(&api.ca.server()), &[]).await.0, 401);
    assert_eq!(ask(&api.client(None), "GET", "/api/v1/pods", &[], Value::Null).await.0, 403);
}

#[tokio::test]
async fn proxies_name_users_and_nobody_else_does() {
    let proxies = Authority::new("front-proxy");
    let ca = proxies.pem.clone();
    let api = listen(|config| config.request_header = Some(RequestHeader::of(ca))).await;
    let headers = [
        ("x-remote-user", "ann"),
        ("x-remote-group", "dev"),
        ("x-remote-group", "ops"),
        ("x-remote-extra-scopes%2fmore", "all"),
    ];
    let proxy = proxies.client("front-proxy-client", &[]);
    let (code, review) = api.who(Some(&proxy), &headers).await;
    assert_eq!((code, name(&review)), (201, "ann"), "{review}");
    let info = &review["status"]["userInfo"];
    assert_eq!(info["groups"], json!(["dev", "ops", "system:authenticated"]));
    assert_eq!(info["extra"]["scopes/more"], json!(["all"]));
    // Another name of the same authority, a proxy that names nobody, and users who would like to be others.
    assert_eq!(api.who(Some(&proxies.client("stranger", &[])), &headers).await.0, 401);
    assert_eq!(api.who(Some(&proxy), &[]).await.0, 401);
    let bob = api.ca.client("bob", &[]);
    assert_eq!(name(&api.who(Some(&bob), &headers).await.1), "bob");
    assert_eq!(api.who(None, &headers).await.0, 403);
}

#[tokio::test]
async fn certificates_and_authorities_change_while_connections_stay() {
    let mut api = listen(|_| {}).await;
    let ann = api.ca.client("ann", &[]);
    let old_client = api.client(Some(&ann));
    let get = async |client: &kube::Client| ask(client, "GET", "/version", &[], Value::Null).await.0;
    assert_eq!(get(&old_client).await, 200);
    let mut watch = api
        .client(Some(&api.ca.client("admin", &["system:masters"])))
        .send(http::Request::get("/api/v1/namespaces?watch=1").body(Vec::new().into()).unwrap())
        .await
        .unwrap();

    // The server shows a certificate of a new authority, and believes clients of both.
    let new = Authority::new("cluster-2");
    let shown = new.server();
    api.serving.replace(&shown.cert, &shown.key).unwrap();
    api.server.api.trust().replace(&format!("{}{}", api.ca.pem, new.pem), None);
    assert_eq!(get(&old_client).await, 200, "the open connection stays");
    let old = std::mem::replace(&mut api.ca, new);
    assert_eq!(get(&api.client(Some(&ann))).await, 200, "a new connection verifies the new certificate");
    assert_eq!(get(&api.client(Some(&api.ca.client("bob", &[])))).await, 200);

    // The old authority goes.
    api.server.api.trust().replace(&api.ca.pem, None);
    assert_eq!(get(&api.client(Some(&ann))).await, 401);
    assert_eq!(get(&api.client(Some(&old.client("admin", &["system:masters"])))).await, 401);
    api.server.post("/api/v1/namespaces", json!({"metadata": {"name": "seen"}})).await;
    let frame = http_body_util::BodyExt::frame(watch.body_mut()).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(frame.data_ref().unwrap()).contains("ADDED"));
    assert!(api.serving.replace("no certificate", "no key").is_err());
    assert_eq!(get(&api.client(None)).await, 200);
}

#[tokio::test]
async fn tls_before_1_2_is_not_spoken() {
    let api = listen(|_| {}).await;
    let address = api.url.trim_start_matches("https://").to_owned();
    // A ClientHello of TLS 1.1 with one suite.
    let hello: Vec<u8> =
        [&[0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2][..], &[7; 32], &[0, 0, 2, 0xc0, 0x13, 1, 0]].concat();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer.first(), Some(&0x15), "an alert, not a handshake: {answer:?}");
}

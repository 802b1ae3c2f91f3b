use axum::http::{HeaderName, header};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::*;
use crate::http::command::ended;

fn wants() -> Wants {
    Wants { stdin: true, stdout: true, stderr: true, ..Wants::default() }
}

/// Says what it reads, in capitals, and ends with 3 when there is no more.
async fn shout(mut remote: Remote) -> Value {
    while let Some(bytes) = remote.stdin.recv().await {
        let _ = remote.out.send((Stream::Stdout, bytes.to_ascii_uppercase().into())).await;
    }
    let _ = remote.out.send((Stream::Stderr, Bytes::from_static(b"bye"))).await;
    ended(3)
}

#[test]
fn upgrades_are_told_apart() {
    let check = |fields: &[(&str, &str)], expect: Option<(bool, &str)>| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let found = handshake(&headers).map(|(response, websocket)| {
            let name = if websocket { header::SEC_WEBSOCKET_PROTOCOL } else { VERSION };
            (websocket, response.headers()[name].to_str().unwrap().to_string())
        });
        assert_eq!(found, expect.map(|(w, p)| (w, p.to_string())), "{fields:?}");
    };
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let spdy = ("upgrade", "SPDY/3.1");
    let version = "x-stream-protocol-version";
    check(&[spdy, (version, "v5.channel.k8s.io"), (version, STREAMS)], Some((false, STREAMS)));
    check(&[spdy, (version, "v2.channel.k8s.io")], None);
    let websocket = ("upgrade", "websocket");
    let both = "v5.channel.k8s.io, v4.channel.k8s.io";
    check(&[websocket, ("sec-websocket-protocol", both), key], Some((true, "v5.channel.k8s.io")));
    check(&[websocket, ("sec-websocket-protocol", STREAMS), key], Some((true, STREAMS)));
    check(&[websocket, ("sec-websocket-protocol", "other"), key], None);
    check(&[], None);
}

#[tokio::test]
async fn a_websocket_carries_a_command() {
    let (near, far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move {
        let socket = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        channels(socket, &wants(), shout).await
    });
    let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    for message in [&b"\0hello"[..], &[CLOSE, STDIN]] {
        client.send(Message::Binary(Bytes::copy_from_slice(message))).await.unwrap();
    }
    let mut got = Vec::new();
    while let Some(Ok(Message::Binary(bytes))) = client.next().await {
        got.push(bytes);
    }
    assert_eq!(got[..2], [&b"\x01HELLO"[..], b"\x02bye"]);
    let status: Value = serde_json::from_slice(&got[2][1..]).unwrap();
    assert_eq!((got[2][0], &status["reason"]), (STATUS, &json!("NonZeroExitCode")));
    drop(client);
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn streams_carry_a_command() {
    let (mut near, far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move { streams(far, &wants(), shout).await });
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        near.write_all(&spdy::open(id, &[("streamtype", kind)], id == 1)).await.unwrap();
    }
    near.write_all(&spdy::data(3, b"hello", true)).await.unwrap();
    let mut reader = Reader::new(&mut near);
    let mut got: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut ended = 0;
    while ended < 3 {
        if let Some(Event::Data(id, bytes, last)) = reader.next().await.unwrap() {
            got.entry(id).or_default().extend(bytes);
            ended += usize::from(last);
        }
    }
    assert_eq!((&got[&5][..], &got[&7][..]), (&b"HELLO"[..], &b"bye"[..]));
    assert!(String::from_utf8_lossy(&got[&1]).contains("\"3\""));
    near.shutdown().await.unwrap();
    let mut rest = Vec::new();
    near.read_to_end(&mut rest).await.unwrap();
    server.await.unwrap().unwrap();
}

//! Commands that are started for each request.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::fixture;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use wasmk_runtime::{Body, CallError, Cgi, HttpLimits, Spec, Tail, boxed, full};

/// Prints `HEAD`, then what it reads, then ends with `CODE`; it says in its log that it was there.
const ECHO: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "HEAD")
  (func $print (param $fd i32) (param $from i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $from))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (call $print (i32.const 1) (i32.const 1024) (i32.const LENGTH))
    (call $print (i32.const 2) (i32.const 1024) (i32.const 6))
    (block $end
      (loop $more
        (i32.store (i32.const 16) (i32.const 4096))
        (i32.store (i32.const 20) (i32.const 4096))
        (br_if $end (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
        (br_if $end (i32.eqz (i32.load (i32.const 24))))
        (call $print (i32.const 1) (i32.const 4096) (i32.load (i32.const 24)))
        (br $more)))
    BODY
    (call $exit (i32.const CODE))))"#;

/// A command with that head and what it does before its end.
async fn command(head: &str, body: &str, code: u32, spec: Spec) -> (common::Fixture, Cgi) {
    let fixture = fixture();
    let text = ECHO.replace("HEAD", &head.replace('\n', "\\n")).replace("LENGTH", &head.len().to_string());
    let text = text.replace("BODY", body).replace("CODE", &code.to_string());
    let command = fixture.module(&text).await.cgi(spec).unwrap();
    (fixture, command)
}

fn post(body: Body) -> Request<Body> {
    Request::builder().method("POST").uri("/path?query").header("host", "x").body(body).unwrap()
}

async fn told(command: &Cgi, body: Body) -> Result<(StatusCode, String), CallError> {
    let response = tokio::time::timeout(common::PATIENCE, command.call(post(body))).await.expect("an end")?;
    let status = response.status();
    let bytes = tokio::time::timeout(common::PATIENCE, response.into_body().collect()).await.expect("an end");
    Ok((status, String::from_utf8(bytes.unwrap().to_bytes().to_vec()).unwrap()))
}

#[tokio::test]
async fn each_request_gets_an_instance_of_its_own_and_its_body() {
    let log = Arc::new(Tail::new(100));
    let spec = Spec { stderr: log.clone(), ..Spec::default() };
    let (fixture, command) = command("Status: 201 Made\nX: y\n\n", "", 0, spec).await;
    let long = "0123456789".repeat(20_000);
    for body in ["hello", "", &long] {
        assert_eq!(
            told(&command, full(body.to_owned())).await.unwrap(),
            (StatusCode::CREATED, body.to_owned())
        );
    }
    // A body whose length nobody has said.
    let pieces = ["a", "bc"].map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(piece.into())));
    let streamed = boxed(StreamBody::new(futures::stream::iter(pieces)));
    assert_eq!(told(&command, streamed).await.unwrap().1, "abc");
    assert_eq!((fixture.runtime.metrics().instances, log.text()), (4, "Status".repeat(4)));
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_of_the_gateway() {
    for (head, code, status, why) in [
        ("hello\n\n", 0, 502, "NAME: VALUE was expected"),
        ("X: y", 0, 502, "without an empty line"),
        ("X: y", 3, 502, "status 3"),
    ] {
        let (_fixture, command) = command(head, "", code, Spec::default()).await;
        let error = told(&command, full("")).await.unwrap_err();
        assert_eq!(
            (error.status().as_u16(), error.to_string().contains(why)),
            (status, true),
            "{head:?}: {error}"
        );
    }
}

#[tokio::test]
async fn limits_hold() {
    let limited = |change: fn(&mut HttpLimits)| {
        let mut spec = Spec::default();
        change(&mut spec.http);
        spec
    };
    let forever = "(loop $l (br $l))";
    let check = async |head: &str, body: &str, spec: Spec, expect: &str| {
        let (_fixture, command) = command(head, body, 0, spec).await;
        let error = told(&command, full("12345")).await.unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    };
    check("", forever, limited(|l| l.timeout = Duration::from_millis(200)), "did not answer within").await;
    check("", forever, limited(|l| l.max_cpu = Some(Duration::from_millis(20))), "processor time").await;
    check("X: y\n\n", "", limited(|l| l.max_request_body = 4), "body is larger than 4").await;
    check("X: yyyyyyyyyyyyyyyyyyyyyy\n\n", "", limited(|l| l.max_header_bytes = 10), "longer than 10 bytes")
        .await;
    let grow = "(if (i32.lt_s (memory.grow (i32.const 100)) (i32.const 0)) (then unreachable))";
    check("", grow, limited(|l| l.max_memory = Some(1 << 20)), "memory limit").await;

    // Past the head an error is the end of the body.
    let (_fixture, long) = command("X: y\n\n", "", 0, limited(|l| l.max_response_body = 3)).await;
    let response = long.call(post(full("12345"))).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert!(error.to_string().contains("more than 3 bytes"), "{error}");
}

#[tokio::test]
async fn who_goes_away_ends_the_command() {
    let (fixture, command) = command("X: y\n\n", "(loop $l (br $l))", 0, Spec::default()).await;
    let response = command.call(post(full("begun"))).await.unwrap();
    assert_eq!(fixture.runtime.metrics().slots_in_use, 1);
    drop(response);
    tokio::time::timeout(common::PATIENCE, async {
        while fixture.runtime.metrics().slots_in_use > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the command has ended");
}

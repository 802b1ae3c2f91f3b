//! Real guests, built from source by tools/build-test-guests.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use common::{PATIENCE, fixture, guest_path, output, soon};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use wasmk_runtime::{
    Body, CallError, Exit, ExitReason, HttpLimits, Mount, ProgramKind, Reuse, Spec, Stdin, StopSignal, boxed,
    empty, full,
};

/// The command guest, once as a WASI 0.1 module and once as a component.
const COMMANDS: [&str; 2] = ["command-module", "command"];

fn args(words: &[&str]) -> Vec<String> {
    ["command"].iter().chain(words).map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn commands_get_their_arguments_and_variables() {
    let fixture = fixture();
    for name in COMMANDS {
        let program = fixture.guest(name).await;
        let (stdout, stderr, spec) = output();
        let env = vec![("B".into(), "2".into()), ("A".into(), "1 3".into())];
        let spec = Spec { args: args(&["print", "x y"]), env, ..spec };
        assert_eq!(soon(program.run(spec, StopSignal::new())).await.unwrap().code, 0);
        assert_eq!(stdout.text(), "args [\"print\", \"x y\"]\nB=2\nA=1 3\n", "{name}");
        assert_eq!(stderr.text(), "done\n");
    }
}

#[tokio::test]
async fn commands_end_as_they_do() {
    let fixture = fixture();
    let check = async |name: &str, words: &[&str], expect: fn(&Exit) -> bool| {
        let program = fixture.guest(name).await;
        let spec = Spec {
            args: args(words),
            memory_limit: Some(32 << 20),
            run_timeout: words.contains(&"loop").then_some(Duration::from_millis(100)),
            ..Spec::default()
        };
        let exit = soon(program.run(spec, StopSignal::new())).await.unwrap();
        assert!(expect(&exit), "{name} {words:?}: {exit:?}");
    };
    check("command-module", &["exit", "3"], |exit| exit.code == 3).await;
    // WASI 0.2 knows success and failure only.
    check("command", &["exit", "3"], |exit| exit.code == 1).await;
    for name in COMMANDS {
        check(name, &["sleep", "5"], Exit::success).await;
        check(name, &["exit", "0"], Exit::success).await;
        check(name, &["loop"], |exit| exit.reason == ExitReason::TimedOut).await;
        check(name, &["memory"], |exit| exit.reason == ExitReason::OutOfMemory).await;
        check(name, &["panic"], |exit| matches!(&exit.reason, ExitReason::Trapped { backtrace, .. } if backtrace.contains("panic"))).await;
        check(
            name,
            &["trap"],
            |exit| matches!(&exit.reason, ExitReason::Trapped { message, .. } if message.contains("table")),
        )
        .await;
    }
}

#[tokio::test]
async fn commands_read_their_input_and_see_only_their_mounts() {
    let fixture = fixture();
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(inside.path().join("a"), "inside\n").unwrap();
    std::fs::write(outside.path().join("b"), "outside\n").unwrap();
    std::os::unix::fs::symlink(outside.path().join("b"), inside.path().join("link")).unwrap();
    let run = async |name: &str, words: &[&str], read_only: bool| {
        let program = fixture.guest(name).await;
        let (stdout, stderr, spec) = output();
        let mounts = vec![Mount { host: inside.path().to_owned(), guest: "/data".into(), read_only }];
        let spec = Spec { args: args(words), mounts, stdin: Some(Stdin::new(&b"from stdin\n"[..])), ..spec };
        let code = soon(program.run(spec, StopSignal::new())).await.unwrap().code;
        (code == 0, stdout.text() + &stderr.text())
    };
    for name in COMMANDS {
        assert_eq!(run(name, &["cat"], true).await, (true, "from stdin\n".into()), "{name}");
        assert_eq!(run(name, &["read", "/data/a"], true).await, (true, "inside\n".into()));
        assert!(!run(name, &["write", "/data/new", "text"], true).await.0, "read-only");
        assert!(run(name, &["write", "/data/new", "text"], false).await.0);
        assert_eq!(std::fs::read_to_string(inside.path().join("new")).unwrap(), "text");
        for path in [
            "/data/link",
            "/data/../../etc/passwd",
            "/etc/passwd",
            outside.path().join("b").to_str().unwrap(),
        ] {
            let (success, said) = run(name, &["read", path], false).await;
            assert!(!success, "{name} reads {path}: {said}");
        }
    }
}

async fn text(response: http::Response<Body>) -> String {
    String::from_utf8(soon(response.into_body().collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn the_function_of_the_sdk_says_hello() {
    let fixture = fixture();
    for name in ["hello", "hello-http"] {
        let program = fixture.guest(name).await;
        assert_eq!(program.kind(), ProgramKind::Http);
        let hello = program.handler(Spec::default()).unwrap();
        let call = || Request::get("/").body(empty()).unwrap();
        assert_eq!(text(soon(hello.call(call())).await.unwrap()).await, "hello world\n");
        let spec = Spec { env: vec![("TARGET".into(), "wasm".into())], ..Spec::default() };
        let hello = program.handler(spec).unwrap();
        let response = soon(hello.call(call())).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(text(response).await, "hello wasm\n");
    }
}

#[tokio::test]
async fn a_request_arrives_as_it_was_sent() {
    let fixture = fixture();
    let program = fixture.guest("hello-http").await;
    let (stdout, _, spec) = output();
    let handler = program.handler(spec).unwrap();
    let request = Request::patch("http://hello.example:8080/a/b?c=d&e").body(empty()).unwrap();
    let response = soon(handler.call(request)).await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(
        (header("x-method"), header("x-path"), header("x-query"), header("x-authority")),
        ("PATCH".into(), "/a/b".into(), "c=d&e".into(), "hello.example:8080".into())
    );
    assert_eq!(stdout.text(), "PATCH /a/b\n");
}

#[tokio::test]
async fn reuse_shows_in_the_guests_statics() {
    let fixture = fixture();
    let program = fixture.guest("hello-http").await;
    let seen = async |handler: &wasmk_runtime::Handler| {
        let response = soon(handler.call(Request::get("/").body(empty()).unwrap())).await.unwrap();
        response.headers()["x-seen"].to_str().unwrap().to_owned()
    };
    let handler = |reuse| program.handler(Spec { reuse, ..Spec::default() }).unwrap();
    let never = handler(Reuse::Never);
    for _ in 0..3 {
        assert_eq!(seen(&never).await, "1");
    }
    // An instance may still be about its last request when the next one comes, which another one answers then.
    let again = handler(Reuse::Requests { most: 10, idle: PATIENCE });
    let third = async { while seen(&again).await != "3" {} };
    soon(third).await;
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let fixture = fixture();
    let echo = fixture.guest("echo-http").await.handler(Spec::default()).unwrap();
    // Each piece is sent only after the one before came back: nothing is held until the end.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<_, std::io::Error>>(1);
    let pieces = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let request =
        Request::post("/").header("content-type", "text/plain").body(boxed(StreamBody::new(pieces))).unwrap();
    let call = tokio::spawn(async move { echo.call(request).await });
    let data = |text: &str| Ok(http_body::Frame::data(bytes::Bytes::from(text.to_owned())));
    sender.send(data("first")).await.unwrap();
    let mut response = soon(call).await.unwrap().unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain");
    for text in ["first", "second", "third"] {
        if text != "first" {
            sender.send(data(text)).await.unwrap();
        }
        let piece = soon(response.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece, text);
    }
    drop(sender);
    assert!(soon(response.body_mut().frame()).await.is_none());
}

#[tokio::test]
async fn large_bodies_pass_and_too_large_ones_break_off() {
    let fixture = fixture();
    let program = fixture.guest("echo-http").await;
    let megabytes = vec![7u8; 5 << 20];
    let echo = program.handler(Spec::default()).unwrap();
    let response = soon(echo.call(Request::post("/").body(full(megabytes.clone())).unwrap())).await.unwrap();
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), megabytes);

    let limits = HttpLimits { max_request_body: 1 << 20, ..HttpLimits::default() };
    let echo = program.handler(Spec { http: limits, ..Spec::default() }).unwrap();
    // Without a length, so that the limit shows only on the way.
    let pieces = futures::stream::iter(
        (0..5).map(|_| Ok::<_, std::io::Error>(http_body::Frame::data(vec![7u8; 1 << 20].into()))),
    );
    let response = soon(echo.call(Request::post("/").body(StreamBody::new(pieces)).unwrap())).await;
    let failed = match response {
        Ok(response) => soon(response.into_body().collect()).await.is_err(),
        Err(_) => true,
    };
    assert!(failed, "the guest must not see more than its limit");
}

#[tokio::test]
async fn a_request_has_limits_of_its_own() {
    let fixture = fixture();
    let program = fixture.guest("misbehave-http").await;
    let limited = |change: fn(&mut HttpLimits)| {
        let mut http = HttpLimits::default();
        change(&mut http);
        program.handler(Spec { http, ..Spec::default() }).unwrap()
    };
    let call = async |handler: &wasmk_runtime::Handler, path: &str| {
        let response = soon(handler.call(Request::get(path).body(empty()).unwrap())).await?;
        Ok::<_, CallError>(text(response).await)
    };
    let handler = limited(|http| http.max_cpu = Some(Duration::from_millis(20)));
    assert!(matches!(call(&handler, "/loop").await, Err(CallError::OverCpu(_))));
    let used = handler.spec().usage.cpu();
    assert!(used < Duration::from_secs(2), "ended after {used:?}");
    assert_eq!(fixture.runtime.metrics().over_cpu, 1);
    let handler = limited(|http| http.max_memory = Some(8 << 20));
    assert!(matches!(call(&handler, "/memory").await, Err(CallError::OutOfMemory)));
    assert!(handler.spec().usage.memory_peak() <= 8 << 20);
    let handler = limited(|http| http.max_response_body = 10);
    // Refused as a whole where it is there at once, broken off where the guest had to be waited for.
    match soon(handler.call(Request::get("/").body(empty()).unwrap())).await {
        Err(error) => {
            assert_eq!(error.status(), 500);
            assert_eq!(error.to_string(), "guest answered with more than 10 bytes");
        }
        Ok(response) => {
            let error = soon(response.into_body().collect()).await.unwrap_err();
            assert!(error.to_string().contains("10"), "{error}");
        }
    }
    let handler = limited(|http| http.max_response_body = 1000);
    assert!(call(&handler, "/").await.unwrap().contains("no such misbehaviour"));
}

#[tokio::test]
async fn the_sdk_declares_reuse() {
    let fixture = fixture();
    assert_eq!(fixture.guest("hello").await.reuse(), Some(10_000));
    assert_eq!(fixture.guest("hello-http").await.reuse(), None);
    // What was declared is known without the program's bytes.
    let other = wasmk_runtime::Runtime::new(common::settings(fixture.dir.path(), |_| {})).unwrap();
    let bytes = std::fs::read(guest_path("hello")).unwrap();
    let program = other.prepare_bytes(bytes.clone().into(), &common::digest(&bytes)).await.unwrap();
    assert_eq!((program.reuse(), other.metrics().cache_hits), (Some(10_000), 1));
    assert!(other.phases().load.count() == 1 && fixture.runtime.phases().compile.count() == 2);
}

#[tokio::test]
async fn misbehaviour_is_told_and_stays_alone() {
    let fixture = fixture();
    let program = fixture.guest("misbehave-http").await;
    let (_, stderr, spec) = output();
    let limits = HttpLimits { max_response_body: 1 << 20, ..HttpLimits::default() };
    let spec = Spec { memory_limit: Some(32 << 20), http: limits, ..spec };
    let handler = program.handler(spec.clone()).unwrap();
    let call = async |path: &str| soon(handler.call(Request::get(path).body(empty()).unwrap())).await;
    assert!(matches!(call("/panic").await.map(drop), Err(CallError::Trapped { .. })));
    assert!(stderr.text().contains("asked to"), "{}", stderr.text());
    let limits = HttpLimits { timeout: Duration::from_millis(100), ..HttpLimits::default() };
    let hasty = program.handler(Spec { http: limits, ..spec }).unwrap();
    let looping = soon(hasty.call(Request::get("/loop").body(empty()).unwrap())).await;
    assert!(matches!(looping.map(drop), Err(CallError::TimedOut(_))));
    let memory = call("/memory").await.map(drop);
    assert!(matches!(memory, Err(CallError::OutOfMemory)), "{memory:?}");
    assert!(matches!(call("/exit").await.map(drop), Err(CallError::Trapped { .. })));
    let response = call("/error").await.unwrap();
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (500, "something went wrong\n"));
    for path in ["/panic-midway", "/flood"] {
        let response = call(path).await.unwrap();
        assert!(soon(response.into_body().collect()).await.is_err(), "{path}");
    }
    assert_eq!(call("/").await.unwrap().status().as_u16(), 404);
}

#[tokio::test]
async fn what_a_guest_takes_has_an_end() {
    let fixture = fixture();
    let program = fixture.guest("hostile").await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let run = async |words: &[&str]| {
        let (stdout, _, spec) = output();
        let args = ["hostile"].iter().chain(words).map(|w| (*w).to_owned()).collect();
        let mounts = vec![Mount { host: dir.path().to_owned(), guest: "/v".into(), read_only: true }];
        let spec = Spec { args, mounts, memory_limit: Some(64 << 20), ..spec };
        let exit = soon(program.run(spec, StopSignal::new())).await.unwrap();
        (stdout.text().trim_end().to_owned(), exit)
    };
    for words in [&["sockets"][..], &["files", "/v/file"]] {
        let (said, exit) = run(words).await;
        let count = said.split(' ').next().and_then(|n| n.parse::<u32>().ok());
        let ended = matches!(exit.reason, ExitReason::Trapped { .. });
        assert!(ended || count.is_some_and(|n| (100..2000).contains(&n)), "{words:?}: {said} {exit:?}");
    }
    assert_eq!(run(&["random", "1000000"]).await.0, "1000000 bytes: 0");
    let (_, exit) = run(&["random", "32000000"]).await;
    assert!(matches!(exit.reason, ExitReason::Trapped { .. }), "{exit:?}");
    assert_eq!(run(&["clock", "10000"]).await.0, "10000 calls, rising: true");
    let (_, exit) = run(&["recurse"]).await;
    assert!(matches!(exit.reason, ExitReason::Trapped { .. }), "{exit:?}");
    assert_eq!(fixture.runtime.metrics().slots_in_use, 0);
}

#[test]
fn every_guest_of_the_tests_is_tested_here() {
    let tested = [
        "command",
        "echo-http",
        "fetch-http",
        "hello-http",
        "hostile",
        "misbehave-http",
        "sockets",
        "state-http",
    ];
    let sources = std::fs::read_dir("../tests/guests").unwrap();
    let sources: BTreeSet<String> =
        sources.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(sources, tested.map(String::from).into());
}

#[tokio::test]
async fn handlers_answer_a_real_client() {
    let fixture = fixture();
    let handler = fixture.guest("hello").await.handler(Spec::default()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request| {
            let handler = handler.clone();
            async move { handler.call(request).await }
        });
        let io = hyper_util::rt::TokioIo::new(stream);
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
    });
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = Request::get("/").header("host", "hello.example").body(empty()).unwrap();
        let response = soon(sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(text(response.map(boxed)).await, "hello world\n");
    }
}

/// Sends one request to a fresh handler's guest; its status and body.
async fn ask(handler: &wasmk_runtime::Handler, method: &str, path: &str, body: &str) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).body(full(body.to_owned())).unwrap();
    let response = soon(handler.call(request)).await.unwrap();
    let status = response.status().as_u16();
    let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn stores_outlive_requests_and_are_those_that_were_given() {
    let fixture = fixture();
    let program = fixture.guest("state-http").await;
    let give = |owner: &str, names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let keyvalue = Some(fixture.runtime.keyvalue(owner, names).unwrap());
        program.handler(Spec { keyvalue, ..Spec::default() }).unwrap()
    };
    let (one, two) = (give("shop.1", &["default", "more"]), give("shop.1", &["default"]));
    for (method, path, body, expect) in [
        ("GET", "/default/a", "", (200, "none, false")),
        ("PUT", "/default/a", "first", (200, "")),
        ("GET", "/default/a", "", (200, "first")),
        ("PATCH", "/default/a", " and more", (200, "first and more")),
        ("POST", "/default/n", "", (200, "1")),
        ("POST", "/default/n", "", (200, "2")),
        ("POST", "/default/a", "", (409, "the value is no decimal number that can be added to\n")),
        ("GET", "/more/a", "", (200, "none, false")),
        ("GET", "/default/", "", (200, "a n")),
        ("DELETE", "/default/n", "", (200, "")),
        ("GET", "/other/a", "", (409, "there is no such key-value store\n")),
    ] {
        let (status, text) = ask(&one, method, path, body).await;
        assert_eq!((status, text.as_str()), expect, "{method} {path}");
    }
    assert_eq!(ask(&two, "GET", "/default/a", "").await.1, "first and more", "the same owner's");
    assert_eq!(ask(&two, "GET", "/more/a", "").await.0, 409, "not given");
    assert_eq!(ask(&give("other.1", &["default"]), "GET", "/default/a", "").await.1, "none, false");
    let none = program.handler(Spec::default()).unwrap();
    assert_eq!(
        ask(&none, "GET", "/default/a", "").await,
        (409, "this function has no key-value stores\n".into())
    );
    assert!(fixture.runtime.keyvalue("../x", vec![]).is_err());

    fixture.runtime.forget_keyvalue("shop.1").unwrap();
    assert_eq!(ask(&two, "GET", "/default/a", "").await, (409, "the database is gone\n".into()));
    assert_eq!(fixture.runtime.keyvalue_owners().unwrap(), ["other.1"]);
}

#[tokio::test]
async fn objects_outlive_requests_and_are_in_the_containers_that_were_given() {
    let fixture = fixture();
    let program = fixture.guest("state-http").await;
    let give = |owner: &str, names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let blobs = Some(fixture.runtime.blobs(owner, names).unwrap());
        program.handler(Spec { blobs, ..Spec::default() }).unwrap()
    };
    let (one, two) = (give("shop.1", &["art", "more"]), give("shop.1", &["art"]));
    for (method, path, body, expect) in [
        ("GET", "/blobs/art/", "", (409, "container art does not exist\n")),
        ("GET", "/blobs/art/a", "", (409, "object a does not exist in container art\n")),
        ("PUT", "/blobs/art/a", "0123456789", (200, "")),
        ("PUT", "/blobs/art/a", "abcdefghij", (200, "")),
        ("GET", "/blobs/art/a", "", (200, "abcdefghij")),
        ("GET", "/blobs/art/a?2-4", "", (200, "cde")),
        ("GET", "/blobs/art/a?8-", "", (200, "ij")),
        (
            "GET",
            "/blobs/art/a?10-",
            "",
            (409, "the range from 10 to 18446744073709551615 is not in an object of 10 bytes\n"),
        ),
        ("GET", "/blobs/art/a?info", "", (200, "Some(10)")),
        ("GET", "/blobs/art/b?info", "", (200, "None")),
        ("COPY", "/blobs/art/a?more/b", "", (200, "")),
        ("MOVE", "/blobs/art/a?art/c", "", (200, "")),
        ("GET", "/blobs/art/", "", (200, "c")),
        ("GET", "/blobs/more/b", "", (200, "abcdefghij")),
        ("POST", "/blobs/art/long?20000000", "", (200, "")),
        ("GET", "/blobs/art/long?info", "", (200, "Some(20000000)")),
        (
            "GET",
            "/blobs/art/long",
            "",
            (
                409,
                "20000000 bytes are more than the 16777216 that are given at once; read them from a stream\n",
            ),
        ),
        ("GET", "/blobs/art/long?19999998-", "", (200, "xx")),
        ("POST", "/blobs/art/longer?70000000", "", (409, "an object has at most 67108864 bytes\n")),
        ("GET", "/blobs/art/", "", (200, "c long")),
        ("DELETE", "/blobs/art/long", "", (200, "")),
        ("DELETE", "/blobs/more/", "", (200, "")),
        ("GET", "/blobs/more/", "", (409, "container more does not exist\n")),
        ("PUT", "/blobs/other/a", "", (409, "container other was not given to this guest\n")),
        ("COPY", "/blobs/art/c?other/c", "", (409, "container other was not given to this guest\n")),
    ] {
        let (status, text) = ask(&one, method, path, body).await;
        assert_eq!((status, text.as_str()), expect, "{method} {path}");
    }
    assert_eq!(ask(&two, "GET", "/blobs/art/c", "").await.1, "abcdefghij", "the same owner's");
    assert_eq!(ask(&two, "GET", "/blobs/more/b", "").await.0, 409, "not given");
    let other = give("other.1", &["art"]);
    assert_eq!(ask(&other, "GET", "/blobs/art/", "").await.1, "container art does not exist\n");
    let none = program.handler(Spec::default()).unwrap();
    let told = ask(&none, "GET", "/blobs/art/", "").await;
    assert_eq!(told, (409, "this guest was given no containers\n".into()));
    assert!(fixture.runtime.blobs("../x", vec![]).is_err());
    fixture.runtime.forget_blobs("shop.1").unwrap();
    assert_eq!(ask(&two, "GET", "/blobs/art/c", "").await, (409, "the database is gone\n".into()));
    assert_eq!(fixture.runtime.blob_owners().unwrap(), ["other.1"]);
}

#[tokio::test]
async fn configuration_and_log_lines_go_by_the_drafts_as_well() {
    let fixture = fixture();
    let (_, stderr, spec) = output();
    let spec = Spec { env: vec![("COLOR".into(), "blue".into())], ..spec };
    let handler = fixture.guest("state-http").await.handler(spec).unwrap();
    assert_eq!(ask(&handler, "GET", "/config", "").await.1, "Ok(Some(\"blue\")) Ok(None)");
    assert_eq!(ask(&handler, "GET", "/log", "").await.0, 200);
    assert_eq!(stderr.text(), "warn shop: two lines\ninfo 1 variables\n");
}

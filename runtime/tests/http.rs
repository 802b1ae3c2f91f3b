//! HTTP guests answer, each request in its own instance, and fail alone.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Fixture, HELLO, fixture, http_guest, soon, until};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use wasmk_runtime::{
    Body, CallError, Error, ExitReason, Handler, HttpLimits, Reuse, Spec, StopSignal, Usage, empty, full,
};

async fn handler(fixture: &Fixture, code: &str, spec: Spec) -> Handler {
    fixture.http(&http_guest(code)).await.handler(spec).unwrap()
}

fn get() -> Request<Body> {
    Request::get("/").body(empty()).unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(soon(response.into_body().collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

fn timeout(millis: u64) -> Spec {
    Spec {
        http: HttpLimits { timeout: Duration::from_millis(millis), ..HttpLimits::default() },
        ..Spec::default()
    }
}

#[tokio::test]
async fn a_short_answer_comes_with_its_length() {
    let fixture = fixture();
    let handler = handler(&fixture, HELLO, Spec::default()).await;
    let response = soon(handler.call(get())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(10));
    assert_eq!(text(response).await, "hello wat\n");
    assert_eq!((handler.in_flight(), fixture.runtime.metrics().slots_in_use), (0, 0));
    assert_eq!((handler.spec().usage.requests(), handler.spec().usage.memory()), (1, 0));
}

#[tokio::test]
async fn a_busy_task_gets_whole_bodies() {
    let fixture = fixture();
    for reuse in [Reuse::Never, Reuse::Requests { most: u32::MAX, idle: common::PATIENCE }] {
        let handler = handler(&fixture, HELLO, Spec { reuse, ..Spec::default() }).await;
        // The executor's budget for one task is long used up when this ends.
        for _ in 0..500 {
            let body = handler.call(get()).await.unwrap().into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "hello wat\n");
        }
    }
}

#[tokio::test]
async fn what_goes_wrong_before_the_head_is_an_error() {
    let fixture = fixture();
    let check = async |code: &str, spec: Spec, expect: fn(&CallError) -> bool, status: u16| {
        let handler = handler(&fixture, code, spec).await;
        let error = soon(handler.call(get())).await.map(drop).unwrap_err();
        assert!(expect(&error), "{code}: {error:?}");
        assert_eq!(error.status().as_u16(), status);
    };
    let trapped = |error: &CallError| matches!(error, CallError::Trapped { message, backtrace } if message.contains("unreachable") && !backtrace.is_empty());
    check("unreachable", Spec::default(), trapped, 500).await;
    check("", Spec::default(), |error| matches!(error, CallError::NoResponse), 502).await;
    check("(loop $l (br $l))", timeout(40), |error| matches!(error, CallError::TimedOut(_)), 504).await;
    let small = Spec { memory_limit: Some(200_000), ..Spec::default() };
    let wish = "(if (i32.eq (memory.grow (i32.const 60000)) (i32.const -1)) (then unreachable))";
    check(wish, small, |error| matches!(error, CallError::OutOfMemory), 500).await;
    let none = Spec { memory_limit: Some(10), ..Spec::default() };
    check(HELLO, none, |error| matches!(error, CallError::OutOfMemory), 500).await;
    let denied = "(call $set (local.get $out) (i32.const 1) (i32.const 38) (i32.const 0) (i64.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))";
    check(denied, Spec::default(), |error| matches!(error, CallError::Guest(_)), 502).await;

    let metrics = fixture.runtime.metrics();
    assert_eq!((metrics.traps, metrics.out_of_memory, metrics.timeouts), (1, 2, 1));
    until("all slots are free", || (fixture.runtime.metrics().slots_in_use == 0).then_some(())).await;
    let handler = handler(&fixture, HELLO, Spec::default()).await;
    assert_eq!(text(soon(handler.call(get())).await.unwrap()).await, "hello wat\n");
}

#[tokio::test]
async fn what_goes_wrong_after_the_head_breaks_the_body_off() {
    let fixture = fixture();
    let flood =
        "(call $answer (local.get $out)) (loop $l (call $say (i32.const 1024) (i32.const 10)) (br $l))";
    let check = async |code: &str, spec: Spec, expect: &str| {
        let handler = handler(&fixture, code, spec).await;
        let response = soon(handler.call(get())).await.unwrap();
        let error = soon(response.into_body().collect()).await.map(drop).unwrap_err();
        assert!(error.to_string().contains(expect), "{code}: {error}");
    };
    // More than is buffered, so that the head is out before the trap.
    let long = "(local $i i32) (call $answer (local.get $out))
        (loop $l (call $say (i32.const 1024) (i32.const 10))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $l (i32.lt_u (local.get $i) (i32.const 1000))))";
    check(&format!("{long} unreachable"), Spec::default(), "trapped").await;
    let waits = "(call $answer (local.get $out)) (loop $l (br $l))";
    check(waits, timeout(60), "did not answer within").await;
    let small = HttpLimits { max_response_body: 5_000, ..HttpLimits::default() };
    check(flood, Spec { http: small, ..Spec::default() }, "longer than 5000 bytes").await;
    until("all slots are free", || (fixture.runtime.metrics().slots_in_use == 0).then_some(())).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_guest() {
    let fixture = fixture();
    let flood =
        "(call $answer (local.get $out)) (loop $l (call $say (i32.const 1024) (i32.const 10)) (br $l))";
    let handler = handler(&fixture, flood, Spec::default()).await;
    let mut response = soon(handler.call(get())).await.unwrap();
    assert!(soon(response.body_mut().frame()).await.unwrap().unwrap().is_data());
    assert_eq!(handler.in_flight(), 1);
    drop(response);
    until("the guest has ended", || (handler.in_flight() == 0).then_some(())).await;

    let looping = self::handler(&fixture, "(loop $l (br $l))", Spec::default()).await;
    assert!(tokio::time::timeout(Duration::from_millis(30), looping.call(get())).await.is_err());
    until("the guest has ended", || (looping.in_flight() == 0).then_some(())).await;
}

#[tokio::test]
async fn requests_beyond_their_limits_do_not_reach_the_guest() {
    let fixture = fixture();
    let limits = HttpLimits { max_request_body: 10, max_header_bytes: 100, ..HttpLimits::default() };
    let handler = handler(&fixture, HELLO, Spec { http: limits, ..Spec::default() }).await;
    let call =
        async |request: Request<Body>| soon(handler.call(request)).await.map(|response| response.status());
    assert_eq!(call(Request::post("/").body(full("0123456789")).unwrap()).await.unwrap(), 200);
    let error = call(Request::post("/").body(full("0123456789a")).unwrap()).await.unwrap_err();
    assert_eq!(
        (error.status().as_u16(), error.to_string()),
        (413, "request body is larger than 10 bytes".into())
    );
    let error =
        call(Request::get("/").header("x", "y".repeat(100)).body(empty()).unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "request headers are larger than 100 bytes");
    assert_eq!(handler.spec().usage.requests(), 1);
}

/// Answers with one byte: how often this instance was called before.
const COUNT: &str = "(i32.store8 (i32.const 2000) (i32.add (global.get $count) (i32.const 48)))
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (call $answer (local.get $out)) (call $say (i32.const 2000) (i32.const 1)) (call $finish)";

#[tokio::test]
async fn an_instance_serves_again_only_where_that_is_declared_safe() {
    let fixture = fixture();
    let seen = async |reuse: Reuse| {
        let handler = handler(&fixture, COUNT, Spec { reuse, ..Spec::default() }).await;
        let mut all = String::new();
        for _ in 0..6 {
            all += &text(soon(handler.call(get())).await.unwrap()).await;
        }
        all
    };
    assert_eq!(seen(Reuse::Never).await, "000000");
    assert_eq!(seen(Reuse::Requests { most: 4, idle: common::PATIENCE }).await, "012301");
    let handler = handler(
        &fixture,
        COUNT,
        Spec { reuse: Reuse::Requests { most: 100, idle: Duration::from_millis(1) }, ..Spec::default() },
    )
    .await;
    soon(handler.call(get())).await.unwrap();
    until("the unused instance goes", || (fixture.runtime.metrics().slots_in_use == 0).then_some(())).await;
    assert_eq!(text(soon(handler.call(get())).await.unwrap()).await, "0");
}

#[tokio::test]
async fn a_reused_instance_that_traps_is_not_used_again() {
    let fixture = fixture();
    let code = format!("(if (i32.eq (global.get $count) (i32.const 2)) (then unreachable)) {COUNT}");
    let spec = Spec { reuse: Reuse::Requests { most: 100, idle: common::PATIENCE }, ..Spec::default() };
    let handler = handler(&fixture, &code, spec).await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(match soon(handler.call(get())).await {
            Ok(response) => text(response).await,
            Err(error) => error.status().to_string(),
        });
    }
    assert_eq!(all, ["0", "1", "500 Internal Server Error", "0", "1"]);
}

#[tokio::test]
async fn concurrency_is_bounded_and_the_rest_waits() {
    let fixture = fixture();
    let timeout = Duration::from_millis(50);
    let limits = HttpLimits { max_concurrency: 1, timeout, ..HttpLimits::default() };
    let spinning = handler(&fixture, "(loop $l (br $l))", Spec { http: limits, ..Spec::default() }).await;
    let calls = [soon(spinning.call(get())), soon(spinning.call(get())), soon(spinning.call(get()))];
    for result in futures::future::join_all(calls).await {
        let error = result.map(drop).unwrap_err();
        assert!(matches!(error, CallError::TimedOut(_) | CallError::Busy(_)), "{error}");
    }
    assert_eq!(spinning.spec().usage.memory_peak(), 1 << 16, "there never were two instances");

    let limits = HttpLimits { max_concurrency: 2, ..HttpLimits::default() };
    let hello = handler(&fixture, HELLO, Spec { http: limits, ..Spec::default() }).await;
    let calls = (0..40).map(|_| {
        let hello = hello.clone();
        tokio::spawn(async move { text(hello.call(get()).await.unwrap()).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(soon(call).await.unwrap(), "hello wat\n");
    }
}

#[tokio::test]
async fn requests_share_their_guests_part_of_the_processor() {
    let fixture = fixture();
    let count = "(local $i i32) (loop $l (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 500000))))";
    let spec = Spec { cpu_millis: Some(100), ..Spec::default() };
    let handler = handler(&fixture, &format!("{count} {HELLO}"), spec).await;
    let (begun, usage) = (std::time::Instant::now(), Arc::clone(&handler.spec().usage));
    let mut before = Duration::ZERO;
    while usage.cpu() < Duration::from_millis(30) {
        before = usage.cpu();
        assert_eq!(text(soon(handler.call(get())).await.unwrap()).await, "hello wat\n");
    }
    // The last one began when the others were paid for: ten times what they used, less the burst.
    assert!(begun.elapsed() + Duration::from_millis(100) >= before * 10, "{before:?}");
}

#[tokio::test]
async fn a_stopping_handler_drains_and_then_ends_the_rest() {
    let fixture = fixture();
    let handler = handler(&fixture, "(loop $l (br $l))", Spec::default()).await;
    let call = tokio::spawn({
        let handler = handler.clone();
        async move { handler.call(get()).await.map(drop) }
    });
    until("it computes", || (handler.in_flight() == 1).then_some(())).await;
    soon(handler.stop(Duration::from_millis(10))).await;
    assert!(matches!(soon(call).await.unwrap(), Err(CallError::Stopped)));
    assert!(matches!(handler.call(get()).await, Err(CallError::Stopped)));
    until("its slot is free", || (fixture.runtime.metrics().slots_in_use == 0).then_some(())).await;
}

#[tokio::test]
async fn kinds_are_not_mixed_up() {
    let fixture = fixture();
    let http = fixture.http(&http_guest(HELLO)).await;
    assert!(matches!(
        http.run(Spec::default(), StopSignal::new()).await,
        Err(Error::Kind { wanted: "run", .. })
    ));
    let module = fixture.module(&common::command("")).await;
    let error = module.handler(Spec::default()).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "program is a WASI 0.1 command module, which cannot be served");
}

#[tokio::test]
async fn neighbours_of_bad_guests_go_on() {
    let fixture = fixture();
    let bad = handler(&fixture, "unreachable", Spec::default()).await;
    let spin = handler(&fixture, "(loop $l (br $l))", timeout(300)).await;
    let spinning = tokio::spawn({
        let spin = spin.clone();
        async move { spin.call(get()).await.map(drop) }
    });
    let usage = Arc::new(Usage::default());
    let good = handler(&fixture, HELLO, Spec { usage: usage.clone(), ..Spec::default() }).await;
    for _ in 0..50 {
        assert!(soon(bad.call(get())).await.is_err());
        assert_eq!(text(soon(good.call(get())).await.unwrap()).await, "hello wat\n");
    }
    assert_eq!(usage.requests(), 50);
    assert!(matches!(soon(spinning).await.unwrap(), Err(CallError::TimedOut(_))));
    let looping = fixture.module(&common::command("unreachable")).await;
    let exit = soon(looping.run(Spec::default(), StopSignal::new())).await.unwrap();
    assert!(matches!(exit.reason, ExitReason::Trapped { .. }));
}

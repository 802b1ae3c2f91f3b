//! Answers what it was asked and which variables it has.

use std::sync::atomic::{AtomicU32, Ordering};

use wasmk_guest::{Request, Response, env};

wasmk_guest::serve!(hello);

/// Requests this instance has seen.
static SEEN: AtomicU32 = AtomicU32::new(0);

fn hello(request: Request) -> Response {
    let target = env("TARGET").unwrap_or_else(|| "world".into());
    let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
    println!("{} {}", request.method(), request.path());
    Response::text(format!("hello {target}\n"))
        .with_header("x-seen", &seen.to_string())
        .with_header("x-method", request.method())
        .with_header("x-path", request.path())
        .with_header("x-query", request.query().unwrap_or("none"))
        .with_header("x-authority", request.authority())
}

//! `/N` is N random bytes, at most a mebibyte of them; `/` says who answers. Slow on purpose, as dockercoins is.

use std::{thread, time::Duration};

use wasmk_guest::{Request, Response, env, wasip2};

wasmk_guest::serve!(answer);
wasmk_guest::reusable!(1000);

/// What an answer takes.
const PAUSE: Duration = Duration::from_millis(100);
const MOST: u64 = 1 << 20;

fn answer(request: Request) -> Response {
    let path = request.path().trim_start_matches('/');
    if path.is_empty() {
        return Response::text(format!("RNG running on {}\n", env("HOSTNAME").unwrap_or_default()));
    }
    match path.parse() {
        Ok(count) if count <= MOST => {
            thread::sleep(PAUSE);
            Response::bytes("application/octet-stream", wasip2::random::random::get_random_bytes(count))
        }
        _ => Response::text(format!("a number of bytes up to {MOST} was expected\n")).with_status(400),
    }
}

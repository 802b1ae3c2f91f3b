//! The page that shows how fast coins are mined: `/` draws what `/json` counts.

use std::time::SystemTime;

use wasmk_guest::{Request, Response};

wasmk_guest::serve!(answer);

const PAGE: &str = include_str!("index.html");

fn answer(request: Request) -> Response {
    match request.path() {
        "/" | "/index.html" => Response::bytes("text/html; charset=utf-8", PAGE),
        "/json" => match counts() {
            Ok(json) => Response::json(json),
            Err(error) => Response::text(format!("redis: {error}\n")).with_status(502),
        },
        _ => Response::text("not found\n").with_status(404),
    }
}

fn counts() -> std::io::Result<String> {
    let mut redis = resp::Client::connect("redis", 6379)?;
    let hashes = redis.call(&["GET", "hashes"])?.number();
    let coins = redis.call(&["HLEN", "wallet"])?.number();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok(format!("{{\"coins\":{coins},\"hashes\":{hashes},\"now\":{now:.3}}}"))
}

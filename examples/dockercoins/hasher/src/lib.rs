//! POST a body, get its SHA-256 in hexadecimal; GET says who answers. Slow on purpose, as dockercoins is.

use std::{fmt::Write, thread, time::Duration};

use sha2::{Digest, Sha256};
use wasmk_guest::{Request, Response, env};

wasmk_guest::serve!(answer);
wasmk_guest::reusable!(1000);

/// What an answer takes.
const PAUSE: Duration = Duration::from_millis(100);

fn answer(mut request: Request) -> Response {
    if request.method() != "POST" {
        return Response::text(format!("HASHER running on {}\n", env("HOSTNAME").unwrap_or_default()));
    }
    thread::sleep(PAUSE);
    match request.bytes() {
        Ok(body) => {
            let mut text = String::new();
            for byte in Sha256::digest(&body) {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
            }
            Response::text(text)
        }
        Err(error) => Response::text(format!("{error}\n")).with_status(400),
    }
}

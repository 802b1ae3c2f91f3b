//! Sends the request's body back, each piece as it comes.

use std::io;

use wasmk_guest::{Request, Response};

wasmk_guest::serve!(echo);

fn echo(request: Request) -> Response {
    let media_type = request.header("content-type").unwrap_or("application/octet-stream").to_owned();
    let mut body = request.into_body();
    Response::stream(move |out| io::copy(&mut body, out).map(drop)).with_header("content-type", &media_type)
}

//! Says hello to `$TARGET`.

use wasmk_guest::{Request, Response, env};

wasmk_guest::serve!(hello);
// It keeps nothing from one request to the next.
wasmk_guest::reusable!(10000);

fn hello(_request: Request) -> Response {
    let target = env("TARGET").unwrap_or_else(|| "world".into());
    Response::text(format!("hello {target}\n"))
}

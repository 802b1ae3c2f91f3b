//! Answers every request with `$PAGE`: a stand-in for images that serve one page.

use wasmk_guest::{Request, Response, env};

wasmk_guest::serve!(answer);
wasmk_guest::reusable!(10000);

fn answer(_request: Request) -> Response {
    let page = env("PAGE").unwrap_or_else(|| "Set PAGE to what is to be answered.".into());
    let kind = if page.starts_with('<') { "text/html" } else { "text/plain" };
    Response::bytes(&format!("{kind}; charset=utf-8"), format!("{page}\n"))
}

//! Fetches the URL in the request's query and passes the answer on; says 502 and why if there is none.

use wasmk_guest::{Request, Response, fetch};

wasmk_guest::serve!(pass_on);

fn pass_on(mut request: Request) -> Response {
    let url = request.query().unwrap_or_default().to_owned();
    let method = request.method().to_owned();
    let body = request.bytes().unwrap_or_default();
    match fetch(&method, &url, &Default::default(), &body) {
        Ok(mut answer) => {
            let text = answer.text().unwrap_or_else(|error| format!("broken off: {error}"));
            Response::text(text).with_status(answer.status())
        }
        Err(error) => Response::text(format!("{error}\n")).with_status(502),
    }
}

//! Between the interface of `wasi:http` and a function.

use std::io::{self, Write};

use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

use crate::response::Content;
use crate::{BodyWriter, IntoResponse, Request, Response};

/// Answers one request with what `function` gives.
pub fn serve<R: IntoResponse>(
    request: IncomingRequest,
    out: ResponseOutparam,
    function: impl FnOnce(Request) -> R,
) {
    let response = function(Request::new(request)).into_response();
    match head(&response) {
        Ok((head, body)) => {
            ResponseOutparam::set(out, Ok(head));
            if let Err(error) = send(response.body, body) {
                // Most often a client that has gone; nobody else is left to tell.
                eprintln!("response was not sent in full: {error}");
            }
        }
        Err(message) => ResponseOutparam::set(out, Err(ErrorCode::InternalError(Some(message)))),
    }
}

fn head(response: &Response) -> Result<(OutgoingResponse, OutgoingBody), String> {
    let entries = response.headers.clone().into_entries();
    let fields = Fields::from_list(&entries).map_err(|error| format!("header fields: {error:?}"))?;
    let head = OutgoingResponse::new(fields);
    let status = response.status;
    head.set_status_code(status).map_err(|()| format!("{status} is no status"))?;
    let body = head.body().map_err(|()| "response has no body".to_owned())?;
    Ok((head, body))
}

fn send(content: Content, body: OutgoingBody) -> io::Result<()> {
    let mut writer = BodyWriter::new(body);
    match content {
        Content::Bytes(bytes) => writer.write_all(&bytes)?,
        Content::Stream(write) => write(&mut writer)?,
    }
    writer.finish()
}

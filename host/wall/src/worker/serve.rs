//! Requests for a worker's guests, as they come by a connection from the agent.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use wasmk_runtime::{Body, CallError};

use super::guests::Guests;
use crate::message::{
    CONNECTION_WINDOW, FAULT_HEADER, GUEST_HEADER, MAX_HEADERS, MAX_STREAMS, ORIGIN_HEADER, STREAM_WINDOW,
    WireFault,
};

/// Answers until the agent closes the connection.
pub(super) async fn connection(socket: UnixStream, guests: Arc<Guests>) {
    let service = service_fn(move |request| {
        let guests = Arc::clone(&guests);
        async move { Ok::<_, Infallible>(answer(&guests, request).await) }
    });
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .max_concurrent_streams(MAX_STREAMS)
        // Clients that leave are the agent's affair.
        .max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
        .max_local_error_reset_streams(None)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS);
    // How it ends the agent knows as well.
    let _ = server.serve_connection(TokioIo::new(socket), service).await;
}

async fn answer(guests: &Guests, mut request: Request<Incoming>) -> Response<Body> {
    let number = request.headers_mut().remove(GUEST_HEADER);
    let number = number.and_then(|value| value.to_str().ok()?.parse().ok());
    let handler = match number {
        Some(number) => guests.handler(number).await,
        None => None,
    };
    let Some(handler) = handler else {
        return fault(&CallError::Stopped);
    };
    if request.headers_mut().remove(ORIGIN_HEADER).is_some() {
        let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
    }
    match handler.call(request.map(|body| wasmk_runtime::boxed(body.map_err(Box::new)))).await {
        Ok(mut response) => {
            // Only a worker says that.
            response.headers_mut().remove(FAULT_HEADER);
            response
        }
        Err(error) => fault(&error),
    }
}

/// Says why there is no answer of a guest.
fn fault(error: &CallError) -> Response<Body> {
    let backtrace = match error {
        CallError::Trapped { backtrace, .. } => backtrace.clone(),
        _ => String::new(),
    };
    let body = WireFault { text: error.to_string(), backtrace };
    let mut response = Response::new(wasmk_runtime::full(postcard::to_allocvec(&body).unwrap_or_default()));
    let status: StatusCode = error.status();
    *response.status_mut() = status;
    response.headers_mut().insert(HeaderName::from_static(FAULT_HEADER), HeaderValue::from_static("1"));
    response
}

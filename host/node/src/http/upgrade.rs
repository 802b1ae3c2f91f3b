//! Answers to clients that want to leave HTTP: for the streams of SPDY/3.1, or for a WebSocket.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The streams' own protocol.
pub(super) const SPDY: &str = "SPDY/3.1";
/// Names the protocol inside the streams.
pub(super) const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Whether the client asks for SPDY.
pub(super) fn wants_spdy(headers: &HeaderMap) -> bool {
    wants(headers, SPDY)
}

/// Whether one of a header's values, comma separated or repeated, is `wanted`.
pub(super) fn offers(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim() == wanted)
}

/// The switch to SPDY with that protocol inside its streams.
pub(super) fn to_spdy(protocol: &'static str) -> Response {
    let value = HeaderValue::from_static;
    switch([(header::UPGRADE, value(SPDY)), (VERSION, value(protocol))])
}

/// The switch to a WebSocket with the first of these protocols that the client offers, and its place among them;
/// none when the client does not ask for that.
pub(super) fn to_websocket(headers: &HeaderMap, protocols: &[&'static str]) -> Option<(Response, usize)> {
    if !wants(headers, "websocket") {
        return None;
    }
    let place = protocols.iter().position(|p| offers(headers, &header::SEC_WEBSOCKET_PROTOCOL, p))?;
    let accept = derive_accept_key(headers.get(header::SEC_WEBSOCKET_KEY)?.as_bytes());
    let response = switch([
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, accept.parse().ok()?),
        (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols[place])),
    ]);
    Some((response, place))
}

fn wants(headers: &HeaderMap, what: &str) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(what.as_bytes()))
}

fn switch<const N: usize>(fields: [(HeaderName, HeaderValue); N]) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().extend(fields);
    response
}

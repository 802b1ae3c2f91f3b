//! What a function answers.

use std::fmt::Display;
use std::io;

use crate::{BodyWriter, Headers};

/// An HTTP response.
pub struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Content,
}

/// Sends a body piece by piece.
type Send = Box<dyn FnOnce(&mut BodyWriter) -> io::Result<()>>;

pub(crate) enum Content {
    Bytes(Vec<u8>),
    Stream(Send),
}

impl Response {
    /// A response of this status without a body.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Headers::default(), body: Content::Bytes(Vec::new()) }
    }

    /// Text, with status 200.
    ///
    /// ```
    /// let response = wasmk_guest::Response::text("hello\n").with_status(201);
    /// assert_eq!(response.status(), 201);
    /// assert_eq!(response.headers().get("content-type"), Some("text/plain; charset=utf-8"));
    /// ```
    pub fn text(text: impl Into<String>) -> Self {
        Self::bytes("text/plain; charset=utf-8", text.into())
    }

    /// JSON that is encoded already, with status 200.
    pub fn json(json: impl Into<String>) -> Self {
        Self::bytes("application/json", json.into())
    }

    /// Anything that serde knows as JSON, with status 200; 500 if it cannot be JSON.
    #[cfg(feature = "json")]
    pub fn json_of<T: serde::Serialize + ?Sized>(value: &T) -> Self {
        match serde_json::to_string(value) {
            Ok(text) => Self::json(text),
            Err(error) => Self::text(format!("{error}\n")).with_status(500),
        }
    }

    /// Bytes of a media type, with status 200.
    pub fn bytes(media_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let mut response = Self::new(200).with_header("content-type", media_type);
        response.body = Content::Bytes(bytes.into());
        response
    }

    /// A body that `write` sends piece by piece, with status 200. An error breaks the body off.
    pub fn stream(write: impl FnOnce(&mut BodyWriter) -> io::Result<()> + 'static) -> Self {
        Self { body: Content::Stream(Box::new(write)), ..Self::new(200) }
    }

    /// The same with another status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same with a header field set.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.set(name, value);
        self
    }

    /// Its status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Its header fields.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }
}

/// What a function may give.
pub trait IntoResponse {
    /// As a response.
    fn into_response(self) -> Response;
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

impl IntoResponse for &str {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

/// An error is told to the log and to the client, as status 500.
impl<T: IntoResponse, E: Display> IntoResponse for Result<T, E> {
    fn into_response(self) -> Response {
        match self {
            Ok(value) => value.into_response(),
            Err(error) => {
                eprintln!("error: {error}");
                Response::text(format!("{error}\n")).with_status(500)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_becomes_a_response() {
        assert_eq!("x".into_response().status(), 200);
        assert_eq!(String::new().into_response().status(), 200);
        assert_eq!(Ok::<_, io::Error>("x").into_response().status(), 200);
        assert_eq!(Err::<&str, _>("no").into_response().status(), 500);
        #[cfg(feature = "json")]
        assert_eq!(Response::json_of(&[1, 2]).status(), 200);
        assert_eq!(Response::json("{}").headers().get("Content-Type"), Some("application/json"));
    }
}

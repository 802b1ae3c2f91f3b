//! What a function is asked.

use std::io::{self, Read};

use wasip2::http::types::{IncomingRequest, Method};

use crate::{BodyReader, Headers};

/// An HTTP request.
pub struct Request {
    method: String,
    target: String,
    authority: String,
    headers: Headers,
    body: BodyReader,
}

impl Request {
    pub(crate) fn new(request: IncomingRequest) -> Self {
        Self {
            method: method(request.method()),
            target: request.path_with_query().unwrap_or_else(|| "/".into()),
            authority: request.authority().unwrap_or_default(),
            headers: Headers::from_entries(request.headers().entries()),
            body: BodyReader::new(request.consume().ok()),
        }
    }

    /// A request with no header fields and no body, for tests of a function.
    pub fn of(method: &str, target: &str) -> Self {
        Self {
            method: method.to_ascii_uppercase(),
            target: target.to_owned(),
            authority: "localhost".to_owned(),
            headers: Headers::default(),
            body: BodyReader::new(None),
        }
    }

    /// The method in capitals, such as `GET`.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    /// What follows the path's question mark, undecoded.
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    /// The host asked for, with its port if one was given.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The header fields.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The first value of a header field, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The body as a stream.
    pub fn body(&mut self) -> &mut BodyReader {
        &mut self.body
    }

    /// Gives up the rest of the request for its body.
    pub fn into_body(self) -> BodyReader {
        self.body
    }

    /// The whole body.
    ///
    /// # Errors
    /// If the client broke off or the body is longer than the function's limits allow.
    pub fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.body.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), or if it is not of that form.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(&mut self) -> io::Result<T> {
        serde_json::from_slice(&self.bytes()?).map_err(io::Error::other)
    }

    /// The whole body as text.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), or if it is not UTF-8.
    pub fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?).map_err(io::Error::other)
    }
}

fn method(method: Method) -> String {
    match method {
        Method::Get => "GET".into(),
        Method::Head => "HEAD".into(),
        Method::Post => "POST".into(),
        Method::Put => "PUT".into(),
        Method::Delete => "DELETE".into(),
        Method::Connect => "CONNECT".into(),
        Method::Options => "OPTIONS".into(),
        Method::Trace => "TRACE".into(),
        Method::Patch => "PATCH".into(),
        Method::Other(name) => name,
    }
}

//! Requests to others.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, Method, OutgoingRequest, Scheme};

use crate::{BodyReader, BodyWriter, Headers};

/// An answer to [`fetch`].
pub struct Fetched {
    status: u16,
    headers: Headers,
    body: BodyReader,
}

impl Fetched {
    /// Its status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Its header fields.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Its body as a stream.
    pub fn body(&mut self) -> &mut BodyReader {
        &mut self.body
    }

    /// Its whole body as text.
    ///
    /// # Errors
    /// If the other side broke off or the body is not UTF-8.
    pub fn text(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.body.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Sends an HTTP request and waits for the head of its answer.
///
/// ```no_run
/// let mut answer = wasmk_guest::fetch("GET", "http://other.default.svc/", &Default::default(), b"")?;
/// assert_eq!(answer.text()?, "hello\n");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// If the URL is malformed, or the request is refused, cannot be sent or is not answered.
pub fn fetch(method: &str, url: &str, headers: &Headers, body: &[u8]) -> io::Result<Fetched> {
    let parts = Url::parse(url).ok_or_else(|| invalid("URL", url))?;
    let fields = Fields::from_list(&headers.clone().into_entries()).map_err(|error| failed(&error))?;
    let request = OutgoingRequest::new(fields);
    request.set_method(&to_method(method)).map_err(|()| invalid("method", method))?;
    request.set_scheme(Some(&parts.scheme)).map_err(|()| invalid("URL", url))?;
    request.set_authority(Some(parts.authority)).map_err(|()| invalid("URL", url))?;
    request.set_path_with_query(Some(&*parts.path)).map_err(|()| invalid("URL", url))?;
    let outgoing = request.body().map_err(|()| io::Error::other("request has no body"))?;
    let answer = outgoing_handler::handle(request, None).map_err(|code| failed(&code))?;
    let mut writer = BodyWriter::new(outgoing);
    writer.write_all(body)?;
    writer.finish()?;
    answer.subscribe().block();
    let response = match answer.get() {
        Some(Ok(response)) => response.map_err(|code| failed(&code))?,
        Some(Err(())) | None => return Err(io::Error::other("no answer")),
    };
    Ok(Fetched {
        status: response.status(),
        headers: Headers::from_entries(response.headers().entries()),
        body: BodyReader::new(response.consume().ok()),
    })
}

fn invalid(what: &str, value: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{value:?} is no {what}"))
}

fn failed(code: &dyn std::fmt::Debug) -> io::Error {
    io::Error::other(format!("{code:?}"))
}

fn to_method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        "PATCH" => Method::Patch,
        other => Method::Other(other.into()),
    }
}

struct Url<'a> {
    scheme: Scheme,
    authority: &'a str,
    path: Cow<'a, str>,
}

impl<'a> Url<'a> {
    fn parse(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        // What follows is for the client alone.
        let rest = rest.split('#').next().unwrap_or("");
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path: Cow<'a, str> = if path.starts_with('/') { path.into() } else { format!("/{path}").into() };
        (!authority.is_empty()).then_some(Self { scheme, authority, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split() {
        let check = |url: &str, expect: Option<(&str, &str)>| {
            let parsed = Url::parse(url);
            assert_eq!(parsed.as_ref().map(|url| (url.authority, &*url.path)), expect, "{url}");
        };
        check("http://a.example", Some(("a.example", "/")));
        check("https://a.example:1/b?c=d", Some(("a.example:1", "/b?c=d")));
        check("http://a?b", Some(("a", "/?b")));
        check("http://a/b?c#d?e/f", Some(("a", "/b?c")));
        check("http://a#b", Some(("a", "/")));
        check("ftp://a/", None);
        check("http:///x", None);
        check("a.example/x", None);
    }
}

//! The heads of requests and answers, as CGI writes them.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Response, StatusCode};

/// Headers of an answer that are the connection's and not the command's.
const NOT_ITS_OWN: [HeaderName; 4] = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE];

/// The variables that tell a command its request. `length`: bytes of its body.
pub(super) fn variables(parts: &Parts, length: u64) -> Vec<(String, String)> {
    let header = |name: &HeaderName| text(parts.headers.get(name));
    let host = parts.uri.authority().map_or_else(|| header(&HOST), |authority| authority.to_string());
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() => {
            (name.to_owned(), port.to_owned())
        }
        _ => (host.clone(), "80".into()),
    };
    let client = text(parts.headers.get("x-forwarded-for"));
    let client = client.split(',').next().unwrap_or_default().trim().to_owned();
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let mut all = vec![
        ("GATEWAY_INTERFACE", "CGI/1.1".to_owned()),
        ("SERVER_SOFTWARE", concat!("wasmk/", env!("CARGO_PKG_VERSION")).to_owned()),
        ("SERVER_PROTOCOL", "HTTP/1.1".to_owned()),
        ("SERVER_NAME", name),
        ("SERVER_PORT", port),
        ("REQUEST_METHOD", parts.method.to_string()),
        ("REQUEST_URI", path),
        ("SCRIPT_NAME", String::new()),
        ("PATH_INFO", parts.uri.path().to_owned()),
        ("QUERY_STRING", parts.uri.query().unwrap_or_default().to_owned()),
        ("REMOTE_ADDR", client),
        ("HTTP_HOST", host),
    ];
    if length > 0 {
        all.push(("CONTENT_LENGTH", length.to_string()));
    }
    if parts.headers.contains_key(CONTENT_TYPE) {
        all.push(("CONTENT_TYPE", header(&CONTENT_TYPE)));
    }
    let mut all: Vec<(String, String)> = all.into_iter().map(|(name, value)| (name.into(), value)).collect();
    all.extend(headers(&parts.headers));
    all
}

/// The request's headers as variables; several of one name are one, as a list.
fn headers(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> {
    let passed = |name: &&HeaderName| {
        // `Proxy` would be the variable that HTTP clients take for their proxy, and two names that differ in
        // `-` and `_` only would be the same variable.
        !name.as_str().contains('_')
            && name.as_str() != "proxy"
            && ![HOST, CONTENT_LENGTH, CONTENT_TYPE].contains(name)
    };
    headers.keys().filter(passed).map(|name| {
        let separator = if *name == COOKIE { "; " } else { ", " };
        let values: Vec<String> = headers.get_all(name).iter().map(|value| text(Some(value))).collect();
        (format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_")), values.join(separator))
    })
}

fn text(value: Option<&HeaderValue>) -> String {
    value.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
}

/// The length of the head that `printed` begins with, its empty line included; nothing while it has not ended.
/// `from`: where to begin to look.
pub(super) fn end(printed: &[u8], from: usize) -> Option<usize> {
    let lines = (from..printed.len()).filter(|at| printed[*at] == b'\n');
    lines.into_iter().find_map(|at| match printed.get(at + 1..) {
        Some([b'\n', ..]) => Some(at + 2),
        Some([b'\r', b'\n', ..]) => Some(at + 3),
        _ => None,
    })
}

/// The answer that a head says.
///
/// # Errors
/// In words, which line is not what it should be.
pub(super) fn answer(head: &[u8]) -> Result<Response<()>, String> {
    let head = std::str::from_utf8(head).map_err(|_| "a head that is not UTF-8")?;
    let mut response = Response::new(());
    let (mut status, mut any) = (None, false);
    for line in head.lines().filter(|line| !line.trim().is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| {
            format!("the line {:?} before an empty one, where NAME: VALUE was expected", shown(line))
        })?;
        let (name, value) = (name.trim(), value.trim());
        any = true;
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().and_then(|code| code.parse::<u16>().ok());
            let code = code.filter(|code| *code >= 200).and_then(|code| StatusCode::from_u16(code).ok());
            status = Some(code.ok_or_else(|| format!("the status {:?}", shown(value)))?);
            continue;
        }
        let bad = || format!("the header {:?}", shown(line));
        let name = HeaderName::try_from(name).map_err(|_| bad())?;
        let value = HeaderValue::try_from(value).map_err(|_| bad())?;
        if !NOT_ITS_OWN.contains(&name) {
            response.headers_mut().try_append(name, value).map_err(|_| "too many headers")?;
        }
    }
    if !any {
        return Err("no header before its first empty line".into());
    }
    let moved = response.headers().contains_key(LOCATION);
    *response.status_mut() = status.unwrap_or(if moved { StatusCode::FOUND } else { StatusCode::OK });
    Ok(response)
}

/// As much of a text as an error says.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_request_becomes_variables() {
        let request = Request::builder()
            .method("POST")
            .uri("/a%20b?x=1&y")
            .header("host", "hello.default.example.com:8080")
            .header("content-type", "text/plain")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("accept", "x")
            .header("accept", "y")
            .header("x-forwarded-for", "192.0.2.7, 127.0.0.1")
            .header("proxy", "http://evil.example")
            .header("x_forwarded_for", "0.0.0.0");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let all: std::collections::BTreeMap<_, _> = variables(&parts, 5).into_iter().collect();
        for (name, value) in [
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_URI", "/a%20b?x=1&y"),
            ("PATH_INFO", "/a%20b"),
            ("QUERY_STRING", "x=1&y"),
            ("SERVER_NAME", "hello.default.example.com"),
            ("SERVER_PORT", "8080"),
            ("CONTENT_LENGTH", "5"),
            ("CONTENT_TYPE", "text/plain"),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("HTTP_HOST", "hello.default.example.com:8080"),
            ("HTTP_COOKIE", "a=1; b=2"),
            ("HTTP_ACCEPT", "x, y"),
            ("HTTP_X_FORWARDED_FOR", "192.0.2.7, 127.0.0.1"),
        ] {
            assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!all.contains_key("HTTP_PROXY") && !all.contains_key("HTTP_CONTENT_TYPE"));
    }

    fn check(head: &str, expect: Result<(u16, &str), &str>) {
        let found = answer(head.as_bytes());
        let found = found.as_ref().map(|r| (r.status().as_u16(), text(r.headers().get("x"))));
        match (found, expect) {
            (Ok((status, x)), Ok(expect)) => assert_eq!((status, &*x), expect, "{head:?}"),
            (Err(why), Err(expect)) => assert!(why.contains(expect), "{head:?}: {why}"),
            (found, expect) => panic!("{head:?}: {found:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn a_head_becomes_an_answer() {
        check("Status: 201 Created\r\nX: y\r\n\r\n", Ok((201, "y")));
        check("x:1\n\n", Ok((200, "1")));
        check("Location: /there\n\n", Ok((302, "")));
        check("Location: /there\nstatus: 308\n\n", Ok((308, "")));
        check("Content-Length: 9\nTransfer-Encoding: chunked\nx: a\n\n", Ok((200, "a")));
        check("\n", Err("no header"));
        check("hello\n\n", Err("\"hello\""));
        check("a b: c\n\n", Err("a b: c"));
        check("Status: fine\n\n", Err("fine"));
        check("Status: 100\n\n", Err("100"));
    }

    #[test]
    fn a_head_ends_at_its_empty_line() {
        for (printed, expect) in [
            ("", None),
            ("a: b\r\n", None),
            ("a: b\r\n\r", None),
            ("a: b\r\n\r\nbody\n\n", Some(8)),
            ("a: b\n\nbody", Some(6)),
        ] {
            assert_eq!(end(printed.as_bytes(), 0), expect, "{printed:?}");
        }
    }
}

//! What every proxy reads in the head of a message, and does to the headers that it passes on.

use std::{borrow::Cow, net::IpAddr};

use http::{
    HeaderMap, HeaderValue, Version,
    header::{self, HeaderName},
};

/// Headers that concern one connection only (RFC 9110, 7.6.1), and those that long did by custom.
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes what concerned the connection that a message came by: what `Connection` names, and what always
/// does.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers).filter_map(|name| name.parse().ok()).collect();
    named.iter().chain(&HOP_BY_HOP).for_each(|name| drop(headers.remove(name)));
}

/// Whether a request asks for another protocol on its connection.
pub fn wants_upgrade(version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11
        && headers.contains_key(header::UPGRADE)
        && tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// [Strips](strip_hop_by_hop) a request's headers; with `upgrade`, it goes on asking for its protocol.
pub fn strip_request(headers: &mut HeaderMap, upgrade: bool) {
    let protocol = headers.remove(header::UPGRADE).filter(|_| upgrade);
    strip_hop_by_hop(headers);
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Adds to a request's headers who asked, and for what host (its own `Host` unless `host` is given) and how, as
/// proxies do. What a proxy before this one says of host and protocol stays: it is the one that ends TLS.
pub fn add_forwarded(headers: &mut HeaderMap, client: &HeaderValue, host: Option<HeaderValue>) {
    const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    let chain = headers.get(&FOR).map(|before| [before.as_bytes(), b", ", client.as_bytes()].concat());
    let chain = chain.and_then(|chain| HeaderValue::from_bytes(&chain).ok());
    headers.insert(FOR, chain.unwrap_or_else(|| client.clone()));
    if let Some(host) = host.or_else(|| headers.get(header::HOST).cloned()) {
        headers.entry(HOST).or_insert(host);
    }
    headers.entry(PROTO).or_insert(HeaderValue::from_static("http"));
}

/// An address as the value of a header.
pub fn address_value(address: IpAddr) -> HeaderValue {
    HeaderValue::try_from(address.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// The host that a `Host` header or an authority names, without port and in lower case; borrowed where nothing
/// is to change.
pub fn request_host(host: &str) -> Cow<'_, str> {
    let name = match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    let name = name.trim_end_matches('.');
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return name.to_ascii_lowercase().into();
    }
    name.into()
}

/// What the `Connection` headers name.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(text: &str) -> HeaderMap {
        let fields = text.split("; ").filter_map(|f| f.split_once(": "));
        fields.map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn what_concerns_one_connection_is_not_passed_on() {
        let check = |given: &str, upgrade: bool, expect: &str| {
            let mut found = headers(given);
            strip_request(&mut found, upgrade);
            assert_eq!(found, headers(expect), "{given}");
        };
        check("a: 1; te: trailers; trailer: a; keep-alive: 5", false, "a: 1");
        check("a: 1; b: 2; c: 3; connection: a,  C ,close", false, "b: 2");
        let upgrade = "a: 1; connection: Upgrade; upgrade: websocket";
        check(upgrade, false, "a: 1");
        check(upgrade, true, "a: 1; connection: upgrade; upgrade: websocket");
        check("a: 1", true, "a: 1");
    }

    #[test]
    fn who_asked_is_passed_on() {
        let check = |given: &str, host: Option<&'static str>, expect: &str| {
            let mut found = headers(given);
            let client = address_value("10.0.0.7".parse().unwrap());
            add_forwarded(&mut found, &client, host.map(HeaderValue::from_static));
            assert_eq!(found, headers(expect), "{given}");
        };
        let ours = "x-forwarded-for: 10.0.0.7; x-forwarded-host: a:80; x-forwarded-proto: http";
        check("host: a:80", None, &format!("host: a:80; {ours}"));
        check("", Some("a:80"), ours);
        let before = "x-forwarded-for: 10.0.0.1; x-forwarded-host: first; x-forwarded-proto: https";
        check(before, Some("a:80"), &before.replace("10.0.0.1", "10.0.0.1, 10.0.0.7"));
    }

    #[test]
    fn hosts_have_no_ports_and_no_capitals() {
        for given in
            ["Hello.Default.Example.Com:8080", "hello.default.example.com.", "hello.default.example.com"]
        {
            assert_eq!(request_host(given), "hello.default.example.com");
        }
        assert_eq!(request_host("[::1]:80"), "::1");
    }

    #[test]
    fn requests_for_another_protocol() {
        let check = |version, text: &str, expect: bool| {
            assert_eq!(wants_upgrade(version, &headers(text)), expect, "{text}");
        };
        check(Version::HTTP_11, "connection: keep-alive, Upgrade; upgrade: websocket", true);
        check(Version::HTTP_10, "connection: upgrade; upgrade: websocket", false);
        check(Version::HTTP_11, "connection: upgrade", false);
        check(Version::HTTP_11, "upgrade: websocket", false);
    }
}

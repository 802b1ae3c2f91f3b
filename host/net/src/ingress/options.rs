//! What annotations say of an Ingress. Those of ingress-nginx count, with `nginx.` in front or without, and two of
//! Traefik's; others mean nothing here.

use std::collections::BTreeMap;

use http::HeaderMap;

/// Whose annotations are read, the first before the second.
const PREFIXES: [&str; 2] = ["nginx.ingress.kubernetes.io/", "ingress.kubernetes.io/"];
/// How Traefik names a rule that takes its path away.
const RULE_TYPES: [&str; 2] = ["traefik.ingress.kubernetes.io/rule-type", "traefik.frontend.rule.type"];
/// The cookie of a client that is to stay with its pod, unless another name is chosen.
const STICKY: &str = "INGRESSCOOKIE";
/// Requests that may come at once, as a multiple of those in a second.
const BURST: u32 = 5;

/// The features of one Ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What becomes of the path.
    pub rewrite: Rewrite,
    /// Paths are patterns.
    pub patterns: bool,
    /// Which plain requests are sent to HTTPS.
    pub redirect: Redirect,
    /// The Ingress takes a part of another's requests.
    pub canary: Option<Canary>,
    /// Clients stay with their pod by this cookie.
    pub sticky: Option<Sticky>,
    /// Requests of one client in a second, and at once.
    pub limit: Option<(u32, u32)>,
    /// Pods are spoken to by HTTP/2 without TLS, as gRPC is.
    pub http2: bool,
}

/// What becomes of a request's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rewrite {
    /// It stays.
    #[default]
    No,
    /// What the rule matched is taken away.
    Strip,
    /// What the rule matched is replaced.
    To(String),
}

/// Which plain requests are sent to HTTPS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirect {
    /// None.
    #[default]
    Never,
    /// Those of an Ingress with certificates.
    WithTls,
    /// All.
    Always,
}

/// A cookie that keeps clients with their pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// Its name.
    pub cookie: String,
    /// Its path.
    pub path: String,
    /// Seconds it lasts; a session if not said.
    pub age: Option<u64>,
}

/// Which requests a canary takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    header: Option<(String, Option<String>)>,
    cookie: Option<String>,
    weight: u32,
    total: u32,
}

impl Canary {
    /// Whether a request is the canary's: by header, else by cookie, else by `draw`, a random number.
    pub fn takes(&self, headers: &HeaderMap, draw: impl FnOnce() -> u32) -> bool {
        let word = |word: &str| match word {
            "always" => Some(true),
            "never" => Some(false),
            _ => None,
        };
        let by_header = self.header.as_ref().and_then(|(name, value)| {
            let said = headers.get(name)?.to_str().ok()?;
            match value {
                Some(value) => (said == value).then_some(true),
                None => word(said),
            }
        });
        let by_cookie = || self.cookie.as_ref().and_then(|name| word(cookie(headers, name)?));
        by_header.or_else(by_cookie).unwrap_or_else(|| draw() % self.total.max(1) < self.weight)
    }
}

/// The value of a request's cookie.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(http::header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|line| line.split(';')).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim())
    })
}

impl Options {
    /// Those that the annotations of an Ingress say. What cannot be read counts as not said.
    pub fn read(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let Some(all) = annotations else { return Self::default() };
        let get = |name: &str| PREFIXES.iter().find_map(|prefix| all.get(&format!("{prefix}{name}")));
        let text = |name: &str| get(name).map(|value| value.trim().to_string()).filter(|v| !v.is_empty());
        let number = |name: &str| text(name).and_then(|value| value.parse::<u32>().ok());
        let is = |name: &str| text(name).as_deref() == Some("true");
        let strip = RULE_TYPES.iter().any(|key| all.get(*key).is_some_and(|kind| kind == "PathPrefixStrip"));
        let rewrite = match text("rewrite-target") {
            Some(target) => Rewrite::To(target),
            None if strip => Rewrite::Strip,
            None => Rewrite::No,
        };
        let redirect = match (is("force-ssl-redirect"), is("ssl-redirect")) {
            (true, _) => Redirect::Always,
            (false, true) => Redirect::WithTls,
            (false, false) => Redirect::Never,
        };
        let canary = is("canary").then(|| Canary {
            header: text("canary-by-header")
                .map(|name| (name.to_lowercase(), text("canary-by-header-value"))),
            cookie: text("canary-by-cookie"),
            weight: number("canary-weight").unwrap_or(0),
            total: number("canary-weight-total").unwrap_or(100),
        });
        let sticky = (text("affinity").as_deref() == Some("cookie")).then(|| Sticky {
            cookie: text("session-cookie-name").filter(|n| is_token(n)).unwrap_or_else(|| STICKY.into()),
            path: text("session-cookie-path").filter(|p| is_plain(p)).unwrap_or_else(|| "/".into()),
            age: number("session-cookie-max-age").map(u64::from),
        });
        let burst = number("limit-burst-multiplier").unwrap_or(BURST).max(1);
        let protocol = text("backend-protocol").unwrap_or_default().to_uppercase();
        Self {
            patterns: is("use-regex") || matches!(&rewrite, Rewrite::To(target) if target.contains('$')),
            rewrite,
            redirect,
            canary,
            sticky,
            limit: number("limit-rps")
                .filter(|rate| *rate > 0)
                .map(|rate| (rate, rate.saturating_mul(burst))),
            http2: matches!(&*protocol, "GRPC" | "H2C"),
        }
    }
}

fn is_token(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && b != b';' && b != b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Options {
        Options::read(Some(&pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()))
    }

    #[test]
    fn annotations_are_read_and_unknown_ones_are_not() {
        let none = [
            ("nginx.ingress.kubernetes.io/server-snippet", "x"),
            ("a/b", "c"),
            ("ingress.kubernetes.io/limit-rps", "many"),
        ];
        assert_eq!(read(&none), Options::default());
        assert_eq!(read(&[("ingress.kubernetes.io/rewrite-target", "/")]).rewrite, Rewrite::To("/".into()));
        assert!(read(&[("nginx.ingress.kubernetes.io/rewrite-target", "/$2")]).patterns);
        for key in RULE_TYPES {
            assert_eq!(read(&[(key, "PathPrefixStrip")]).rewrite, Rewrite::Strip);
            assert_eq!(read(&[(key, "PathPrefix")]).rewrite, Rewrite::No);
        }
        assert_eq!(read(&[("nginx.ingress.kubernetes.io/limit-rps", "3")]).limit, Some((3, 15)));
        assert!(read(&[("nginx.ingress.kubernetes.io/backend-protocol", "grpc")]).http2);
        let sticky = read(&[
            ("nginx.ingress.kubernetes.io/affinity", "cookie"),
            ("nginx.ingress.kubernetes.io/session-cookie-name", "bad name;"),
        ]);
        assert_eq!(sticky.sticky.unwrap().cookie, STICKY);
    }

    #[test]
    fn a_canary_takes_by_header_then_cookie_then_weight() {
        let key = |name: &str| format!("nginx.ingress.kubernetes.io/{name}");
        let canary = |value: Option<&str>| {
            let mut all: BTreeMap<String, String> = [
                (key("canary"), "true".to_string()),
                (key("canary-by-header"), "X-Canary".into()),
                (key("canary-by-cookie"), "beta".into()),
                (key("canary-weight"), "10".into()),
            ]
            .into();
            all.extend(value.map(|v| (key("canary-by-header-value"), v.to_string())));
            Options::read(Some(&all)).canary.unwrap()
        };
        for (value, headers, draw, expect) in [
            (None, &[("x-canary", "always")][..], 99, true),
            (None, &[("x-canary", "never"), ("cookie", "beta=always")], 0, false),
            (None, &[("x-canary", "maybe"), ("cookie", "a=b; beta=always")], 99, true),
            (Some("blue"), &[("x-canary", "blue")], 99, true),
            (Some("blue"), &[("x-canary", "always")], 99, false),
            (None, &[("cookie", "beta=never")], 0, false),
            (None, &[], 9, true),
            (None, &[], 10, false),
        ] {
            let headers: HeaderMap = headers
                .iter()
                .map(|(k, v)| (k.parse::<http::HeaderName>().unwrap(), v.parse().unwrap()))
                .collect();
            assert_eq!(canary(value).takes(&headers, || draw), expect, "{value:?} {headers:?} {draw}");
        }
    }
}

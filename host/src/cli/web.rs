//! Files that `-f` names by URL.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use kube::{Config, client::ConfigExt};
use tokio::time::{sleep, timeout};
use url::Url;

/// Largest file that is fetched, in bytes.
const MAX_BODY: usize = 16 << 20;
/// Longest time for one file, with everything that is tried for it.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a server that has trouble of its own is asked.
const ATTEMPTS: usize = 3;
/// Time between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Most redirections of one request.
const MAX_REDIRECTS: usize = 10;

/// Whether a name of `-f` is a URL rather than a path.
pub(super) fn is_url(name: &str) -> bool {
    name.starts_with("http://") || name.starts_with("https://")
}

/// The text at a URL. Redirections are followed, and a server that cannot be reached or answers with a code
/// of 500 or more is asked again.
///
/// # Errors
/// When there is no such file, or it is not text, larger than 16 MiB or not there within a minute.
pub(super) async fn fetch(url: &str) -> Result<String> {
    let done = timeout(LIMIT, attempts(url)).await;
    done.unwrap_or_else(|_| Err(anyhow!("no whole answer within {} s", LIMIT.as_secs())))
        .with_context(|| format!("unable to read URL \"{url}\""))
}

async fn attempts(url: &str) -> Result<String> {
    let from: Url = url.parse().context("not a URL")?;
    let mut attempt = 1;
    loop {
        let outcome = follow(from.clone()).await;
        let again = match &outcome {
            Ok(answer) => answer.status().is_server_error(),
            Err(e) => e.downcast_ref::<hyper_util::client::legacy::Error>().is_some(),
        };
        if again && attempt < ATTEMPTS {
            attempt += 1;
            sleep(PAUSE).await;
            continue;
        }
        return text(outcome?).await;
    }
}

/// The first answer that is no redirection.
async fn follow(mut at: Url) -> Result<Response<Incoming>> {
    let any: Uri = "https://localhost".parse().expect("a URL");
    let connector = Config::new(any).rustls_https_connector()?;
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(connector);
    for _ in 0..=MAX_REDIRECTS {
        let request = Request::get(at.as_str())
            .header(header::USER_AGENT, concat!("wasmk/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())?;
        let answer = client.request(request).await?;
        let moved = [301, 302, 303, 307, 308].contains(&answer.status().as_u16());
        match answer.headers().get(header::LOCATION).filter(|_| moved) {
            None => return Ok(answer),
            Some(to) => at = resolve(&at, to.to_str().context("the Location of a redirection is no text")?)?,
        }
    }
    bail!("stopped after {MAX_REDIRECTS} redirects")
}

/// Where a reference in an answer of `base` leads. What stands behind `#` is the client's own.
fn resolve(base: &Url, reference: &str) -> Result<Url> {
    let mut there =
        base.join(reference).with_context(|| format!("redirected to \"{reference}\", which is not a URL"))?;
    there.set_fragment(None);
    Ok(there)
}

async fn text(answer: Response<Incoming>) -> Result<String> {
    let status = answer.status();
    if status != StatusCode::OK {
        let code = status.as_u16();
        bail!("server reported {}, status code={code}", status.canonical_reason().unwrap_or("an error"));
    }
    let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(|e| {
        if e.is::<LengthLimitError>() {
            return anyhow!("the file is larger than {} MiB", MAX_BODY >> 20);
        }
        anyhow!(e).context("the answer ended early")
    })?;
    String::from_utf8(body.to_bytes().into()).context("the file is not UTF-8 text")
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn redirections_lead_where_they_say() {
        let base: Url = "https://example.org:8443/a/b.yaml?x=1".parse().unwrap();
        for (reference, expected) in [
            ("http://other.example/c", "http://other.example/c"),
            ("//other.example/c", "https://other.example/c"),
            ("/c?y=2#top", "https://example.org:8443/c?y=2"),
            ("c.yaml", "https://example.org:8443/a/c.yaml"),
        ] {
            assert_eq!(resolve(&base, reference).unwrap().to_string(), expected);
        }
        assert!(resolve(&base, "http://[").is_err());
    }

    /// A server that answers each connection in turn with the next text; the last one stays.
    async fn serve(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for n in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = &answers[n.min(answers.len() - 1)];
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        url
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    async fn check(answers: Vec<String>, expected: Result<&str, &str>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = serve(answers).await;
        let said = fetch(&format!("{url}/x.yaml")).await.map_err(|e| format!("{e:#}"));
        match (said, expected) {
            (Ok(text), Ok(expected)) => assert_eq!(text, expected),
            (Err(text), Err(expected)) => {
                assert!(text.starts_with(&format!("unable to read URL \"{url}/x.yaml\"")), "{text}");
                assert!(text.contains(expected), "{text}");
            }
            (said, expected) => panic!("{said:?} in place of {expected:?}"),
        }
    }

    #[tokio::test]
    async fn files_are_fetched_or_their_lack_explained() {
        check(vec![answer("200 OK", "", "a: b\n")], Ok("a: b\n")).await;
        let moved = answer("302 Found", "location: other.yaml\r\n", "");
        check(vec![moved.clone(), answer("200 OK", "", "moved")], Ok("moved")).await;
        check(vec![moved], Err("stopped after 10 redirects")).await;
        check(vec![answer("404 Not Found", "", "")], Err("server reported Not Found, status code=404")).await;
        let large = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", "x".repeat(MAX_BODY + 1));
        check(vec![large], Err("the file is larger than 16 MiB")).await;
        check(vec!["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort".into()], Err("ended early")).await;
    }

    #[tokio::test]
    async fn trouble_of_the_server_is_waited_out_a_little() {
        let busy = || answer("503 Service Unavailable", "", "");
        check(vec![busy(), busy(), answer("200 OK", "", "late")], Ok("late")).await;
        check(vec![busy(), busy(), busy(), answer("200 OK", "", "too late")], Err("status code=503")).await;
    }
}

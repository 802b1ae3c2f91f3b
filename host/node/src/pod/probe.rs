//! Readiness, liveness and startup probes.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use wasmk_api::k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// Bytes of a probe's answer that are read at most.
const ANSWER_BYTES: usize = 10 * 1024;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Startup,
    Liveness,
    Readiness,
}

impl Which {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What a probe found out.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Finding {
    /// One attempt failed; for the event.
    Failed(String),
    /// So many in a row that the verdict is good.
    Good,
    /// So many in a row that the verdict is bad.
    Bad(String),
}

/// Counts attempts in a row up to the thresholds. Pure.
#[derive(Debug)]
struct Tally {
    good_at: i32,
    bad_at: i32,
    streak: i32,
    verdict: Option<bool>,
}

impl Tally {
    fn new(probe: &Probe, verdict: Option<bool>) -> Self {
        let at_least_one = |n: Option<i32>, default: i32| n.unwrap_or(default).max(1);
        Self {
            good_at: at_least_one(probe.success_threshold, 1),
            bad_at: at_least_one(probe.failure_threshold, 3),
            streak: 0,
            verdict,
        }
    }

    /// The new verdict, if this attempt makes one.
    fn add(&mut self, good: bool) -> Option<bool> {
        self.streak = match (good, self.streak) {
            (true, n) if n > 0 => n.saturating_add(1),
            (true, _) => 1,
            (false, n) if n < 0 => n.saturating_sub(1),
            (false, _) => -1,
        };
        let reached = if good { self.streak >= self.good_at } else { -self.streak >= self.bad_at };
        if !reached || self.verdict == Some(good) {
            return None;
        }
        self.verdict = Some(good);
        Some(good)
    }
}

/// Takes findings; says whether more are wanted.
pub(super) trait Tell: Sync {
    fn tell(&self, which: Which, finding: Finding) -> impl Future<Output = bool> + Send;
}

/// Runs one kind of probe of a container: the startup probe to its first verdict, the others
/// for ever, or until nothing more is wanted.
pub(super) async fn watch(which: Which, container: &Container, address: IpAddr, listener: &impl Tell) {
    let Some(probe) = which.of(container) else { return };
    let seconds = |n: Option<i32>, default: u64| {
        Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default))
    };
    let (period, limit) = (seconds(probe.period_seconds, 10), seconds(probe.timeout_seconds, 1));
    let initial = u64::try_from(probe.initial_delay_seconds.unwrap_or(0)).unwrap_or(0);
    tokio::time::sleep(Duration::from_secs(initial)).await;
    // A container counts as alive and as not ready until the probe says otherwise.
    let mut tally = Tally::new(
        probe,
        match which {
            Which::Startup => None,
            Which::Liveness => Some(true),
            Which::Readiness => Some(false),
        },
    );
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome = timeout(limit, attempt(probe, container, address)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())));
        let text = outcome.as_ref().err().map(|e| format!("{} probe failed: {e}", which.name()));
        let verdict = tally.add(outcome.is_ok());
        if let Some(text) = &text
            && !listener.tell(which, Finding::Failed(text.clone())).await
        {
            return;
        }
        let finding = match verdict {
            Some(true) => Finding::Good,
            Some(false) => Finding::Bad(text.unwrap_or_default()),
            None => continue,
        };
        if !listener.tell(which, finding).await || which == Which::Startup {
            return;
        }
    }
}

async fn attempt(probe: &Probe, container: &Container, address: IpAddr) -> Result<(), String> {
    if let Some(get) = &probe.http_get {
        return http_get(get, container, address).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = port(&tcp.port, container)?;
        let host = tcp.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| address.to_string());
        return TcpStream::connect((host.as_str(), port)).await.map(drop).map_err(|e| e.to_string());
    }
    if probe.exec.is_some() {
        return Err("a Wasm container has no commands to execute; use httpGet or tcpSocket".into());
    }
    Err("this kind of probe is not available to Wasm containers; use httpGet or tcpSocket".into())
}

async fn http_get(get: &HTTPGetAction, container: &Container, address: IpAddr) -> Result<(), String> {
    if get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")) {
        return Err("scheme HTTPS is not available to probes of Wasm containers".into());
    }
    let port = port(&get.port, container)?;
    let host = get.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| address.to_string());
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url = format!("http://{host}:{port}{path}");
    let mut request = http::Request::get(format!("{slash}{path}"));
    let given = get.http_headers.iter().flatten();
    let named = given.clone().any(|h| h.name.eq_ignore_ascii_case("host"));
    if !named {
        request = request.header("host", format!("{host}:{port}"));
    }
    request = request.header("user-agent", "kube-probe/1.36").header("accept", "*/*");
    for header in given {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let failed = |e: &dyn std::fmt::Display| format!("Get \"{url}\": {e}");
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| failed(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = response.status();
        // Read so that the guest is not cut off in the middle; how it ends does not matter.
        let _ = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        outcome = &mut exchange => outcome,
        _ = connection => exchange.await,
    }
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    let valid = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    valid.ok_or_else(|| format!("port {port:?} is not one of the container's"))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn verdicts_need_their_thresholds() {
        let probe: Probe =
            serde_json::from_value(json!({"successThreshold": 2, "failureThreshold": 3})).unwrap();
        let mut tally = Tally::new(&probe, Some(false));
        let attempts = [1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0];
        let verdicts: Vec<_> = attempts.iter().map(|a| tally.add(*a == 1)).collect();
        let mut expect = vec![None; 12];
        (expect[3], expect[10]) = (Some(true), Some(false));
        assert_eq!(verdicts, expect);
    }

    #[tokio::test]
    async fn attempts_say_what_went_wrong() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                let code = if buffer[..n].starts_with(b"GET /good") { "204" } else { "503" };
                let answer = format!("HTTP/1.1 {code} x\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]}))
                .unwrap();
        for (probe, expect) in [
            (json!({"httpGet": {"path": "/good", "port": "web"}}), Ok(())),
            (
                json!({"httpGet": {"path": "bad", "port": port}}),
                Err("HTTP probe failed with statuscode: 503"),
            ),
            (
                json!({"httpGet": {"port": "other"}}),
                Err("port String(\"other\") is not one of the container's"),
            ),
            (
                json!({"exec": {"command": ["ls"]}}),
                Err("a Wasm container has no commands to execute; use httpGet or tcpSocket"),
            ),
        ] {
            let typed: Probe = serde_json::from_value(probe.clone()).unwrap();
            let outcome = attempt(&typed, &container, IpAddr::V4(Ipv4Addr::LOCALHOST)).await;
            assert_eq!(outcome, expect.map_err(String::from), "{probe}");
        }
        server.abort();
    }
}

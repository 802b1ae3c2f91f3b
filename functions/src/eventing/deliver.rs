//! Delivery: an event to an addressee, again where that may help, to the dead letter where it did not.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::event::{Event, gather};
use crate::{
    executor::Body,
    gateway::{Gateway, Peer},
    names::CLUSTER_DOMAIN,
};

/// Longest time for one attempt where a delivery names none.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Attempts at the most, whatever a delivery asks for.
const MAX_RETRIES: u32 = 100;
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Bytes of an answer that a dead letter tells.
const MAX_TOLD: usize = 1024;

/// What is said of an answer that cannot be read.
const BROKEN: &str = "the answer broke off or is larger than 1 MiB";

/// Where events can be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    /// A function, by its host inside the cluster, and a path.
    Function(String, String),
    /// A broker by namespace and name.
    Broker(String, String),
    /// A Service of the cluster by namespace and name, and a path.
    Service(String, String, String),
    /// Anything else that speaks HTTP.
    Uri(String),
}

impl Sink {
    /// Reads a destination (`ref` or `uri`) of an object in a namespace.
    ///
    /// # Errors
    /// When it names nothing that takes events.
    pub(crate) fn read(destination: &Value, namespace: &str) -> Result<Self, String> {
        let reference = &destination["ref"];
        let uri = destination["uri"].as_str().unwrap_or("");
        if !reference.is_object() {
            return match uri.starts_with("http://") {
                true => Ok(Self::Uri(uri.into())),
                false => Err(format!("uri {uri:?}: ref, or a uri of the form http://… was expected")),
            };
        }
        let text = |key: &str| reference[key].as_str().unwrap_or("");
        let (kind, name) = (text("kind"), text("name"));
        let place = if text("namespace").is_empty() { namespace } else { text("namespace") };
        let path = if uri.is_empty() { "/".to_string() } else { format!("/{}", uri.trim_start_matches('/')) };
        match (text("apiVersion").split('/').next().unwrap_or(""), kind) {
            ("serving.knative.dev", "Service" | "Route") => {
                Ok(Self::Function(format!("{name}.{place}.{CLUSTER_DOMAIN}"), path))
            }
            ("eventing.knative.dev", "Broker") => Ok(Self::Broker(place.into(), name.into())),
            ("v1", "Service") => Ok(Self::Service(place.into(), name.into(), path)),
            (group, _) => Err(format!("{kind} {name:?} of {group:?} takes no events")),
        }
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Function(host, path) => format!("http://{host}{path}"),
            Self::Broker(namespace, name) => super::broker_url(namespace, name),
            Self::Service(namespace, name, path) => {
                format!("http://{name}.{namespace}.{CLUSTER_DOMAIN}{path}")
            }
            Self::Uri(uri) => uri.clone(),
        }
    }
}

/// How an event is delivered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delivery {
    retry: u32,
    pause: Duration,
    exponential: bool,
    timeout: Duration,
    pub(super) dead_letter: Option<Sink>,
}

impl Delivery {
    /// Reads a delivery; what it does not say, the one of the broker does.
    pub(crate) fn read(own: &Value, broker: &Value, namespace: &str) -> Self {
        let field = |key: &str| if own[key].is_null() { &broker[key] } else { &own[key] };
        let retry = field("retry").as_u64().and_then(|n| u32::try_from(n).ok());
        Self {
            retry: retry.unwrap_or(10).min(MAX_RETRIES),
            pause: field("backoffDelay")
                .as_str()
                .and_then(iso_duration)
                .unwrap_or(Duration::from_millis(200)),
            exponential: field("backoffPolicy") != "linear",
            timeout: field("timeout").as_str().and_then(iso_duration).unwrap_or(TIMEOUT),
            dead_letter: Some(field("deadLetterSink"))
                .filter(|d| d.is_object())
                .and_then(|d| Sink::read(d, namespace).ok()),
        }
    }

    /// The pause before the attempt of that number (from 1).
    fn pause(&self, attempt: u32) -> Duration {
        let factor = if self.exponential { 2_u32.saturating_pow(attempt - 1) } else { attempt };
        self.pause.saturating_mul(factor).min(MAX_PAUSE)
    }
}

/// A duration of ISO 8601, but for years and months, whose length is not fixed: `PT0.5S`, `P1DT1M`. The
/// schema of a delivery lets only such in, of which the sum may still be too large.
pub(crate) fn iso_duration(text: &str) -> Option<Duration> {
    let rest = text.strip_prefix('P')?;
    let (date, time) = rest.split_once('T').unwrap_or((rest, ""));
    let days = sum(date, &[("W", 604_800.0), ("D", 86_400.0)])?;
    let hours = sum(time, &[("H", 3600.0), ("M", 60.0), ("S", 1.0)])?;
    if date.is_empty() && time.is_empty() { None } else { days.checked_add(hours) }
}

/// The sum of numbers with their units, each in seconds.
fn sum(mut rest: &str, units: &[(&str, f64)]) -> Option<Duration> {
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let number: f64 = rest[..end].parse().ok()?;
        let (_, seconds) = units.iter().find(|(unit, _)| *unit == &rest[end..=end])?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[end + 1..];
    }
    Some(total)
}

/// Sends events.
pub(crate) struct Sender {
    gateway: Arc<Gateway>,
    api: kube::Client,
    http: Client<HttpConnector, Body>,
}

/// What became of an event.
pub(crate) enum Outcome {
    /// It arrived; the answer is an event, too.
    Replied(Event),
    /// It arrived.
    Done,
    /// It did not.
    Failed,
}

impl Sender {
    pub(crate) fn new(gateway: Arc<Gateway>, api: kube::Client) -> Self {
        Self { gateway, api, http: Client::builder(TokioExecutor::new()).build(HttpConnector::new()) }
    }

    /// Delivers an event, as often as the delivery says; past that, to its dead letter sink.
    pub(crate) async fn deliver(&self, event: &Event, sink: &Sink, delivery: &Delivery) -> Outcome {
        let mut last = (StatusCode::BAD_GATEWAY, String::new());
        for attempt in 0..=delivery.retry {
            if attempt > 0 {
                sleep(delivery.pause(attempt)).await;
            }
            match timeout(delivery.timeout, self.send(event, sink)).await {
                Ok(Ok(response)) if response.status().is_success() => return replied(response),
                Ok(Ok(response)) => {
                    let status = response.status();
                    last = (status, String::from_utf8_lossy(response.body()).into_owned());
                    if !again(status) {
                        break;
                    }
                }
                Ok(Err(why)) => last = (StatusCode::BAD_GATEWAY, why),
                Err(_) => last = (StatusCode::GATEWAY_TIMEOUT, "no answer in time".into()),
            }
        }
        tracing::warn!(sink = sink.url(), status = last.0.as_u16(), "an event was not delivered: {}", last.1);
        self.bury(event, sink, delivery, &last).await;
        Outcome::Failed
    }

    /// Sends what could not be delivered to the dead letter sink, with why.
    async fn bury(&self, event: &Event, sink: &Sink, delivery: &Delivery, why: &(StatusCode, String)) {
        let Some(grave) = &delivery.dead_letter else { return };
        let mut letter = event.clone();
        let told: String = why.1.chars().take(MAX_TOLD).filter(|c| !c.is_control()).collect();
        for (key, value) in [
            ("knativeerrordest", sink.url()),
            ("knativeerrorcode", why.0.as_u16().to_string()),
            ("knativeerrordata", told),
        ] {
            letter.attributes.insert(key.into(), value);
        }
        for attempt in 0..=delivery.retry {
            if attempt > 0 {
                sleep(delivery.pause(attempt)).await;
            }
            let sent = timeout(delivery.timeout, self.send(&letter, grave)).await;
            if matches!(sent, Ok(Ok(response)) if response.status().is_success()) {
                return;
            }
        }
        tracing::warn!(sink = grave.url(), "a dead letter was lost");
    }

    /// Sends an event once and reads the answer.
    pub(crate) async fn send(&self, event: &Event, sink: &Sink) -> Result<Response<Bytes>, String> {
        let (head, body) = match sink {
            Sink::Function(..) | Sink::Broker(..) => {
                let url = sink.url();
                let request = event.request(&url)?;
                let peer = Peer::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
                // On the heap: a broker's own delivery comes through here again.
                let response = Box::pin(self.gateway.route(request, &peer)).await;
                let (head, body) = response.into_parts();
                (head, gather(body, MAX_ANSWER).await.ok_or(BROKEN)?)
            }
            Sink::Service(namespace, name, path) => {
                self.post(event, &self.address(namespace, name, path).await?).await?
            }
            Sink::Uri(uri) => self.post(event, uri).await?,
        };
        Ok(Response::from_parts(head, body))
    }

    async fn post(&self, event: &Event, uri: &str) -> Result<(http::response::Parts, Bytes), String> {
        let mut request = event.request(uri)?;
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("wasmk-eventing"));
        let response = self.http.request(request).await.map_err(|e| format!("{uri}: {e}"))?;
        let (head, body) = response.into_parts();
        Ok((head, gather(body, MAX_ANSWER).await.ok_or(BROKEN)?))
    }

    /// The address behind a Service's name.
    async fn address(&self, namespace: &str, name: &str, path: &str) -> Result<String, String> {
        let api: Api<Service> = Api::namespaced(self.api.clone(), namespace);
        let spec = api.get(name).await.map_err(|e| e.to_string())?.spec.unwrap_or_default();
        let port = spec.ports.iter().flatten().map(|p| p.port).next().unwrap_or(80);
        let ip = spec.cluster_ip.filter(|ip| ip != "None").ok_or(format!("service {name} has no address"))?;
        Ok(format!("http://{ip}:{port}{path}"))
    }
}

fn replied(response: Response<Bytes>) -> Outcome {
    let (head, body) = response.into_parts();
    match Event::is_in(&head.headers) {
        true => Event::read(&head.headers, body).map_or(Outcome::Done, Outcome::Replied),
        false => Outcome::Done,
    }
}

/// Whether another attempt may help.
fn again(status: StatusCode) -> bool {
    status.is_server_error() || [404, 408, 409, 429].contains(&status.as_u16())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn destinations() {
        let read = |value: Value| Sink::read(&value, "default").map(|s| s.url());
        let reference =
            |version: &str, kind: &str| json!({"ref": {"apiVersion": version, "kind": kind, "name": "x"}});
        assert_eq!(
            read(reference("serving.knative.dev/v1", "Service")).unwrap(),
            "http://x.default.svc.cluster.local/"
        );
        assert_eq!(
            read(reference("eventing.knative.dev/v1", "Broker")).unwrap(),
            "http://broker-ingress.knative-eventing.svc.cluster.local/default/x"
        );
        assert_eq!(read(reference("v1", "Service")).unwrap(), "http://x.default.svc.cluster.local/");
        assert_eq!(read(json!({"uri": "http://a/b"})).unwrap(), "http://a/b");
        for wrong in [json!({}), json!({"uri": "ftp://a"}), reference("v1", "Pod")] {
            assert!(read(wrong).is_err());
        }
    }

    #[test]
    fn a_trigger_overrides_its_broker() {
        let broker = json!({"retry": 3, "backoffPolicy": "linear", "backoffDelay": "PT1S"});
        let delivery = Delivery::read(&json!({"retry": 1}), &broker, "default");
        assert_eq!((delivery.retry, delivery.pause(3)), (1, Duration::from_secs(3)));
        let default = Delivery::read(&Value::Null, &Value::Null, "default");
        assert_eq!((default.retry, default.pause(4)), (10, Duration::from_millis(1600)));
        assert_eq!(default.pause(40), MAX_PAUSE);
    }

    #[test]
    fn durations() {
        assert_eq!(iso_duration("PT1M0.5S"), Some(Duration::from_millis(60_500)));
        assert_eq!(iso_duration("P1DT1H"), Some(Duration::from_secs(25 * 3600)));
        let huge = "PT18000000000000000000S18000000000000000000S";
        for wrong in ["", "P", "PT", "1S", "PT1X", "PTS", "P1H", "PT1D", "PT-1S", huge] {
            assert_eq!(iso_duration(wrong), None, "{wrong}");
        }
    }
}

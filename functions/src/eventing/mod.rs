//! Events to functions: Knative Eventing's Broker and Trigger, PingSource (schedules) and ApiServerSource.
//!
//! A broker takes CloudEvents over HTTP at the gateway, acknowledges them, and delivers each to the triggers that
//! want it, again where that may help and to the dead letter sink where it did not. Events under way are in
//! memory: they do not outlive the process. Objects are read from watches; nothing here keeps state of its own.

mod api_source;
mod deliver;
mod event;
mod ping;
mod status;
mod under_way;

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, future::join_all};
use http::{Request, Response, StatusCode};
use kube::{
    Api, Client,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde_json::{Value, json};
use tokio::sync::Notify;

pub(crate) use self::deliver::Sender;
use self::{
    deliver::{Delivery, Outcome, Sink},
    event::{Event, answer, gather, wants},
    under_way::UnderWay,
};
use crate::{executor::Body, gateway::Ingress, names::CLUSTER_DOMAIN, schema};

/// Group of brokers and triggers.
const GROUP: &str = "eventing.knative.dev";
/// Group of sources.
const SOURCES: &str = "sources.knative.dev";
/// Events under way at a time; further ones are refused with "try again".
const MAX_UNDER_WAY: usize = 1_000;
/// Those of one broker or source that there is room for even if others have many.
const SHARE: usize = MAX_UNDER_WAY / 8;
/// Largest event, in bytes.
const MAX_EVENT: usize = 1 << 20;
/// How often an event may come back to its broker as a reply.
const MAX_HOPS: u32 = 64;
/// Extension that counts that.
const TTL: &str = "knativebrokerttl";

/// Kind, plural, group, short names, what it is.
const KINDS: [(&str, &str, &str, &[&str], &str); 4] = [
    ("Broker", "brokers", GROUP, &[], "Takes events and hands them to the triggers that want them."),
    ("Trigger", "triggers", GROUP, &[], "Sends a broker's events that pass a filter to a subscriber."),
    ("PingSource", "pingsources", SOURCES, &[], "Sends an event on a schedule."),
    (
        "ApiServerSource",
        "apiserversources",
        SOURCES,
        &[],
        "Sends an event for each change of objects of the API.",
    ),
];

/// Where a broker takes events.
pub(crate) fn broker_url(namespace: &str, name: &str) -> String {
    format!("http://broker-ingress.knative-eventing.{CLUSTER_DOMAIN}/{namespace}/{name}")
}

/// Whether a host is the one that brokers take events at.
pub(crate) fn is_ingress(host: &str) -> bool {
    let rest = host.strip_prefix("broker-ingress.knative-eventing.");
    rest.is_some_and(|rest| rest == CLUSTER_DOMAIN || rest == "svc")
}

/// `CustomResourceDefinition` objects of all kinds.
pub(crate) fn definitions(parts: &std::collections::BTreeMap<String, Value>) -> Vec<Value> {
    let schemas = schema::named(include_str!("../../data/eventing.txt"), parts);
    let definition = |(kind, plural, group, short, about): &(&str, &str, &str, &[&str], &str)| {
        let mut schema = schemas[*kind].clone();
        schema["description"] = (*about).into();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{group}"),
                "labels": {"knative.dev/crd-install": "true", "app.kubernetes.io/name": "knative-eventing"},
            },
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(),
                    "shortNames": short, "categories": ["all", "knative", "eventing"]},
                "versions": [{
                    "name": "v1",
                    "served": true,
                    "storage": true,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns(kind),
                    "schema": {"openAPIV3Schema": schema},
                }],
            },
        })
    };
    KINDS.iter().map(definition).collect()
}

fn columns(kind: &str) -> Value {
    let own: &[(&str, &str)] = match kind {
        "Broker" => &[("URL", ".status.address.url")],
        "Trigger" => &[("Broker", ".spec.broker"), ("Subscriber_URI", ".status.subscriberUri")],
        "PingSource" => &[("Sink", ".status.sinkUri"), ("Schedule", ".spec.schedule")],
        _ => &[("Sink", ".status.sinkUri")],
    };
    let ready = [
        ("Ready", ".status.conditions[?(@.type=='Ready')].status"),
        ("Reason", ".status.conditions[?(@.type=='Ready')].reason"),
    ];
    let column = |(name, path): &(&str, &str)| json!({"name": name, "type": "string", "jsonPath": path});
    own.iter().chain(&ready).map(column).collect()
}

/// The resource of a kind of ours.
fn resource(kind: &str) -> ApiResource {
    let group = KINDS.iter().find(|(k, ..)| *k == kind).map_or(GROUP, |(_, _, group, ..)| group);
    let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
    resource.plural = format!("{}s", kind.to_lowercase());
    resource
}

/// The objects of a kind, kept up to date by [`Objects::follow`].
pub(crate) struct Objects {
    kind: &'static str,
    store: Store<DynamicObject>,
}

impl Objects {
    fn new(kind: &'static str) -> (Self, Writer<DynamicObject>) {
        let writer = Writer::new(resource(kind));
        (Self { kind, store: writer.as_reader() }, writer)
    }

    fn all(&self) -> Vec<Arc<DynamicObject>> {
        self.store.state()
    }

    fn get(&self, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        self.store.get(&ObjectRef::new_with(name, resource(self.kind)).within(namespace))
    }
}

/// Everything about events, with the objects it goes by.
pub(crate) struct Eventing {
    client: Client,
    sender: Arc<Sender>,
    brokers: Objects,
    triggers: Objects,
    pings: Objects,
    api_sources: Objects,
    under_way: UnderWay,
    changed: Notify,
}

impl Eventing {
    /// With the tasks that keep it going; they run until dropped.
    pub(crate) fn start(
        client: Client,
        sender: Sender,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let (brokers, one) = Objects::new("Broker");
        let (triggers, two) = Objects::new("Trigger");
        let (pings, three) = Objects::new("PingSource");
        let (api_sources, four) = Objects::new("ApiServerSource");
        let this = Arc::new(Self {
            client,
            sender: Arc::new(sender),
            brokers,
            triggers,
            pings,
            api_sources,
            under_way: UnderWay::new(MAX_UNDER_WAY, SHARE),
            changed: Notify::new(),
        });
        let writers = [("Broker", one), ("Trigger", two), ("PingSource", three), ("ApiServerSource", four)];
        let followers: Vec<_> =
            writers.into_iter().map(|(kind, writer)| this.clone().follow(kind, writer)).collect();
        let (states, schedules, sources) =
            (status::keep(this.clone()), ping::run(this.clone()), api_source::run(this.clone()));
        let tasks = async move {
            tokio::join!(join_all(followers), states, schedules, sources);
        };
        (this, tasks)
    }

    /// Keeps the objects of a kind up to date.
    async fn follow(self: Arc<Self>, kind: &'static str, writer: Writer<DynamicObject>) {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource(kind));
        let events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
        let mut events = std::pin::pin!(events.filter_map(|e| async move { e.ok() }));
        while events.next().await.is_some() {
            self.changed.notify_waiters();
        }
    }

    /// Takes an event for a broker; it is delivered after the answer.
    async fn take(self: &Arc<Self>, path: &str, request: Request<Body>) -> Response<Body> {
        let broker = path.trim_matches('/').split_once('/');
        let broker = broker.and_then(|(namespace, name)| self.brokers.get(namespace, name));
        let Some(broker) = broker else {
            return answer(StatusCode::NOT_FOUND, "no broker has this address\n");
        };
        if request.method() != http::Method::POST {
            return answer(StatusCode::METHOD_NOT_ALLOWED, "an event is sent with POST\n");
        }
        let (head, body) = request.into_parts();
        let Some(body) = gather(body, MAX_EVENT).await else {
            return answer(StatusCode::PAYLOAD_TOO_LARGE, "the event is larger than 1 MiB\n");
        };
        match Event::read(&head.headers, body) {
            Ok(event) => self.publish(&broker, event),
            Err(why) => answer(StatusCode::BAD_REQUEST, &format!("{why}\n")),
        }
    }

    /// Hands an event to the triggers of its broker.
    fn publish(self: &Arc<Self>, broker: &DynamicObject, mut event: Event) -> Response<Body> {
        let hops = event.get(TTL).and_then(|t| t.parse().ok()).unwrap_or(MAX_HOPS);
        if hops == 0 {
            tracing::warn!(id = event.get("id"), "an event went around too often and is dropped");
            return answer(StatusCode::ACCEPTED, "");
        }
        event.attributes.insert(TTL.into(), (hops - 1).to_string());
        let namespace = broker.metadata.namespace.clone().unwrap_or_default();
        let name = broker.metadata.name.clone().unwrap_or_default();
        let Some(room) = self.under_way.take(&format!("Broker {namespace}/{name}")) else {
            return answer(StatusCode::SERVICE_UNAVAILABLE, "too many events are under way\n");
        };
        let defaults = broker.data["spec"]["delivery"].clone();
        let (this, url) = (self.clone(), broker_url(&namespace, &name));
        tokio::spawn(async move {
            let subscribed = this.subscribers(&namespace, &name, &defaults, &event);
            let sent = subscribed.iter().map(|(sink, delivery)| this.sender.deliver(&event, sink, delivery));
            let replies = join_all(sent).await;
            let broker = Sink::Uri(url);
            drop(room);
            for reply in replies {
                if let Outcome::Replied(mut reply) = reply {
                    reply.attributes.insert(TTL.into(), (hops - 1).to_string());
                    this.reply(&namespace, &name, &broker, reply);
                }
            }
        });
        answer(StatusCode::ACCEPTED, "")
    }

    /// An answer that is an event goes to the broker as well.
    fn reply(self: &Arc<Self>, namespace: &str, name: &str, broker: &Sink, event: Event) {
        let Some(object) = self.brokers.get(namespace, name) else { return };
        let done = self.publish(&object, event);
        if !done.status().is_success() {
            tracing::warn!(broker = broker.url(), "a reply was lost: too many events are under way");
        }
    }

    fn subscribers(
        &self,
        namespace: &str,
        broker: &str,
        defaults: &Value,
        event: &Event,
    ) -> Vec<(Sink, Delivery)> {
        let all = self.triggers.all();
        let of_broker = all.iter().filter(|t| {
            let named = t.data["spec"]["broker"].as_str().filter(|b| !b.is_empty()).unwrap_or("default");
            t.metadata.namespace.as_deref() == Some(namespace) && named == broker
        });
        of_broker
            .filter(|t| wants(&t.data["spec"], event))
            .filter_map(|t| {
                let spec = &t.data["spec"];
                let sink = Sink::read(&spec["subscriber"], namespace).ok()?;
                Some((sink, Delivery::read(&spec["delivery"], defaults, namespace)))
            })
            .collect()
    }

    /// Delivers a source's event; one too many is dropped and told.
    fn emit(self: &Arc<Self>, source: &DynamicObject, mut event: Event) {
        let namespace = source.metadata.namespace.clone().unwrap_or_default();
        let Ok(sink) = Sink::read(&source.data["spec"]["sink"], &namespace) else { return };
        for (key, value) in source.data["spec"]["ceOverrides"]["extensions"].as_object().into_iter().flatten()
        {
            if let Some(value) = value.as_str() {
                event.attributes.insert(key.to_lowercase(), value.into());
            }
        }
        let name = source.metadata.name.as_deref().unwrap_or_default();
        let Some(room) = self.under_way.take(&format!("source {namespace}/{name}")) else {
            tracing::warn!(sink = sink.url(), "an event was lost: too many are under way");
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            let delivery = Delivery::read(&Value::Null, &Value::Null, &namespace);
            this.sender.deliver(&event, &sink, &delivery).await;
            drop(room);
        });
    }
}

/// The gateway's view of the brokers.
pub(crate) struct Brokers(pub std::sync::Weak<Eventing>);

#[async_trait]
impl Ingress for Brokers {
    async fn receive(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_string();
        match self.0.upgrade() {
            Some(eventing) => eventing.take(&path, request).await,
            None => answer(StatusCode::SERVICE_UNAVAILABLE, "this gateway is stopping\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_have_one_host() {
        let url = broker_url("default", "main");
        let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        assert!(is_ingress(host) && is_ingress("broker-ingress.knative-eventing.svc"));
        assert!(!is_ingress("broker-ingress.other.svc"));
    }
}

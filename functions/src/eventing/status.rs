//! Says of brokers, triggers and sources whether they work.

use std::{sync::Arc, time::Duration};

use kube::{
    Api, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;
use wasmk_api::{Timestamp, knative::Condition};

use super::{Eventing, broker_url, deliver::Sink, ping::Times, resource};
use crate::conditions::{State, assemble};

/// Changes this close together are looked at together.
const SETTLE: Duration = Duration::from_millis(20);
/// Pause after which everything is looked at in any case.
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps every status up to date.
pub(super) async fn keep(eventing: Arc<Eventing>) {
    loop {
        let changed = eventing.changed.notified();
        for objects in [&eventing.brokers, &eventing.triggers, &eventing.pings, &eventing.api_sources] {
            for object in objects.all() {
                let wanted = status(objects.kind, &object, &eventing, Timestamp::now());
                if object.data["status"] != wanted {
                    write(&eventing, objects.kind, &object, &wanted).await;
                }
            }
        }
        tokio::select! {
            () = changed => sleep(SETTLE).await,
            () = sleep(AGAIN) => {}
        }
    }
}

async fn write(eventing: &Eventing, kind: &str, object: &DynamicObject, status: &Value) {
    let namespace = object.namespace().unwrap_or_default();
    let api = Api::<DynamicObject>::namespaced_with(eventing.client.clone(), &namespace, &resource(kind));
    let patch = Patch::Merge(json!({"status": status}));
    // The next look is the retry.
    if let Err(error) = api.patch_status(&object.name_any(), &PatchParams::default(), &patch).await {
        tracing::debug!(kind, name = object.name_any(), %error, "a status was not written");
    }
}

fn status(kind: &str, object: &DynamicObject, eventing: &Eventing, now: Timestamp) -> Value {
    let namespace = object.namespace().unwrap_or_default();
    let old: Vec<Condition> =
        serde_json::from_value(object.data["status"]["conditions"].clone()).unwrap_or_default();
    let mut status = json!({"observedGeneration": object.metadata.generation});
    let counting = match kind {
        "Broker" => {
            status["address"] = json!({"url": broker_url(&namespace, &object.name_any())});
            ["Addressable", "FilterReady", "IngressReady", "TriggerChannelReady"]
                .map(|c| (c, State::True))
                .to_vec()
        }
        "Trigger" => {
            let name = object.data["spec"]["broker"].as_str().filter(|b| !b.is_empty()).unwrap_or("default");
            let there = eventing.brokers.get(&namespace, name).is_some();
            let why = format!("Broker \"{name}\" does not exist");
            let broker = if there { State::True } else { State::failed("BrokerDoesNotExist", why) };
            let (subscriber, url) = sink(&object.data["spec"]["subscriber"], &namespace);
            status["subscriberUri"] = url;
            vec![
                ("BrokerReady", broker.clone()),
                ("DeadLetterSinkResolved", State::True),
                ("DependencyReady", State::True),
                ("Subscribed", broker),
                ("SubscriberResolved", subscriber),
            ]
        }
        "PingSource" => {
            let (sink, url) = sink(&object.data["spec"]["sink"], &namespace);
            status["sinkUri"] = url;
            vec![("Deployed", schedule(&object.data["spec"])), ("SinkProvided", sink)]
        }
        _ => {
            let (sink, url) = sink(&object.data["spec"]["sink"], &namespace);
            status["sinkUri"] = url;
            status["namespaces"] = json!([namespace]);
            vec![("Deployed", State::True), ("SinkProvided", sink), ("SufficientPermissions", State::True)]
        }
    };
    let conditions = assemble(&old, &counting, &[], now);
    status["conditions"] = serde_json::to_value(conditions).unwrap_or_default();
    if let Some(map) = status.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    status
}

fn sink(destination: &Value, namespace: &str) -> (State, Value) {
    match Sink::read(destination, namespace) {
        Ok(sink) => (State::True, sink.url().into()),
        Err(why) => (State::failed("NotFound", why), Value::Null),
    }
}

fn schedule(spec: &Value) -> State {
    match Times::read(spec) {
        Ok(_) => State::True,
        Err((reason, why)) => State::failed(reason, why),
    }
}

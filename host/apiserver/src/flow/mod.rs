//! Fairness: how many requests run at once, and whose wait.
//!
//! Flow schemas sort requests into priority levels, as the objects of `flowcontrol.apiserver.k8s.io` say; each level
//! has a share of the server's seats and queues of its own. Watches and streams are counted apart: they are many,
//! and wait for a living.

mod classify;
pub(crate) mod defaults;
mod queues;

use std::{collections::HashMap, fmt::Write, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use wasmk_api::Status;

use crate::{
    auth::User,
    cache::Filter,
    crd::own_call,
    http::RequestInfo,
    server::Core,
    write::{Mode, Sent, Work, update_object},
};
use classify::Schema;
use queues::{Admission, Levels, Limits, Seat};

/// Requests that are handled at the same time, over all levels that have a limit.
const SEATS: usize = 1200;
/// Longest wait in a queue.
const MAX_WAIT: Duration = Duration::from_secs(15);
const SCHEMAS: &str = "flowcontrol.apiserver.k8s.io/flowschemas";
const LEVELS: &str = "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations";

/// How requests are sorted and limited.
#[derive(Default)]
pub(crate) struct Flow {
    rules: ArcSwap<Rules>,
    levels: Arc<Levels>,
}

#[derive(Default)]
struct Rules {
    schemas: Vec<Schema>,
    /// Levels by name: their uid, and whether nothing is limited in them.
    levels: HashMap<Box<str>, (HeaderValue, bool)>,
}

/// Leave to handle a request, and the flow it belongs to.
pub(crate) struct Permit {
    _seat: Option<Seat>,
    /// The uids of its schema and level.
    uids: Option<(HeaderValue, HeaderValue)>,
}

impl Permit {
    /// Tells the client which flow its request was sorted into.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let Some((schema, level)) = &self.uids else { return };
        for (name, uid) in
            [("x-kubernetes-pf-flowschema-uid", schema), ("x-kubernetes-pf-prioritylevel-uid", level)]
        {
            headers.insert(HeaderName::from_static(name), uid.clone());
        }
    }
}

/// A uid as headers have it.
fn header(uid: &str) -> HeaderValue {
    HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""))
}

impl Flow {
    /// Waits for leave to handle a request. Long-running ones need none here.
    ///
    /// # Errors
    /// 429 when its queue is full or it waited too long.
    pub(crate) async fn admit(
        &self,
        user: &User,
        info: &RequestInfo,
        long_running: bool,
    ) -> Result<Permit, Status> {
        let rules = self.rules.load_full();
        let found = rules.schemas.iter().find(|s| s.is_about(user, info));
        let Some((schema, (level_uid, exempt))) =
            found.and_then(|s| Some((s, rules.levels.get(s.level.as_str())?)))
        else {
            return Ok(Permit { _seat: None, uids: None });
        };
        let uids = Some((schema.uid.clone(), level_uid.clone()));
        if *exempt || long_running {
            return Ok(Permit { _seat: None, uids });
        }
        let asked = self.levels.ask(&schema.level, &schema.name, schema.distinguisher(user, info));
        let seat = match asked {
            Admission::Seat(seat) => seat,
            Admission::Full => return Err(busy()),
            Admission::Wait(place) => match tokio::time::timeout(MAX_WAIT, place.seat()).await {
                Ok(Some(seat)) => seat,
                _ => {
                    self.levels.gave_up(&schema.level);
                    return Err(busy());
                }
            },
        };
        Ok(Permit { _seat: Some(seat), uids })
    }

    /// Reads schemas and levels anew.
    fn load(&self, core: &Core) {
        let mut limits = HashMap::new();
        let mut levels = HashMap::new();
        let entries = core.caches.of(LEVELS).list(&Filter::default());
        let read: Vec<_> = entries.iter().map(|e| (e.name.clone(), e.object())).collect();
        let at = |object: &wasmk_api::Object, path: &[&str]| {
            object.at(path).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
        };
        let shares =
            |object: &wasmk_api::Object| at(object, &["spec", "limited", "nominalConcurrencyShares"]);
        let total: usize = read.iter().filter_map(|(_, o)| shares(o)).sum();
        for (name, object) in &read {
            let exempt = object.at(&["spec", "type"]).and_then(Value::as_str) == Some("Exempt");
            levels.insert(name.clone(), (header(object.uid()), exempt));
            if exempt {
                continue;
            }
            let seats = (SEATS * shares(object).unwrap_or(0)).div_ceil(total.max(1));
            let percent = at(object, &["spec", "limited", "lendablePercent"]).unwrap_or(0);
            let response = ["spec", "limited", "limitResponse", "queuing"];
            let queuing = object.at(&response).filter(|q| q.is_object()).map(|q| {
                let number = |key: &str| q.get(key).and_then(Value::as_u64).unwrap_or(1).clamp(1, 10_000);
                let [queues, hand, length] = ["queues", "handSize", "queueLengthLimit"]
                    .map(|k| usize::try_from(number(k)).unwrap_or(1));
                (queues, hand, length)
            });
            limits.insert(name.clone(), Limits { seats, lendable: seats * percent / 100, queuing });
        }
        self.levels.set(limits);
        self.rules.store(Arc::new(Rules { schemas: classify::schemas(&core.caches.of(SCHEMAS)), levels }));
    }

    /// What is counted, in the form of Prometheus.
    pub(crate) fn metrics(&self, out: &mut String) {
        let all = self.levels.numbers();
        let mut put = |name: &str, kind: &str, value: &dyn Fn(&queues::Numbers) -> u64| {
            // Writing into memory cannot fail.
            let _ = writeln!(out, "# TYPE apiserver_flowcontrol_{name} {kind}");
            for numbers in &all {
                let level = &numbers.level;
                let _ = writeln!(
                    out,
                    "apiserver_flowcontrol_{name}{{priority_level=\"{level}\"}} {}",
                    value(numbers)
                );
            }
        };
        put("nominal_limit_seats", "gauge", &|n| n.seats as u64);
        put("current_executing_requests", "gauge", &|n| n.executing as u64);
        put("current_inqueue_requests", "gauge", &|n| n.waiting as u64);
        put("dispatched_requests_total", "counter", &|n| n.dispatched);
        put("rejected_requests_total", "counter", &|n| n.rejected);
    }
}

fn busy() -> Status {
    Status::too_many_requests("Too many requests, please try again later.", 1)
}

/// Reads schemas and levels, before the first request comes.
pub(crate) fn begin(core: &Core) {
    core.flow.load(core);
}

/// Follows schemas and levels for as long as the server runs.
pub(crate) async fn follow(core: Arc<Core>) {
    let mut schemas = core.caches.of(SCHEMAS).subscribe();
    let mut levels = core.caches.of(LEVELS).subscribe();
    loop {
        schemas.mark_unchanged();
        levels.mark_unchanged();
        core.flow.load(&core);
        note_dangling(&core).await;
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            _ = schemas.changed() => {}
            _ = levels.changed() => {}
        }
    }
}

/// Notes in the status of schemas whether their level exists.
async fn note_dangling(core: &Arc<Core>) {
    let Some(resource) = core.table.load().get("flowcontrol.apiserver.k8s.io", "v1", "flowschemas").cloned()
    else {
        return;
    };
    let rules = core.flow.rules.load_full();
    for schema in &rules.schemas {
        let exists = rules.levels.contains_key(schema.level.as_str());
        let status = if exists { "False" } else { "True" };
        let is = |c: &Value| c.get("type").and_then(Value::as_str) == Some("Dangling");
        let Some(entry) = resource.cache.get(&schema.name) else { continue };
        let object = entry.object();
        let known = object
            .at(&["status", "conditions"])
            .and_then(Value::as_array)
            .and_then(|l| l.iter().find(|c| is(c)));
        if known.and_then(|c| c.get("status")?.as_str()) == Some(status) {
            continue;
        }
        let (reason, verdict) =
            if exists { ("Found", "and it exists") } else { ("NotFound", "but there is no such object") };
        let message = format!(
            "This FlowSchema references the PriorityLevelConfiguration object named {:?} {verdict}",
            schema.level
        );
        let condition = json!({
            "type": "Dangling", "status": status, "lastTransitionTime": (core.config.clock)().to_string(),
            "reason": reason, "message": message,
        });
        let call = own_call(&resource, &schema.name);
        let Ok(work) = Work::new(core, &call, &resource) else { return };
        let work = Work {
            trusted: true,
            owned: true,
            manager: "api-priority-and-fairness-config-consumer-v1".into(),
            ..work
        };
        let written = update_object(&work, &schema.name, Mode::Free("status"), false, |old| {
            let wanted = json!({
                "kind": "FlowSchema", "apiVersion": resource.gvk.api_version(), "metadata": { "name": schema.name },
                "status": { "conditions": [condition] },
            });
            crate::write::patched(&work, old, &Sent::Apply(wanted), Mode::Status)
        });
        if let Err(error) = written.await {
            tracing::debug!(schema = schema.name, %error, "the condition of a flow schema was not written");
        }
    }
}

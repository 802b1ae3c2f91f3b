//! PingSource: an event on a schedule.

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::tz::TimeZone;
use kube::{ResourceExt, api::DynamicObject};
use serde_json::Value;
use tokio::time::sleep;
use wasmk_api::{Schedule, Timestamp};

use super::{Eventing, event::Event};

/// The schedule of a source that names none.
const EVERY_MINUTE: &str = "* * * * *";
/// Longest sleep, so that a clock that was set forward is noticed.
const LONGEST: Duration = Duration::from_secs(60);

/// Fires every source at its times.
pub(super) async fn run(eventing: Arc<Eventing>) {
    let mut agenda = Agenda::default();
    loop {
        let changed = eventing.changed.notified();
        for source in agenda.due(eventing.pings.all(), Timestamp::now()) {
            eventing.emit(&source, event(&source));
        }
        let pause = agenda.next().map_or(LONGEST, |at| at.since(Timestamp::now()).min(LONGEST));
        tokio::select! {
            () = changed => {}
            () = sleep(pause) => {}
        }
    }
}

/// When each source is due next.
#[derive(Default)]
struct Agenda(HashMap<Version, Due>);

/// A source as it was written once: its uid and generation.
type Version = (String, i64);

struct Due {
    times: Times,
    at: Option<Timestamp>,
}

impl Agenda {
    /// The sources whose time has come. A time counts once, whatever the clock does; of those that
    /// passed while nobody looked only the last one counts.
    fn due(&mut self, sources: Vec<Arc<DynamicObject>>, now: Timestamp) -> Vec<Arc<DynamicObject>> {
        let mut known = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for source in sources {
            let version = (source.uid().unwrap_or_default(), source.metadata.generation.unwrap_or(0));
            let entry = known.remove(&version).or_else(|| {
                let times = Times::read(&source.data["spec"]).ok()?;
                Some(Due { at: times.next(now), times })
            });
            let Some(mut entry) = entry else { continue };
            if entry.at.is_some_and(|at| at <= now) {
                entry.at = entry.times.next(now);
                due.push(source);
            }
            self.0.insert(version, entry);
        }
        due
    }

    /// When the next one is due.
    fn next(&self) -> Option<Timestamp> {
        self.0.values().filter_map(|due| due.at).min()
    }
}

/// A schedule and the zone by whose clocks it goes.
pub(super) struct Times {
    schedule: Schedule,
    zone: TimeZone,
}

impl Times {
    /// Of a source's `spec`.
    ///
    /// # Errors
    /// With a reason and a text, as a condition has them.
    pub(super) fn read(spec: &Value) -> Result<Self, (&'static str, String)> {
        let name = spec["timezone"].as_str().filter(|z| !z.is_empty()).unwrap_or("UTC");
        let zone =
            TimeZone::get(name).map_err(|_| ("InvalidTimezone", format!("unknown time zone {name}")))?;
        let schedule = spec["schedule"].as_str().unwrap_or(EVERY_MINUTE);
        let schedule = Schedule::parse(schedule).map_err(|why| ("InvalidSchedule", why))?;
        Ok(Self { schedule, zone })
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, &self.zone)
    }
}

fn event(source: &DynamicObject) -> Event {
    let spec = &source.data["spec"];
    let text = |key: &str| spec[key].as_str().filter(|t| !t.is_empty());
    let data = match text("dataBase64") {
        Some(encoded) => STANDARD.decode(encoded).unwrap_or_default(),
        None => text("data").unwrap_or("").as_bytes().to_vec(),
    };
    let name = format!(
        "/apis/v1/namespaces/{}/pingsources/{}",
        source.namespace().unwrap_or_default(),
        source.name_any()
    );
    Event::new("dev.knative.sources.ping", &name, text("contentType").unwrap_or("application/json"), data)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(spec: serde_json::Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "sources.knative.dev/v1", "kind": "PingSource",
            "metadata": {"name": "p", "namespace": "default"}, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn each_time_counts_once_in_its_zone() {
        let mut agenda = Agenda::default();
        let sources: Vec<_> =
            [("0 6 * * *", ""), ("0 9 * * *", "Europe/Helsinki"), ("0 6 * * *", "Europe/Helsinki")]
                .iter()
                .enumerate()
                .map(|(n, (schedule, zone))| {
                    let mut source = source(json!({"schedule": schedule, "timezone": zone}));
                    source.metadata.uid = Some(n.to_string());
                    Arc::new(source)
                })
                .collect();
        let mut check = |now: &str, expect: &[&str]| {
            let due = agenda.due(sources.clone(), now.parse().unwrap());
            let due: Vec<_> = due.iter().filter_map(|s| s.metadata.uid.as_deref()).collect();
            assert_eq!(due, expect, "{now}");
        };
        check("2026-07-01T05:59:59Z", &[]);
        check("2026-07-01T06:00:00Z", &["0", "1"]);
        check("2026-07-01T06:00:01Z", &[]);
        // The clock is set back, and comes by again.
        check("2026-07-01T05:00:00Z", &[]);
        check("2026-07-01T06:00:00Z", &[]);
        check("2026-07-03T03:00:00Z", &["0", "1", "2"]);
        assert_eq!(agenda.next(), "2026-07-03T06:00:00Z".parse().ok());
        assert!(agenda.due(Vec::new(), "2026-07-03T06:00:00Z".parse().unwrap()).is_empty());
        assert_eq!(agenda.next(), None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let why = |spec| Times::read(&spec).err().map(|(reason, _)| reason);
        assert_eq!(why(json!({"schedule": "nonsense"})), Some("InvalidSchedule"));
        assert_eq!(why(json!({"timezone": "Nowhere"})), Some("InvalidTimezone"));
        assert_eq!(why(json!({})), None);
    }

    #[test]
    fn the_event_carries_the_data() {
        let event = event(&source(json!({"dataBase64": "aGk=", "contentType": "text/plain"})));
        assert_eq!((&event.data[..], event.get("datacontenttype")), (&b"hi"[..], Some("text/plain")));
        assert_eq!(event.get("source"), Some("/apis/v1/namespaces/default/pingsources/p"));
    }
}

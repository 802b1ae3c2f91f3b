//! PingSource: an event on a schedule.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube::{ResourceExt, api::DynamicObject};
use tokio::time::sleep;
use wasmk_api::Timestamp;

use super::{
    Eventing,
    cron::{Moment, Schedule},
    event::Event,
};

/// Fires every source whose time it is, each minute.
pub(super) async fn run(eventing: Arc<Eventing>) {
    let mut last = minute(Timestamp::now());
    loop {
        let into = Timestamp::now().0.as_millisecond().rem_euclid(60_000);
        sleep(Duration::from_millis(u64::try_from(60_000 - into).unwrap_or(60_000))).await;
        let now = Timestamp::now();
        // A clock that was set back does not fire a minute twice.
        if minute(now) <= last {
            continue;
        }
        last = minute(now);
        for source in eventing.pings.all() {
            if is_due(&source, now) {
                eventing.emit(&source, event(&source));
            }
        }
    }
}

fn minute(time: Timestamp) -> i64 {
    time.0.as_second().div_euclid(60)
}

/// Whether a source's schedule names this minute, in its time zone.
fn is_due(source: &DynamicObject, now: Timestamp) -> bool {
    let spec = &source.data["spec"];
    let Ok(schedule) = Schedule::read(spec["schedule"].as_str().unwrap_or("* * * * *")) else { return false };
    let zone = spec["timezone"].as_str().filter(|z| !z.is_empty()).unwrap_or("UTC");
    let Ok(time) = now.0.in_tz(zone) else { return false };
    let number = |n: i8| u32::try_from(n).unwrap_or(0);
    schedule.is_at(Moment {
        minute: number(time.minute()),
        hour: number(time.hour()),
        day: number(time.day()),
        month: number(time.month()),
        weekday: number(time.weekday().to_sunday_zero_offset()),
    })
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
    fn schedules_count_in_their_time_zone() {
        let now: Timestamp = "2026-07-01T06:00:00Z".parse().unwrap();
        for (zone, hour, due) in [("", 6, true), ("Europe/Helsinki", 9, true), ("Europe/Helsinki", 6, false)]
        {
            let spec = json!({"schedule": format!("0 {hour} * * *"), "timezone": zone});
            assert_eq!(is_due(&source(spec), now), due, "{zone} {hour}");
        }
        assert!(!is_due(&source(json!({"schedule": "nonsense"})), now));
    }

    #[test]
    fn the_event_carries_the_data() {
        let event = event(&source(json!({"dataBase64": "aGk=", "contentType": "text/plain"})));
        assert_eq!((&event.data[..], event.get("datacontenttype")), (&b"hi"[..], Some("text/plain")));
        assert_eq!(event.get("source"), Some("/apis/v1/namespaces/default/pingsources/p"));
    }
}

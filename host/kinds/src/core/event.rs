//! `Event`, in its older and newer form.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{self, top};
use crate::meta::NameRule;
use crate::table::since;
use crate::value::{get, int, text};
use crate::{Column, Kind, columns};

const MAX_TEXT: usize = 128;
const MAX_NOTE: usize = 1024;

/// `Event` of the core group.
pub(crate) struct Event;

impl Kind for Event {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        namespace(obj, top(obj, "involvedObject"), errors);
        if top(obj, "eventTime").is_string() {
            newer(obj, errors);
        }
    }

    fn check_update(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        namespace(new, top(new, "involvedObject"), errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/Event")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let source = top(obj, "source");
        let parts = Parts {
            about: top(obj, "involvedObject"),
            source: [text(source, "component"), text(source, "host")],
            reporter: [top_text(obj, "reportingComponent"), top_text(obj, "reportingInstance")],
            first: top_text(obj, "firstTimestamp"),
            last: top_text(obj, "lastTimestamp"),
            count: top(obj, "count").as_i64(),
            message: top_text(obj, "message"),
        };
        row(obj, &parts, now)
    }

    fn field_names(&self) -> &'static [&'static str] {
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ]
    }

    fn fields(&self, obj: &Object) -> Vec<(&'static str, String)> {
        let value = |name: &&'static str| match *name {
            "source" => (*name, text(top(obj, "source"), "component").to_owned()),
            name => (name, fields::value(obj, name)),
        };
        self.field_names().iter().map(value).collect()
    }

    fn creates_on_update(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }
}

/// `Event` of the group `events.k8s.io`.
pub(crate) struct NewEvent;

impl Kind for NewEvent {
    fn check(&self, obj: &Object, errors: &mut Errors) {
        namespace(obj, top(obj, "regarding"), errors);
        newer(obj, errors);
    }

    fn check_update(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        namespace(new, top(new, "regarding"), errors);
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("events.k8s.io/Event")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let source = top(obj, "deprecatedSource");
        let parts = Parts {
            about: top(obj, "regarding"),
            source: [text(source, "component"), text(source, "host")],
            reporter: [top_text(obj, "reportingController"), top_text(obj, "reportingInstance")],
            first: top_text(obj, "deprecatedFirstTimestamp"),
            last: top_text(obj, "deprecatedLastTimestamp"),
            count: top(obj, "deprecatedCount").as_i64(),
            message: top_text(obj, "note"),
        };
        row(obj, &parts, now)
    }

    fn field_names(&self) -> &'static [&'static str] {
        &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ]
    }

    fn creates_on_update(&self) -> bool {
        true
    }
}

fn top_text<'a>(obj: &'a Object, key: &str) -> &'a str {
    top(obj, key).as_str().unwrap_or("")
}

/// What a row shows, wherever the two forms keep it.
struct Parts<'a> {
    about: &'a Value,
    source: [&'a str; 2],
    reporter: [&'a str; 2],
    first: &'a str,
    last: &'a str,
    count: Option<i64>,
    message: &'a str,
}

fn row(obj: &Object, parts: &Parts<'_>, now: Timestamp) -> Vec<Value> {
    let event_time = top_text(obj, "eventTime");
    let shown = |time: &str| if time.is_empty() { "<unknown>".to_owned() } else { since(time, now) };
    let first = if parts.first.is_empty() { shown(event_time) } else { shown(parts.first) };
    let series = get(top(obj, "series"), "count").map(|_| top(obj, "series"));
    let last = match series {
        Some(series) => shown(text(series, "lastObservedTime")),
        None if parts.last.is_empty() => first.clone(),
        None => shown(parts.last),
    };
    let count = series.and_then(|s| int(s, "count")).or(parts.count).filter(|c| *c != 0).unwrap_or(1);
    let kind = text(parts.about, "kind").to_lowercase();
    let target = match text(parts.about, "name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = if parts.source[0].is_empty() { parts.reporter } else { parts.source };
    let source = source.iter().filter(|s| !s.is_empty()).copied().collect::<Vec<_>>().join(", ");
    vec![
        last.into(),
        top_text(obj, "type").into(),
        top_text(obj, "reason").into(),
        target.into(),
        text(parts.about, "fieldPath").into(),
        source.into(),
        parts.message.trim().into(),
        first.into(),
        count.into(),
        obj.name().into(),
    ]
}

fn namespace(obj: &Object, about: &Value, errors: &mut Errors) {
    let (own, theirs) = (obj.namespace(), text(about, "namespace"));
    // Events about things without a namespace stand in one of two.
    let fits = match theirs {
        "" => matches!(own, "default" | "kube-system" | ""),
        theirs => own == theirs,
    };
    if !fits {
        let at = At::new("involvedObject");
        errors.invalid_text(&at.field("namespace"), theirs, "does not match event.namespace");
    }
}

/// What the newer form demands.
fn newer(obj: &Object, errors: &mut Errors) {
    let older = obj.api_version() == "v1";
    if !top(obj, "eventTime").is_string() {
        errors.required(&At::new("eventTime"), "");
    }
    let (key, said) = match older {
        true => ("reportingComponent", "reportingController"),
        false => ("reportingController", "reportingController"),
    };
    let controller = top_text(obj, key);
    if controller.is_empty() {
        errors.required(&At::new(said), "");
    }
    for why in names::qualified_name(controller) {
        errors.invalid_text(&At::new(said), controller, &why);
    }
    for key in ["reportingInstance", "action", "reason"] {
        let value = top_text(obj, key);
        if value.is_empty() {
            errors.required(&At::new(key), "");
        } else if value.len() > MAX_TEXT {
            errors.invalid_text(&At::new(key), "", "can have at most 128 characters");
        }
    }
    let note = top_text(obj, if older { "message" } else { "note" });
    if note.len() > MAX_NOTE {
        errors.invalid_text(&At::new("message"), "", "can have at most 1024 characters");
    }
    let kind = top_text(obj, "type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid_text(&At::new("type"), "", &format!("has invalid value: {kind}"));
    }
    if !older {
        never_old(obj, errors);
    }
}

fn never_old(obj: &Object, errors: &mut Errors) {
    for (key, said) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
    ] {
        let value = top(obj, key);
        if !value.is_null() {
            errors.invalid(&At::new(said), value, "needs to be unset");
        }
    }
}

//! Pods and pod templates.

pub(crate) mod defaults;
mod table;
pub(crate) mod validate;

use serde_json::{Value, json};
use wasmk_api::{Cause, Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{self, in_meta, spec, status, top};
use crate::meta::{self, NameRule};
use crate::pod::defaults::Place;
use crate::resources::qos_class;
use crate::status::status_mut;
use crate::value::{int, some_map, text};
use crate::{Column, Kind, columns, pod_warnings, selector, status as statuses, table as cells};

/// `Pod`.
pub(crate) struct Pod;

impl Kind for Pod {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(spec) = some_map(&mut obj.0, "spec") {
            defaults::pod_spec(spec, Place::Pod);
        }
        if let Some(status) = some_map(&mut obj.0, "status") {
            mirror_ip(status, "podIP", "podIPs");
            mirror_ip(status, "hostIP", "hostIPs");
        }
    }

    fn prepare_create(&self, obj: &mut Object) {
        if let Some(spec) = some_map(&mut obj.0, "spec")
            && spec
                .get("terminationGracePeriodSeconds")
                .and_then(Value::as_i64)
                .is_some_and(|grace| grace < 0)
        {
            spec.insert("terminationGracePeriodSeconds".into(), 1.into());
        }
        let class = qos_class(spec(obj));
        obj.0.insert("status".into(), json!({"phase": "Pending", "qosClass": class}));
        if !crate::value::list(spec(obj), "schedulingGates").is_empty() {
            let condition = json!({
                "type": "PodScheduled",
                "status": "False",
                "lastProbeTime": null,
                "lastTransitionTime": Timestamp::now(),
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            });
            status_mut(obj).insert("conditions".into(), json!([condition]));
        }
    }

    fn prepare_status(&self, new: &mut Object, old: &Object) {
        statuses::only(new, old);
        let owners = in_meta(old, "ownerReferences").clone();
        new.set_meta("ownerReferences", owners);
        let class = text(status(old), "qosClass").to_owned();
        if text(status(new), "qosClass").is_empty() && !class.is_empty() {
            status_mut(new).insert("qosClass".into(), class.into());
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        validate::pod(obj, errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        validate::pod_update(new, old, errors);
    }

    fn validate_part(&self, subresource: &str, new: &Object, old: &Object) -> Vec<Cause> {
        let mut errors = Errors::default();
        if matches!(subresource, "ephemeralcontainers" | "resize") {
            meta::check_update_twice(new, old, &mut errors);
            validate::part(new, &mut errors);
        }
        errors.done()
    }

    fn check_status(&self, new: &Object, old: &Object, errors: &mut Errors) {
        validate::pod_status(new, old, errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        // Nothing that a spec says is new when it has been stored before.
        if old.is_some_and(|old| spec(old) == spec(obj)) {
            return Vec::new();
        }
        pod_warnings::of_spec(spec(obj), top(obj, "metadata"), "spec", "metadata")
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/Pod")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        table::row(obj, now)
    }

    fn row_conditions(&self, obj: &Object) -> Vec<Value> {
        table::row_conditions(obj)
    }

    fn field_names(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ]
    }

    fn fields(&self, obj: &Object) -> Vec<(&'static str, String)> {
        let value = |name: &&'static str| match *name {
            "spec.hostNetwork" => (*name, fields::value_or(obj, name, "false")),
            name => (name, fields::value(obj, name)),
        };
        self.field_names().iter().map(value).collect()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn default_grace(&self, obj: &Object) -> Option<i64> {
        // Nothing is there to end: not placed yet, or ended already.
        let done = matches!(text(status(obj), "phase"), "Succeeded" | "Failed");
        if done || text(spec(obj), "nodeName").is_empty() {
            return Some(0);
        }
        // Below zero is a mistake that once was possible; it means at once, as far as that goes.
        Some(
            int(spec(obj), "terminationGracePeriodSeconds")
                .map_or(30, |grace| if grace < 0 { 1 } else { grace }),
        )
    }
}

/// The older single address always says the same as the first of the newer list.
fn mirror_ip(status: &mut serde_json::Map<String, Value>, one: &str, many: &str) {
    let single = status.get(one).and_then(Value::as_str).unwrap_or("").to_owned();
    let first = status.get(many).and_then(|list| list.get(0)).map(|ip| text(ip, "ip").to_owned());
    match first {
        Some(first) if single.is_empty() => {
            status.insert(one.into(), first.into());
        }
        Some(first) if first != single => {
            status.insert(many.into(), json!([{"ip": single}]));
        }
        None if !single.is_empty() => {
            status.insert(many.into(), json!([{"ip": single}]));
        }
        _ => {}
    }
}

/// `PodTemplate`.
pub(crate) struct PodTemplate;

impl Kind for PodTemplate {
    fn set_defaults(&self, obj: &mut Object) {
        defaults::template(&mut obj.0, "template");
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        validate::template(top(obj, "template"), &At::new("template"), errors);
    }

    fn warnings(&self, obj: &Object, old: Option<&Object>) -> Vec<String> {
        pod_warnings::of_template(obj, old, &["template"])
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/PodTemplate")
    }

    fn row(&self, obj: &Object, _now: Timestamp) -> Vec<Value> {
        let template = top(obj, "template");
        let (names, images) = cells::containers(crate::value::or_null(template, "spec"));
        let labels = selector::shown_labels(crate::value::or_null(template, "metadata"), "labels");
        vec![obj.name().into(), names, images, labels.into()]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn spec_changed(&self, new: &Object, old: &Object) -> bool {
        top(new, "template") != top(old, "template")
    }

    fn name_rule(&self) -> NameRule {
        meta::NameRule::Subdomain
    }
}

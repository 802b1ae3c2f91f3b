//! `Node`.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{self, in_spec, spec, status};
use crate::meta;
use crate::net;
use crate::resource_names;
use crate::table::{age, or};
use crate::value::{entries, flag, get, list, map_mut, or_null, set_default, some_map, text, texts};
use crate::{Column, Kind, columns, internal, status as statuses};

/// Ephemeral taints say this when nobody said anything else.
const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(crate) struct Node;

impl Kind for Node {
    fn set_defaults(&self, obj: &mut Object) {
        if let Some(spec) = some_map(&mut obj.0, "spec") {
            let single = spec.get("podCIDR").and_then(Value::as_str).unwrap_or("").to_owned();
            let first =
                spec.get("podCIDRs").and_then(|l| l.get(0)).and_then(Value::as_str).map(str::to_owned);
            match first {
                None if !single.is_empty() => {
                    spec.insert("podCIDRs".into(), json!([single]));
                }
                Some(first) if single.is_empty() => {
                    spec.insert("podCIDR".into(), first.into());
                }
                _ => {}
            }
        }
        if let Some(status) = some_map(&mut obj.0, "status")
            && let Some(capacity) = status.get("capacity").cloned()
        {
            set_default(status, "allocatable", capacity);
        }
    }

    /// A node may bring its status along.
    fn prepare_create(&self, _obj: &mut Object) {}

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        statuses::keep(new, old);
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        check_spec(spec(obj), errors);
        check_status(status(obj), errors);
    }

    fn check_update(&self, new: &Object, old: &Object, errors: &mut Errors) {
        check_spec(spec(new), errors);
        check_status(status(new), errors);
        let at = At::new("spec");
        let (cidrs, before) = (in_spec(new, &["podCIDRs"]), in_spec(old, &["podCIDRs"]));
        if !before.is_null() && cidrs != before {
            errors.forbidden(
                &at.field("podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
        let (id, before) = (text(spec(new), "providerID"), text(spec(old), "providerID"));
        if !before.is_empty() && id != before {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.forbidden(&at.field("providerID"), why);
        }
    }

    fn check_status(&self, new: &Object, _old: &Object, errors: &mut Errors) {
        check_status(status(new), errors);
    }

    fn warnings(&self, obj: &Object, _old: Option<&Object>) -> Vec<String> {
        let mut warnings = Vec::new();
        if in_spec(obj, &["configSource"]).is_object() {
            warnings.push("spec.configSource: the feature is no longer supported".into());
        }
        if !text(spec(obj), "externalID").is_empty() {
            warnings.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
        }
        warnings
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("/Node")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let info = or_null(status(obj), "nodeInfo");
        let kernel = match (text(info, "kernelVersion"), text(info, "architecture")) {
            ("", _) => "<unknown>".to_owned(),
            (kernel, "") => kernel.to_owned(),
            (kernel, architecture) => format!("{kernel} ({architecture})"),
        };
        vec![
            obj.name().into(),
            state(obj).into(),
            roles(obj).into(),
            age(obj, now),
            text(info, "kubeletVersion").into(),
            address(obj, "InternalIP").into(),
            address(obj, "ExternalIP").into(),
            or(text(info, "osImage"), "<unknown>").into(),
            kernel.into(),
            or(text(info, "containerRuntimeVersion"), "<unknown>").into(),
        ]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn fields(&self, obj: &Object) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", fields::value_or(obj, "spec.unschedulable", "false"))]
    }
}

fn state(obj: &Object) -> String {
    let ready = list(status(obj), "conditions").iter().find(|c| text(c, "type") == "Ready");
    let state = match ready.map(|c| text(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    match flag(spec(obj), "unschedulable") {
        true => format!("{state},SchedulingDisabled"),
        false => state.into(),
    }
}

fn roles(obj: &Object) -> String {
    let role = |(key, value): (&str, &str)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        _ if key == "kubernetes.io/role" && !value.is_empty() => Some(value.to_owned()),
        _ => None,
    };
    let mut roles: Vec<String> = obj.labels().filter_map(role).collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".into() } else { roles.join(",") }
}

fn address<'a>(obj: &'a Object, kind: &str) -> &'a str {
    let found = list(status(obj), "addresses").iter().find(|a| text(a, "type") == kind);
    found.map_or("<none>", |a| text(a, "address"))
}

fn check_spec(spec: &Value, errors: &mut Errors) {
    // Taints are reported below metadata, where they once stood.
    let metadata = At::new("metadata");
    taints(list(spec, "taints"), &metadata.field("taints"), errors);
    let spec_at = At::new("spec");
    let at = spec_at.field("podCIDRs");
    let cidrs: Vec<&str> = texts(spec, "podCIDRs").collect();
    for (i, cidr) in cidrs.iter().enumerate() {
        net::cidr(cidr, &at.index(i), errors);
    }
    let single = text(spec, "podCIDR");
    if !single.is_empty() && cidrs.first().is_some_and(|first| *first != single) {
        let why = "node.podCIDR and node.podCIDRs[0] must match";
        errors.invalid(&at.index(0), or_null(spec, "podCIDRs"), why);
    }
}

/// Checks taints.
pub(crate) fn taints(taints: &[Value], at: &At<'_>, errors: &mut Errors) {
    for (i, taint) in taints.iter().enumerate() {
        let at = at.index(i);
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        meta::label_key(key, &at.field("key"), errors);
        for why in names::label_value(value) {
            errors.invalid_text(&at.field("value"), value, &why);
        }
        match effect {
            "" => errors.required(&at.field("effect"), ""),
            effect if TAINT_EFFECTS.contains(&effect) => {}
            other => errors.unsupported(&at.field("effect"), other, &TAINT_EFFECTS),
        }
        let same = |other: &Value| text(other, "key") == key && text(other, "effect") == effect;
        if !effect.is_empty() && taints[..i].iter().any(same) {
            let shown = internal::form(taint, "v1.Taint");
            errors.duplicate(&at, &shown);
            errors.explain_last("taints must be unique by key and effect pair");
        }
    }
}

fn check_status(status: &Value, errors: &mut Errors) {
    let at = At::new("status");
    for list in ["capacity", "allocatable"] {
        for (name, value) in entries(status, list) {
            resource_names::quantity_of(name, value, &at.field(list).key(name), errors);
        }
    }
    let images = at.field("images");
    for (i, image) in list(status, "images").iter().enumerate() {
        if image.get("names").is_some() && list(image, "names").is_empty() {
            errors.required(&images.index(i).field("names"), "");
        }
    }
    let addresses = list(status, "addresses");
    let place = at.field("addresses");
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            errors.duplicate(&place.index(i), &internal::form(address, "v1.NodeAddress"));
        }
    }
    if let Some(config) = get(status, "config").and_then(Value::as_object)
        && config.is_empty()
    {
        errors.required(&at.field("config"), "");
    }
}

/// Marks a new node as not ready for pods, until it reports that it is.
pub fn taint_new(obj: &mut Object) {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    let spec = map_mut(&mut obj.0, "spec");
    let taints = spec.entry("taints").or_insert_with(|| json!([]));
    if let Some(taints) = taints.as_array_mut()
        && !taints.iter().any(|t| text(t, "key") == NOT_READY && text(t, "effect") == "NoSchedule")
    {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

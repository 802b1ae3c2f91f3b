//! Kinds of the group `flowcontrol.apiserver.k8s.io`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};

use crate::errors::{At, Errors};
use crate::fields::{spec, status};
use crate::table::age;
use crate::value::{get, int, list, map_mut, or_null, set_default, some_map, text};
use crate::{Column, Kind, columns};

const HIGHEST_PRECEDENCE: i64 = 10_000;

/// `FlowSchema`.
pub(crate) struct FlowSchema;

impl Kind for FlowSchema {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        if spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(0) == 0 {
            spec.insert("matchingPrecedence".into(), 1000.into());
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        let precedence = int(spec, "matchingPrecedence").unwrap_or(0);
        if precedence <= 0 {
            errors.invalid_int(&at.field("matchingPrecedence"), precedence, "must be a positive value");
        }
        if precedence > HIGHEST_PRECEDENCE {
            let why = "must not be greater than 10000";
            errors.invalid_int(&at.field("matchingPrecedence"), precedence, why);
        }
        if precedence == 1 && obj.name() != "exempt" {
            let why = "only the schema named 'exempt' may have matchingPrecedence 1";
            errors.invalid_int(&at.field("matchingPrecedence"), precedence, why);
        }
        if let Some(method) = get(spec, "distinguisherMethod") {
            let kind = text(method, "type");
            if !matches!(kind, "ByNamespace" | "ByUser") {
                let place = at.field("distinguisherMethod");
                errors.unsupported(&place.field("type"), kind, &["ByNamespace", "ByUser"]);
            }
        }
        let place = at.field("priorityLevelConfiguration");
        match text(or_null(spec, "priorityLevelConfiguration"), "name") {
            "" => errors.required(&place.field("name"), "must reference a priority level"),
            name => {
                for why in wasmk_machinery::names::dns1123_subdomain(name) {
                    errors.invalid_text(&place.field("name"), name, &why);
                }
            }
        }
        let place = at.field("rules");
        for (i, rule) in list(spec, "rules").iter().enumerate() {
            schema_rule(rule, &place.index(i), errors);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("flowcontrol.apiserver.k8s.io/FlowSchema")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let spec = spec(obj);
        let method = get(spec, "distinguisherMethod").map_or("<none>", |m| text(m, "type"));
        let dangling = list(status(obj), "conditions").iter().find(|c| text(c, "type") == "Dangling");
        vec![
            obj.name().into(),
            text(or_null(spec, "priorityLevelConfiguration"), "name").into(),
            int(spec, "matchingPrecedence").unwrap_or(0).into(),
            method.into(),
            age(obj, now),
            dangling.map_or("?", |c| text(c, "status")).into(),
        ]
    }
}

fn schema_rule(rule: &Value, at: &At<'_>, errors: &mut Errors) {
    if list(rule, "subjects").is_empty() {
        errors.required(&at.field("subjects"), "subjects must contain at least one value");
    }
    for (i, subject) in list(rule, "subjects").iter().enumerate() {
        let kind = text(subject, "kind");
        let at = at.field("subjects");
        let at = at.index(i);
        let part = match kind {
            "Group" => "group",
            "ServiceAccount" => "serviceAccount",
            "User" => "user",
            other => {
                errors.unsupported(&at.field("kind"), other, &["Group", "ServiceAccount", "User"]);
                continue;
            }
        };
        if get(subject, part).is_none() {
            let why = format!("{part} is required when subject kind is '{kind}'");
            errors.required(&at.field(part), &why);
        }
    }
    if list(rule, "resourceRules").is_empty() && list(rule, "nonResourceRules").is_empty() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.required(at, why);
    }
}

/// `PriorityLevelConfiguration`.
pub(crate) struct PriorityLevel;

impl Kind for PriorityLevel {
    fn set_defaults(&self, obj: &mut Object) {
        let Some(spec) = some_map(&mut obj.0, "spec") else { return };
        if let Some(exempt) = some_map(spec, "exempt") {
            set_default(exempt, "nominalConcurrencyShares", 0);
            set_default(exempt, "lendablePercent", 0);
        }
        if let Some(limited) = some_map(spec, "limited") {
            set_default(limited, "nominalConcurrencyShares", 30);
            set_default(limited, "lendablePercent", 0);
            let response = map_mut(limited, "limitResponse");
            if let Some(queuing) = some_map(response, "queuing") {
                for (key, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    if queuing.get(key).and_then(Value::as_i64).unwrap_or(0) == 0 {
                        queuing.insert(key.into(), value.into());
                    }
                }
            }
        }
    }

    fn check(&self, obj: &Object, errors: &mut Errors) {
        let (spec, at) = (spec(obj), At::new("spec"));
        match text(spec, "type") {
            "Exempt" => {
                if get(spec, "limited").is_some() {
                    errors.forbidden(&at.field("limited"), "must be nil if the type is not Limited");
                }
            }
            "Limited" => {
                if get(spec, "exempt").is_some() {
                    errors.forbidden(&at.field("exempt"), "must be nil if the type is Limited");
                }
                match get(spec, "limited") {
                    None => errors.required(&at.field("limited"), "must not be empty when type is Limited"),
                    Some(limited) => check_limited(limited, &at.field("limited"), errors),
                }
            }
            other => errors.unsupported(&at.field("type"), other, &["Exempt", "Limited"]),
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::of("flowcontrol.apiserver.k8s.io/PriorityLevelConfiguration")
    }

    fn row(&self, obj: &Object, now: Timestamp) -> Vec<Value> {
        let spec = spec(obj);
        let limited = or_null(spec, "limited");
        let queuing = or_null(or_null(limited, "limitResponse"), "queuing");
        let shown = |holder: &Value, key| int(holder, key).map_or("<none>".into(), |n| n.to_string());
        vec![
            obj.name().into(),
            text(spec, "type").into(),
            shown(limited, "nominalConcurrencyShares").into(),
            shown(queuing, "queues").into(),
            shown(queuing, "handSize").into(),
            shown(queuing, "queueLengthLimit").into(),
            age(obj, now),
        ]
    }
}

fn check_limited(limited: &Value, at: &At<'_>, errors: &mut Errors) {
    let shares = int(limited, "nominalConcurrencyShares").unwrap_or(0);
    if shares < 0 {
        errors.invalid_int(&at.field("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
    let response = or_null(limited, "limitResponse");
    let at = at.field("limitResponse");
    let queuing = get(response, "queuing");
    let place = at.field("queuing");
    match text(response, "type") {
        "Reject" => {
            if queuing.is_some() {
                errors.forbidden(&place, "must be nil if limited.limitResponse.type is not Limited");
            }
        }
        "Queue" => match queuing {
            None => errors.required(&place, "must not be empty if limited.limitResponse.type is Limited"),
            Some(queuing) => check_queuing(queuing, &place, errors),
        },
        other => errors.unsupported(&at.field("type"), other, &["Queue", "Reject"]),
    }
}

fn check_queuing(queuing: &Value, at: &At<'_>, errors: &mut Errors) {
    for key in ["queueLengthLimit", "queues", "handSize"] {
        let number = int(queuing, key).unwrap_or(0);
        if number <= 0 {
            errors.invalid_int(&at.field(key), number, "must be positive");
        }
    }
    let (hand, queues) = (int(queuing, "handSize").unwrap_or(0), int(queuing, "queues").unwrap_or(0));
    if queues > 0 && hand > queues {
        let why = format!("should not be greater than queues ({queues})");
        errors.invalid_int(&at.field("handSize"), hand, &why);
    }
}

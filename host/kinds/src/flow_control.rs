//! Kinds of the group `flowcontrol.apiserver.k8s.io`.

use serde_json::Value;
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::fields::{spec, status};
use crate::table::age;
use crate::value::{flag, get, int, list, map_mut, or_null, set_default, some_map, text, texts};
use crate::{Column, Kind, columns, internal};

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
                let shown = internal::form(method, "flowcontrol.apiserver.k8s.io/v1.FlowDistinguisherMethod");
                errors.unsupported_value(&place.field("type"), &shown, &["ByNamespace", "ByUser"]);
            }
        }
        let place = at.field("priorityLevelConfiguration");
        match text(or_null(spec, "priorityLevelConfiguration"), "name") {
            "" => errors.required(&place.field("name"), "must reference a priority level"),
            name => {
                for why in names::dns1123_subdomain(name) {
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

/// The kinds of subjects, with the field each is described in.
const SUBJECTS: [(&str, &str); 3] =
    [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn schema_rule(rule: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("subjects");
    let subjects = list(rule, "subjects");
    for (i, one) in subjects.iter().enumerate() {
        subject(one, &place.index(i), errors);
    }
    if subjects.is_empty() {
        errors.required(&place, "subjects must contain at least one value");
    }
    let (resources, paths) = (list(rule, "resourceRules"), list(rule, "nonResourceRules"));
    if resources.is_empty() && paths.is_empty() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.required(at, why);
    }
    let place = at.field("resourceRules");
    for (i, one) in resources.iter().enumerate() {
        resource_rule(one, &place.index(i), errors);
    }
    let place = at.field("nonResourceRules");
    for (i, one) in paths.iter().enumerate() {
        path_rule(one, &place.index(i), errors);
    }
}

fn subject(subject: &Value, at: &At<'_>, errors: &mut Errors) {
    let kind = text(subject, "kind");
    let Some((_, part)) = SUBJECTS.iter().find(|(known, _)| *known == kind) else {
        errors.unsupported(&at.field("kind"), kind, &["Group", "ServiceAccount", "User"]);
        return;
    };
    let place = at.field(part);
    match get(subject, part) {
        None => errors.required(&place, &format!("{part} is required when subject kind is '{kind}'")),
        Some(named) => subject_name(named, kind == "ServiceAccount", &place, errors),
    }
    for (other, field) in SUBJECTS.iter().filter(|(other, _)| *other != kind) {
        if get(subject, field).is_some() {
            let why = format!("{field} is forbidden when subject kind is not '{other}'");
            errors.forbidden(&at.field(field), &why);
        }
    }
}

fn subject_name(named: &Value, account: bool, at: &At<'_>, errors: &mut Errors) {
    let name = text(named, "name");
    if name.is_empty() {
        errors.required(&at.field("name"), "");
    } else if account && name != "*" {
        for why in names::dns1123_subdomain(name) {
            errors.invalid_text(&at.field("name"), name, &why);
        }
    }
    if !account {
        return;
    }
    let namespace = text(named, "namespace");
    if namespace.is_empty() {
        errors.required(&at.field("namespace"), "must specify namespace for service account");
        return;
    }
    for why in names::dns1123_label(namespace) {
        errors.invalid_text(&at.field("namespace"), namespace, &why);
    }
}

/// Checks a list in which `*` stands for everything and then stands alone; whether it holds single names.
fn starred(rule: &Value, key: &str, others: &str, at: &At<'_>, errors: &mut Errors) -> bool {
    let star = texts(rule, key).any(|name| name == "*");
    if star && list(rule, key).len() > 1 {
        let why = format!("if '*' is present, must not specify other {others}");
        errors.invalid(&at.field(key), or_null(rule, key), &why);
    }
    !star
}

fn verbs(rule: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("verbs");
    if list(rule, "verbs").is_empty() {
        errors.required(&place, "verbs must contain at least one value");
    } else if starred(rule, "verbs", "verbs", at, errors)
        && !texts(rule, "verbs").all(|verb| VERBS.contains(&verb))
    {
        errors.unsupported_value(&place, or_null(rule, "verbs"), &VERBS);
    }
}

fn resource_rule(rule: &Value, at: &At<'_>, errors: &mut Errors) {
    verbs(rule, at, errors);
    for (key, others, why) in [
        ("apiGroups", "api groups", "resource rules must supply at least one api group"),
        ("resources", "resources", "resource rules must supply at least one resource"),
    ] {
        if list(rule, key).is_empty() {
            errors.required(&at.field(key), why);
        } else {
            starred(rule, key, others, at, errors);
        }
    }
    let place = at.field("namespaces");
    if list(rule, "namespaces").is_empty() {
        if !flag(rule, "clusterScope") {
            let why = "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(&place, why);
        }
    } else if starred(rule, "namespaces", "namespaces", at, errors) {
        for (i, namespace) in texts(rule, "namespaces").enumerate() {
            for why in names::dns1123_label(namespace) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                errors.invalid_text(&place.index(i), namespace, &why);
            }
        }
    }
}

fn path_rule(rule: &Value, at: &At<'_>, errors: &mut Errors) {
    verbs(rule, at, errors);
    let place = at.field("nonResourceURLs");
    if list(rule, "nonResourceURLs").is_empty() {
        errors.required(&place, "nonResourceURLs must contain at least one value");
    } else if starred(rule, "nonResourceURLs", "non-resource URLs", at, errors) {
        for (i, path) in texts(rule, "nonResourceURLs").enumerate() {
            if let Some(why) = wrong_path(path) {
                errors.invalid_text(&place.index(i), path, why);
            }
        }
    }
}

fn wrong_path(path: &str) -> Option<&'static str> {
    let stars = path.matches('*').count();
    match path {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !path.starts_with('/') => Some("must start with slash"),
        _ if path.contains(' ') => Some("must not contain white-space"),
        _ if path.contains("//") => Some("must not contain double slash"),
        _ if stars > 1 || stars == 1 && !path.ends_with("/*") => Some("wildcard can only do suffix matching"),
        _ => None,
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
        let kind = text(spec, "type");
        if (obj.name() == "exempt") != (kind == "Exempt") {
            let why = "type must be 'Exempt' if and only if name is 'exempt'";
            errors.invalid_text(&at.field("type"), kind, why);
        }
        match kind {
            "Exempt" => {
                if let Some(exempt) = get(spec, "exempt") {
                    shares(exempt, &at.field("exempt"), errors);
                    lendable(exempt, &at.field("exempt"), errors);
                }
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

fn shares(holder: &Value, at: &At<'_>, errors: &mut Errors) {
    if let Some(shares) = int(holder, "nominalConcurrencyShares").filter(|shares| *shares < 0) {
        errors.invalid_int(&at.field("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
}

fn lendable(holder: &Value, at: &At<'_>, errors: &mut Errors) {
    if let Some(percent) = int(holder, "lendablePercent").filter(|percent| !(0..=100).contains(percent)) {
        errors.invalid_int(&at.field("lendablePercent"), percent, "must be between 0 and 100, inclusive");
    }
}

fn check_limited(limited: &Value, at: &At<'_>, errors: &mut Errors) {
    shares(limited, at, errors);
    limit_response(or_null(limited, "limitResponse"), &at.field("limitResponse"), errors);
    lendable(limited, at, errors);
    if let Some(percent) = int(limited, "borrowingLimitPercent").filter(|percent| *percent < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.invalid_int(&at.field("borrowingLimitPercent"), percent, why);
    }
}

fn limit_response(response: &Value, at: &At<'_>, errors: &mut Errors) {
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
    let number = |key: &str| int(queuing, key).unwrap_or(0);
    let (limit, queues, hand) = (number("queueLengthLimit"), number("queues"), number("handSize"));
    if limit <= 0 {
        errors.invalid_int(&at.field("queueLengthLimit"), limit, POSITIVE);
    }
    if queues <= 0 {
        errors.invalid_int(&at.field("queues"), queues, POSITIVE);
    } else if queues > MAX_QUEUES {
        errors.invalid_int(&at.field("queues"), queues, &format!("must not be greater than {MAX_QUEUES}"));
    }
    let place = at.field("handSize");
    if hand <= 0 {
        errors.invalid_int(&place, hand, POSITIVE);
    } else if hand > queues {
        errors.invalid_int(&place, hand, &format!("should not be greater than queues ({queues})"));
    } else if entropy(queues, hand) > MAX_ENTROPY {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_ENTROPY}"
        );
        errors.invalid_int(&place, hand, &why);
    }
}

const POSITIVE: &str = "must be positive";
const MAX_QUEUES: i64 = 10_000_000;
/// Most bits that dealing a hand of queues may use of a hash.
const MAX_ENTROPY: u32 = 60;

/// The bits it takes to deal a hand of queues.
fn entropy(queues: i64, hand: i64) -> u32 {
    // More than sixty queues in a hand are too many in any case.
    let dealt = queues - hand + 1..=queues;
    if dealt.clone().count() > MAX_ENTROPY as usize + 1 && queues > hand {
        return MAX_ENTROPY + 1;
    }
    let bits: f64 = dealt.map(|left| (left as f64).log2()).sum();
    bits.ceil() as u32
}

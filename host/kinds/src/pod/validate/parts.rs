//! The parts of a pod spec that are neither containers nor volumes.

use serde_json::Value;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::meta;
use crate::net;
use crate::resource_names;
use crate::value::{entries, get, int, list, or_null, text, text_at, texts};

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_LENGTH: usize = 2048;

/// Checks the claims of devices.
pub(super) fn resource_claims(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let claims = list(spec, "resourceClaims");
    for (i, claim) in claims.iter().enumerate() {
        let at = at.index(i);
        let name = text(claim, "name");
        if name.is_empty() {
            errors.required(&at.field("name"), "");
        } else {
            for why in names::dns1123_label(name) {
                errors.invalid_text(&at.field("name"), name, &why);
            }
        }
        if claims[..i].iter().any(|other| text(other, "name") == name) {
            errors.duplicate_text(&at.field("name"), name);
        }
        match (get(claim, "resourceClaimName"), get(claim, "resourceClaimTemplateName")) {
            (Some(_), Some(_)) => errors.invalid(
                &at,
                claim,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (None, None) => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.required(&at, why);
            }
            _ => {}
        }
    }
}

/// Checks restart and DNS policy and the node selector.
pub(super) fn policies(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    match text(spec, "restartPolicy") {
        "Always" | "OnFailure" | "Never" => {}
        "" => errors.required(&at.field("restartPolicy"), ""),
        other => errors.unsupported(&at.field("restartPolicy"), other, &["Always", "OnFailure", "Never"]),
    }
    match text(spec, "dnsPolicy") {
        "ClusterFirstWithHostNet" | "ClusterFirst" | "Default" | "None" => {}
        "" => errors.required(&at.field("dnsPolicy"), ""),
        other => {
            let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
            errors.unsupported(&at.field("dnsPolicy"), other, &policies);
        }
    }
    meta::label_map(entries(spec, "nodeSelector"), &at.field("nodeSelector"), errors);
}

/// Checks what the pod's resolver is told.
pub(super) fn dns(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let config = or_null(spec, "dnsConfig");
    let servers: Vec<&str> = texts(config, "nameservers").collect();
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            errors.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.required(&at.field("nameservers"), why);
            return;
        }
    }
    let place = at.field("nameservers");
    if servers.len() > MAX_NAMESERVERS {
        errors.invalid(&place, or_null(config, "nameservers"), "must not have more than 3 nameservers");
    }
    for (i, server) in servers.iter().enumerate() {
        net::ip(server, &place.index(i), errors);
    }
    let searches: Vec<&str> = texts(config, "searches").collect();
    let place = at.field("searches");
    if searches.len() > MAX_SEARCHES {
        errors.invalid(&place, or_null(config, "searches"), "must not have more than 32 search paths");
    }
    if searches.join(" ").len() > MAX_SEARCH_LENGTH {
        let why = "must not have more than 2048 characters (including spaces) in the search list";
        errors.invalid(&place, or_null(config, "searches"), why);
    }
    for (i, search) in searches.iter().enumerate() {
        let name = search.strip_suffix('.').unwrap_or(search);
        for why in names::dns1123_subdomain_with_underscore(name).into_iter().filter(|_| *search != ".") {
            errors.invalid_text(&place.index(i), name, &why);
        }
    }
    let place = at.field("options");
    for (i, _) in list(config, "options").iter().enumerate().filter(|(_, o)| text(o, "name").is_empty()) {
        errors.required(&place.index(i), "must not be empty");
    }
}

/// Checks readiness and scheduling gates.
pub(super) fn gates(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("readinessGates");
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let name = text(gate, "conditionType");
        for why in names::qualified_name(name) {
            errors.invalid_text(&place.index(i).field("conditionType"), name, &why);
        }
    }
    let place = at.field("schedulingGates");
    let gates = list(spec, "schedulingGates");
    for (i, gate) in gates.iter().enumerate() {
        let name = text(gate, "name");
        for why in names::qualified_name(name) {
            errors.invalid_text(&place.index(i), name, &why);
        }
        if gates[..i].iter().any(|other| text(other, "name") == name) {
            errors.duplicate_text(&place.index(i), name);
        }
    }
}

/// Checks the names a pod goes by or refers to, and its deadline.
pub(super) fn names(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    type Rule = fn(&str) -> Vec<String>;
    const FIRST: [(&str, Rule); 2] =
        [("serviceAccountName", names::dns1123_subdomain), ("nodeName", names::dns1123_subdomain)];
    const SECOND: [(&str, Rule); 2] =
        [("hostname", names::dns1123_label), ("subdomain", names::dns1123_label)];
    let check = |rules: &[(&str, Rule)], errors: &mut Errors| {
        for (key, rule) in rules {
            let name = text(spec, key);
            for why in rule(name).into_iter().filter(|_| !name.is_empty()) {
                errors.invalid_text(&at.field(key), name, &why);
            }
        }
    };
    check(&FIRST, errors);
    if let Some(seconds) = int(spec, "activeDeadlineSeconds") {
        for why in names::in_range(seconds, 1, i64::from(i32::MAX)) {
            errors.invalid_int(&at.field("activeDeadlineSeconds"), seconds, &why);
        }
    }
    check(&SECOND, errors);
}

const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Checks tolerations.
pub(crate) fn tolerations(tolerations: &[Value], at: &At<'_>, errors: &mut Errors) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let at = at.index(i);
        let (key, operator, effect) =
            (text(toleration, "key"), text(toleration, "operator"), text(toleration, "effect"));
        let value = text(toleration, "value");
        if !key.is_empty() {
            meta::label_key(key, &at.field("key"), errors);
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid_text(&at.field("operator"), operator, why);
        }
        if int(toleration, "tolerationSeconds").is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid_text(&at.field("effect"), effect, why);
        }
        match operator {
            "Equal" | "" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    errors.invalid_text(&at.field("operator"), value, &wrong.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let shown = crate::internal::line(toleration, "v1.Toleration");
                    let why = "value must be empty when `operator` is 'Exists'";
                    errors.invalid_shown(&at.field("operator"), &shown, why);
                }
            }
            other => errors.unsupported(&at.field("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !TAINT_EFFECTS.contains(&effect) {
            errors.unsupported(&at.field("effect"), effect, &TAINT_EFFECTS);
        }
    }
}

/// Checks what comes last.
pub(super) fn rest(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("hostAliases");
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        let at = place.index(i);
        net::ip(text(alias, "ip"), &at.field("ip"), errors);
        for name in texts(alias, "hostnames") {
            for why in names::dns1123_subdomain(name) {
                errors.invalid_text(&at.field("hostnames"), name, &why);
            }
        }
    }
    for key in ["priorityClassName", "runtimeClassName"] {
        let name = text_at(spec, key).filter(|name| !name.is_empty() || key == "runtimeClassName");
        for (name, why) in
            name.into_iter().flat_map(|n| names::dns1123_subdomain(n).into_iter().map(move |w| (n, w)))
        {
            errors.invalid_text(&at.field(key), name, &why);
        }
    }
    let policies = ["Never", "PreemptLowerPriority"];
    if let Some(policy) = text_at(spec, "preemptionPolicy").filter(|p| !policies.contains(p)) {
        errors.unsupported(&at.field("preemptionPolicy"), policy, &policies);
    }
    let place = at.field("overhead");
    for (name, value) in entries(spec, "overhead") {
        resource_names::of_container(name, &place.key(name), errors);
        resource_names::quantity_of(name, value, &place.key(name), errors);
    }
    if let Some(os) = get(spec, "os") {
        match text(os, "name") {
            "linux" | "windows" => {}
            "" => errors.required(&at.field("os").field("name"), "cannot be empty"),
            other => errors.unsupported(&at.field("os"), other, &["linux", "windows"]),
        }
    }
    let grace = at.field("terminationGracePeriodSeconds");
    if int(spec, "terminationGracePeriodSeconds").is_none() && spec.is_object() {
        errors.required(&grace, "");
    }
}

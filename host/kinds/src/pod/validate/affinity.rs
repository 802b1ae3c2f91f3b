//! Where pods may and should run.

use serde_json::Value;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::meta;
use crate::selector;
use crate::value::{entries, get, int, list, or_null, text, text_at, texts};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Checks affinities; null is fine.
pub(super) fn affinity(affinity: &Value, at: &At<'_>, errors: &mut Errors) {
    if let Some(nodes) = get(affinity, "nodeAffinity") {
        let at = at.field("nodeAffinity");
        if let Some(required) = get(nodes, REQUIRED) {
            node_selector(required, &at.field(REQUIRED), errors);
        }
        let place = at.field(PREFERRED);
        for (i, term) in list(nodes, PREFERRED).iter().enumerate() {
            let at = place.index(i);
            weight(term, &at, errors);
            node_term(or_null(term, "preference"), &at.field("preference"), errors);
        }
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = get(affinity, key) else { continue };
        let at = at.field(key);
        let place = at.field(REQUIRED);
        for (i, term) in list(pods, REQUIRED).iter().enumerate() {
            pod_term(term, &place.index(i), errors);
        }
        let place = at.field(PREFERRED);
        for (i, term) in list(pods, PREFERRED).iter().enumerate() {
            let at = place.index(i);
            weight(term, &at, errors);
            pod_term(or_null(term, "podAffinityTerm"), &at.field("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Value, at: &At<'_>, errors: &mut Errors) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid_int(&at.field("weight"), weight, "must be in the range 1-100");
    }
}

/// Checks a selector of nodes.
pub(crate) fn node_selector(selector: &Value, at: &At<'_>, errors: &mut Errors) {
    let terms = list(selector, "nodeSelectorTerms");
    let at = at.field("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&at, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_term(term, &at.index(i), errors);
    }
}

fn node_term(term: &Value, at: &At<'_>, errors: &mut Errors) {
    let place = at.field("matchExpressions");
    for (i, requirement) in list(term, "matchExpressions").iter().enumerate() {
        node_requirement(requirement, &place.index(i), errors);
    }
    let place = at.field("matchFields");
    for (i, requirement) in list(term, "matchFields").iter().enumerate() {
        field_requirement(requirement, &place.index(i), errors);
    }
}

fn node_requirement(requirement: &Value, at: &At<'_>, errors: &mut Errors) {
    let values = list(requirement, "values");
    let place = at.field("values");
    match text(requirement, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&place, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.forbidden(&place, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.required(&place, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.invalid_text(&at.field("operator"), other, "not a valid selector operator"),
    }
    meta::label_key(text(requirement, "key"), &at.field("key"), errors);
}

fn field_requirement(requirement: &Value, at: &At<'_>, errors: &mut Errors) {
    let values: Vec<&str> = texts(requirement, "values").collect();
    match text(requirement, "operator") {
        "In" | "NotIn" => {
            if values.len() != 1 {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.required(&at.field("values"), why);
            }
        }
        other => errors.invalid_text(&at.field("operator"), other, "not a valid selector operator"),
    }
    let key = text(requirement, "key");
    if key != "metadata.name" {
        errors.invalid_text(&at.field("key"), key, "not a valid field selector key");
        return;
    }
    let place = at.field("values");
    for (i, value) in values.iter().enumerate() {
        for why in names::dns1123_subdomain(value) {
            errors.invalid_text(&place.index(i), value, &why);
        }
    }
}

fn pod_term(term: &Value, at: &At<'_>, errors: &mut Errors) {
    selector::check(or_null(term, "labelSelector"), &at.field("labelSelector"), errors);
    selector::check(or_null(term, "namespaceSelector"), &at.field("namespaceSelector"), errors);
    for name in texts(term, "namespaces") {
        for why in names::dns1123_label(name) {
            errors.invalid_text(&at.field("namespace"), name, &why);
        }
    }
    match_keys(term, at, errors);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.required(&at.field("topologyKey"), "can not be empty");
    }
    meta::label_key(key, &at.field("topologyKey"), errors);
}

/// Checks the label keys whose values are taken from the pod itself.
fn match_keys(term: &Value, at: &At<'_>, errors: &mut Errors) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let place = at.field(field);
        let selector = or_null(term, "labelSelector");
        for (i, key) in texts(term, field).enumerate() {
            meta::label_key(key, &place.index(i), errors);
            if selector.is_null() {
                errors.forbidden(&place, "must not be specified when labelSelector is not set");
            } else if entries(selector, "matchLabels").any(|(other, _)| other == key) {
                errors.invalid_text(&place.index(i), key, "exists in both matchLabelKeys and labelSelector");
            }
        }
    }
}

/// Checks how pods are to be spread.
pub(super) fn spread(constraints: &[Value], at: &At<'_>, errors: &mut Errors) {
    for (i, constraint) in constraints.iter().enumerate() {
        let at = at.index(i);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.invalid_int(&at.field("maxSkew"), skew, "must be greater than zero");
        }
        let (key, when) = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if key.is_empty() {
            errors.required(&at.field("topologyKey"), "can not be empty");
        } else {
            meta::label_key(key, &at.field("topologyKey"), errors);
        }
        if !matches!(when, "DoNotSchedule" | "ScheduleAnyway") {
            errors.unsupported(&at.field("whenUnsatisfiable"), when, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        let same =
            |other: &Value| text(other, "topologyKey") == key && text(other, "whenUnsatisfiable") == when;
        if constraints[i + 1..].iter().any(same) {
            let place = at.field("{topologyKey, whenUnsatisfiable}");
            errors.duplicate_text(&place, &format!("{{{key}, {when}}}"));
        }
        domains(constraint, when, &at, errors);
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(other) = text_at(constraint, policy).filter(|p| !matches!(*p, "Honor" | "Ignore")) {
                errors.unsupported(&at.field(policy), other, &["Honor", "Ignore"]);
            }
        }
        match_keys(constraint, &at, errors);
        selector::check(or_null(constraint, "labelSelector"), &at.field("labelSelector"), errors);
    }
}

fn domains(constraint: &Value, when: &str, at: &At<'_>, errors: &mut Errors) {
    let Some(count) = int(constraint, "minDomains") else { return };
    let at = at.field("minDomains");
    if count <= 0 {
        errors.invalid_int(&at, count, "must be greater than zero");
    }
    if when != "DoNotSchedule" {
        let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
        errors.invalid_int(&at, count, &why);
    }
}

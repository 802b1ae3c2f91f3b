//! Admission policies: expressions in CEL that objects must satisfy, bound to what they are about.
//!
//! A policy is compiled once per change of it. What an evaluation may cost is bounded by the size of the object and
//! the depth of the expression's loops.

use std::sync::Arc;

use serde_json::{Value, json};
use wasmk_api::{Cause, LabelSelector, Object, Reason, Status};
use wasmk_machinery::cel;

use super::question::{Conditions, Program, Question, list, named, text};
use crate::{
    cache::Filter,
    table::Resource,
    write::{Mode, Work},
};

const POLICIES: &str = "admissionregistration.k8s.io/validatingadmissionpolicies";
const BINDINGS: &str = "admissionregistration.k8s.io/validatingadmissionpolicybindings";

struct Validation {
    source: String,
    program: Program,
    message: String,
    message_program: Option<Program>,
    reason: Reason,
}

/// A compiled policy.
pub(crate) struct Policy {
    spec: Value,
    conditions: Vec<(String, Program)>,
    variables: Vec<(String, Program)>,
    validations: Vec<Validation>,
    /// What is noted in audit events, by key.
    annotations: Vec<(String, Program)>,
    fails_open: bool,
}

impl Policy {
    fn compile(spec: Value) -> Self {
        let validations = list(&spec, "validations")
            .map(|v| Validation {
                source: text(v, "expression").into(),
                program: cel::compile(text(v, "expression")),
                message: text(v, "message").into(),
                message_program: Some(text(v, "messageExpression"))
                    .filter(|m| !m.is_empty())
                    .map(cel::compile),
                reason: match text(v, "reason") {
                    "Unauthorized" => Reason::Unauthorized,
                    "Forbidden" => Reason::Forbidden,
                    "RequestEntityTooLarge" => Reason::RequestEntityTooLarge,
                    _ => Reason::Invalid,
                },
            })
            .collect();
        Self {
            conditions: named(&spec, "matchConditions"),
            variables: named(&spec, "variables"),
            validations,
            annotations: list(&spec, "auditAnnotations")
                .map(|a| (text(a, "key").to_owned(), cel::compile(text(a, "valueExpression"))))
                .collect(),
            fails_open: text(&spec, "failurePolicy") == "Ignore",
            spec,
        }
    }
}

/// Holds a create, update or (`new` absent) delete to every policy that is bound to it.
///
/// # Errors
/// With the first refusal of a binding that denies.
pub(crate) async fn check(
    work: &Work<'_>,
    new: Option<&Object>,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    if work.core.caches.of(BINDINGS).len() == 0 || super::is_exempt(work.resource) {
        return Ok(());
    }
    let question = Question::new(work, mode.subresource(), new, old);
    loop {
        let outcome = once(work, &question);
        if !question.find_out().await {
            return outcome;
        }
    }
}

fn once(work: &Work<'_>, question: &Question<'_>) -> Result<(), Status> {
    let policies = work.core.caches.of(POLICIES);
    for entry in work.core.caches.of(BINDINGS).list(&Filter::default()) {
        let binding = entry.object();
        let spec = binding.0.get("spec").cloned().unwrap_or_default();
        let Some(found) = policies.get(text(&spec, "policyName")) else { continue };
        let policy = work
            .core
            .policies
            .get(&found, || Policy::compile(found.object().0.get("spec").cloned().unwrap_or_default()));
        let Some(about) = question.matches(&policy.spec["matchConstraints"], "resourceRules", false) else {
            continue;
        };
        if question.matches(&spec["matchResources"], "resourceRules", true).is_some() {
            judge(question, &about, &policy, (&found.name, &entry.name), &spec)?;
        }
    }
    Ok(())
}

fn judge(
    question: &Question<'_>,
    about: &Arc<Resource>,
    policy: &Policy,
    (name, binding): (&str, &str),
    spec: &Value,
) -> Result<(), Status> {
    let actions: Vec<&str> = list(spec, "validationActions").filter_map(Value::as_str).collect();
    let params = match params(question, policy.spec.get("paramKind"), spec) {
        Ok(params) => params,
        Err(why) => return act(question, &actions, (name, binding), Reason::Invalid, &why),
    };
    for param in params {
        let failed = evaluate(question, about, (name, policy), param.as_ref());
        for (reason, message) in failed {
            act(question, &actions, (name, binding), reason, &message)?;
        }
    }
    Ok(())
}

/// What does not hold, with reasons.
fn evaluate(
    question: &Question<'_>,
    about: &Resource,
    (name, policy): (&str, &Policy),
    param: Option<&Object>,
) -> Vec<(Reason, String)> {
    let mut scope = question.scope(about, param);
    let broken = |what: String| if policy.fails_open { Vec::new() } else { vec![(Reason::Invalid, what)] };
    match scope.conditions(&policy.conditions) {
        Conditions::Hold => {}
        Conditions::Fail => return Vec::new(),
        Conditions::Broken(_) if question.waits() => return Vec::new(),
        Conditions::Broken(why) => return broken(why),
    }
    scope.compute(&policy.variables);
    for (key, program) in &policy.annotations {
        // One that fails or is null is left out, as an empty one is.
        let value = scope.say(program);
        if let Some(value) = value.filter(|_| !question.waits()) {
            question.work.call.annotate(format!("{name}/{key}"), value);
        }
    }
    let mut failed = Vec::new();
    for validation in &policy.validations {
        match scope.holds(&validation.program) {
            Ok(true) => {}
            Ok(false) => {
                let said = validation.message_program.as_ref().and_then(|p| scope.say(p));
                let message = said.unwrap_or_else(|| match &*validation.message {
                    "" => format!("failed expression: {}", validation.source.trim()),
                    message => message.trim().to_owned(),
                });
                failed.push((validation.reason, message));
            }
            Err(error) => {
                failed
                    .extend(broken(format!("expression '{}' resulted in error: {error}", validation.source)));
            }
        }
    }
    // What must be waited for is no failure yet.
    if question.waits() { Vec::new() } else { failed }
}

/// The parameters a binding refers to: one evaluation each, or a single one without.
///
/// # Errors
/// When there are none and the binding does not allow that.
pub(super) fn params(
    question: &Question<'_>,
    kind: Option<&Value>,
    spec: &Value,
) -> Result<Vec<Option<Object>>, String> {
    let (Some(kind), Some(reference)) = (kind, spec.get("paramRef")) else {
        return Ok(vec![None]);
    };
    let missing = || {
        match text(reference, "parameterNotFoundAction") {
        "Allow" => Ok(Vec::new()),
        _ => Err("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction".to_owned()),
    }
    };
    let table = question.work.core.table.load();
    let gv = wasmk_api::GroupVersion::parse(text(kind, "apiVersion"));
    let Some(resource) = gv.and_then(|gv| table.by_kind(&gv.kind(text(kind, "kind"))).cloned()) else {
        return missing();
    };
    let namespace = match (resource.namespaced, text(reference, "namespace")) {
        (false, _) => "",
        (true, "") => question.work.namespace(),
        (true, given) => given,
    };
    let mut filter = Filter { namespace: namespace.into(), ..Filter::default() };
    if let Some(selector) = reference.get("selector").filter(|s| s.is_object()) {
        let typed = serde_json::from_value(selector.clone()).map_err(|e| e.to_string())?;
        filter.labels = LabelSelector::from_api(&typed).map_err(|e| e.to_string())?;
    } else {
        filter.fields.terms.push(("metadata.name".into(), text(reference, "name").into(), true));
    }
    let found: Vec<Option<Object>> =
        resource.cache.list(&filter).iter().map(|e| Some(resource.shown(e))).collect();
    if found.is_empty() { missing() } else { Ok(found) }
}

fn act(
    question: &Question<'_>,
    actions: &[&str],
    (policy, binding): (&str, &str),
    reason: Reason,
    message: &str,
) -> Result<(), Status> {
    let who = format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}'");
    if actions.contains(&"Warn") {
        question.work.call.warn(format!("Validation failed for {who}: {message}"));
    }
    if actions.contains(&"Audit") {
        let note = json!([{
            "message": message, "policy": policy, "binding": binding, "validationActions": actions,
        }]);
        question
            .work
            .call
            .annotate("validation.policy.admission.k8s.io/validation_failure", note.to_string());
    }
    if !actions.contains(&"Deny") {
        return Ok(());
    }
    let text = format!("{who} denied request: {message}");
    let mut status = Status::forbidden(&question.work.resource.group_resource(), question.name(), &text);
    status.code = reason.code();
    status.reason = reason;
    let cause = Cause { reason: String::new(), message: text, field: String::new() };
    Err(status.with_causes(&[cause]))
}

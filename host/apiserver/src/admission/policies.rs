//! Admission policies: expressions in CEL that objects must satisfy, bound to what they are about.
//!
//! A policy is compiled once per change of it. What an evaluation may cost is bounded by the size of the object and
//! the depth of the expression's loops.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Value, json};
use wasmk_api::{Cause, LabelSelector, Object, Reason, Status};
use wasmk_machinery::cel::{self, Expression};

use crate::{
    cache::{Entry, Filter},
    write::{Mode, Work},
};

const POLICIES: &str = "admissionregistration.k8s.io/validatingadmissionpolicies";
const BINDINGS: &str = "admissionregistration.k8s.io/validatingadmissionpolicybindings";
/// Most turns the loops of one expression may take.
const MAX_TURNS: usize = 10_000_000;
/// Most compiled policies that are kept.
const MAX_COMPILED: usize = 1024;

/// A compiled expression, or what is wrong with it.
type Program = Result<Expression, String>;

struct Validation {
    source: String,
    program: Program,
    message: String,
    message_program: Option<Program>,
    reason: Reason,
}

struct Policy {
    spec: Value,
    conditions: Vec<(String, Program)>,
    variables: Vec<(String, Program)>,
    validations: Vec<Validation>,
    fails_open: bool,
}

/// Compiled policies by name, each with the revision it was compiled from.
#[derive(Default)]
pub(crate) struct Policies(Mutex<HashMap<Box<str>, Compiled>>);

/// A revision and what was compiled from it.
type Compiled = (u64, Arc<Policy>);

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

impl Policies {
    fn get(&self, entry: &Entry) -> Arc<Policy> {
        if let Some((revision, policy)) = self.0.lock().get(&entry.name)
            && *revision == entry.revision
        {
            return policy.clone();
        }
        let policy = Arc::new(Policy::compile(entry.object().0.get("spec").cloned().unwrap_or_default()));
        let mut all = self.0.lock();
        if all.len() >= MAX_COMPILED {
            all.clear();
        }
        all.insert(entry.name.clone(), (entry.revision, policy.clone()));
        policy
    }
}

impl Policy {
    fn compile(spec: Value) -> Self {
        let named = |key: &str| -> Vec<(String, Program)> {
            list(&spec, key)
                .map(|v| (text(v, "name").to_owned(), cel::compile(text(v, "expression"))))
                .collect()
        };
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
            conditions: named("matchConditions"),
            variables: named("variables"),
            validations,
            fails_open: text(&spec, "failurePolicy") == "Ignore",
            spec,
        }
    }
}

/// One request as policies see it.
struct Question<'a> {
    work: &'a Work<'a>,
    operation: &'static str,
    subresource: &'static str,
    new: Option<&'a Object>,
    old: Option<&'a Object>,
    namespace: Option<Object>,
}

impl Question<'_> {
    fn name(&self) -> &str {
        self.new.or(self.old).map_or("", |o| o.name())
    }

    /// Whether constraints (of a policy or a binding) are about it.
    fn matches(&self, constraints: &Value, all_by_default: bool) -> bool {
        let mut rules = list(constraints, "resourceRules").peekable();
        let covered =
            if rules.peek().is_none() { all_by_default } else { rules.any(|rule| self.covered(rule)) };
        covered
            && !list(constraints, "excludeResourceRules").any(|rule| self.covered(rule))
            && self.selected(constraints.get("namespaceSelector"), constraints.get("objectSelector"))
    }

    fn covered(&self, rule: &Value) -> bool {
        let resource = self.work.resource;
        let has = |key: &str, wanted: &str| {
            list(rule, key).filter_map(Value::as_str).any(|item| item == "*" || item == wanted)
        };
        let names: Vec<&str> = list(rule, "resourceNames").filter_map(Value::as_str).collect();
        let scope = match text(rule, "scope") {
            "Namespaced" => resource.namespaced,
            "Cluster" => !resource.namespaced,
            _ => true,
        };
        let full = list(rule, "resources").filter_map(Value::as_str).any(|item| match item.split_once('/') {
            None => self.subresource.is_empty() && (item == "*" || item == resource.plural),
            Some((plural, sub)) => {
                (plural == "*" || plural == resource.plural)
                    && (sub == "*" || sub == self.subresource)
                    && (item == "*/*" || !self.subresource.is_empty())
            }
        });
        scope
            && full
            && has("apiGroups", &resource.gvk.group)
            && has("apiVersions", &resource.gvk.version)
            && has("operations", self.operation)
            && (names.is_empty() || names.contains(&self.name()))
    }

    fn selected(&self, namespaces: Option<&Value>, objects: Option<&Value>) -> bool {
        let holds = |selector: Option<&Value>, object: &Object| {
            let Some(selector) = selector.filter(|s| s.as_object().is_some_and(|s| !s.is_empty())) else {
                return true;
            };
            let typed = serde_json::from_value(selector.clone()).ok();
            let selector = typed.and_then(|s| LabelSelector::from_api(&s).ok());
            selector.is_some_and(|s| s.matches_with(|key| object.label(key)))
        };
        let of_namespace = match (&self.namespace, crate::special::is_namespace(self.work.resource)) {
            (Some(namespace), _) => holds(namespaces, namespace),
            (None, true) => self.new.or(self.old).is_none_or(|o| holds(namespaces, o)),
            (None, false) => true,
        };
        of_namespace && [self.new, self.old].into_iter().flatten().any(|o| holds(objects, o))
    }

    fn scope(&self, params: Option<&Object>) -> Scope {
        let value = |object: Option<&Object>| object.map_or(Value::Null, |o| Value::Object(o.0.clone()));
        let resource = self.work.resource;
        let request = json!({
            "kind": { "group": resource.gvk.group, "version": resource.gvk.version, "kind": resource.gvk.kind },
            "resource": { "group": resource.gvk.group, "version": resource.gvk.version, "resource": resource.plural },
            "subResource": self.subresource,
            "name": self.name(),
            "namespace": self.work.namespace(),
            "operation": self.operation,
            "userInfo": self.work.call.user.to_value(),
            "dryRun": self.work.dry_run,
        });
        let variables = [
            ("object", value(self.new)),
            ("oldObject", value(self.old)),
            ("request", request),
            ("params", value(params)),
            ("namespaceObject", value(self.namespace.as_ref())),
        ];
        let size = variables.iter().map(|(_, v)| v.to_string().len()).sum();
        let values = variables.iter().map(|(name, v)| (*name, cel::plain(v))).collect();
        Scope { values, computed: HashMap::new(), size }
    }
}

/// The variables of an evaluation.
struct Scope {
    values: Vec<(&'static str, cel::Value)>,
    computed: HashMap<String, cel::Value>,
    size: usize,
}

impl Scope {
    fn run(&self, program: &Program) -> Result<cel::Value, String> {
        let program = program.as_ref().map_err(Clone::clone)?;
        if self.size.saturating_pow(program.loops()) > MAX_TURNS {
            return Err("operation cancelled: actual cost limit exceeded".into());
        }
        let computed = cel::Value::from(self.computed.clone());
        let names = self.values.iter().map(|(name, value)| (*name, value.clone()));
        program.run(names.chain([("variables", computed)]))
    }

    fn holds(&self, program: &Program) -> Result<bool, String> {
        match self.run(program)? {
            cel::Value::Bool(holds) => Ok(holds),
            _ => Err("expected a boolean".into()),
        }
    }

    fn say(&self, program: &Program) -> Option<String> {
        match self.run(program) {
            Ok(cel::Value::String(text)) => Some(text.trim().to_owned()).filter(|t| !t.is_empty()),
            _ => None,
        }
    }
}

/// Holds a create, update or (`new` absent) delete to every policy that is bound to it.
///
/// # Errors
/// With the first refusal of a binding that denies.
pub(crate) fn check(
    work: &Work<'_>,
    new: Option<&Object>,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    let bindings = work.core.caches.of(BINDINGS);
    // Policies cannot lock out those who would change them.
    if bindings.len() == 0 || work.resource.storage == POLICIES || work.resource.storage == BINDINGS {
        return Ok(());
    }
    let namespace = match work.resource.namespaced {
        true => work.core.caches.of("core/namespaces").get(work.namespace()).map(|e| e.object()),
        false => None,
    };
    let operation = match (new, old) {
        (Some(_), None) => "CREATE",
        (Some(_), Some(_)) => "UPDATE",
        _ => "DELETE",
    };
    let question = Question { work, operation, subresource: mode.subresource(), new, old, namespace };
    let policies = work.core.caches.of(POLICIES);
    for entry in bindings.list(&Filter::default()) {
        let binding = entry.object();
        let spec = binding.0.get("spec").cloned().unwrap_or_default();
        let Some(found) = policies.get(text(&spec, "policyName")) else { continue };
        let policy = work.core.policies.get(&found);
        let about = question.matches(&policy.spec["matchConstraints"], false)
            && question.matches(&spec["matchResources"], true);
        if about {
            judge(&question, &policy, &found.name, &entry.name, &spec)?;
        }
    }
    Ok(())
}

fn judge(
    question: &Question<'_>,
    policy: &Policy,
    name: &str,
    binding: &str,
    spec: &Value,
) -> Result<(), Status> {
    let actions: Vec<&str> = list(spec, "validationActions").filter_map(Value::as_str).collect();
    let params = match params(question, policy, spec) {
        Ok(params) => params,
        Err(why) => return act(question, &actions, (name, binding), Reason::Invalid, &why),
    };
    for param in params {
        let failed = evaluate(question, policy, param.as_ref());
        for (reason, message) in failed {
            act(question, &actions, (name, binding), reason, &message)?;
        }
    }
    Ok(())
}

/// What does not hold, with reasons.
fn evaluate(question: &Question<'_>, policy: &Policy, param: Option<&Object>) -> Vec<(Reason, String)> {
    let mut scope = question.scope(param);
    let broken = |what: String| if policy.fails_open { Vec::new() } else { vec![(Reason::Invalid, what)] };
    for (name, program) in &policy.conditions {
        match scope.holds(program) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(error) => return broken(format!("failed to evaluate match condition '{name}': {error}")),
        }
    }
    for (name, program) in &policy.variables {
        // A variable that fails only matters to those that use it.
        if let Ok(value) = scope.run(program) {
            scope.computed.insert(name.clone(), value);
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
    failed
}

/// The parameters a binding refers to: one evaluation each, or a single one without.
fn params(question: &Question<'_>, policy: &Policy, spec: &Value) -> Result<Vec<Option<Object>>, String> {
    let (Some(kind), Some(reference)) = (policy.spec.get("paramKind"), spec.get("paramRef")) else {
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
        resource.cache.list(&filter).iter().map(|e| Some(resource.served(e.object()))).collect();
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

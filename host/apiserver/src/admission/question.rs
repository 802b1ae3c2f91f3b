//! One request as policies and webhooks see it: whether it is what they are about, and the variables their
//! expressions have.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Value, json};
use wasmk_api::{Gvk, LabelSelector, Object};
pub(super) use wasmk_kinds::value::text;
use wasmk_machinery::cel::{self, Expression};

use super::Asker;
use crate::{table::Resource, write::Work};

/// Most turns the loops of one expression may take.
const MAX_TURNS: u64 = 10_000_000;

/// A compiled expression, or what is wrong with it.
pub(super) type Program = Result<Expression, String>;

/// The items of the list at a key.
pub(super) fn list<'a>(value: &'a Value, key: &str) -> std::slice::Iter<'a, Value> {
    wasmk_kinds::value::list(value, key).iter()
}

/// Compiles the named expressions of a list (`matchConditions`, `variables`).
pub(super) fn named(spec: &Value, key: &str) -> Vec<(String, Program)> {
    list(spec, key).map(|v| (text(v, "name").to_owned(), cel::compile(text(v, "expression")))).collect()
}

/// One request on its way through admission.
pub(super) struct Question<'a> {
    pub(super) work: &'a Work<'a>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub(super) operation: &'static str,
    /// The subresource, or empty.
    pub(super) subresource: &'a str,
    /// The kind of the objects: the resource's own, or that of a subresource (`Scale`, `Eviction`).
    pub(super) kind: Gvk,
    /// The object as it would be.
    pub(super) new: Option<&'a Object>,
    /// The object as it is.
    pub(super) old: Option<&'a Object>,
    namespace: Option<Object>,
    asker: Arc<Asker>,
}

impl<'a> Question<'a> {
    /// About a create (`old` absent), update or delete (`new` absent).
    pub(super) fn new(
        work: &'a Work<'a>,
        subresource: &'a str,
        new: Option<&'a Object>,
        old: Option<&'a Object>,
    ) -> Self {
        let operation = match (new, old) {
            (Some(_), None) => "CREATE",
            (Some(_), Some(_)) => "UPDATE",
            _ => "DELETE",
        };
        let namespace = match work.resource.namespaced {
            true => work.core.caches.of("core/namespaces").get(work.namespace()).map(|e| e.object()),
            false => None,
        };
        let kind = new.or(old).and_then(Object::gvk).unwrap_or_else(|| work.resource.gvk.clone());
        let asker = work.call.asker(work.core).clone();
        Self { work, operation, subresource, kind, new, old, namespace, asker }
    }

    /// Whether an expression failed only because the authorizers' answer must be waited for.
    pub(super) fn waits(&self) -> bool {
        self.asker.waits()
    }

    /// Waits for such answers; whether there were any, and the expressions are to run again.
    pub(super) async fn find_out(&self) -> bool {
        self.asker.find_out().await
    }

    /// The request itself, as what may be done or not.
    fn own_check(&self, resource: &Resource) -> cel::Check {
        cel::Check {
            group: resource.gvk.group.clone(),
            resource: resource.plural.clone(),
            subresource: self.subresource.to_owned(),
            namespace: self.work.namespace().to_owned(),
            name: self.name().to_owned(),
            ..cel::Check::default()
        }
    }

    /// About a connection to an object: `options` says what is asked of it.
    pub(super) fn connect(work: &'a Work<'a>, subresource: &'a str, options: &'a Object) -> Self {
        Self { operation: "CONNECT", ..Self::new(work, subresource, Some(options), None) }
    }

    /// The name of the object: as the request says, else as the object does.
    pub(super) fn name(&self) -> &str {
        match self.new.or(self.old).map_or("", |o| o.name()) {
            "" => &self.work.call.info.name,
            name => name,
        }
    }

    /// The resource as which constraints (of a policy, binding or webhook) are about it: the one that was asked for,
    /// or another version of it. `rules` is the key of their rules.
    pub(super) fn matches(
        &self,
        constraints: &Value,
        rules: &str,
        all_by_default: bool,
    ) -> Option<Arc<Resource>> {
        let none = list(constraints, rules).next().is_none();
        let found = match none {
            true => all_by_default.then(|| self.work.resource.clone())?,
            false => self.covered_by(constraints, rules)?,
        };
        let excluded = self.covered_by(constraints, "excludeResourceRules").is_some();
        let selected = self.selected(constraints.get("namespaceSelector"), constraints.get("objectSelector"));
        (!excluded && selected).then_some(found)
    }

    fn covered_by(&self, constraints: &Value, rules: &str) -> Option<Arc<Resource>> {
        let own = self.work.resource;
        if list(constraints, rules).any(|rule| self.covered(rule, own)) {
            return Some(own.clone());
        }
        if text(constraints, "matchPolicy") == "Exact" || list(constraints, rules).next().is_none() {
            return None;
        }
        let table = self.work.core.table.load();
        let others = table.all().filter(|r| r.storage == own.storage && r.gvk != own.gvk);
        let equivalent: Vec<Arc<Resource>> = others.cloned().collect();
        equivalent.into_iter().find(|other| list(constraints, rules).any(|rule| self.covered(rule, other)))
    }

    fn covered(&self, rule: &Value, resource: &Resource) -> bool {
        let has = |key: &str, wanted: &str| {
            list(rule, key).filter_map(Value::as_str).any(|item| item == "*" || item == wanted)
        };
        let names: Vec<&str> = list(rule, "resourceNames").filter_map(Value::as_str).collect();
        // A namespace lies in itself, as far as scopes are concerned, and is cluster-scoped.
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
        let mut present = [self.new, self.old].into_iter().flatten().peekable();
        let nothing = present.peek().is_none() && holds(objects, &Object::default());
        of_namespace && (nothing || present.any(|o| holds(objects, o)))
    }

    /// The request as expressions and reviews show it, when it is looked at as one about `resource`.
    pub(super) fn request(&self, resource: &Resource) -> Value {
        let own = self.work.resource;
        let plural =
            |r: &Resource| json!({ "group": r.gvk.group, "version": r.gvk.version, "resource": r.plural });
        let kind = if self.kind == own.gvk { &resource.gvk } else { &self.kind };
        let mut request = json!({
            "kind": kind,
            "resource": plural(resource),
            "requestKind": self.kind,
            "requestResource": plural(own),
            "name": self.name(),
            "operation": self.operation,
            "userInfo": self.work.call.user.to_value(),
            "dryRun": self.work.dry_run,
        });
        if !self.subresource.is_empty() {
            request["subResource"] = self.subresource.into();
            request["requestSubResource"] = self.subresource.into();
        }
        let namespace = match crate::special::is_namespace(own) {
            true => self.name(),
            false => self.work.namespace(),
        };
        if !namespace.is_empty() {
            request["namespace"] = namespace.into();
        }
        request["options"] = self.options();
        request
    }

    /// The options of the request, as its verb reads them.
    fn options(&self) -> Value {
        let call = self.work.call;
        let kind = match self.operation {
            "CREATE" => "CreateOptions",
            "DELETE" => "DeleteOptions",
            _ if call.info.verb == "patch" => "PatchOptions",
            _ => "UpdateOptions",
        };
        let mut options = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" });
        for key in ["fieldManager", "fieldValidation"] {
            if let Some(value) = call.query.get(key).filter(|v| !v.is_empty()) {
                options[key] = value.into();
            }
        }
        if call.query.flag("force") && kind == "PatchOptions" {
            options["force"] = true.into();
        }
        if self.work.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
    }

    /// The variables of its expressions, when it is looked at as one about `resource`.
    pub(super) fn scope(&self, resource: &Resource, params: Option<&Object>) -> Scope {
        let value = |object: Option<&Object>| object.map_or(Value::Null, |o| Value::Object(o.0.clone()));
        let mut request = self.request(resource);
        for absent in ["subResource", "namespace"] {
            if request.get(absent).is_none() {
                request[absent] = "".into();
            }
        }
        let variables = [
            ("object", value(self.new)),
            ("oldObject", value(self.old)),
            ("request", request),
            ("params", value(params)),
            ("namespaceObject", value(self.namespace.as_ref())),
        ];
        let decider: Arc<dyn cel::Decider> = self.asker.clone();
        let asked = cel::authorizer(&decider, self.own_check(resource));
        let values = variables.iter().map(|(name, v)| (*name, cel::plain(v), cel::parts(v)));
        let values = values.chain(asked.map(|(name, value)| (name, value, 1))).collect();
        Scope { values, computed: HashMap::new(), asker: self.asker.clone() }
    }
}

/// The variables of an evaluation.
pub(super) struct Scope {
    /// Each with its number of parts.
    values: Vec<(&'static str, cel::Value, u64)>,
    computed: HashMap<String, cel::Value>,
    asker: Arc<Asker>,
}

/// What a list of conditions comes to.
pub(super) enum Conditions {
    /// All hold.
    Hold,
    /// One does not.
    Fail,
    /// None is known to fail, and one could not be evaluated.
    Broken(String),
}

impl Scope {
    /// Evaluates an expression.
    ///
    /// # Errors
    /// When it does not compile, costs too much or fails.
    pub(super) fn run(&self, program: &Program) -> Result<cel::Value, String> {
        let program = program.as_ref().map_err(Clone::clone)?;
        if program.turns(self.size(program)) > MAX_TURNS {
            return Err("operation cancelled: actual cost limit exceeded".into());
        }
        self.asker.begin();
        let computed = cel::Value::from(self.computed.clone());
        let names = self.values.iter().map(|(name, value, _)| (*name, value.clone()));
        program.run(names.chain([("variables", computed)]))
    }

    /// How many parts the values have that a program looks at. What was computed was so from any of them.
    fn size(&self, program: &cel::Expression) -> u64 {
        let all = program.mentions("variables");
        let seen = self.values.iter().filter(|(name, ..)| all || program.mentions(name));
        seen.map(|(_, _, parts)| parts).sum()
    }

    /// Evaluates a condition.
    ///
    /// # Errors
    /// When it fails or is none.
    pub(super) fn holds(&self, program: &Program) -> Result<bool, String> {
        match self.run(program)? {
            cel::Value::Bool(holds) => Ok(holds),
            _ => Err("expected a boolean".into()),
        }
    }

    /// Evaluates a message; `None` when it is empty or fails.
    pub(super) fn say(&self, program: &Program) -> Option<String> {
        match self.run(program) {
            Ok(cel::Value::String(text)) => Some(text.trim().to_owned()).filter(|t| !t.is_empty()),
            _ => None,
        }
    }

    /// Computes variables that later expressions use; one that fails only matters to those that use it.
    pub(super) fn compute(&mut self, variables: &[(String, Program)]) {
        for (name, program) in variables {
            if let Ok(value) = self.run(program) {
                self.computed.insert(name.clone(), value);
            }
        }
    }

    /// Evaluates conditions: a false one counts more than one that fails.
    pub(super) fn conditions(&self, conditions: &[(String, Program)]) -> Conditions {
        let mut broken = Vec::new();
        for (name, program) in conditions {
            match self.holds(program) {
                Ok(true) => {}
                Ok(false) => return Conditions::Fail,
                Err(error) => {
                    broken.push(format!("failed to evaluate match condition '{name}': {error}"));
                }
            }
        }
        if broken.is_empty() { Conditions::Hold } else { Conditions::Broken(broken.join(", ")) }
    }
}

//! Mutating admission policies: expressions in CEL that say how objects are changed on their way in.
//!
//! A mutation is either a configuration that is merged into the object as an apply patch is, or a JSON patch.

use std::sync::Arc;

use serde_json::Value;
use wasmk_api::{Object, Status};
use wasmk_machinery::{apply, cel, patch};

use super::{
    policies,
    question::{Conditions, Program, Question, Scope, list, named, text},
};
use crate::{cache::Filter, machine, server::Core, table::Resource, write::Work};

const POLICIES: &str = "admissionregistration.k8s.io/mutatingadmissionpolicies";
const BINDINGS: &str = "admissionregistration.k8s.io/mutatingadmissionpolicybindings";

/// How an expression's value changes an object.
enum Form {
    Configuration,
    Patch,
}

/// A compiled policy.
pub(crate) struct Mutation {
    spec: Value,
    conditions: Vec<(String, Program)>,
    variables: Vec<(String, Program)>,
    mutations: Vec<(Form, Program)>,
}

impl Mutation {
    fn compile(spec: Value) -> Self {
        let one = |mutation: &Value| match text(mutation, "patchType") {
            "JSONPatch" => (Form::Patch, compiled(mutation, "jsonPatch")),
            _ => (Form::Configuration, compiled(mutation, "applyConfiguration")),
        };
        Self {
            conditions: named(&spec, "matchConditions"),
            variables: named(&spec, "variables"),
            mutations: list(&spec, "mutations").map(one).collect(),
            spec,
        }
    }
}

fn compiled(mutation: &Value, key: &str) -> Program {
    cel::compile(mutation.get(key).map_or("", |m| text(m, "expression")))
}

/// A policy with one of its bindings.
pub(super) struct Bound {
    policy: Arc<Mutation>,
    name: String,
    binding: String,
    spec: Value,
}

/// All bindings of mutating policies, by name.
pub(super) fn bound(core: &Core) -> Vec<Bound> {
    let bindings = core.caches.of(BINDINGS);
    if bindings.len() == 0 {
        return Vec::new();
    }
    let policies = core.caches.of(POLICIES);
    let one = |entry: &Arc<crate::cache::Entry>| {
        let spec = entry.object().0.get("spec").cloned().unwrap_or_default();
        let found = policies.get(text(&spec, "policyName"))?;
        let make = || Mutation::compile(found.object().0.get("spec").cloned().unwrap_or_default());
        let policy = core.mutations.get(&found, make);
        Some(Bound { policy, name: found.name.to_string(), binding: entry.name.to_string(), spec })
    };
    bindings.list(&Filter::default()).iter().filter_map(one).collect()
}

impl Bound {
    /// Whether it is applied again after others changed the object.
    pub(super) fn applied_again(&self) -> bool {
        text(&self.policy.spec, "reinvocationPolicy") == "IfNeeded"
    }

    /// Changes an object; whether the policy was about it.
    ///
    /// # Errors
    /// When a mutation fails and the policy does not pass that over.
    pub(super) async fn mutate(
        &self,
        work: &Work<'_>,
        subresource: &str,
        object: &mut Object,
        old: Option<&Object>,
    ) -> Result<bool, Status> {
        let present = object.clone();
        let question = Question::new(work, subresource, Some(&present), old);
        let constraints = self.policy.spec.get("matchConstraints").unwrap_or(&Value::Null);
        let binding = self.spec.get("matchResources").unwrap_or(&Value::Null);
        let Some(about) = question.matches(constraints, "resourceRules", false) else { return Ok(false) };
        if question.matches(binding, "resourceRules", true).is_none() {
            return Ok(false);
        }
        let outcome = loop {
            let outcome = policies::params(&question, self.policy.spec.get("paramKind"), &self.spec)
                .and_then(|all| self.all(work, subresource, &about, &present, old, &all));
            if !question.find_out().await {
                break outcome;
            }
        };
        match outcome {
            Ok(new) => *object = new,
            Err(why) if text(&self.policy.spec, "failurePolicy") == "Ignore" => {
                tracing::warn!(policy = self.name, why, "a mutating policy failed and is passed over");
            }
            Err(why) => {
                let why =
                    format!("policy '{}' with binding '{}' denied request: {why}", self.name, self.binding);
                let group = work.resource.group_resource();
                return Err(Status::forbidden(&group, question.name(), &why));
            }
        }
        Ok(true)
    }

    fn all(
        &self,
        work: &Work<'_>,
        subresource: &str,
        about: &Resource,
        object: &Object,
        old: Option<&Object>,
        params: &[Option<Object>],
    ) -> Result<Object, String> {
        let mut object = object.clone();
        for param in params {
            for (form, program) in &self.policy.mutations {
                let question = Question::new(work, subresource, Some(&object), old);
                let mut scope = question.scope(about, param.as_ref());
                match scope.conditions(&self.policy.conditions) {
                    Conditions::Hold => {}
                    Conditions::Fail => break,
                    Conditions::Broken(why) => return Err(why),
                }
                scope.compute(&self.policy.variables);
                object = changed(work, &object, form, &scope, program)?;
            }
        }
        Ok(object)
    }
}

fn changed(
    work: &Work<'_>,
    object: &Object,
    form: &Form,
    scope: &Scope,
    program: &Program,
) -> Result<Object, String> {
    let value = cel::json(&scope.run(program)?)?;
    let gvk = object.gvk().unwrap_or_else(|| work.resource.gvk.clone());
    let live = Value::Object(object.0.clone());
    let new = match form {
        Form::Patch => patch::json(live, &value).map_err(|e| e.to_string())?,
        Form::Configuration => {
            let identity = ["apiVersion", "kind"].iter().any(|key| value.get(key).is_some());
            if identity || value.pointer("/metadata/name").is_some() {
                return Err("an apply configuration may not change apiVersion, kind or metadata.name".into());
            }
            let schema = machine::schema(work.resource, &gvk).map_err(|s| s.message)?;
            apply::merged(&schema, &live, &value)?
        }
    };
    machine::reread(work.resource, &gvk, new)
}

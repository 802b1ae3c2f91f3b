//! `authorizer` in expressions: who makes the request, and whether they may do something.
//!
//! `authorizer.group('apps').resource('deployments').namespace('a').check('create').allowed()` builds a [`Check`]
//! part by part; whoever runs the expression answers it.

use std::{fmt, sync::Arc};

use kube_cel::cel::{Context, ExecutionError, ResolveResult, Value, extractors::This, objects::Opaque};

/// The variable of the request's own resource, as it is called within.
pub(super) const REQUEST_RESOURCE: &str = "authorizer.requestResource";

/// What may be done or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Check {
    /// Namespace and name of the service account that is asked about; none for whoever makes the request.
    pub account: Option<(String, String)>,
    /// A path; empty for a resource.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
    pub verb: String,
}

/// The answer to a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may be done.
    pub allowed: bool,
    /// Why, where somebody said.
    pub reason: String,
    /// What went wrong in finding out; empty when nothing did.
    pub error: String,
}

/// Who answers checks.
pub trait Decider: Send + Sync {
    /// Answers a check.
    ///
    /// # Errors
    /// When the expression may not ask (any more), which fails it.
    fn decide(&self, check: &Check) -> Result<Verdict, String>;
}

/// How far a check is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
}

#[derive(Clone)]
struct Asked {
    stage: Stage,
    check: Check,
    decider: Arc<dyn Decider>,
}

impl PartialEq for Asked {
    fn eq(&self, other: &Self) -> bool {
        (self.stage, &self.check) == (other.stage, &other.check)
    }
}

impl Eq for Asked {}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.stage, self.check)
    }
}

impl Opaque for Asked {
    fn runtime_type_name(&self) -> &str {
        match self.stage {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
        }
    }
}

impl Opaque for Verdict {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}

/// The variables `authorizer` and `authorizer.requestResource`; the check is that of the request, without a verb.
pub fn variables(decider: &Arc<dyn Decider>, request: Check) -> [(&'static str, Value); 2] {
    let of = |stage, check| Value::Opaque(Arc::new(Asked { stage, check, decider: decider.clone() }));
    [
        ("authorizer", of(Stage::Authorizer, Check::default())),
        (REQUEST_RESOURCE, of(Stage::Resource, request)),
    ]
}

/// Adds what can be called on them.
pub(super) fn register(context: &mut Context<'_>) {
    context.add_function("serviceAccount", service_account);
    context.add_function("path", |This(this): This<Value>, path: Arc<String>| {
        next(&this, Stage::Authorizer, Stage::Path, |check| check.path = path.to_string())
    });
    context.add_function("group", |This(this): This<Value>, group: Arc<String>| {
        next(&this, Stage::Authorizer, Stage::Group, |check| check.group = group.to_string())
    });
    context.add_function("resource", |This(this): This<Value>, resource: Arc<String>| {
        next(&this, Stage::Group, Stage::Resource, |check| check.resource = resource.to_string())
    });
    context.add_function("subresource", |This(this): This<Value>, subresource: Arc<String>| {
        refined(&this, |check| check.subresource = subresource.to_string())
    });
    context.add_function("namespace", |This(this): This<Value>, namespace: Arc<String>| {
        refined(&this, |check| check.namespace = namespace.to_string())
    });
    context.add_function("name", |This(this): This<Value>, name: Arc<String>| {
        refined(&this, |check| check.name = name.to_string())
    });
    context.add_function("fieldSelector", |This(this): This<Value>, selector: Arc<String>| {
        refined(&this, |check| check.field_selector = selector.to_string())
    });
    context.add_function("labelSelector", |This(this): This<Value>, selector: Arc<String>| {
        refined(&this, |check| check.label_selector = selector.to_string())
    });
    context.add_function("check", decide);
    context.add_function("allowed", |This(this): This<Value>| Ok(Value::Bool(verdict(&this)?.allowed)));
    context.add_function("errored", |This(this): This<Value>| {
        Ok(Value::Bool(!verdict(&this)?.error.is_empty()))
    });
    context.add_function("reason", |This(this): This<Value>| {
        Ok(Value::String(Arc::new(verdict(&this)?.reason.clone())))
    });
    context.add_function("error", |This(this): This<Value>| {
        Ok(Value::String(Arc::new(verdict(&this)?.error.clone())))
    });
}

fn asked(value: &Value) -> Result<&Asked, ExecutionError> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref().ok_or(ExecutionError::NoSuchOverload),
        _ => Err(ExecutionError::NoSuchOverload),
    }
}

fn verdict(value: &Value) -> Result<&Verdict, ExecutionError> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref().ok_or(ExecutionError::NoSuchOverload),
        _ => Err(ExecutionError::NoSuchOverload),
    }
}

fn next(this: &Value, from: Stage, to: Stage, set: impl FnOnce(&mut Check)) -> ResolveResult {
    let asked = asked(this)?;
    if asked.stage != from {
        return Err(ExecutionError::NoSuchOverload);
    }
    let mut asked = Asked { stage: to, ..asked.clone() };
    set(&mut asked.check);
    Ok(Value::Opaque(Arc::new(asked)))
}

fn refined(this: &Value, set: impl FnOnce(&mut Check)) -> ResolveResult {
    next(this, Stage::Resource, Stage::Resource, set)
}

fn service_account(This(this): This<Value>, namespace: Arc<String>, name: Arc<String>) -> ResolveResult {
    if let Some(why) = crate::names::dns1123_label(&namespace).first() {
        let what = format!("Invalid service account namespace: {why}");
        return Err(ExecutionError::function_error("serviceAccount", what));
    }
    if let Some(why) = crate::names::dns1123_subdomain(&name).first() {
        return Err(ExecutionError::function_error(
            "serviceAccount",
            format!("Invalid service account name: {why}"),
        ));
    }
    next(&this, Stage::Authorizer, Stage::Authorizer, |check| {
        check.account = Some((namespace.to_string(), name.to_string()));
    })
}

fn decide(This(this): This<Value>, verb: Arc<String>) -> ResolveResult {
    let asked = asked(&this)?;
    if !matches!(asked.stage, Stage::Path | Stage::Resource) {
        return Err(ExecutionError::NoSuchOverload);
    }
    let check = Check { verb: verb.to_string(), ..asked.check.clone() };
    let verdict = asked.decider.decide(&check).map_err(|why| ExecutionError::function_error("check", why))?;
    Ok(Value::Opaque(Arc::new(verdict)))
}

//! Reviews: questions about who somebody is and what they may do. They are answered, never stored.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wasmk_api::{Object, Status};

use super::binding;
use crate::{
    auth::{Attributes, User},
    authorize,
    call::Call,
    http::{Answer, respond},
    machine,
    server::Core,
    table::Resource,
    write::Work,
};

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceAttributes {
    namespace: String,
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    name: String,
    field_selector: Option<SelectorAttributes>,
    label_selector: Option<SelectorAttributes>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SelectorAttributes {
    raw_selector: String,
    requirements: Vec<Value>,
}

impl ResourceAttributes {
    /// The node that its field selector is limited to.
    fn on_node(&self) -> Option<&str> {
        let selector = self.field_selector.as_ref()?;
        let raw = selector.raw_selector.split(',').find_map(|term| {
            let (field, value) = term.split_once("==").or_else(|| term.split_once('='))?;
            (field.trim() == "spec.nodeName").then_some(value.trim())
        });
        raw.or_else(|| {
            selector.requirements.iter().find_map(|r| {
                let text = |key: &str| r.get(key).and_then(Value::as_str).unwrap_or("");
                let values = r.get("values").and_then(Value::as_array)?;
                (text("key") == "spec.nodeName" && text("operator") == "In" && values.len() == 1)
                    .then(|| values[0].as_str())?
            })
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PathAttributes {
    path: String,
    verb: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AccessSpec {
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<PathAttributes>,
    user: String,
    groups: Vec<String>,
    extra: std::collections::BTreeMap<String, Vec<String>>,
    uid: String,
}

/// Answers the creation of a review; `None` when the resource is none.
///
/// # Errors
/// When the review cannot be read or contradicts itself.
pub(crate) async fn review(
    core: &Arc<Core>,
    call: &Call,
    resource: &Arc<Resource>,
    body: &Bytes,
) -> Result<Option<Answer>, Status> {
    if call.info.verb != "create" || resource.has_verb("get") {
        return Ok(None);
    }
    let work = Work::new(core, call, resource)?;
    if resource.gvk.kind == "Binding" {
        return bind(&work, body).await.map(Some);
    }
    let mut object = work.decode(body)?;
    object.set_gvk(&resource.gvk);
    if resource.gvk.kind != "SelfSubjectRulesReview" {
        machine::manage_create(&work, &mut object)?;
    }
    let status = match &*resource.gvk.kind {
        "SelfSubjectReview" => {
            object.set_meta("creationTimestamp", work.now.to_string());
            json!({ "userInfo": call.user.to_value() })
        }
        "TokenReview" => token(core, &object).await,
        "SubjectAccessReview" => access(core, &object, None, None).await?,
        "LocalSubjectAccessReview" => access(core, &object, None, Some(&call.info.namespace)).await?,
        "SelfSubjectAccessReview" => access(core, &object, Some(&call.user), None).await?,
        "SelfSubjectRulesReview" => {
            let status = rules(core, &object, &call.user);
            object.0.insert("spec".into(), json!({}));
            status
        }
        _ => return Ok(None),
    };
    object.0.insert("status".into(), status);
    let wanted = crate::http::Wanted { form: crate::http::Form::Whole, ..call.wanted };
    Ok(Some(respond::value_as(StatusCode::CREATED, wanted, &object.into_value())))
}

/// The old path of bindings, below the namespace.
async fn bind(work: &Work<'_>, body: &Bytes) -> Result<Answer, Status> {
    let pods = work.core.table.load().get("", "v1", "pods").cloned().ok_or_else(Status::no_such_path)?;
    let inner = Work { resource: &pods, manager: work.manager.clone(), ..*work };
    binding::create(&inner, body).await
}

async fn token(core: &Core, object: &Object) -> Value {
    let text = object.at(&["spec", "token"]).and_then(Value::as_str).unwrap_or("");
    let asked: Vec<&str> = object
        .at(&["spec", "audiences"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let audiences = if asked.is_empty() { core.authenticator.audiences() } else { asked };
    match core.authenticator.token(text, &audiences).await {
        None if core.authenticator.audiences_of(text).is_some() => {
            let own = core.authenticator.audiences_of(text).unwrap_or_default();
            json!({ "user": {}, "error": format!(
                "[invalid bearer token, token audiences {} is invalid for the target audiences {}]",
                go_list(&own), go_list(&audiences)
            ) })
        }
        Some((user, shared)) => {
            json!({ "authenticated": true, "user": user.to_value(), "audiences": shared })
        }
        None => json!({ "user": {}, "error": "[invalid bearer token, token lookup failed]" }),
    }
}

/// A list as Go prints it.
fn go_list<T: AsRef<str>>(items: &[T]) -> String {
    let quoted: Vec<String> = items.iter().map(|i| format!("{:?}", i.as_ref())).collect();
    format!("[{}]", quoted.join(" "))
}

async fn access(
    core: &Core,
    object: &Object,
    own: Option<&User>,
    local: Option<&str>,
) -> Result<Value, Status> {
    let spec: AccessSpec = match object.0.get("spec") {
        Some(spec) => serde_json::from_value(spec.clone()).map_err(|e| Status::bad_request(e.to_string()))?,
        None => AccessSpec::default(),
    };
    check(object, &spec, own.is_some(), local)?;
    let user = match own {
        Some(user) => user.clone(),
        None => User { name: spec.user, uid: spec.uid, groups: spec.groups, extra: spec.extra },
    };
    let decision = match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(r), _) => {
            authorize::decide(
                core,
                &user,
                &Attributes {
                    verb: &r.verb,
                    group: &r.group,
                    version: &r.version,
                    resource: &r.resource,
                    subresource: &r.subresource,
                    namespace: &r.namespace,
                    name: &r.name,
                    path: "",
                    is_resource: true,
                    on_node: r.on_node().unwrap_or_default(),
                },
            )
            .await
        }
        (None, Some(p)) => {
            authorize::decide(
                core,
                &user,
                &Attributes { verb: &p.verb, path: &p.path, ..Attributes::default() },
            )
            .await
        }
        (None, None) => crate::auth::Decision::default(),
    };
    let mut status = Map::new();
    status.insert("allowed".into(), decision.allowed.into());
    if !decision.reason.is_empty() {
        status.insert("reason".into(), (*decision.reason).into());
    }
    Ok(Value::Object(status))
}

fn check(object: &Object, spec: &AccessSpec, own: bool, local: Option<&str>) -> Result<(), Status> {
    let mut causes = Vec::new();
    let mut wrong = |reason: &str, field: &str, message: &str| {
        causes.push(wasmk_api::Cause { reason: reason.into(), message: message.into(), field: field.into() });
    };
    if let (Some(_), Some(path)) = (&spec.resource_attributes, &spec.non_resource_attributes) {
        let shown = json!({ "Path": path.path, "Verb": path.verb });
        wrong(
            "FieldValueInvalid",
            "spec.nonResourceAttributes",
            &format!("Invalid value: {shown}: cannot be specified in combination with resourceAttributes"),
        );
    }
    if spec.resource_attributes.is_none() && spec.non_resource_attributes.is_none() {
        wrong(
            "FieldValueInvalid",
            "spec.resourceAttributes",
            "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        );
    }
    let asked = spec.resource_attributes.as_ref();
    for (name, selector) in [
        ("fieldSelector", asked.and_then(|a| a.field_selector.as_ref())),
        ("labelSelector", asked.and_then(|a| a.label_selector.as_ref())),
    ] {
        if let Some(selector) = selector.filter(|s| !s.raw_selector.is_empty() && !s.requirements.is_empty())
        {
            wrong(
                "FieldValueInvalid",
                &format!("spec.resourceAttributes.{name}.rawSelector"),
                &format!(
                    "Invalid value: {:?}: may not specified at the same time as requirements",
                    selector.raw_selector
                ),
            );
        }
    }
    if !own && spec.user.is_empty() && spec.groups.is_empty() {
        wrong(
            "FieldValueInvalid",
            "spec.user",
            "Invalid value: \"spec.user\": at least one of user or group must be specified",
        );
    }
    if let (Some(namespace), Some(asked)) = (local, &spec.resource_attributes)
        && asked.namespace != namespace
    {
        return Err(Status::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    if causes.is_empty() {
        return Ok(());
    }
    // The kind is left out, as Kubernetes leaves it out.
    let group = object.gvk().map(|g| g.group).unwrap_or_default();
    let kind = wasmk_api::GroupKind { group, kind: String::new() };
    Err(Status::invalid(&kind, object.name(), &causes))
}

fn rules(core: &Core, object: &Object, user: &User) -> Value {
    let namespace = object.at(&["spec", "namespace"]).and_then(Value::as_str).unwrap_or("");
    let crate::authorize::Known { rules, errors: broken, incomplete } =
        core.authorizers.rules(user, namespace);
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if !rule.urls.is_empty() {
            paths.push(json!({ "verbs": rule.verbs, "nonResourceURLs": rule.urls }));
        }
        if !rule.resources.is_empty() {
            resources.push(rule.to_value());
        }
    }
    let mut status =
        json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete });
    if !broken.is_empty() {
        status["evaluationError"] = broken.join(", ").into();
    }
    status
}

//! Defaults and rules of Knative's kinds, applied as they enter the cluster, and of its settings.
//!
//! Everything here is a function of the object, the one before it, who asks, and the settings; the API server calls
//! it in place of Knative's admission webhooks and answers with the words users know from those.

mod autoscaling;
mod container;
mod default;
mod metadata;
mod pod;
mod problem;
mod revision;
mod traffic;
mod volumes;

use std::collections::BTreeMap;

use serde_json::Value;
use wasmk_api::{Object, knative::GROUP};

use self::problem::Problems;
pub(crate) use self::{autoscaling::ALIASES, metadata::ROLLOUT, revision::DEADLINE};
use crate::config::{Live, NAMESPACE};

/// Decides over Knative's kinds and settings.
#[derive(Clone)]
pub struct Admission(Live);

impl Admission {
    /// By these settings, as they are at each request.
    pub fn new(live: Live) -> Self {
        Self(live)
    }

    /// Whether it has a say in a resource.
    pub fn applies(group: &str, resource: &str) -> bool {
        group == GROUP || (group.is_empty() && resource == "configmaps")
    }

    /// Fills in what the object leaves open, and who made or changed it. `old` is the object before an update.
    pub fn mutate(&self, object: &mut Object, old: Option<&Object>, user: &str) {
        if !object.api_version().starts_with("serving.knative.dev/") || object.is_deleting() {
            return;
        }
        let config = self.0.get();
        default::object(object, old, &config);
        metadata::note_user(object, old, user);
    }

    /// Refuses an object that breaks a rule. `old` is the object before an update.
    ///
    /// # Errors
    /// With the refusal, in Knative's words.
    pub fn validate(&self, object: &Object, old: Option<&Object>) -> Result<(), String> {
        if object.is_deleting() {
            return Ok(());
        }
        if object.kind() == "ConfigMap" {
            return self.settings(object);
        }
        let problems = problems(object, old, self);
        if problems.is_empty() {
            return Ok(());
        }
        let webhook = "admission webhook \"validation.webhook.serving.knative.dev\" denied the request";
        Err(format!("{webhook}: validation failed: {problems}"))
    }

    fn settings(&self, map: &Object) -> Result<(), String> {
        if map.namespace() != NAMESPACE {
            return Ok(());
        }
        let data: BTreeMap<String, String> = map
            .0
            .get("data")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string())))
            .collect();
        let read = (*self.0.get()).clone().with(map.name(), &data);
        let webhook = "admission webhook \"config.webhook.serving.knative.dev\" denied the request";
        read.map(drop).map_err(|wrong| format!("{webhook}: validation failed: {wrong}"))
    }
}

fn problems(object: &Object, old: Option<&Object>, admission: &Admission) -> Problems {
    let config = admission.0.get();
    let mut problems = Problems::default();
    let value = |key: &str| object.0.get(key).unwrap_or(&Value::Null);
    match object.kind() {
        "Service" => {
            metadata::check(object, old, &mut problems);
            metadata::rollout(object, &mut problems);
            revision::template(&value("spec")["template"], "spec.template", object, &config, &mut problems);
            traffic::check(&value("spec")["traffic"], "spec.traffic", true, &mut problems);
            revision::renamed(object, old, &mut problems);
        }
        "Configuration" => {
            metadata::check(object, old, &mut problems);
            metadata::owned(object, "serving.knative.dev/service", "Service", &mut problems);
            revision::template(&value("spec")["template"], "spec.template", object, &config, &mut problems);
            revision::renamed(object, old, &mut problems);
        }
        "Route" => {
            metadata::check(object, old, &mut problems);
            metadata::rollout(object, &mut problems);
            metadata::owned(object, "serving.knative.dev/service", "Service", &mut problems);
            traffic::check(&value("spec")["traffic"], "spec.traffic", false, &mut problems);
        }
        "Revision" => {
            metadata::name(object, &mut problems);
            metadata::owned(object, "serving.knative.dev/configuration", "Configuration", &mut problems);
            let annotations = value("metadata")["annotations"].clone();
            autoscaling::check(&annotations, "metadata.annotations", &config, &mut problems);
            match old {
                Some(old) => revision::immutable(object, old, &mut problems),
                None => revision::spec(value("spec"), "spec", &config, &mut problems),
            }
        }
        "DomainMapping" => metadata::domain(object, old, &mut problems),
        _ => {}
    }
    problems
}

#[cfg(test)]
mod tests;

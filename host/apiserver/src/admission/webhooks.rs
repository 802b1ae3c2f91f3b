//! Admission webhooks: HTTPS servers that are asked about requests, and may change or refuse what is written.
//!
//! Which hooks are asked, and as what, follows from their rules, selectors and match conditions; what is asked is an
//! `AdmissionReview`. A hook that cannot be asked counts as its failure policy says; a refusal always counts.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use wasmk_api::{Object, Reason, Status};

use super::question::{Conditions, Program, Question, list, named, text};
use crate::{cache::Filter, remote::Endpoint, server::Core, table::Resource, write::Work};

/// Where mutating and validating hooks are registered.
pub(super) const MUTATING: &str = "admissionregistration.k8s.io/mutatingwebhookconfigurations";
pub(super) const VALIDATING: &str = "admissionregistration.k8s.io/validatingwebhookconfigurations";
/// Hooks of one request that are asked at the same time.
const MAX_PARALLEL: usize = 32;
/// Longest warning that is passed on, in characters.
const MAX_WARNING: usize = 256;
/// Longest value of an audit annotation that is kept, in characters.
const MAX_ANNOTATION: usize = 10 << 10;

/// A registered hook.
pub(crate) struct Hook {
    name: String,
    /// The name of the configuration it is registered by.
    configuration: String,
    spec: Value,
    conditions: Vec<(String, Program)>,
}

/// Why a hook lets nothing through.
enum Failure {
    /// It could not be asked.
    Call(String),
    /// It refuses, or gave an answer that cannot be used.
    Final(Status),
}

/// When a hook was asked, as audit annotations name it.
#[derive(Clone, Copy)]
struct Asked {
    mutating: bool,
    round: usize,
    index: usize,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sort = if self.mutating { "mutating" } else { "validating" };
        write!(f, "{sort}.webhook.admission.k8s.io/round_{}_index_{}", self.round, self.index)
    }
}

/// All hooks of one sort, in the order they are asked: by the name of their configuration, then as listed.
pub(super) fn registered(core: &Core, sort: &str) -> Vec<Arc<Hook>> {
    let configurations = core.caches.of(sort);
    if configurations.len() == 0 {
        return Vec::new();
    }
    let kept = if sort == MUTATING { &core.hooks.0 } else { &core.hooks.1 };
    let read = |entry: &crate::cache::Entry| {
        let object = entry.object();
        list(&Value::Object(object.0), "webhooks")
            .map(|spec| Arc::new(Hook::read(&entry.name, spec.clone())))
            .collect()
    };
    let all = configurations.list(&Filter::default());
    all.iter().flat_map(|entry| kept.get(entry, || read(entry)).to_vec()).collect()
}

/// Whether there is any validating hook that could be asked about a request.
pub(super) fn are_asked(work: &Work<'_>) -> bool {
    work.core.config.admission.has(super::Plugin::ValidatingAdmissionWebhook)
        && !super::is_exempt(work.resource)
        && work.core.caches.of(VALIDATING).len() > 0
}

impl Hook {
    fn read(configuration: &str, spec: Value) -> Self {
        Self {
            name: text(&spec, "name").into(),
            configuration: configuration.into(),
            conditions: named(&spec, "matchConditions"),
            spec,
        }
    }

    /// Whether it is asked again after others changed the object.
    pub(super) fn asked_again(&self) -> bool {
        text(&self.spec, "reinvocationPolicy") == "IfNeeded"
    }

    fn fails_open(&self) -> bool {
        text(&self.spec, "failurePolicy") == "Ignore"
    }

    fn within(&self) -> u64 {
        self.spec.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10).clamp(1, 30)
    }

    /// The resource as which it is asked about a request; `None` when it is not.
    async fn about(&self, question: &Question<'_>) -> Result<Option<Arc<Resource>>, Status> {
        let Some(resource) = question.matches(&self.spec, "rules", false) else { return Ok(None) };
        if self.conditions.is_empty() {
            return Ok(Some(resource));
        }
        let conditions = loop {
            let conditions = question.scope(&resource, None).conditions(&self.conditions);
            if !question.find_out().await {
                break conditions;
            }
        };
        match conditions {
            Conditions::Hold => Ok(Some(resource)),
            Conditions::Fail => Ok(None),
            Conditions::Broken(why) if self.fails_open() => {
                tracing::warn!(webhook = self.name, why, "a match condition cannot be evaluated");
                Ok(None)
            }
            Conditions::Broken(why) => {
                Err(Status::forbidden(&question.work.resource.group_resource(), question.name(), &why))
            }
        }
    }

    /// Asks it. The answer's patch, if there is one.
    async fn ask(
        &self,
        question: &Question<'_>,
        resource: &Resource,
        new: Option<&Object>,
    ) -> Result<Option<Value>, Failure> {
        let work = question.work;
        let harmless = matches!(text(&self.spec, "sideEffects"), "None" | "NoneOnDryRun");
        if work.dry_run && !harmless {
            let why = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Failure::Final(Status::bad_request(why)));
        }
        let version = list(&self.spec, "admissionReviewVersions")
            .filter_map(Value::as_str)
            .find(|v| matches!(*v, "v1" | "v1beta1"))
            .unwrap_or("v1");
        let uid = uuid::Uuid::new_v4().to_string();
        let mut request = json!({ "uid": uid });
        if let (Some(all), Value::Object(more)) = (request.as_object_mut(), question.request(resource)) {
            all.extend(more);
        }
        let old = match question.old {
            Some(old) => Some(converted(work, question, old, resource).await.map_err(Failure::Final)?),
            None => None,
        };
        request["object"] = new.map_or(Value::Null, |o| Value::Object(o.0.clone()));
        request["oldObject"] = old.map_or(Value::Null, |o| Value::Object(o.0));
        let review = json!({
            "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request,
        });
        let answer = self.send(work, &review).await.map_err(Failure::Call)?;
        let response = answered(&answer, version, &uid).map_err(Failure::Call)?;
        self.verdict(work, response)
    }

    async fn send(&self, work: &Work<'_>, review: &Value) -> Result<Value, String> {
        let seconds = self.within();
        let failed = |why: String| format!("failed to call webhook: {why}");
        let config = self.spec.get("clientConfig").unwrap_or(&Value::Null);
        let endpoint = Endpoint::of_client_config(work.core, config).map_err(failed)?;
        let body = serde_json::to_vec(review).map_err(|e| failed(e.to_string()))?;
        let query = format!("timeout={seconds}s");
        let within = Duration::from_secs(seconds);
        let sent = work.core.remote.send(&endpoint, &query, &[], Some(body), within).await;
        let (code, body) = sent.map_err(failed)?;
        if !code.is_success() {
            let text: String = String::from_utf8_lossy(&body).chars().take(MAX_WARNING).collect();
            return Err(failed(match text.trim() {
                "" => format!("the server rejected our request for an unknown reason ({})", code.as_u16()),
                said => {
                    format!("an error on the server ({said:?}) has prevented the request from succeeding")
                }
            }));
        }
        serde_json::from_slice(&body)
            .map_err(|e| failed(format!("couldn't get version/kind; json parse error: {e}")))
    }

    fn verdict(&self, work: &Work<'_>, response: &Value) -> Result<Option<Value>, Failure> {
        for warning in list(response, "warnings").filter_map(Value::as_str) {
            work.call.warn(warning.chars().take(MAX_WARNING).collect::<String>());
        }
        for (key, value) in response.get("auditAnnotations").and_then(Value::as_object).into_iter().flatten()
        {
            let value: String = value.as_str().unwrap_or("").chars().take(MAX_ANNOTATION).collect();
            work.call.annotate(format!("{}/{key}", self.name), value);
        }
        if response.get("allowed") != Some(&Value::Bool(true)) {
            return Err(Failure::Final(self.refusal(response.get("status").unwrap_or(&Value::Null))));
        }
        let patch = text(response, "patch");
        if patch.is_empty() {
            return Ok(None);
        }
        let broken = |why: String| Failure::Final(Status::internal(why));
        if text(response, "patchType") != "JSONPatch" {
            let kind = text(response, "patchType");
            return Err(Failure::Call(format!("unexpected patch type {kind:?}, expected \"JSONPatch\"")));
        }
        use base64::{Engine, engine::general_purpose::STANDARD};
        let bytes = STANDARD.decode(patch).map_err(|e| Failure::Call(e.to_string()))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|e| broken(e.to_string()))
    }

    /// A hook's refusal, in the words of Kubernetes.
    fn refusal(&self, given: &Value) -> Status {
        let by = format!("admission webhook {:?} denied the request", self.name);
        let message = match (text(given, "message"), text(given, "reason")) {
            ("", "") => format!("{by} without explanation"),
            ("", reason) => format!("{by}: {reason}"),
            (message, _) => format!("{by}: {message}"),
        };
        let reason = given.get("reason").cloned().and_then(|r| serde_json::from_value(r).ok());
        let mut status = Status::new(reason.unwrap_or(Reason::Unknown), message);
        // A refusal with a code of success is one all the same.
        status.code = given
            .get("code")
            .and_then(Value::as_u64)
            .and_then(|c| u16::try_from(c).ok())
            .filter(|c| (400..=599).contains(c))
            .unwrap_or(400);
        if let Some(details) = given.get("details").and_then(Value::as_object) {
            status.details.clone_from(details);
        }
        status
    }

    /// What a failure comes to.
    fn outcome(&self, work: &Work<'_>, failure: Failure, asked: Asked) -> Result<(), Status> {
        match failure {
            Failure::Final(status) => Err(status),
            Failure::Call(why) if self.fails_open() => {
                tracing::warn!(webhook = self.name, why, "a webhook failed and is passed over");
                work.call.annotate(format!("failed-open.{asked}"), self.name.as_str());
                Ok(())
            }
            Failure::Call(why) => {
                Err(Status::internal(format!("failed calling webhook {:?}: {why}", self.name)))
            }
        }
    }

    /// Lets it change an object (absent on a delete); whether it was asked.
    ///
    /// # Errors
    /// When it refuses, or fails and must not.
    pub(super) async fn mutate(
        &self,
        work: &Work<'_>,
        subresource: &str,
        object: Option<&mut Object>,
        old: Option<&Object>,
        (round, index): (usize, usize),
    ) -> Result<bool, Status> {
        let asked = Asked { mutating: true, round, index };
        let present = object.as_deref().cloned();
        let question = Question::new(work, subresource, present.as_ref(), old);
        let Some(resource) = self.about(&question).await? else { return Ok(false) };
        let new = match &present {
            Some(new) => Some(converted(work, &question, new, &resource).await?),
            None => None,
        };
        let patch = match self.ask(&question, &resource, new.as_ref()).await {
            Ok(patch) => patch,
            Err(failure) => return self.outcome(work, failure, asked).map(|()| true),
        };
        let mut mutated = false;
        if let (Some(patch), Some(new), Some(object)) = (patch, new, object) {
            *object = patched(work, &question, &resource, new, &patch).await?;
            mutated = present.as_ref() != Some(object);
        }
        let note = json!({ "configuration": self.configuration, "webhook": self.name, "mutated": mutated });
        let key = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
        work.call.annotate(key, note.to_string());
        Ok(true)
    }
}

/// The response in an answer.
fn answered<'v>(answer: &'v Value, version: &str, uid: &str) -> Result<&'v Value, String> {
    let invalid = |why: String| Err(format!("received invalid webhook response: {why}"));
    let expected = format!("admission.k8s.io/{version}");
    let (kind, api_version) = (text(answer, "kind"), text(answer, "apiVersion"));
    // The older version let both be left out.
    let nameless = version == "v1beta1" && kind.is_empty() && api_version.is_empty();
    if !nameless && (kind != "AdmissionReview" || api_version != expected) {
        return invalid(format!(
            "expected webhook response of {expected}, Kind=AdmissionReview, got {api_version}, Kind={kind}"
        ));
    }
    let Some(response) = answer.get("response").filter(|r| r.is_object()) else {
        return Err("webhook response was absent".into());
    };
    if version == "v1" && text(response, "uid") != uid {
        return invalid(format!("expected response.uid={uid:?}, got {:?}", text(response, "uid")));
    }
    Ok(response)
}

/// An object of the request in the version a hook is asked in.
async fn converted(
    work: &Work<'_>,
    question: &Question<'_>,
    object: &Object,
    to: &Resource,
) -> Result<Object, Status> {
    if question.kind != work.resource.gvk || to.gvk == work.resource.gvk {
        return Ok(object.clone());
    }
    work.resource.convert(work.core, object.clone(), to).await
}

/// The object of the request after a hook's patch of it.
async fn patched(
    work: &Work<'_>,
    question: &Question<'_>,
    seen_as: &Resource,
    object: Object,
    patch: &Value,
) -> Result<Object, Status> {
    let value = wasmk_machinery::patch::json(object.into_value(), patch)
        .map_err(|e| Status::internal(Status::from(e).message))?;
    let own = question.kind == work.resource.gvk;
    let gvk = if own { &seen_as.gvk } else { &question.kind };
    let holder = if own { seen_as } else { work.resource };
    let new = crate::machine::reread(holder, gvk, value).map_err(Status::internal)?;
    if !own || seen_as.gvk == work.resource.gvk {
        return Ok(new);
    }
    let table = work.core.table.load();
    let Some(from) = table.by_kind(&seen_as.gvk).cloned() else {
        return Err(Status::internal(format!("{} is not served any more", seen_as.gvk)));
    };
    from.convert(work.core, new, work.resource).await
}

/// Asks all validating hooks that are about a request, at the same time.
///
/// # Errors
/// With the refusal of the first hook in order that has one.
pub(super) async fn validate(question: &Question<'_>) -> Result<(), Status> {
    let hooks = registered(question.work.core, VALIDATING);
    if hooks.is_empty() {
        return Ok(());
    }
    let mut asked = Vec::new();
    for hook in hooks {
        if let Some(resource) = hook.about(question).await? {
            asked.push((hook, resource));
        }
    }
    for (part, some) in asked.chunks(MAX_PARALLEL).enumerate() {
        let mut answers: FuturesUnordered<_> = some
            .iter()
            .enumerate()
            .map(|(at, (hook, resource))| async move {
                let asked = Asked { mutating: false, round: 0, index: part * MAX_PARALLEL + at };
                (at, one(question, hook, resource, asked).await)
            })
            .collect();
        let mut refusals = Vec::new();
        while let Some((at, outcome)) = answers.next().await {
            refusals.extend(outcome.err().map(|status| (at, status)));
        }
        if let Some((_, status)) = refusals.into_iter().min_by_key(|(at, _)| *at) {
            return Err(status);
        }
    }
    Ok(())
}

async fn one(question: &Question<'_>, hook: &Hook, resource: &Resource, asked: Asked) -> Result<(), Status> {
    let new = match question.new {
        Some(new) => Some(converted(question.work, question, new, resource).await?),
        None => None,
    };
    match hook.ask(question, resource, new.as_ref()).await {
        Ok(_) => Ok(()),
        Err(failure) => hook.outcome(question.work, failure, asked),
    }
}

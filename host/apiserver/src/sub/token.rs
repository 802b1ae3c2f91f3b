//! `serviceaccounts/token`: tokens for service accounts, bound to what they are for.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use wasmk_api::{Cause, Gvk, Object, Status, Timestamp};

use crate::{
    admission::{self, node},
    auth::Attributes,
    auth::tokens::{Bound, Claims, Private},
    authorize,
    http::{Answer, negotiate, respond},
    machine,
    write::Work,
};

/// Shortest life of a token, in seconds.
const MIN_SECONDS: i64 = 600;
/// Longest life of a token that can be asked for, in seconds.
const MAX_SECONDS: i64 = 1 << 32;
/// What clients of old libraries ask for: they do not renew, so they get a token that lasts a year.
const LEGACY_SECONDS: i64 = 3607;
const YEAR: i64 = 365 * 24 * 3600;
/// The life when none is asked for, in seconds.
const USUAL_SECONDS: i64 = 3600;

/// Signs a token.
///
/// # Errors
/// When the account or the bound object does not exist, or the request is invalid.
pub(crate) async fn create(work: &Work<'_>, body: &Bytes) -> Result<Answer, Status> {
    let gvk = Gvk::new("authentication.k8s.io", "v1", "TokenRequest");
    let mut request = work.decode_as(body, negotiate::body_type(&work.call.headers)?, &gvk)?;
    request.set_gvk(&gvk);
    let spec = request.0.entry("spec").or_insert_with(|| json!({}));
    if let Some(spec) = spec.as_object_mut() {
        spec.entry("expirationSeconds").or_insert(USUAL_SECONDS.into());
    }
    machine::manage_as(work, &gvk, &mut request, None, "token")?;
    admission::sent(work, &mut request).await?;
    work.core.caches.catch_up().await?;
    let (namespace, name) = (work.namespace(), work.call.info.name.as_str());
    let account = work
        .resource
        .cache
        .get(&crate::cache::key(namespace, name))
        .ok_or_else(|| work.not_found(name))?
        .object();
    let mut seconds = seconds(&request)?;
    let settings = &work.core.config.authentication.accounts;
    let longest = settings.max_life.and_then(|life| i64::try_from(life.as_secs()).ok());
    if let Some(longest) = longest.filter(|longest| seconds > *longest) {
        work.call.warn(format!("requested expiration of {seconds} seconds shortened to {longest} seconds"));
        seconds = longest;
    }
    let audiences = audiences(work, &request);
    restrict(work, &account, &request, &audiences).await?;
    let mut private = Private {
        namespace: namespace.into(),
        serviceaccount: Bound { name: name.into(), uid: account.uid().into() },
        ..Private::default()
    };
    bind(work, &request, &mut private)?;
    let now = work.now.0.as_second();
    let legacy = seconds == LEGACY_SECONDS
        && audiences == work.core.authenticator.audiences()
        && !settings.never_extend;
    private.warnafter = legacy.then_some(now + seconds);
    let expires = now + if legacy { YEAR } else { seconds };
    let claims = Claims {
        aud: audiences.clone(),
        exp: expires,
        iat: now,
        nbf: now,
        iss: work.core.signer.issuer().into(),
        jti: uuid::Uuid::new_v4().to_string(),
        sub: format!("system:serviceaccount:{namespace}:{name}"),
        private,
    };
    let token = work.core.signer.sign(&claims).map_err(Status::internal)?;
    let shown = now + seconds;
    Ok(answer(work, &mut request, (&account, &audiences, seconds), token, shown))
}

fn answer(
    work: &Work<'_>,
    request: &mut Object,
    (account, audiences, seconds): (&Object, &[String], i64),
    token: String,
    expires: i64,
) -> Answer {
    request.set_meta("uid", account.uid());
    request.set_meta("name", account.name());
    request.set_meta("namespace", account.namespace());
    request.set_meta("creationTimestamp", work.now.to_string());
    let bound = request.at(&["spec", "boundObjectRef"]).cloned().unwrap_or(Value::Null);
    let time = jiff::Timestamp::from_second(expires).map(Timestamp).unwrap_or(work.now);
    request.0.insert(
        "spec".into(),
        json!({ "audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": bound }),
    );
    request.0.insert("status".into(), json!({ "token": token, "expirationTimestamp": time.to_string() }));
    let wanted = crate::http::Wanted { form: crate::http::Form::Whole, ..work.call.wanted };
    respond::value_as(StatusCode::CREATED, wanted, request)
}

fn seconds(request: &Object) -> Result<i64, Status> {
    let seconds = request.at(&["spec", "expirationSeconds"]).and_then(Value::as_i64).unwrap_or(USUAL_SECONDS);
    let why = match seconds {
        s if s < MIN_SECONDS => "may not specify a duration less than 10 minutes",
        s if s > MAX_SECONDS => "may not specify a duration larger than 2^32 seconds",
        seconds => return Ok(seconds),
    };
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {seconds}: {why}"),
        field: "spec.expirationSeconds".into(),
    };
    let kind = Gvk::new("authentication.k8s.io", "v1", "TokenRequest").group_kind();
    Err(Status::invalid(&kind, request.name(), &[cause]))
}

fn audiences(work: &Work<'_>, request: &Object) -> Vec<String> {
    let asked = request.at(&["spec", "audiences"]).and_then(Value::as_array);
    let all: Vec<String> = asked.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect();
    match all.is_empty() {
        true => work.core.authenticator.audiences().into_iter().map(Into::into).collect(),
        false => all,
    }
}

/// Holds nodes to tokens of the pods they run.
async fn restrict(
    work: &Work<'_>,
    account: &Object,
    request: &Object,
    audiences: &[String],
) -> Result<(), Status> {
    let reference = request.at(&["spec", "boundObjectRef"]);
    let Some(audience) = node::validate_token(work, account, reference, audiences)? else { return Ok(()) };
    let asked = Attributes {
        verb: "request-serviceaccounts-token-audience",
        resource: &audience,
        namespace: work.namespace(),
        name: account.name(),
        is_resource: true,
        ..Attributes::default()
    };
    if authorize::decide(work.core, &work.call.user, &asked).await.allowed {
        return Ok(());
    }
    let why = format!("audience {audience:?} not found in pod spec volume");
    Err(Status::forbidden(&work.resource.group_resource(), account.name(), &why))
}

/// Reads what the token is to be bound to.
fn bind(work: &Work<'_>, request: &Object, private: &mut Private) -> Result<(), Status> {
    let Some(reference) = request.at(&["spec", "boundObjectRef"]).filter(|r| r.is_object()) else {
        return Ok(());
    };
    let text = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or("");
    let (kind, name, wanted) = (text("kind"), text("name"), text("uid"));
    let (plural, key) = match kind {
        "Pod" => ("pods", crate::cache::key(work.namespace(), name)),
        "Secret" => ("secrets", crate::cache::key(work.namespace(), name)),
        "Node" => ("nodes", name.to_owned()),
        other => {
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {}, Kind={other}",
                text("apiVersion")
            )));
        }
    };
    let resource = wasmk_api::GroupResource::new("", plural);
    let found = work.core.caches.of(&format!("core/{plural}")).get(&key);
    let entry = found.ok_or_else(|| Status::not_found(&resource, name))?;
    if !wanted.is_empty() && wanted != entry.uid() {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&resource, name, &why));
    }
    let bound = Bound { name: name.into(), uid: entry.uid().into() };
    match kind {
        "Pod" => {
            if entry.field("spec.serviceAccountName").unwrap_or("") != work.call.info.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    work.call.info.name
                )));
            }
            let node = entry.field("spec.nodeName").unwrap_or("");
            if let Some(entry) = work.core.caches.of("core/nodes").get(node) {
                private.node = Some(Bound { name: node.into(), uid: entry.uid().into() });
            }
            private.pod = Some(bound);
        }
        "Secret" => private.secret = Some(bound),
        _ => private.node = Some(bound),
    }
    Ok(())
}

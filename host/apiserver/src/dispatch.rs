//! The one way every request takes: authentication, limits, authorization, handler.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use wasmk_api::{Reason, Status};

use crate::{
    aggregate,
    audit::{Trail, around},
    auth::{Attributes, User, impersonation},
    authorize,
    call::Call,
    crd, discovery,
    http::{Answer, Query, RequestInfo, negotiate, respond},
    read,
    server::Core,
    special, sub,
    table::Resource,
    write::{self, Mode, Work},
};

/// The largest body of a request, in bytes.
pub(crate) const MAX_BODY: usize = 3 << 20;

/// Longest wait for the whole body of a request.
const BODY: Duration = Duration::from_secs(60);

/// Answers a request.
pub(crate) async fn serve(core: Arc<Core>, request: Request) -> Answer {
    let began = Instant::now();
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let info = RequestInfo::new(request.method(), request.uri().path(), &query);
    // Whatever else is asked for is counted together: anybody can invent names.
    let known = info.is_resource && core.table.load().knows(&info);
    let (verb, resource) = (info.verb, if known { info.full_resource() } else { String::new() });
    let _begun = core.metrics.begun();
    let id = audit_id(request.headers());
    let mut answer = admit(&core, id.to_str().unwrap_or(""), info, query, request).await;
    answer.headers_mut().insert(AUDIT_ID, id);
    core.metrics.answered(verb, resource, answer.status().as_u16(), began.elapsed());
    answer
}

/// The header that names a request in every log it leaves a trace in.
const AUDIT_ID: &str = "audit-id";
/// Longest name a client may give a request.
const MAX_AUDIT_ID: usize = 64;

/// The name of a request: as a proxy before this server gave it, or a new one.
fn audit_id(headers: &http::HeaderMap) -> HeaderValue {
    let given = headers.get(AUDIT_ID).filter(|id| !id.is_empty() && id.len() <= MAX_AUDIT_ID);
    let id = given.filter(|id| id.to_str().is_ok()).cloned();
    id.or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok())
        .unwrap_or(HeaderValue::from_static("none"))
}

async fn admit(core: &Arc<Core>, id: &str, info: RequestInfo, query: Query, request: Request) -> Answer {
    let failing = negotiate::failing(request.headers(), &query);
    let user = core.authenticator.authenticate(request.headers(), request.extensions()).await;
    if core.audit.is_none() {
        let outcome = match user {
            Ok(user) => pass(core, info, query, user, request, &mut None).await,
            Err(status) => Err(status),
        };
        return outcome.unwrap_or_else(|status| respond::status_as(failing, &status));
    }
    let nobody = User::default();
    let mut trail = around::begin(core, id, &info, user.as_deref().unwrap_or(&nobody), &request);
    around::received(core, &trail).await;
    let long = info.is_long_running(&query);
    let outcome = match user {
        Ok(user) => pass(core, info, query, user, request, &mut trail).await,
        Err(status) => Err(status),
    };
    let answer = outcome.unwrap_or_else(|status| respond::status_as(failing, &status));
    around::done(core, trail, answer, long).await
}

/// The way of a request whose sender is known: impersonation, limits, authorization, handler.
async fn pass(
    core: &Arc<Core>,
    info: RequestInfo,
    query: Query,
    real: Arc<User>,
    request: Request,
    trail: &mut Option<Trail>,
) -> Result<Answer, Status> {
    let user = impersonate(core, real.clone(), request.headers()).await?;
    if let (Some(trail), false) = (trail.as_mut(), Arc::ptr_eq(&real, &user)) {
        trail.acting(&user);
    }
    let long_running = info.is_long_running(&query);
    let flow = core.flow.admit(&user, &info, long_running).await.inspect_err(|_| core.metrics.refused())?;
    let permit = if long_running { Some(long(core)?) } else { None };
    let selector = wasmk_api::FieldSelector::parse(query.text("fieldSelector")).unwrap_or_default();
    let mut asked =
        Attributes { on_node: selector.required("spec.nodeName").unwrap_or(""), ..attributes(&info) };
    if asked.name.is_empty() && matches!(asked.verb, "list" | "watch" | "deletecollection") {
        // A list of one named object is allowed to whoever may list that one.
        asked.name = selector.required("metadata.name").unwrap_or("");
    }
    permit_by_authorizers(core, &user, &asked, trail).await?;
    let request = around::sent(core, trail, &info, request).await?;
    let (parts, body) = request.into_parts();
    let wanted = match negotiate::wanted(&parts.headers, &query, offer(core, &info)) {
        Ok(wanted) => wanted,
        Err(_) if !info.is_resource || info.subresource == "proxy" || info.subresource == "log" => {
            negotiate::Wanted::default()
        }
        Err(status) => return Err(status),
    };
    let call = Arc::new(Call::new(info, parts.method.clone(), query, parts.headers.clone(), user, wanted));
    let request = Request::from_parts(parts, body);
    let outcome = route(core, &call, request).await;
    let mut answer = outcome.unwrap_or_else(|status| respond::status_as(error_form(wanted), &status));
    if let Some(trail) = trail.as_mut() {
        call.annotations().into_iter().for_each(|(key, value)| trail.annotate(&key, value));
    }
    for warning in call.warnings() {
        respond::warn(&mut answer, &warning);
    }
    flow.tell(answer.headers_mut());
    if let Some(permit) = permit {
        // Lives as long as the answer's body does.
        answer.extensions_mut().insert(Arc::new(permit));
        answer = hold(answer);
    }
    Ok(answer)
}

async fn permit_by_authorizers(
    core: &Core,
    user: &User,
    asked: &Attributes<'_>,
    trail: &mut Option<Trail>,
) -> Result<(), Status> {
    let decision = authorize::decide(core, user, asked).await;
    if let Some(trail) = trail {
        let word = if decision.allowed { "allow" } else { "forbid" };
        trail.annotate("authorization.k8s.io/decision", word);
        trail.annotate("authorization.k8s.io/reason", &*decision.reason);
    }
    if decision.allowed { Ok(()) } else { Err(authorize::forbidden(user, asked, &decision.reason)) }
}

/// In what encodings a route's answers can be had.
fn offer(core: &Core, info: &RequestInfo) -> negotiate::Offer {
    let table = core.table.load();
    let custom = |resource: &Arc<Resource>| resource.custom().is_some() && info.subresource != "scale";
    let binary = !table.get(&info.group, &info.version, &info.resource).is_some_and(custom);
    negotiate::Offer { list: info.is_resource && info.name.is_empty(), binary }
}

/// Failures are written in the encoding that was asked for, never as a table.
fn error_form(wanted: negotiate::Wanted) -> negotiate::Wanted {
    negotiate::Wanted { form: negotiate::Form::Whole, ..wanted }
}

/// Ties the permit of a long-running request to its body.
fn hold(answer: Answer) -> Answer {
    let (mut parts, body) = answer.into_parts();
    let permit = parts.extensions.remove::<Arc<OwnedSemaphorePermit>>();
    let body = Body::new(http_body_util::BodyExt::map_frame(body, move |frame| {
        let _held = &permit;
        frame
    }));
    Answer::from_parts(parts, body)
}

async fn impersonate(
    core: &Arc<Core>,
    real: Arc<User>,
    headers: &http::HeaderMap,
) -> Result<Arc<User>, Status> {
    match impersonation::impersonated(headers)? {
        None => Ok(real),
        Some(wanted) => authorize::impersonate(core, &real, wanted).await.map(Arc::new),
    }
}

/// Leave to run for as long as the client likes.
fn long(core: &Core) -> Result<OwnedSemaphorePermit, Status> {
    core.long_running.clone().try_acquire_owned().map_err(|_| {
        core.metrics.refused();
        Status::too_many_requests("Too many requests, please try again later.", 1)
    })
}

/// What authorization is asked about.
pub(crate) fn attributes(info: &RequestInfo) -> Attributes<'_> {
    Attributes {
        verb: info.verb,
        group: &info.group,
        version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: &info.path,
        is_resource: info.is_resource,
        on_node: "",
    }
}

async fn route(core: &Arc<Core>, call: &Arc<Call>, request: Request) -> Result<Answer, Status> {
    if let Some(server) = aggregate::server_of(core, &call.info.path) {
        return aggregate::pass_on(core, call, &server, request).await;
    }
    if !call.info.is_resource {
        return discovery::other(core, call, request).await;
    }
    let table = core.table.load();
    let info = &call.info;
    let Some(resource) = table.get(&info.group, &info.version, &info.resource) else {
        return Err(unknown(&table, info))
            .or_else(|status: Option<Status>| status.map_or_else(|| Ok(not_found_page()), Err));
    };
    let resource = resource.clone();
    drop(table);
    crd::await_established(core, &resource).await;
    if resource.namespaced && info.namespace.is_empty() && !info.name.is_empty() {
        return Ok(not_found_page());
    }
    if !resource.namespaced && !info.namespace.is_empty() && info.resource != "namespaces" {
        return Ok(not_found_page());
    }
    if let Some(text) = &resource.deprecation {
        call.warn(text.clone());
    }
    if call.method == Method::HEAD {
        return Err(Status::method_not_allowed());
    }
    if !info.subresource.is_empty() {
        return sub::serve(core, call, &resource, request).await;
    }
    if resource.namespaced && info.namespace.is_empty() && !matches!(info.verb, "list" | "watch") {
        return Err(Status::method_not_allowed());
    }
    let collection = matches!(info.verb, "create" | "list" | "deletecollection" | "watch");
    if !resource.has_verb(info.verb)
        || (info.name.is_empty() && !collection)
        || (info.verb == "create" && !info.name.is_empty())
    {
        return Err(Status::method_not_allowed());
    }
    object_verb(core, call, &resource, request).await
}

async fn object_verb(
    core: &Arc<Core>,
    call: &Arc<Call>,
    resource: &Arc<Resource>,
    request: Request,
) -> Result<Answer, Status> {
    match call.info.verb {
        "get" => return read::get(core, call, resource).await,
        "list" => return read::list(core, call, resource).await,
        "watch" => return read::watch(core, call, resource).await,
        _ => {}
    }
    let body = body(request).await?;
    if let Some(review) = sub::review(core, call, resource, &body).await? {
        return Ok(review);
    }
    let mut work = Work::new(core, call, resource)?;
    match call.info.verb {
        "create" => write::create(&work, &body).await,
        "update" => write::update(&work, &body, Mode::Main).await,
        "patch" => write::patch(&mut work, &body, Mode::Main).await,
        "delete" => write::delete(&mut work, &body).await,
        "deletecollection" => write::delete_collection(&mut work, &body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// The body of a request, up to [`MAX_BODY`].
///
/// # Errors
/// 413 when it is larger, 504 when it takes too long, 400 when it breaks off.
pub(crate) async fn body(request: Request) -> Result<Bytes, Status> {
    let body = http_body_util::Limited::new(request.into_body(), MAX_BODY);
    let read = tokio::time::timeout(BODY, http_body_util::BodyExt::collect(body)).await;
    let Ok(read) = read else {
        return Err(Status::new(Reason::Timeout, "the request's body did not arrive in time"));
    };
    match read {
        Ok(all) => Ok(all.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {MAX_BODY}"),
        )),
        Err(error) => Err(Status::bad_request(format!("the request's body cannot be read: {error}"))),
    }
}

/// What a path to nothing is answered with; `None` for the plain page.
fn unknown(table: &crate::table::Table, info: &RequestInfo) -> Option<Status> {
    if table.has_version(&info.group, &info.version) {
        return None;
    }
    let instead = special::removed(&info.group, &info.version)?;
    let mut status = Status::no_such_path();
    status.message =
        format!("{} ({}/{} is no longer served; use {instead})", status.message, info.group, info.version);
    Some(status)
}

/// The page nothing is at.
pub(crate) fn not_found_page() -> Answer {
    respond::text(StatusCode::NOT_FOUND, "404 page not found\n")
}

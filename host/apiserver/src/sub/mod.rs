//! Subresources, and the resources that are only asked and never stored.

mod binding;
mod connect;
mod csr;
mod eviction;
mod namespace;
mod node;
mod pod;
mod proxy;
mod review;
mod scale;
mod token;

use std::sync::Arc;

use axum::extract::Request;
use bytes::Bytes;
use wasmk_api::{Object, Status};

use crate::{
    call::Call,
    dispatch,
    http::Answer,
    read,
    server::Core,
    table::Resource,
    write::{self, Mode, Sent, Work},
};

pub(crate) use node::over;
pub(crate) use review::review;
pub(crate) use scale::{put as set_scale, seen as scale_of};

/// What was sent to a subresource that takes whole objects and patches.
enum Body {
    Whole(Object),
    Patch(Sent),
}

impl Body {
    fn read(work: &Work<'_>, body: &Bytes, verb: &str) -> Result<Self, Status> {
        if verb == "patch" {
            return write::read_patch(work, body).map(Self::Patch);
        }
        let mut sent = work.decode(body)?;
        work.place(&mut sent, &work.call.info.name)?;
        Ok(Self::Whole(sent))
    }

    /// The object it makes of the present one.
    fn on(&self, work: &Work<'_>, present: &Object, mode: Mode) -> Result<Object, Status> {
        match self {
            Self::Whole(object) => Ok(object.clone()),
            Self::Patch(sent) => write::patched(work, present, sent, mode),
        }
    }
}

/// Answers a request for a subresource.
///
/// # Errors
/// 404 when there is no such subresource, 405 when it lacks the verb; else as the subresource refuses.
pub(crate) async fn serve(
    core: &Arc<Core>,
    call: &Arc<Call>,
    resource: &Arc<Resource>,
    request: Request,
) -> Result<Answer, Status> {
    let info = &call.info;
    let Some(sub) = resource.subresource(&info.subresource) else {
        return Ok(dispatch::not_found_page());
    };
    if !info.rest.is_empty() && sub.name != "proxy" {
        return Ok(dispatch::not_found_page());
    }
    if !sub.verbs.iter().any(|v| v == info.verb) {
        return Err(Status::method_not_allowed());
    }
    if matches!(&*sub.name, "log" | "exec" | "attach" | "portforward" | "proxy") {
        connect::admit(core, call, resource).await?;
        return node::serve(core, call, resource, request).await;
    }
    if info.verb == "get" && sub.name != "scale" {
        return read::get(core, call, resource).await;
    }
    let body = dispatch::body(request).await?;
    let mut work = Work::new(core, call, resource)?;
    match (&*sub.name, info.verb) {
        ("scale", verb) => scale::serve(&work, &body, verb).await,
        ("status", "update") => write::update(&work, &body, Mode::Status).await,
        ("status", _) => write::patch(&mut work, &body, Mode::Status).await,
        ("binding", _) => binding::create(&work, &body).await,
        ("eviction", _) => eviction::create(&work, &body).await,
        ("token", _) => token::create(&work, &body).await,
        ("finalize", _) => namespace::finalize(&work, &body).await,
        ("approval", verb) => csr::approve(&work, &body, verb).await,
        ("ephemeralcontainers", verb) => pod::ephemeral(&work, &body, verb).await,
        ("resize", verb) => pod::resize(&work, &body, verb).await,
        _ => Err(Status::method_not_allowed()),
    }
}

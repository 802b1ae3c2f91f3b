//! A client of the API inside the server's own process: the router is its transport.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Request, Response, header};

use crate::{
    auth::{Identity, User},
    dispatch,
    server::Core,
};

/// A client that acts as `user`, and calls itself `agent`; when empty, as the user is called.
pub(crate) fn in_process(core: Arc<Core>, user: User, agent: &str) -> kube::Client {
    let agent = HeaderValue::from_str(agent).ok().filter(|agent| !agent.is_empty());
    let identity = Identity(Arc::new(user));
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (core, identity, agent) = (core.clone(), identity.clone(), agent.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            parts.extensions.insert(identity);
            parts.headers.remove(header::ACCEPT_ENCODING);
            if !parts.headers.contains_key(header::USER_AGENT) {
                let agent = agent.unwrap_or_else(|| manager(&parts.extensions));
                parts.headers.insert(header::USER_AGENT, agent);
            }
            let request = Request::from_parts(parts, Body::new(body));
            Ok::<Response<Body>, std::convert::Infallible>(dispatch::serve(core, request).await)
        }
    });
    kube::Client::new(service, "default")
}

/// The manager of fields a component writes without naming one: the last part of its user name.
fn manager(extensions: &http::Extensions) -> HeaderValue {
    let name =
        extensions.get::<Identity>().map_or("", |Identity(user)| user.name.rsplit(':').next().unwrap_or(""));
    HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("wasmk"))
}

//! A client whose credentials change while it is used.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::Request;
use kube::{Client, client::Body};

/// Sends every request with the present credentials.
#[derive(Clone)]
pub(crate) struct Rotating(Arc<ArcSwap<Client>>);

impl Rotating {
    /// Begins with that client.
    pub(crate) fn new(client: Client) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(client)))
    }

    /// From the next request on another.
    pub(crate) fn replace(&self, client: Client) {
        self.0.store(Arc::new(client));
    }

    /// As a client like any other.
    pub(crate) fn client(&self) -> Client {
        let current = self.0.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let client = current.load_full();
            async move { client.send(request).await }
        });
        Client::new(service, "default")
    }
}

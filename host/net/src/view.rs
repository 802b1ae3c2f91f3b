//! The cluster's Services and EndpointSlices, kept up to date; shared by the proxy, name
//! resolution and whoever else needs them.

use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt};
use kube::{
    Api,
    runtime::{WatchStreamExt, reflector, watcher},
};
use tokio::sync::watch;
use wasmk_api::k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

/// A read-only view of all Services and EndpointSlices.
#[derive(Clone)]
pub struct View {
    services: reflector::Store<Service>,
    slices: reflector::Store<EndpointSlice>,
    version: watch::Receiver<u64>,
}

impl View {
    /// A view, and the task that keeps it; without the task it stays empty.
    pub fn new(client: kube::Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (services, writer) = reflector::store();
        let api: Api<Service> = Api::all(client.clone());
        let service_events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
        let (slices, writer) = reflector::store();
        let api: Api<EndpointSlice> = Api::all(client);
        let slice_events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
        let (version_in, version) = watch::channel(0);
        let task = async move {
            let all = futures::stream::select(changes(service_events), changes(slice_events));
            futures::pin_mut!(all);
            while all.next().await.is_some() {
                version_in.send_modify(|v| *v += 1);
            }
        };
        (Self { services, slices, version }, task)
    }

    /// All Services.
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.services.state()
    }

    /// All EndpointSlices.
    pub fn slices(&self) -> Vec<Arc<EndpointSlice>> {
        self.slices.state()
    }

    /// One Service.
    pub fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(&reflector::ObjectRef::new(name).within(namespace))
    }

    /// Whether both lists have arrived once.
    pub fn is_ready(&self) -> bool {
        let services = self.services.wait_until_ready().now_or_never();
        let slices = self.slices.wait_until_ready().now_or_never();
        services.is_some_and(|r| r.is_ok()) && slices.is_some_and(|r| r.is_ok())
    }

    /// Changes with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }
}

fn changes<K>(stream: impl Stream<Item = Result<K, watcher::Error>>) -> impl Stream<Item = ()> {
    stream.map(|event| {
        if let Err(error) = event {
            tracing::debug!(%error, "a watch of services and endpoints broke off");
        }
    })
}

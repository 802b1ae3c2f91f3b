//! The cluster's Services and EndpointSlices, kept up to date; shared by the proxy, name
//! resolution and whoever else needs them.

use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt};
use kube::{
    Api,
    runtime::{WatchStreamExt, reflector, watcher},
};
use parking_lot::Mutex;
use tokio::sync::watch;
use wasmk_api::k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::{
    plan::{Table, plan},
    slices::Slices,
};

/// A read-only view of all Services and EndpointSlices.
#[derive(Clone)]
pub struct View {
    services: reflector::Store<Service>,
    slices: reflector::Store<EndpointSlice>,
    version: watch::Receiver<u64>,
    made: Arc<Mutex<Made>>,
}

/// What was last made of the lists, each with the version of the lists it was made of: however many ask,
/// it is made once.
#[derive(Default)]
struct Made {
    slices: Option<(u64, Arc<Slices>)>,
    /// The table of the node that was last asked about.
    table: Option<(u64, String, Arc<Table>)>,
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
        (Self { services, slices, version, made: Arc::default() }, task)
    }

    /// A view of nothing.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        let client = kube::Client::new(
            tower::service_fn(|_: http::Request<kube::client::Body>| {
                std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
            }),
            "default",
        );
        Self::new(client).0
    }

    /// All Services.
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.services.state()
    }

    /// All EndpointSlices.
    pub fn slices(&self) -> Arc<Slices> {
        let version = *self.version.borrow();
        self.slices_of(version, &mut self.made.lock())
    }

    /// What a proxy on `node` is to listen on now.
    pub fn table(&self, node: &str) -> Arc<Table> {
        // Read before the lists: what changes meanwhile makes for another version.
        let version = *self.version.borrow();
        let mut made = self.made.lock();
        if let Some((of, name, table)) = &made.table
            && *of == version
            && name == node
        {
            return table.clone();
        }
        let slices = self.slices_of(version, &mut made);
        let table = Arc::new(plan(&self.services(), &slices, node));
        made.table = Some((version, node.to_owned(), table.clone()));
        table
    }

    fn slices_of(&self, version: u64, made: &mut Made) -> Arc<Slices> {
        match &made.slices {
            Some((of, slices)) if *of >= version => slices.clone(),
            _ => {
                let slices: Arc<Slices> = Arc::new(self.slices.state().into_iter().collect());
                made.slices = Some((version, slices.clone()));
                slices
            }
        }
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

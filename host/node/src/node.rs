//! Puts the parts of a node together.

use std::{fs, io, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wasmk_api::{Quantity, Timestamp};
use wasmk_net::{
    AddressPool, View,
    policy::{Gate, Policies},
    proxy,
};

use crate::{
    containers::Containers,
    context::{Context, STARTS},
    csi::Csi,
    devices::Devices,
    engine::Engine,
    events::Events,
    functions::Functions,
    http,
    logs::Logs,
    machine, memory,
    network::Neighbours,
    pod::{Records, env::Place},
    pods::Pods,
    pressure,
    register::{News, Registrar, amounts, known_range},
    running::Registry,
    settings::Settings,
    sources::ApiSources,
    starts::Starts,
    static_pods,
};

/// A running node.
pub struct Node {
    cx: Arc<Context>,
    pods: Arc<Pods>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why a node could not start.
#[derive(Debug, Error)]
pub enum NodeError {
    /// A directory cannot be made.
    #[error("cannot make the node's directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The given pod range is not one.
    #[error("pod_cidr of the node")]
    Range(#[from] wasmk_net::PoolError),
}

impl Node {
    /// Starts a node over an API client: takes up the pods it has on disk, registers, follows
    /// its pods. Does not wait for the API.
    ///
    /// # Errors
    /// [`NodeError`] for a directory or a range that is not usable.
    pub async fn start(
        settings: Settings,
        client: kube::Client,
        engine: Arc<dyn Engine>,
    ) -> Result<Self, NodeError> {
        let pods_dir = settings.data_dir.join("pods");
        let records = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pods_dir)
            .and_then(|()| Records::open(pods_dir.clone()))
            .map_err(|source| NodeError::Directory { path: pods_dir, source })?;
        let range = settings.pod_cidr.clone().or_else(|| known_range(&settings.data_dir));
        let pool = range.as_deref().map(AddressPool::new).transpose()?.map(Arc::new);
        let (addresses, addresses_out) = watch::channel(pool);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let capacity = settings.capacity.unwrap_or_else(|| machine::capacity(&settings.data_dir));
        let (events, write_events) = Events::new(client.clone(), &settings.name);
        let (view, keep_view) = View::new(client.clone());
        let rules = settings.data_dir.join("policies.json");
        let (policies, keep_policies) = Policies::new(client.clone(), view.clone(), Some(rules));
        let neighbours = Neighbours {
            view: view.clone(),
            policies: policies.clone(),
            node: settings.name.as_str().into(),
        };
        let memory_dir = memory::open(&settings.data_dir);
        let kept = settings.data_dir.join("sources");
        let sources = Arc::new(ApiSources::new(client.clone(), view.clone(), kept, memory_dir.as_deref()));
        let allocatable = amounts(&capacity, settings.max_pods)
            .into_iter()
            .filter_map(|(k, v)| Some((k, v.0.parse::<Quantity>().ok()?)))
            .collect::<std::collections::BTreeMap<_, _>>();
        let logs = settings.data_dir.join("logs");
        let containers = settings
            .container_runtime
            .as_deref()
            .map(|socket| Containers::new(socket, &settings.data_dir, logs.clone(), view.clone()));
        let place = Place {
            pod_ip: None,
            host_ip: settings.address,
            allocatable: allocatable.clone(),
            memory: memory_dir.clone(),
        };
        let known = records.known().into_iter();
        let uids = known.filter_map(|k| k.pod.metadata.uid.clone()).collect();
        let data = &settings.data_dir;
        let csi = Csi::open(&settings.name, client.clone(), data, &uids)
            .map_err(|source| NodeError::Directory { path: data.join("plugins"), source })?;
        let in_use = csi.in_use();
        let devices = Devices::open(&settings.device_plugins, &uids)
            .map_err(|source| NodeError::Directory { path: settings.device_plugins.clone(), source })?;
        let cx = Arc::new(Context {
            classes: Default::default(),
            csi: csi.clone(),
            devices: devices.clone(),
            node: settings.name.clone(),
            began: Timestamp::now(),
            host_ip: settings.address,
            client: client.clone(),
            functions: Functions::new(engine.clone(), containers.clone(), sources.clone(), neighbours, place),
            engine: engine.clone(),
            sources,
            view: view.clone(),
            policies: policies.clone(),
            logs: Arc::new(Logs::new(logs, settings.log_links.clone())),
            containers: containers.clone(),
            proxy: settings.proxy,
            connections: proxy::permits(),
            running: Registry::default(),
            memory_dir,
            events,
            records,
            addresses: addresses_out,
            allocatable,
            started: Starts::default(),
            starts: Semaphore::new(STARTS),
        });
        // Pods that are taken up should know at once whether there is a runtime.
        let (_, none) = watch::channel(None);
        let info = containers.as_ref().map_or(none, |c| c.info());
        if let Some(containers) = &containers {
            containers.ask().await;
        }
        let pods = Pods::new(cx.clone());
        let until_stopped = |work: futures::future::BoxFuture<'static, ()>| {
            let stop = stop.clone();
            async move {
                tokio::select! { () = stop.cancelled() => {}, () = work => {} }
            }
        };
        tasks.spawn(until_stopped(Box::pin(write_events)));
        tasks.spawn(until_stopped(Box::pin(keep_view)));
        tasks.spawn(until_stopped(Box::pin(keep_policies)));
        tasks.spawn(until_stopped(Box::pin(csi.keep())));
        let announced = devices.amounts();
        tasks.spawn(until_stopped(Box::pin(devices.keep())));
        tasks.spawn(pods.clone().follow(stop.clone()));
        tasks.spawn(pressure::run(
            cx.clone(),
            pods.clone(),
            pressure::Rules {
                data: settings.data_dir.clone(),
                period: settings.pressure_period,
                thresholds: settings.thresholds,
                images: settings.images,
            },
            stop.clone(),
        ));
        if let Some(dir) = settings.manifests.clone() {
            tasks.spawn(static_pods::run(cx.clone(), pods.clone(), dir, stop.clone()));
        }
        if let Some(containers) = containers {
            tasks.spawn(until_stopped(Box::pin(containers.states.clone().keep())));
            tasks.spawn(until_stopped(Box::pin(containers.keep())));
        }
        if settings.proxy {
            let asked = (cx.connections.clone(), Gate::new(policies));
            tasks.spawn(proxy::run(view, settings.name.clone(), asked, stop.clone()));
        }
        let news = News { containers: info, volumes: in_use, devices: announced };
        let registrar = Registrar::new(settings, capacity, engine.version(), client, addresses, news);
        tasks.spawn(registrar.run(stop.clone()));
        tasks.close();
        Ok(Self { cx, pods, stop, tasks })
    }

    /// The node's HTTP API, with the kubelet's paths. Whoever serves it has to authorize.
    pub fn router(&self) -> Router {
        http::router(self.cx.clone(), self.pods.clone())
    }

    /// Functions answered in place.
    pub fn functions(&self) -> Functions {
        self.cx.functions.clone()
    }

    /// Stops what runs and all tasks, within the deadline. Records stay: the next start goes on.
    pub async fn shutdown(self, deadline: Duration) {
        self.stop.cancel();
        let began = tokio::time::Instant::now();
        self.pods.quit(deadline).await;
        let left = deadline.saturating_sub(began.elapsed());
        if tokio::time::timeout(left, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks of the node did not end in time");
        }
        if let Some(dir) = &self.cx.memory_dir {
            memory::close(dir);
        }
    }
}

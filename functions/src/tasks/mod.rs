//! The tasks that make functions work, started together and stopped together.

mod controllers;
mod hosts;
mod pods;
mod threads;

use std::{io, net::IpAddr, sync::Arc};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use threads::Threads;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use self::controllers::Controllers;
use crate::{
    autoscaler,
    config::{Live, NAMESPACE},
    eventing::{self, Brokers, Eventing},
    executor::Executor,
    fleet::Fleet,
    gateway::Gateway,
};

/// What functions need to know.
pub struct Settings {
    /// The settings, shared with [`Admission`](crate::Admission).
    pub live: Live,
    /// Runs functions in this process.
    pub executor: Arc<dyn Executor>,
    /// The address of the gateway where connections of this machine may begin by saying whose they are, by the PROXY
    /// protocol.
    pub door: Option<IpAddr>,
}

/// Running controllers, autoscaler and gateway.
pub struct Functions {
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Where the gateway works.
    threads: Threads,
    /// The revisions that can be called.
    pub fleet: Arc<Fleet>,
    /// Routes requests to them.
    pub gateway: Arc<Gateway>,
}

impl Functions {
    /// Starts everything; the gateway takes connections of all `listeners`, on threads of its own.
    ///
    /// # Errors
    /// When these threads cannot be started.
    pub fn start(
        client: Client,
        listeners: impl IntoIterator<Item = TcpListener>,
        settings: Settings,
    ) -> io::Result<Self> {
        let fleet = Arc::new(Fleet::default());
        let live = settings.live.clone();
        let gateway = Arc::new(Gateway::new(fleet.clone(), live.clone()));
        settings.door.into_iter().for_each(|door| gateway.set_door(door));
        let (stop, tasks, threads) = (CancellationToken::new(), TaskTracker::new(), Threads::start()?);
        let all = Self { stop, tasks, threads, fleet, gateway };
        let controllers = Controllers::new(&client, settings, all.fleet.clone());
        let (stop, fleet) = (all.stop.clone(), all.fleet.clone());
        all.tasks.spawn(autoscaler::run(controllers.workloads(), fleet, stop));
        all.until_stopped(controllers.run(client.clone(), all.gateway.clone()));
        all.until_stopped(pods::follow(client.clone(), all.fleet.clone()));
        all.until_stopped(maps(client.clone(), live));
        all.gateway.set_inside(client.clone());
        let sender = eventing::Sender::new(all.gateway.clone(), client.clone());
        let (events, tasks) = Eventing::start(client, sender);
        all.gateway.set_ingress(Arc::new(Brokers(Arc::downgrade(&events))));
        all.until_stopped(async move {
            tasks.await;
            drop(events);
        });
        for listener in listeners {
            let serve = all.gateway.clone().serve(listener, all.stop.clone());
            all.tasks.spawn_on(serve, all.threads.handle());
        }
        all.tasks.close();
        Ok(all)
    }

    /// Stops taking requests, lets running ones finish, and ends every task.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    fn until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled_owned(task).await });
    }
}

/// Takes the settings from their ConfigMaps.
async fn maps(client: Client, live: Live) {
    let api = Api::<ConfigMap>::namespaced(client, NAMESPACE);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events.filter_map(|e| async move { e.ok() }));
    while let Some(event) = events.next().await {
        let (map, data) = match event {
            watcher::Event::Apply(map) | watcher::Event::InitApply(map) => {
                let data = map.data.clone().unwrap_or_default();
                (map, data)
            }
            watcher::Event::Delete(map) => (map, Default::default()),
            watcher::Event::Init | watcher::Event::InitDone => continue,
        };
        if let Err(wrong) = live.take(&map.name_any(), &data) {
            warn!(configmap = map.name_any(), "the settings stay as they were: {wrong}");
        }
    }
}

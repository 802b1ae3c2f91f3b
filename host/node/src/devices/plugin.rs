//! One plugin: what it lists, and what it is asked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;
use tonic::transport::Channel;
use wasmk_cri::{
    devices::{
        AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
        ContainerPreferredAllocationRequest, Device, DevicePluginOptions, Empty, PreStartContainerRequest,
        PreferredAllocationRequest, device_plugin_client::DevicePluginClient,
    },
    unix_channel,
};

use super::{Devices, GRACE, record::Grant};

/// Largest list of devices taken from a plugin, in bytes.
const MAX_MESSAGE: usize = 16 << 20;
/// Longest time for an answer.
const LIMIT: Duration = Duration::from_secs(30);
/// What plugins call a device that can be used.
const HEALTHY: &str = "Healthy";

/// A plugin that has registered.
pub(super) struct Plugin {
    client: Option<Client>,
    life: u64,
    /// Whether each of its devices can be used.
    devices: BTreeMap<String, bool>,
}

/// How a plugin is reached.
#[derive(Clone)]
pub(super) struct Client {
    service: DevicePluginClient<Channel>,
    /// It is asked which devices are best together.
    pub(super) prefers: bool,
    /// It is told before a container starts.
    pub(super) prepares: bool,
}

impl Plugin {
    /// One that is not there, with these devices.
    #[cfg(test)]
    pub(super) fn with(devices: &[(&str, bool)]) -> Self {
        let client = Some(Client::new(Path::new("/nonexistent"), &DevicePluginOptions::default()));
        let devices = devices.iter().map(|(id, healthy)| ((*id).to_owned(), *healthy)).collect();
        Self { client, life: 0, devices }
    }

    /// All devices, and those that can be given.
    pub(super) fn amounts(&self) -> (usize, usize) {
        (self.devices.len(), if self.is_here() { self.healthy().count() } else { 0 })
    }

    pub(super) fn is_here(&self) -> bool {
        self.client.is_some()
    }

    pub(super) fn healthy(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().filter(|(_, healthy)| **healthy).map(|(id, _)| id.as_str())
    }

    /// How it is reached, while it is here.
    pub(super) fn client(&self) -> Option<Client> {
        self.client.clone()
    }
}

impl Client {
    fn new(socket: &Path, options: &DevicePluginOptions) -> Self {
        let service = DevicePluginClient::new(unix_channel(socket)).max_decoding_message_size(MAX_MESSAGE);
        Self {
            service,
            prefers: options.get_preferred_allocation_available,
            prepares: options.pre_start_required,
        }
    }

    /// Which of the free devices the plugin would give.
    pub(super) async fn preferred(&self, free: Vec<String>, count: usize) -> Result<Vec<String>, String> {
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_i_ds: free,
                must_include_device_i_ds: Vec::new(),
                allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
            }],
        };
        let mut service = self.service.clone();
        let answer = limited(service.get_preferred_allocation(request)).await?;
        Ok(answer.container_responses.into_iter().next().map(|one| one.device_i_ds).unwrap_or_default())
    }

    /// What is needed to use devices.
    pub(super) async fn allocate(&self, ids: Vec<String>) -> Result<Grant, String> {
        let request =
            AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: ids }] };
        let mut service = self.service.clone();
        let answer = limited(service.allocate(request)).await?;
        let [answer] = <[ContainerAllocateResponse; 1]>::try_from(answer.container_responses)
            .map_err(|all| format!("the plugin answered for {} containers, 1 was asked for", all.len()))?;
        Ok(grant(answer))
    }

    /// Tells that a container is about to start.
    pub(super) async fn prepare(&self, ids: Vec<String>) -> Result<(), String> {
        let request = PreStartContainerRequest { devices_ids: ids };
        let mut service = self.service.clone();
        limited(service.pre_start_container(request)).await.map(drop)
    }
}

fn grant(answer: ContainerAllocateResponse) -> Grant {
    let mount = |m: wasmk_cri::devices::Mount| (m.host_path.into(), m.container_path, m.read_only);
    let device = |d: wasmk_cri::devices::DeviceSpec| (d.host_path.into(), d.container_path, d.permissions);
    Grant {
        env: answer.envs.into_iter().collect(),
        mounts: answer.mounts.into_iter().map(mount).collect(),
        devices: answer.devices.into_iter().map(device).collect(),
        annotations: answer.annotations.into_iter().collect(),
        cdi: answer.cdi_devices.into_iter().map(|device| device.name).collect(),
    }
}

async fn limited<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match timeout(LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(format!("rpc error: code = {:?} desc = {}", status.code(), status.message())),
        Err(_) => Err(format!("the plugin did not answer within {} s", LIMIT.as_secs())),
    }
}

impl Devices {
    /// Takes up a plugin that serves at a socket, in place of an earlier one of its resource.
    pub(super) fn take_up(
        self: &Arc<Self>,
        resource: String,
        socket: PathBuf,
        options: &DevicePluginOptions,
    ) {
        let client = Client::new(&socket, options);
        let life = {
            let mut state = self.state.lock();
            state.records.learn(&resource);
            state.lives += 1;
            let life = state.lives;
            // Until it has listed them, its devices are what they were.
            let devices = state.plugins.remove(&resource).map(|old| old.devices).unwrap_or_default();
            state.plugins.insert(resource.clone(), Plugin { client: Some(client.clone()), life, devices });
            life
        };
        tracing::info!(resource, "a device plugin has registered");
        self.changed();
        tokio::spawn(self.clone().follow(resource, client, life));
    }

    /// Follows a plugin's list of devices until it or a newer plugin ends that.
    async fn follow(self: Arc<Self>, resource: String, mut client: Client, life: u64) {
        let listing = timeout(LIMIT, client.service.list_and_watch(Empty {})).await;
        if let Ok(Ok(list)) = listing {
            let mut list = list.into_inner();
            while let Ok(Some(answer)) = list.message().await {
                if !self.listed(&resource, life, answer.devices) {
                    return;
                }
            }
        }
        let left = self.change(&resource, life, |plugin| plugin.client = None);
        if !left {
            return;
        }
        tracing::info!(resource, "a device plugin has left");
        tokio::time::sleep(GRACE).await;
        self.change(&resource, life, |plugin| plugin.devices.clear());
    }

    fn listed(&self, resource: &str, life: u64, devices: Vec<Device>) -> bool {
        let devices = devices.into_iter().map(|device| (device.id, device.health == HEALTHY)).collect();
        self.change(resource, life, |plugin| plugin.devices = devices)
    }

    /// Changes what is known of a plugin, unless there is a newer one.
    fn change(&self, resource: &str, life: u64, change: impl FnOnce(&mut Plugin)) -> bool {
        let mut state = self.state.lock();
        let Some(plugin) = state.plugins.get_mut(resource).filter(|plugin| plugin.life == life) else {
            return false;
        };
        change(plugin);
        drop(state);
        self.changed();
        true
    }
}

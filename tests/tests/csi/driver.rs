//! A storage driver that is one: its volumes are directories, which it mounts where it is told. What it has
//! made is on disk, so another life of it goes on from there. It remembers what it was asked, and fails when
//! it is told to.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use futures::stream;
use tokio::{net::UnixListener, runtime::Runtime, sync::oneshot};
use tonic::{Request, Response, Status, transport::Server};
use wasmk_csi::{
    registration::{
        InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
        registration_server::{Registration, RegistrationServer},
    },
    v1::{
        self, controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer,
    },
};

pub(crate) const NAME: &str = "directories.example.com";

type Answer<T> = Result<Response<T>, Status>;

/// What outlives the driver's process.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    /// Calls that are to fail, how many times.
    fail: Mutex<HashMap<String, u32>>,
}

impl Disk {
    pub(crate) fn new(dir: &Path) -> Arc<Self> {
        fs::create_dir_all(dir.join("volumes")).expect("a directory");
        Arc::new(Self { dir: dir.into(), fail: Mutex::default() })
    }

    /// What it was asked, in order, in all of its lives.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        text.lines().map(String::from).collect()
    }

    /// How often it was asked something that begins so.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|c| c.starts_with(call)).count()
    }

    /// How many volumes it has on a node at most, from its next life on.
    pub(crate) fn limit(&self, most: i64) {
        fs::write(self.dir.join("most"), most.to_string()).expect("a file");
    }

    fn most(&self) -> i64 {
        fs::read_to_string(self.dir.join("most")).ok().and_then(|text| text.parse().ok()).unwrap_or(12)
    }

    /// The file behind a volume that is a device.
    fn image(&self, volume: &str) -> PathBuf {
        self.volume(volume).join("image")
    }

    /// Makes the next calls fail after they were done, as if the answer was lost.
    pub(crate) fn fail(&self, call: &str, times: u32) {
        self.fail.lock().expect("failures").insert(call.into(), times);
    }

    /// The volumes there are, in order.
    pub(crate) fn volumes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("volumes")).expect("volumes");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Where the driver answers.
    pub(crate) fn endpoint(&self) -> PathBuf {
        self.dir.join("csi.sock")
    }

    pub(crate) fn volume(&self, id: &str) -> PathBuf {
        self.dir.join("volumes").join(id)
    }

    fn asked<T>(&self, call: &str, more: String, answer: T) -> Answer<T> {
        let mut calls =
            fs::OpenOptions::new().create(true).append(true).open(self.dir.join("calls")).expect("a file");
        calls.write_all(format!("{}\n", format!("{call} {more}").trim_end()).as_bytes()).expect("a line");
        let mut fail = self.fail.lock().expect("failures");
        if let Some(left) = fail.get_mut(call).filter(|left| **left > 0) {
            *left -= 1;
            return Err(Status::unavailable("the answer was lost"));
        }
        Ok(Response::new(answer))
    }
}

fn is_mounted(place: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo")
        .expect("the mounts")
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(place))
}

fn mount(from: &Path, to: &str, read_only: bool) -> Result<(), Status> {
    if is_mounted(to) {
        return Ok(());
    }
    fs::create_dir_all(to).map_err(|e| Status::internal(e.to_string()))?;
    run(&["mount", "--bind", &from.display().to_string(), to])?;
    if read_only { run(&["mount", "-o", "remount,bind,ro", to]).map(drop) } else { Ok(()) }
}

fn unmount(place: &str) -> Result<(), Status> {
    if is_mounted(place) {
        run(&["umount", place])?;
    }
    let removed = if Path::new(place).is_file() { fs::remove_file(place) } else { fs::remove_dir(place) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Status::internal(error.to_string()))
        }
        _ => Ok(()),
    }
}

fn run(words: &[&str]) -> Result<String, Status> {
    let out = Command::new(words[0]).args(&words[1..]).output().expect("a command");
    let said = String::from_utf8_lossy(&out.stderr);
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(Status::internal(format!("{words:?}: {said}"))),
    }
}

/// Attaches a file to a loop device unless it is; the device.
fn attach(image: &Path) -> Result<String, Status> {
    let image = image.display().to_string();
    let known = run(&["losetup", "--noheadings", "--output", "NAME", "--associated", &image])?;
    match known.trim() {
        "" => Ok(run(&["losetup", "--find", "--show", &image])?.trim().to_string()),
        device => Ok(device.to_string()),
    }
}

/// Puts a device where a file is asked for.
fn put_device(device: &str, place: &str) -> Result<(), Status> {
    if is_mounted(place) {
        return Ok(());
    }
    fs::write(place, "").map_err(|e| Status::internal(e.to_string()))?;
    run(&["mount", "--bind", device, place]).map(drop)
}

fn is_device(capability: Option<&v1::VolumeCapability>) -> bool {
    use v1::volume_capability::AccessType;
    matches!(capability.and_then(|c| c.access_type.as_ref()), Some(AccessType::Block(_)))
}

#[derive(Clone)]
struct Driver(Arc<Disk>);

#[tonic::async_trait]
impl v1::identity_server::Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<v1::GetPluginInfoRequest>,
    ) -> Answer<v1::GetPluginInfoResponse> {
        let answer =
            v1::GetPluginInfoResponse { name: NAME.into(), vendor_version: "1".into(), ..Default::default() };
        self.0.asked("GetPluginInfo", String::new(), answer)
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Answer<v1::GetPluginCapabilitiesResponse> {
        use v1::plugin_capability::{Service, Type, service};
        let service = Service { r#type: service::Type::ControllerService.into() };
        let capability = v1::PluginCapability { r#type: Some(Type::Service(service)) };
        let answer = v1::GetPluginCapabilitiesResponse { capabilities: vec![capability] };
        self.0.asked("GetPluginCapabilities", String::new(), answer)
    }

    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Answer<v1::ProbeResponse> {
        let answer = v1::ProbeResponse { ready: Some(v1::BoolValue { value: true }) };
        self.0.asked("Probe", String::new(), answer)
    }
}

/// A parameter of storage classes as what is told of a volume: it shows that they arrive.
fn context(parameters: &HashMap<String, String>) -> HashMap<String, String> {
    parameters.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[tonic::async_trait]
impl v1::controller_server::Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Answer<v1::CreateVolumeResponse> {
        let request = request.into_inner();
        let bytes = request.capacity_range.unwrap_or_default().required_bytes;
        fs::create_dir_all(self.0.volume(&request.name)).expect("a volume");
        if is_device(request.volume_capabilities.first()) {
            let image = fs::File::create(self.0.image(&request.name)).expect("a file");
            image.set_len(bytes.unsigned_abs()).expect("a size");
        }
        let mut said: Vec<_> = request.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
        said.sort();
        let volume = v1::Volume {
            capacity_bytes: bytes,
            volume_id: request.name.clone(),
            volume_context: context(&request.parameters),
            accessible_topology: Vec::new(),
        };
        let more = format!("{} {bytes} {}", request.name, said.join(","));
        self.0.asked("CreateVolume", more, v1::CreateVolumeResponse { volume: Some(volume) })
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Answer<v1::DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        let _ = fs::remove_dir_all(self.0.volume(&id));
        self.0.asked("DeleteVolume", id, v1::DeleteVolumeResponse {})
    }

    async fn controller_publish_volume(
        &self,
        request: Request<v1::ControllerPublishVolumeRequest>,
    ) -> Answer<v1::ControllerPublishVolumeResponse> {
        let request = request.into_inner();
        let context = [("device".to_string(), format!("disk-of-{}", request.node_id))].into();
        let answer = v1::ControllerPublishVolumeResponse { publish_context: context };
        self.0.asked("ControllerPublishVolume", format!("{} {}", request.volume_id, request.node_id), answer)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<v1::ControllerUnpublishVolumeRequest>,
    ) -> Answer<v1::ControllerUnpublishVolumeResponse> {
        let request = request.into_inner();
        let more = format!("{} {}", request.volume_id, request.node_id);
        self.0.asked("ControllerUnpublishVolume", more, v1::ControllerUnpublishVolumeResponse {})
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<v1::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<v1::ValidateVolumeCapabilitiesResponse> {
        let request = request.into_inner();
        if !self.0.volume(&request.volume_id).exists() {
            return Err(Status::not_found(request.volume_id));
        }
        let confirmed = v1::validate_volume_capabilities_response::Confirmed {
            volume_capabilities: request.volume_capabilities,
            ..Default::default()
        };
        let answer =
            v1::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() };
        self.0.asked("ValidateVolumeCapabilities", request.volume_id, answer)
    }

    async fn list_volumes(&self, _: Request<v1::ListVolumesRequest>) -> Answer<v1::ListVolumesResponse> {
        let entry = |id: String| v1::list_volumes_response::Entry {
            volume: Some(v1::Volume { volume_id: id, ..Default::default() }),
            status: None,
        };
        let entries = self.0.volumes().into_iter().map(entry).collect();
        self.0.asked("ListVolumes", String::new(), v1::ListVolumesResponse { entries, ..Default::default() })
    }

    async fn get_capacity(&self, _: Request<v1::GetCapacityRequest>) -> Answer<v1::GetCapacityResponse> {
        self.0.asked("GetCapacity", String::new(), v1::GetCapacityResponse { available_capacity: 1 << 30 })
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<v1::ControllerGetCapabilitiesRequest>,
    ) -> Answer<v1::ControllerGetCapabilitiesResponse> {
        use v1::controller_service_capability::{Rpc, Type, rpc};
        let can = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::PublishUnpublishVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
        ];
        let capability = |kind: rpc::Type| v1::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = can.map(capability).into();
        let answer = v1::ControllerGetCapabilitiesResponse { capabilities };
        self.0.asked("ControllerGetCapabilities", String::new(), answer)
    }
}

#[tonic::async_trait]
impl v1::node_server::Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Answer<v1::NodeStageVolumeResponse> {
        let request = request.into_inner();
        let device = request.publish_context.get("device").cloned().unwrap_or_default();
        let key = request.secrets.get("key").cloned().unwrap_or_default();
        if is_device(request.volume_capability.as_ref()) {
            attach(&self.0.image(&request.volume_id))?;
        } else {
            mount(&self.0.volume(&request.volume_id), &request.staging_target_path, false)?;
        }
        let more = format!("{} {device} {key}", request.volume_id);
        self.0.asked("NodeStageVolume", more, v1::NodeStageVolumeResponse {})
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Answer<v1::NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        unmount(&request.staging_target_path)?;
        let image = self.0.image(&request.volume_id);
        if image.exists() {
            run(&["losetup", "--detach", &attach(&image)?])?;
        }
        self.0.asked("NodeUnstageVolume", request.volume_id, v1::NodeUnstageVolumeResponse {})
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Answer<v1::NodePublishVolumeResponse> {
        let request = request.into_inner();
        let told = |key: &str| request.volume_context.get(key).cloned().unwrap_or_default();
        let (pod, colour) = (told("csi.storage.k8s.io/pod.name"), told("colour"));
        if is_device(request.volume_capability.as_ref()) {
            put_device(&attach(&self.0.image(&request.volume_id))?, &request.target_path)?;
        } else if request.staging_target_path.is_empty() {
            // One of the pod's own.
            let own = self.0.volume(&request.volume_id);
            fs::create_dir_all(&own).expect("a volume");
            fs::write(own.join("told"), format!("{colour} for {pod}")).expect("a file");
            mount(&own, &request.target_path, request.readonly)?;
        } else if !is_mounted(&request.staging_target_path) {
            return Err(Status::failed_precondition("the volume is not staged"));
        } else {
            mount(Path::new(&request.staging_target_path), &request.target_path, request.readonly)?;
        }
        let more = format!("{} {pod} {}", request.volume_id, if request.readonly { "ro" } else { "rw" });
        self.0.asked("NodePublishVolume", more, v1::NodePublishVolumeResponse {})
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Answer<v1::NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        unmount(&request.target_path)?;
        if request.volume_id.starts_with("csi-") {
            let _ = fs::remove_dir_all(self.0.volume(&request.volume_id));
        }
        let more = format!("{} {}", request.volume_id, request.target_path);
        self.0.asked("NodeUnpublishVolume", more, v1::NodeUnpublishVolumeResponse {})
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Answer<v1::NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        if !is_mounted(&request.volume_path) {
            return Err(Status::not_found(request.volume_path));
        }
        let entries = fs::read_dir(&request.volume_path).expect("the volume");
        let files: Vec<u64> = entries.map(|e| e.and_then(|e| e.metadata()).expect("a file").len()).collect();
        let usage = |unit: v1::volume_usage::Unit, total: i64, used: u64| {
            let used = used.cast_signed();
            v1::VolumeUsage { available: total - used, total, used, unit: unit.into() }
        };
        let usage = vec![
            usage(v1::volume_usage::Unit::Bytes, 5 << 20, files.iter().sum()),
            usage(v1::volume_usage::Unit::Inodes, 1000, files.len() as u64),
        ];
        let answer = v1::NodeGetVolumeStatsResponse { usage };
        self.0.asked("NodeGetVolumeStats", request.volume_id, answer)
    }

    async fn node_expand_volume(
        &self,
        request: Request<v1::NodeExpandVolumeRequest>,
    ) -> Answer<v1::NodeExpandVolumeResponse> {
        let request = request.into_inner();
        let bytes = request.capacity_range.unwrap_or_default().required_bytes;
        let more = format!("{} {bytes}", request.volume_id);
        self.0.asked("NodeExpandVolume", more, v1::NodeExpandVolumeResponse { capacity_bytes: bytes })
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Answer<v1::NodeGetCapabilitiesResponse> {
        use v1::node_service_capability::{Rpc, Type, rpc};
        let can = [rpc::Type::StageUnstageVolume, rpc::Type::ExpandVolume, rpc::Type::GetVolumeStats];
        let capability = |kind: rpc::Type| v1::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let answer = v1::NodeGetCapabilitiesResponse { capabilities: can.map(capability).into() };
        self.0.asked("NodeGetCapabilities", String::new(), answer)
    }

    async fn node_get_info(&self, _: Request<v1::NodeGetInfoRequest>) -> Answer<v1::NodeGetInfoResponse> {
        let topology = v1::Topology { segments: [("topology.example.com/rack".into(), "r1".into())].into() };
        let answer = v1::NodeGetInfoResponse {
            node_id: "machine-7".into(),
            max_volumes_per_node: self.0.most(),
            accessible_topology: Some(topology),
        };
        self.0.asked("NodeGetInfo", String::new(), answer)
    }
}

/// Registers the driver, as the registrar beside a driver does.
struct Registrar {
    endpoint: PathBuf,
    disk: Arc<Disk>,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        let status = request.into_inner();
        let more = format!("{} {}", status.plugin_registered, status.error);
        self.disk.asked("Registered", more, RegistrationStatusResponse {})
    }
}

/// A life of the driver; it ends when dropped.
pub(crate) struct Life {
    sockets: [PathBuf; 2],
    stop: Vec<oneshot::Sender<()>>,
    runtime: Option<Runtime>,
}

impl Life {
    /// Starts it on what it has on disk; it registers in that directory.
    pub(crate) fn start(disk: &Arc<Disk>, registry: &Path) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let _entered = runtime.enter();
        let endpoint = disk.endpoint();
        let registration = registry.join(format!("{NAME}-reg.sock"));
        let driver = Driver(disk.clone());
        let server = Server::builder()
            .add_service(IdentityServer::new(driver.clone()))
            .add_service(ControllerServer::new(driver.clone()))
            .add_service(NodeServer::new(driver));
        let registrar = Registrar { endpoint: endpoint.clone(), disk: disk.clone() };
        let registrar = Server::builder().add_service(RegistrationServer::new(registrar));
        let mut stop = Vec::new();
        for (socket, server) in [(&endpoint, server), (&registration, registrar)] {
            let _ = fs::remove_file(socket);
            let listener = UnixListener::bind(socket).expect("a socket");
            let accepted = stream::unfold(listener, |listener| async {
                let stream = listener.accept().await.map(|(stream, _)| stream);
                Some((stream, listener))
            });
            let (end, ended) = oneshot::channel::<()>();
            stop.push(end);
            runtime.spawn(server.serve_with_incoming_shutdown(accepted, async { drop(ended.await) }));
        }
        Self { sockets: [endpoint, registration], stop, runtime: Some(runtime) }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stop.clear();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
    }
}

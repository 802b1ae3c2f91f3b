//! The calls, each with a deadline and an error that says what was attempted.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use crate::{
    calls::{Calls, Tally},
    v1::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};

/// Largest answer taken from the runtime, in bytes.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Longest time for a call that is expected to be quick.
const QUICK: Duration = Duration::from_secs(30);
/// Longest time for making a sandbox or a container.
const MAKE: Duration = Duration::from_secs(240);
/// Longest time for pulling an image.
const PULL: Duration = Duration::from_secs(1800);
/// Added to a time limit that the runtime itself keeps, for its answer to arrive.
const MARGIN: Duration = Duration::from_secs(10);
/// Longest time for a connection to the socket.
const CONNECT: Duration = Duration::from_secs(5);
/// The handler that runtimes use when none is asked for.
const DEFAULT_HANDLER: &str = "runc";

/// A call that did not succeed.
#[derive(Clone, Debug, Error)]
#[error("{call}: {message}")]
pub struct Error {
    /// Name of the call.
    pub call: &'static str,
    /// The runtime's code.
    pub code: Code,
    /// The runtime's words.
    pub message: String,
}

impl Error {
    fn new(call: &'static str, status: &tonic::Status) -> Self {
        Self { call, code: status.code(), message: status.message().to_string() }
    }

    /// Whether what was asked about is not there.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    /// Whether the runtime could not be asked at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::Cancelled)
    }

    /// Whether the call took too long.
    pub fn is_timeout(&self) -> bool {
        self.code == Code::DeadlineExceeded
    }
}

/// What a runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// `containerd`, `cri-o`, …
    pub name: String,
    /// Its version.
    pub version: String,
    /// Handlers it has beside the default one, sorted.
    pub handlers: Vec<String>,
    /// Why it is not ready for containers, if it is not.
    pub trouble: Option<String>,
}

/// A client of one runtime. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    calls: Calls,
}

/// Declares a call: its name, service, request, answer and deadline.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $call:literal, $service:ident, $request:ident -> $answer:ident, $limit:expr;)*) => {
        impl Client {
            $($(#[$doc])*
            ///
            /// # Errors
            /// What the runtime says, or that it cannot be reached.
            pub async fn $name(&self, request: v1::$request) -> Result<v1::$answer, Error> {
                let mut request = Request::new(request);
                request.set_timeout($limit);
                let mut service = self.$service.clone();
                let late = || format!("no answer within {} s", $limit.as_secs());
                self.counted($call, $limit, late, service.$name(request)).await
            })*
        }
    };
}

calls! {
    /// Name and version of the runtime.
    version = "Version", runtime, VersionRequest -> VersionResponse, QUICK;
    /// Whether it is ready, and its settings.
    status = "Status", runtime, StatusRequest -> StatusResponse, QUICK;
    /// Makes and starts a sandbox.
    run_pod_sandbox = "RunPodSandbox", runtime, RunPodSandboxRequest -> RunPodSandboxResponse, MAKE;
    /// Stops a sandbox and what runs in it.
    stop_pod_sandbox = "StopPodSandbox", runtime, StopPodSandboxRequest -> StopPodSandboxResponse, MAKE;
    /// Removes a sandbox and its containers.
    remove_pod_sandbox = "RemovePodSandbox", runtime, RemovePodSandboxRequest -> RemovePodSandboxResponse, MAKE;
    /// State and addresses of a sandbox.
    pod_sandbox_status = "PodSandboxStatus", runtime, PodSandboxStatusRequest -> PodSandboxStatusResponse, QUICK;
    /// Sandboxes by label.
    list_pod_sandbox = "ListPodSandbox", runtime, ListPodSandboxRequest -> ListPodSandboxResponse, QUICK;
    /// Makes a container.
    create_container = "CreateContainer", runtime, CreateContainerRequest -> CreateContainerResponse, MAKE;
    /// Starts a container.
    start_container = "StartContainer", runtime, StartContainerRequest -> StartContainerResponse, MAKE;
    /// Removes a container.
    remove_container = "RemoveContainer", runtime, RemoveContainerRequest -> RemoveContainerResponse, MAKE;
    /// Containers by label.
    list_containers = "ListContainers", runtime, ListContainersRequest -> ListContainersResponse, QUICK;
    /// State of a container.
    container_status = "ContainerStatus", runtime, ContainerStatusRequest -> ContainerStatusResponse, QUICK;
    /// Tells the runtime that a log file was moved away.
    reopen_container_log = "ReopenContainerLog", runtime, ReopenContainerLogRequest -> ReopenContainerLogResponse, QUICK;
    /// An address at which a command in a container can be talked to.
    exec = "Exec", runtime, ExecRequest -> ExecResponse, QUICK;
    /// An address at which a container's process can be talked to.
    attach = "Attach", runtime, AttachRequest -> AttachResponse, QUICK;
    /// What containers use.
    list_container_stats = "ListContainerStats", runtime, ListContainerStatsRequest -> ListContainerStatsResponse, QUICK;
    /// Images that are here.
    list_images = "ListImages", images, ListImagesRequest -> ListImagesResponse, QUICK;
    /// One image; empty when it is not here.
    image_status = "ImageStatus", images, ImageStatusRequest -> ImageStatusResponse, QUICK;
    /// Fetches an image.
    pull_image = "PullImage", images, PullImageRequest -> PullImageResponse, PULL;
    /// Removes an image.
    remove_image = "RemoveImage", images, RemoveImageRequest -> RemoveImageResponse, MAKE;
    /// What images take of the disk.
    image_fs_info = "ImageFsInfo", images, ImageFsInfoRequest -> ImageFsInfoResponse, QUICK;
}

/// A channel to a Unix socket. Nothing is connected yet.
pub fn unix_channel(socket: &Path) -> Channel {
    let path = socket.to_path_buf();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never used: the connector knows where the socket is.
    Endpoint::from_static("http://localhost").connect_timeout(CONNECT).connect_with_connector_lazy(connect)
}

impl Client {
    /// A client of the runtime at a Unix socket. Nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        let channel = unix_channel(socket);
        Self {
            socket: socket.to_path_buf(),
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            calls: Calls::default(),
        }
    }

    /// Where the runtime is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// When it cannot be started, or is not over within `limit` ([`Error::is_timeout`]).
    pub async fn exec_sync(
        &self,
        container: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<v1::ExecSyncResponse, Error> {
        // Seconds are all that the interface knows; a part of one counts as a whole.
        let seconds = limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
        let request = v1::ExecSyncRequest {
            container_id: container.into(),
            cmd: command.to_vec(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let mut service = self.runtime.clone();
        let late = || not_over(limit);
        self.counted("ExecSync", limit + MARGIN, late, service.exec_sync(request)).await
    }

    /// Asks a container to end and kills it after `grace`; returns when it has ended.
    ///
    /// # Errors
    /// What the runtime says, or that it cannot be reached.
    pub async fn stop_container(&self, container: &str, grace: Duration) -> Result<(), Error> {
        let request = v1::StopContainerRequest {
            container_id: container.into(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        let mut service = self.runtime.clone();
        let late = || not_over(grace);
        let done = self.counted("StopContainer", grace + QUICK, late, service.stop_container(request));
        done.await.map(drop)
    }

    /// What was asked of the runtime so far, by name of the call.
    pub fn calls(&self) -> Vec<(&'static str, Tally)> {
        self.calls.list()
    }

    /// The answer to a call, which is given up after `limit` and then is as `late` says.
    async fn counted<T>(
        &self,
        call: &'static str,
        limit: Duration,
        late: impl FnOnce() -> String,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Error> {
        let began = tokio::time::Instant::now();
        let outcome = match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Error::new(call, &status)),
            Err(_) => Err(Error { call, code: Code::DeadlineExceeded, message: late() }),
        };
        self.calls.add(call, began.elapsed(), outcome.is_ok());
        outcome
    }

    /// What the runtime says of itself.
    ///
    /// # Errors
    /// When it cannot be reached or does not speak this version of the interface.
    pub async fn info(&self) -> Result<Info, Error> {
        let version = self.version(v1::VersionRequest { version: "v1".into() }).await?;
        let status = self.status(v1::StatusRequest { verbose: true }).await?;
        let conditions = status.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let bad = conditions.iter().find(|c| !c.status);
        Ok(Info {
            name: version.runtime_name,
            version: version.runtime_version,
            trouble: bad.map(|c| format!("{} is false: {}: {}", c.r#type, c.reason, c.message)),
            handlers: handlers(&status),
        })
    }
}

fn not_over(limit: Duration) -> String {
    format!("not over within {} s", limit.as_secs())
}

/// Handlers that the runtime lists; older ones tell them in their settings only.
fn handlers(status: &v1::StatusResponse) -> Vec<String> {
    let mut names: Vec<String> = status.runtime_handlers.iter().map(|h| h.name.clone()).collect();
    if names.is_empty() {
        let config = status.info.get("config").and_then(|c| serde_json::from_str(c).ok());
        let config: serde_json::Value = config.unwrap_or_default();
        let runtimes = config.pointer("/containerd/runtimes").and_then(|r| r.as_object());
        names = runtimes.map(|r| r.keys().cloned().collect()).unwrap_or_default();
    }
    if names.is_empty() {
        names.push(DEFAULT_HANDLER.into());
    }
    names.retain(|n| !n.is_empty());
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_found_where_the_runtime_tells_them() {
        let check = |listed: &[&str], config: &str, expect: &[&str]| {
            let status = v1::StatusResponse {
                runtime_handlers: listed.iter().map(|n| v1::RuntimeHandler { name: (*n).into() }).collect(),
                info: [("config".to_string(), config.to_string())].into(),
                ..Default::default()
            };
            assert_eq!(handlers(&status), expect, "{listed:?} {config}");
        };
        check(&["", "runc", "kata"], "", &["kata", "runc"]);
        check(&[], r#"{"containerd": {"runtimes": {"runc": {}, "crun": {}}}}"#, &["crun", "runc"]);
        check(&[], "nonsense", &["runc"]);
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_unreachable() {
        let client = Client::new(Path::new("/nonexistent/runtime.sock"));
        let error = client.info().await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
    }
}

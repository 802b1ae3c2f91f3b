//! The calls, each with a deadline and an error that says what was attempted.

use std::{path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use crate::{
    registration::{self, registration_client::RegistrationClient},
    v1::{
        self, controller_client::ControllerClient, identity_client::IdentityClient, node_client::NodeClient,
    },
};

/// Largest answer taken from a driver, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Longest time for one call.
pub const CALL: Duration = Duration::from_secs(120);
/// Longest time for a call that only asks.
const QUICK: Duration = Duration::from_secs(15);
/// Longest time for a connection to the socket.
const CONNECT: Duration = Duration::from_secs(5);

/// A call that did not succeed.
#[derive(Clone, Debug, Error)]
#[error("rpc error: code = {code:?} desc = {message} ({call})")]
pub struct Error {
    /// Name of the call.
    pub call: &'static str,
    /// The driver's code.
    pub code: Code,
    /// The driver's words.
    pub message: String,
}

impl Error {
    /// Whether the driver does not know what it was asked about.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}

/// A channel to a Unix socket. Nothing is connected yet.
fn channel(socket: &Path) -> Channel {
    let path = socket.to_path_buf();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never used: the connector knows where the socket is.
    Endpoint::from_static("http://localhost").connect_timeout(CONNECT).connect_with_connector_lazy(connect)
}

/// Declares calls: name, service, request, answer and deadline.
macro_rules! calls {
    ($of:ident, $messages:ident: $($(#[$doc:meta])* $name:ident = $call:literal, $service:ident, $request:ident -> $answer:ident, $limit:expr;)*) => {
        impl $of {
            $($(#[$doc])*
            ///
            /// # Errors
            /// What the driver says, or that it cannot be reached.
            pub async fn $name(&self, request: $messages::$request) -> Result<$messages::$answer, Error> {
                let mut request = Request::new(request);
                request.set_timeout($limit);
                let mut service = self.$service.clone();
                let failed = |code, message: String| Error { call: $call, code, message };
                match tokio::time::timeout($limit, service.$name(request)).await {
                    Ok(Ok(answer)) => Ok(answer.into_inner()),
                    Ok(Err(status)) => Err(failed(status.code(), status.message().to_string())),
                    Err(_) => Err(failed(
                        Code::DeadlineExceeded,
                        format!("no answer within {} s", $limit.as_secs()),
                    )),
                }
            })*
        }
    };
}

/// A client of one driver. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Driver {
    identity: IdentityClient<Channel>,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl Driver {
    /// A client of the driver at a Unix socket. Nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        let channel = channel(socket);
        Self {
            identity: IdentityClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            controller: ControllerClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            node: NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        }
    }
}

calls! {
    Driver, v1:
    /// Who the driver is.
    get_plugin_info = "GetPluginInfo", identity, GetPluginInfoRequest -> GetPluginInfoResponse, QUICK;
    /// Which services it has.
    get_plugin_capabilities = "GetPluginCapabilities", identity, GetPluginCapabilitiesRequest -> GetPluginCapabilitiesResponse, QUICK;
    /// Whether it is ready.
    probe = "Probe", identity, ProbeRequest -> ProbeResponse, QUICK;
    /// Makes a volume, or finds the one made under that name.
    create_volume = "CreateVolume", controller, CreateVolumeRequest -> CreateVolumeResponse, CALL;
    /// Removes a volume.
    delete_volume = "DeleteVolume", controller, DeleteVolumeRequest -> DeleteVolumeResponse, CALL;
    /// Attaches a volume to a node.
    controller_publish_volume = "ControllerPublishVolume", controller, ControllerPublishVolumeRequest -> ControllerPublishVolumeResponse, CALL;
    /// Detaches a volume from a node.
    controller_unpublish_volume = "ControllerUnpublishVolume", controller, ControllerUnpublishVolumeRequest -> ControllerUnpublishVolumeResponse, CALL;
    /// Whether a volume can be used so.
    validate_volume_capabilities = "ValidateVolumeCapabilities", controller, ValidateVolumeCapabilitiesRequest -> ValidateVolumeCapabilitiesResponse, CALL;
    /// All volumes.
    list_volumes = "ListVolumes", controller, ListVolumesRequest -> ListVolumesResponse, CALL;
    /// What there is room for.
    get_capacity = "GetCapacity", controller, GetCapacityRequest -> GetCapacityResponse, CALL;
    /// What the controller's part can do.
    controller_get_capabilities = "ControllerGetCapabilities", controller, ControllerGetCapabilitiesRequest -> ControllerGetCapabilitiesResponse, QUICK;
    /// Readies a volume on this node, for all pods.
    node_stage_volume = "NodeStageVolume", node, NodeStageVolumeRequest -> NodeStageVolumeResponse, CALL;
    /// The reverse.
    node_unstage_volume = "NodeUnstageVolume", node, NodeUnstageVolumeRequest -> NodeUnstageVolumeResponse, CALL;
    /// Mounts a volume for one pod.
    node_publish_volume = "NodePublishVolume", node, NodePublishVolumeRequest -> NodePublishVolumeResponse, CALL;
    /// The reverse.
    node_unpublish_volume = "NodeUnpublishVolume", node, NodeUnpublishVolumeRequest -> NodeUnpublishVolumeResponse, CALL;
    /// What of a volume is in use.
    node_get_volume_stats = "NodeGetVolumeStats", node, NodeGetVolumeStatsRequest -> NodeGetVolumeStatsResponse, QUICK;
    /// Lets a volume's file system grow.
    node_expand_volume = "NodeExpandVolume", node, NodeExpandVolumeRequest -> NodeExpandVolumeResponse, CALL;
    /// What the node's part can do.
    node_get_capabilities = "NodeGetCapabilities", node, NodeGetCapabilitiesRequest -> NodeGetCapabilitiesResponse, QUICK;
    /// What the driver calls this node.
    node_get_info = "NodeGetInfo", node, NodeGetInfoRequest -> NodeGetInfoResponse, QUICK;
}

/// A client of a plugin's registration.
#[derive(Clone, Debug)]
pub struct Registration {
    service: RegistrationClient<Channel>,
}

impl Registration {
    /// A client of the plugin at a Unix socket. Nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        Self { service: RegistrationClient::new(channel(socket)).max_decoding_message_size(MAX_MESSAGE) }
    }
}

calls! {
    Registration, registration:
    /// What the plugin is and where it serves.
    get_info = "GetInfo", service, InfoRequest -> PluginInfo, QUICK;
    /// Tells the plugin how its registration went.
    notify_registration_status = "NotifyRegistrationStatus", service, RegistrationStatus -> RegistrationStatusResponse, QUICK;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_driver_that_is_not_there_is_unavailable() {
        let driver = Driver::new(Path::new("/nonexistent/csi.sock"));
        let error = driver.probe(v1::ProbeRequest {}).await.unwrap_err();
        assert_eq!((error.call, error.code), ("Probe", Code::Unavailable));
        let registration = Registration::new(Path::new("/nonexistent/reg.sock"));
        assert!(registration.get_info(registration::InfoRequest {}).await.is_err());
    }
}

//! Mounts volumes: waits until they are attached, stages them once, publishes them for each pod.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::Duration,
};

use kube::Api;
use wasmk_api::k8s_openapi::api::{
    core::v1::Pod,
    storage::v1::{CSIDriverSpec, VolumeAttachment},
};
use wasmk_csi::v1::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability,
    node_service_capability::rpc::Type as Ability,
};

use super::{
    Csi, MOUNT_ERROR, Registered, owner,
    record::{InPod, OnNode},
    request::{self, Wanted, uid},
};
use crate::{
    engine::Failure,
    pod::{env::Sources, own},
};

/// Longest wait in one go until a volume is attached; the pod's set-up comes again.
const ATTACH: Duration = Duration::from_secs(60);
/// How often it is looked whether a volume is attached.
const LOOK: Duration = Duration::from_millis(300);

/// One volume of one pod being mounted.
struct Mount<'a> {
    csi: &'a Csi,
    pod: &'a Pod,
    /// Its name in the pod.
    name: &'a str,
    wanted: &'a Wanted,
    driver: &'a Registered,
    object: &'a CSIDriverSpec,
    sources: &'a dyn Sources,
}

fn disk(error: std::io::Error) -> Failure {
    Failure::new(MOUNT_ERROR, error)
}

fn map(of: BTreeMap<String, String>) -> HashMap<String, String> {
    of.into_iter().collect()
}

impl Csi {
    /// Mounts all volumes of drivers that a pod has, and links to them in `dir`, the directory of its volumes.
    /// What is mounted already is brought up to date.
    ///
    /// # Errors
    /// Naming the volume and what it lacks.
    pub(crate) async fn prepare(&self, pod: &Pod, dir: &Path, sources: &dyn Sources) -> Result<(), Failure> {
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let named = |e: Failure| {
                let text = format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name);
                Failure::new(e.reason, text)
            };
            let Some(wanted) = Wanted::find(pod, volume, sources).await.map_err(named)? else { continue };
            self.mount(pod, &volume.name, &wanted, sources).await.map_err(named)?;
            let target = self.records.target(uid(pod), &volume.name);
            own::link(&dir.join(&volume.name), &target).map_err(|e| named(disk(e)))?;
        }
        Ok(())
    }

    async fn mount(
        &self,
        pod: &Pod,
        name: &str,
        wanted: &Wanted,
        sources: &dyn Sources,
    ) -> Result<(), Failure> {
        let _turn = self.turn(&wanted.driver, &wanted.handle).await;
        let object = sources.csi_driver(&wanted.driver).await?.map(|d| d.spec).unwrap_or_default();
        wanted.allowed(&object)?;
        let known = self.records.in_pod(uid(pod), name);
        let here = known.is_some_and(|k| k.published.as_deref() == Some(self.records.boot()));
        let again = object.requires_republish == Some(true);
        let driver = match self.driver(&wanted.driver) {
            // What is mounted stays in use while its driver is away.
            Err(_) if here && !again => return Ok(()),
            driver => driver?,
        };
        if !here || again {
            let object = &object;
            Mount { csi: self, pod, name, wanted, driver: &driver, object, sources }.go(here).await?;
        }
        self.expand(pod, name, wanted, &driver, sources).await
    }
}

impl Mount<'_> {
    async fn go(&self, again: bool) -> Result<(), Failure> {
        let Wanted { driver, handle, ephemeral, .. } = self.wanted;
        let records = &self.csi.records;
        let attach = !ephemeral && self.object.attach_required != Some(false);
        if self.csi.records.in_pod(uid(self.pod), self.name).is_none() {
            self.note(false, None)?;
        }
        if !ephemeral && records.on_node(driver, handle).is_none() {
            // Known to be in use before anything is done with it.
            let (driver, handle) = (driver.clone(), handle.clone());
            let record = OnNode { driver, handle, attached: attach, staged: None };
            records.save_on_node(&record).map_err(disk)?;
            self.csi.note_in_use();
        }
        let context = if attach { map(self.attached().await?) } else { HashMap::new() };
        let group = own::group(self.pod);
        let by_driver = group.filter(|_| !self.wanted.block && self.driver.can(Ability::VolumeMountGroup));
        let capability = self.wanted.capability(self.driver.can(Ability::SingleNodeMultiWriter), by_driver);
        self.stage(&context, &capability).await?;
        self.publish(context, capability).await?;
        let Some(group) = group.filter(|_| !again && by_driver.is_none()) else { return Ok(()) };
        if !self.wanted.owned_by_group(self.object) {
            return Ok(());
        }
        let security = self.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let policy = security.and_then(|s| s.fs_group_change_policy.as_deref());
        let root_only = policy == Some("OnRootMismatch");
        let (target, read_only) = (self.target(), self.wanted.read_only);
        let work = move || owner::give(&target, group, read_only, root_only);
        tokio::task::spawn_blocking(work).await.map_err(|e| Failure::new(MOUNT_ERROR, e))?.map_err(disk)
    }

    /// Writes down how far it is.
    fn note(&self, begun: bool, published: Option<String>) -> Result<(), Failure> {
        let Wanted { driver, handle, .. } = self.wanted;
        let record = InPod { driver: driver.clone(), handle: handle.clone(), begun, published };
        self.csi.records.save_in_pod(uid(self.pod), self.name, &record).map_err(disk)
    }

    fn target(&self) -> std::path::PathBuf {
        self.csi.records.target(uid(self.pod), self.name)
    }

    fn staging(&self) -> std::path::PathBuf {
        self.csi.records.staging(&self.wanted.driver, &self.wanted.handle)
    }

    fn stages(&self) -> bool {
        !self.wanted.ephemeral && self.driver.can(Ability::StageUnstageVolume)
    }

    /// Waits until whoever attaches the driver's volumes has; what it says of the attachment.
    async fn attached(&self) -> Result<BTreeMap<String, String>, Failure> {
        let api: Api<VolumeAttachment> = Api::all(self.csi.client.clone());
        let name = self.wanted.attachment(&self.csi.node);
        let looking = async {
            loop {
                // One that is not made yet may not be read, either.
                if let Ok(Some(attachment)) = api.get_opt(&name).await {
                    let status = attachment.status.unwrap_or_default();
                    if status.attached && attachment.metadata.deletion_timestamp.is_none() {
                        return Ok(status.attachment_metadata.unwrap_or_default());
                    }
                    if let Some(error) = status.attach_error.and_then(|e| e.message) {
                        return Err(Failure::new(
                            MOUNT_ERROR,
                            format!("AttachVolume.Attach failed: {error}"),
                        ));
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(ATTACH, looking).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let (driver, handle) = (&self.wanted.driver, &self.wanted.handle);
                let text = format!(
                    "timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}"
                );
                Err(Failure::new(MOUNT_ERROR, text))
            }
        }
    }

    async fn stage(
        &self,
        context: &HashMap<String, String>,
        capability: &VolumeCapability,
    ) -> Result<(), Failure> {
        let records = &self.csi.records;
        let Wanted { driver, handle, .. } = self.wanted;
        let boot = records.boot();
        let known = records.on_node(driver, handle);
        if !self.stages() || known.as_ref().is_some_and(|k| k.staged.as_deref() == Some(boot)) {
            return Ok(());
        }
        let staging = self.staging();
        std::fs::create_dir_all(&staging).map_err(disk)?;
        let request = NodeStageVolumeRequest {
            volume_id: handle.clone(),
            publish_context: context.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability.clone()),
            secrets: map(request::secret(self.wanted.stage_secret.as_ref(), self.sources).await?),
            volume_context: map(self.wanted.attributes.clone()),
        };
        let key = format!("stage {driver}^{handle}");
        let staged = self.csi.rest.call(&key, self.driver.client.node_stage_volume(request)).await;
        staged.map_err(|e| Failure::new(MOUNT_ERROR, format!("MountVolume.MountDevice failed: {e}")))?;
        let Some(mut record) = known else { return Ok(()) };
        record.staged = Some(boot.into());
        records.save_on_node(&record).map_err(disk)
    }

    async fn publish(
        &self,
        publish_context: HashMap<String, String>,
        capability: VolumeCapability,
    ) -> Result<(), Failure> {
        let records = &self.csi.records;
        let Wanted { driver, handle, .. } = self.wanted;
        let mut secrets = request::secret(self.wanted.publish_secret.as_ref(), self.sources).await?;
        let mut context = self.wanted.context(self.pod, self.object);
        if let Some((key, tokens)) = request::tokens(self.pod, self.object, self.sources).await? {
            let in_secrets = self.object.service_account_token_in_secrets == Some(true);
            if in_secrets { &mut secrets } else { &mut context }.insert(key, tokens);
        }
        // From here on the driver may have mounted it.
        self.note(true, None)?;
        let request = NodePublishVolumeRequest {
            volume_id: handle.clone(),
            publish_context,
            staging_target_path: if self.stages() {
                self.staging().display().to_string()
            } else {
                String::new()
            },
            target_path: self.target().display().to_string(),
            volume_capability: Some(capability),
            readonly: self.wanted.read_only,
            secrets: map(secrets),
            volume_context: map(context),
        };
        let key = format!("publish {driver}^{handle} {}", uid(self.pod));
        let published = self.csi.rest.call(&key, self.driver.client.node_publish_volume(request)).await;
        published.map_err(|e| Failure::new(MOUNT_ERROR, e))?;
        self.note(true, Some(records.boot().into()))
    }
}

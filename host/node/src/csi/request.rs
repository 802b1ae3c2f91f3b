//! What a pod's volume asks of a driver: from the claim's persistent volume, or written in the pod itself.

use std::collections::BTreeMap;

use jiff::ToSpan;
use serde_json::json;
use sha2::{Digest, Sha256};
use wasmk_api::{
    Timestamp,
    k8s_openapi::api::{
        core::v1::{
            CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolume, Pod, SecretReference, Volume,
        },
        storage::v1::CSIDriverSpec,
    },
};
use wasmk_csi::v1::{
    VolumeCapability,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};

use super::MOUNT_ERROR;
use crate::{
    engine::Failure,
    pod::{claims, env::Sources, volumes::claim_of},
};

/// What the beginning of the keys is that drivers are told more under.
const PREFIX: &str = "csi.storage.k8s.io";
/// Life of a token when nothing is said, in seconds.
const TOKEN_SECONDS: i64 = 3600;

/// A volume as a driver is to mount it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) driver: String,
    pub(super) handle: String,
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) fs_type: String,
    pub(super) mode: String,
    pub(super) flags: Vec<String>,
    pub(super) read_only: bool,
    /// It lives and ends with the pod.
    pub(super) ephemeral: bool,
    /// It is a device, and no directory.
    pub(super) block: bool,
    pub(super) stage_secret: Option<SecretReference>,
    pub(super) publish_secret: Option<SecretReference>,
    pub(super) expand_secret: Option<SecretReference>,
    /// The persistent volume and the claim, by name.
    pub(super) from: Option<(PersistentVolume, String)>,
}

impl Wanted {
    /// What a volume of a pod asks for; `None` when it is of another kind.
    ///
    /// # Errors
    /// When the claim or its volume cannot be read, or is one that is not mounted here.
    pub(super) async fn find(
        pod: &Pod,
        volume: &Volume,
        sources: &dyn Sources,
    ) -> Result<Option<Self>, Failure> {
        if let Some(source) = &volume.csi {
            return Ok(Some(Self::written(pod, volume, source)));
        }
        let Some(claim) = claim_of(pod, volume) else { return Ok(None) };
        let found = claims::volume(pod, &claim, sources).await?;
        let Some(source) = found.spec.as_ref().and_then(|s| s.csi.clone()) else { return Ok(None) };
        let claim_read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only);
        Ok(Some(Self::persistent(found, source, claim, claim_read_only == Some(true))))
    }

    fn written(pod: &Pod, volume: &Volume, source: &CSIVolumeSource) -> Self {
        let namespace = pod.metadata.namespace.clone();
        let named = source.node_publish_secret_ref.as_ref();
        Self {
            driver: source.driver.clone(),
            handle: format!("csi-{}", digest(&[uid(pod), &volume.name])),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            mode: "ReadWriteOnce".into(),
            read_only: source.read_only == Some(true),
            ephemeral: true,
            publish_secret: named.map(|s| SecretReference { name: Some(s.name.clone()), namespace }),
            ..Self::default()
        }
    }

    fn persistent(
        volume: PersistentVolume,
        source: CSIPersistentVolumeSource,
        claim: String,
        read_only: bool,
    ) -> Self {
        let spec = volume.spec.clone().unwrap_or_default();
        Self {
            driver: source.driver,
            handle: source.volume_handle,
            attributes: source.volume_attributes.unwrap_or_default(),
            fs_type: source.fs_type.unwrap_or_default(),
            mode: spec.access_modes.and_then(|modes| modes.into_iter().next()).unwrap_or_default(),
            flags: spec.mount_options.unwrap_or_default(),
            read_only: read_only || source.read_only == Some(true),
            ephemeral: false,
            block: spec.volume_mode.as_deref() == Some("Block"),
            stage_secret: source.node_stage_secret_ref,
            publish_secret: source.node_publish_secret_ref,
            expand_secret: source.node_expand_secret_ref,
            from: Some((volume, claim)),
        }
    }

    /// Whether the driver's object allows it.
    pub(super) fn allowed(&self, driver: &CSIDriverSpec) -> Result<(), Failure> {
        let wanted = if self.ephemeral { "Ephemeral" } else { "Persistent" };
        let modes = driver.volume_lifecycle_modes.as_deref().unwrap_or_default();
        if modes.iter().any(|m| m == wanted) || (modes.is_empty() && !self.ephemeral) {
            return Ok(());
        }
        let text = format!(
            "volume mode \"{wanted}\" not supported by driver {} (its CSIDriver says: {})",
            self.driver,
            if modes.is_empty() { "Persistent".into() } else { modes.join(", ") }
        );
        Err(Failure::new(MOUNT_ERROR, text))
    }

    /// How the volume is to be used; `many_writers` if the driver tells one writer on a node from one pod.
    pub(super) fn capability(&self, many_writers: bool, group: Option<u32>) -> VolumeCapability {
        let mode = match self.mode.as_str() {
            "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
            "ReadWriteMany" => Mode::MultiNodeMultiWriter,
            "ReadWriteOncePod" if many_writers => Mode::SingleNodeSingleWriter,
            "ReadWriteOnce" if many_writers => Mode::SingleNodeMultiWriter,
            _ => Mode::SingleNodeWriter,
        };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(match self.block {
                true => AccessType::Block(BlockVolume {}),
                false => AccessType::Mount(MountVolume {
                    fs_type: self.fs_type.clone(),
                    mount_flags: self.flags.clone(),
                    volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
                }),
            }),
        }
    }

    /// Whether the volume's files are to be given to the pod's group.
    pub(super) fn owned_by_group(&self, driver: &CSIDriverSpec) -> bool {
        match driver.fs_group_policy.as_deref() {
            _ if self.block => false,
            Some("None") => false,
            Some("File") => true,
            _ => self.mode == "ReadWriteOnce" && !self.fs_type.is_empty() && !self.read_only,
        }
    }

    /// The object that says the volume is attached to a node.
    pub(super) fn attachment(&self, node: &str) -> String {
        format!("csi-{}", digest(&[&self.handle, &self.driver, node]))
    }

    /// What the driver is told of the pod, if it wants to know.
    pub(super) fn context(&self, pod: &Pod, driver: &CSIDriverSpec) -> BTreeMap<String, String> {
        let mut context = self.attributes.clone();
        if driver.pod_info_on_mount == Some(true) {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
            for (key, value) in [
                ("pod.name", text(&pod.metadata.name)),
                ("pod.namespace", text(&pod.metadata.namespace)),
                ("pod.uid", text(&pod.metadata.uid)),
                ("serviceAccount.name", account.unwrap_or_default()),
                ("ephemeral", self.ephemeral.to_string()),
            ] {
                context.insert(format!("{PREFIX}/{key}"), value);
            }
        }
        context
    }
}

/// The tokens of the pod's service account that a driver asks for, and what they are given as.
///
/// # Errors
/// When the API gives none.
pub(super) async fn tokens(
    pod: &Pod,
    driver: &CSIDriverSpec,
    sources: &dyn Sources,
) -> Result<Option<(String, String)>, Failure> {
    let Some(requests) = driver.token_requests.as_ref().filter(|r| !r.is_empty()) else { return Ok(None) };
    let mut all = serde_json::Map::new();
    for request in requests {
        let seconds = request.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let audience = Some(request.audience.as_str()).filter(|a| !a.is_empty());
        let token = sources.token(pod, audience, seconds).await?;
        let until = Timestamp::now().0.checked_add(seconds.seconds()).map(|t| t.to_string());
        all.insert(
            request.audience.clone(),
            json!({"token": token, "expirationTimestamp": until.unwrap_or_default()}),
        );
    }
    Ok(Some((format!("{PREFIX}/serviceAccount.tokens"), json!(all).to_string())))
}

/// What a Secret holds, as drivers are told it.
///
/// # Errors
/// When it is not there.
pub(super) async fn secret(
    reference: Option<&SecretReference>,
    sources: &dyn Sources,
) -> Result<BTreeMap<String, String>, Failure> {
    let Some(reference) = reference else { return Ok(BTreeMap::new()) };
    let part = |p: &Option<String>| p.clone().unwrap_or_default();
    let (namespace, name) = (part(&reference.namespace), part(&reference.name));
    let missing = || Failure::new(MOUNT_ERROR, format!("secret \"{namespace}/{name}\" not found"));
    let secret = sources.secret(&namespace, &name).await?.ok_or_else(missing)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect())
}

pub(super) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn digest(parts: &[&str]) -> String {
    hex::encode(Sha256::digest(parts.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [], "serviceAccountName": "s"},
        }))
        .unwrap()
    }

    fn spec(text: serde_json::Value) -> CSIDriverSpec {
        serde_json::from_value(text).unwrap()
    }

    fn persistent(modes: serde_json::Value, source: serde_json::Value) -> Wanted {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"spec": {"accessModes": modes, "mountOptions": ["noatime"]}}))
                .unwrap();
        Wanted::persistent(volume, serde_json::from_value(source).unwrap(), "c".into(), false)
    }

    #[test]
    fn lifecycles_are_those_the_driver_has() {
        let volume: Volume = serde_json::from_value(json!({"name": "v", "csi": {"driver": "d"}})).unwrap();
        let inline = Wanted::written(&pod(), &volume, volume.csi.as_ref().unwrap());
        let claimed = persistent(json!(["ReadWriteOnce"]), json!({"driver": "d", "volumeHandle": "h"}));
        for (modes, expect) in [
            (json!(null), (false, true)),
            (json!(["Persistent"]), (false, true)),
            (json!(["Ephemeral"]), (true, false)),
            (json!(["Ephemeral", "Persistent"]), (true, true)),
        ] {
            let driver = spec(json!({"volumeLifecycleModes": modes}));
            let found = (inline.allowed(&driver).is_ok(), claimed.allowed(&driver).is_ok());
            assert_eq!(found, expect, "{modes}");
        }
        assert_eq!(inline.handle, format!("csi-{}", digest(&["uv"])), "as the pod and the volume are");
    }

    #[test]
    fn access_modes_are_the_drivers_words() {
        for (mode, many, expect) in [
            ("ReadWriteOnce", false, Mode::SingleNodeWriter),
            ("ReadWriteOnce", true, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", true, Mode::SingleNodeSingleWriter),
            ("ReadWriteOncePod", false, Mode::SingleNodeWriter),
            ("ReadOnlyMany", true, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", false, Mode::MultiNodeMultiWriter),
        ] {
            let wanted =
                persistent(json!([mode]), json!({"driver": "d", "volumeHandle": "h", "fsType": "xfs"}));
            let capability = wanted.capability(many, Some(7));
            assert_eq!(capability.access_mode.unwrap().mode, i32::from(expect), "{mode}");
            let mount = MountVolume {
                fs_type: "xfs".into(),
                mount_flags: vec!["noatime".into()],
                volume_mount_group: "7".into(),
            };
            assert_eq!(capability.access_type, Some(AccessType::Mount(mount)));
            let device = Wanted { block: true, ..wanted }.capability(many, Some(7));
            assert_eq!(device.access_type, Some(AccessType::Block(BlockVolume {})));
        }
    }

    #[test]
    fn files_go_to_the_group_by_the_drivers_policy() {
        let source = |fs: &str| json!({"driver": "d", "volumeHandle": "h", "fsType": fs});
        for (policy, mode, fs, expect) in [
            (json!(null), "ReadWriteOnce", "ext4", true),
            (json!(null), "ReadWriteOnce", "", false),
            (json!(null), "ReadWriteMany", "ext4", false),
            (json!("ReadWriteOnceWithFSType"), "ReadWriteOnce", "ext4", true),
            (json!("File"), "ReadWriteMany", "", true),
            (json!("None"), "ReadWriteOnce", "ext4", false),
        ] {
            let driver = spec(json!({"fsGroupPolicy": policy}));
            let found = persistent(json!([mode]), source(fs)).owned_by_group(&driver);
            assert_eq!(found, expect, "{policy} {mode} {fs:?}");
        }
    }

    #[test]
    fn drivers_are_told_of_the_pod_if_they_ask() {
        let source = json!({"driver": "d", "volumeHandle": "h", "volumeAttributes": {"a": "b"}});
        let wanted = persistent(json!([]), source);
        let told = |driver| wanted.context(&pod(), &spec(driver)).into_iter().collect::<Vec<_>>();
        let pair = |k: &str, v: &str| (k.to_string(), v.to_string());
        assert_eq!(told(json!({})), [pair("a", "b")]);
        assert_eq!(
            told(json!({"podInfoOnMount": true})),
            [
                pair("a", "b"),
                pair("csi.storage.k8s.io/ephemeral", "false"),
                pair("csi.storage.k8s.io/pod.name", "p"),
                pair("csi.storage.k8s.io/pod.namespace", "n"),
                pair("csi.storage.k8s.io/pod.uid", "u"),
                pair("csi.storage.k8s.io/serviceAccount.name", "s"),
            ]
        );
        // The name that those who attach give the object.
        assert_eq!(wanted.attachment("node"), format!("csi-{}", digest(&["hdnode"])));
    }
}

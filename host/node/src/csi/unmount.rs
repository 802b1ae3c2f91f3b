//! Frees volumes: unpublishes them for a pod, and unstages those that no pod uses any longer.

use wasmk_csi::v1::{NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest};

use super::{Csi, record::InPod};

impl Csi {
    /// Frees all volumes of a pod. May be called again and again.
    ///
    /// # Errors
    /// In words, when a driver cannot be reached or refuses; what was freed stays so.
    pub(crate) async fn unmount(&self, uid: &str) -> Result<(), String> {
        let mut failed = Ok(());
        for volume in self.records.of_pod(uid) {
            let outcome = match self.records.in_pod(uid, &volume) {
                Some(record) => self.free(uid, &volume, &record).await,
                // Nothing was mounted before the record was whole.
                None => self.records.forget_in_pod(uid, &volume).map_err(|e| e.to_string()),
            };
            if let Err(error) = outcome {
                failed = Err(format!("UnmountVolume.TearDown failed for volume \"{volume}\" : {error}"));
            }
        }
        failed
    }

    async fn free(&self, uid: &str, volume: &str, record: &InPod) -> Result<(), String> {
        let InPod { driver: name, handle, .. } = record;
        let _turn = self.turn(name, handle).await;
        if record.begun {
            self.unpublish(uid, volume, record).await?;
        }
        if !self.records.is_used_beside(record, uid, volume) {
            self.unstage(name, handle).await?;
        }
        self.records.forget_in_pod(uid, volume).map_err(|e| e.to_string())
    }

    async fn unpublish(&self, uid: &str, volume: &str, record: &InPod) -> Result<(), String> {
        let InPod { driver: name, handle, .. } = record;
        let driver = self.driver(name).map_err(|e| e.message)?;
        let request = NodeUnpublishVolumeRequest {
            volume_id: handle.clone(),
            target_path: self.records.target(uid, volume).display().to_string(),
        };
        let call = async {
            match driver.client.node_unpublish_volume(request).await {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        };
        self.rest.call(&format!("unpublish {name}^{handle} {uid}"), call).await
    }

    /// The use that is ending is still on record, so that this comes again if it fails.
    async fn unstage(&self, name: &str, handle: &str) -> Result<(), String> {
        let Some(record) = self.records.on_node(name, handle) else { return Ok(()) };
        let staging = self.records.staging(name, handle);
        // Also when staging was begun and nobody knows how it ended.
        if record.staged.is_some() || staging.exists() {
            let driver = self.driver(name).map_err(|e| e.message)?;
            let request = NodeUnstageVolumeRequest {
                volume_id: handle.into(),
                staging_target_path: staging.display().to_string(),
            };
            let call = async {
                match driver.client.node_unstage_volume(request).await {
                    Err(error) if !error.is_not_found() => Err(error),
                    _ => Ok(()),
                }
            };
            self.rest.call(&format!("unstage {name}^{handle}"), call).await?;
        }
        self.records.forget_on_node(name, handle).map_err(|e| e.to_string())?;
        self.note_in_use();
        Ok(())
    }
}

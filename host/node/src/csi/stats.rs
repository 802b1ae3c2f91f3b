//! Asks drivers what of their volumes is in use.

use wasmk_csi::v1::{
    NodeGetVolumeStatsRequest, VolumeUsage, node_service_capability::rpc::Type as Ability, volume_usage::Unit,
};

use super::Csi;
use crate::volume_stats::Figures;

impl Csi {
    /// The figures of a pod's volume; `None` if it is no driver's, and nothing in it if its driver cannot tell.
    pub(crate) async fn stats(&self, uid: &str, volume: &str) -> Option<Option<Figures>> {
        let record = self.records.in_pod(uid, volume)?;
        let driver = self.driver(&record.driver).ok();
        let Some(driver) = driver.filter(|d| record.published.is_some() && d.can(Ability::GetVolumeStats))
        else {
            return Some(None);
        };
        let staged = driver.can(Ability::StageUnstageVolume);
        let staging = staged.then(|| self.records.staging(&record.driver, &record.handle));
        let request = NodeGetVolumeStatsRequest {
            volume_id: record.handle,
            volume_path: self.records.target(uid, volume).display().to_string(),
            staging_target_path: staging.map(|path| path.display().to_string()).unwrap_or_default(),
        };
        match driver.client.node_get_volume_stats(request).await {
            Ok(answer) => Some(Some(figures(&answer.usage))),
            Err(error) => {
                tracing::debug!(uid, volume, %error, "a driver does not tell what of its volume is in use");
                Some(None)
            }
        }
    }
}

fn figures(usage: &[VolumeUsage]) -> Figures {
    let of = |unit: Unit| {
        let found = usage.iter().find(|u| u.unit() == unit)?;
        Some([found.total, found.available, found.used])
    };
    Figures { bytes: of(Unit::Bytes), inodes: of(Unit::Inodes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_told_apart() {
        let usage = |unit: Unit, total| VolumeUsage { unit: unit.into(), total, available: 1, used: 2 };
        let found = figures(&[usage(Unit::Inodes, 3), usage(Unit::Bytes, 4)]);
        assert_eq!(found, Figures { bytes: Some([4, 1, 2]), inodes: Some([3, 1, 2]) });
        assert_eq!(figures(&[usage(Unit::Unknown, 3)]), Figures::default());
    }
}

//! What of the volumes that pods claim is in use: drivers that can tell are asked, of others the file system is.

use std::{
    collections::HashMap,
    fmt::Write,
    path::Path,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use wasmk_api::{Timestamp, k8s_openapi::api::core::v1::Pod};

use crate::{context::Context, pod::volumes::claim_of};

/// How long a figure is good.
const FRESH: Duration = Duration::from_secs(30);
/// Drivers asked at the same time.
const AT_ONCE: usize = 16;

/// Figures of a volume; what is not known is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Bytes: all, left, taken.
    pub(crate) bytes: Option<[i64; 3]>,
    /// Files: all, left, taken.
    pub(crate) inodes: Option<[i64; 3]>,
}

impl Figures {
    /// Those of the file system a path is on; `None` for what is no directory.
    fn of_path(path: &Path) -> Option<Self> {
        if !path.is_dir() {
            return None;
        }
        let stat = nix::sys::statvfs::statvfs(path).ok()?;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let bytes = |blocks: u64| number(blocks.saturating_mul(stat.fragment_size()));
        let taken = stat.blocks().saturating_sub(stat.blocks_free());
        let files = stat.files().saturating_sub(stat.files_free());
        Some(Self {
            bytes: Some([bytes(stat.blocks()), bytes(stat.blocks_available()), bytes(taken)]),
            inodes: Some([number(stat.files()), number(stat.files_free()), number(files)]),
        })
    }
}

/// A claim's volume as a pod has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    uid: String,
    volume: String,
    namespace: String,
    claim: String,
}

/// The figures known lately.
#[derive(Default)]
pub(crate) struct VolumeStats(Mutex<HashMap<Place, (Instant, Option<Figures>)>>);

/// Figures of pods' volumes with the claims they are of, by the pods' UIDs.
pub(crate) struct Read(HashMap<String, Vec<(Place, Figures)>>);

impl VolumeStats {
    /// The figures of all volumes that these pods claim.
    pub(crate) async fn read(&self, cx: &Context, pods: &[std::sync::Arc<Pod>]) -> Read {
        let places: Vec<Place> = pods.iter().flat_map(|pod| places(pod)).collect();
        let due: Vec<Place> = {
            let mut known = self.0.lock();
            known.retain(|_, (when, _)| when.elapsed() < FRESH);
            places.iter().filter(|place| !known.contains_key(place)).cloned().collect()
        };
        let asked = stream::iter(due).map(|place| async move {
            let figures = ask(cx, &place).await;
            (place, figures)
        });
        let asked: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        let mut known = self.0.lock();
        known.extend(asked.into_iter().map(|(place, figures)| (place, (Instant::now(), figures))));
        let figures = |place: Place| known.get(&place)?.1.map(|figures| (place, figures));
        Read::of(places.into_iter().filter_map(figures))
    }
}

async fn ask(cx: &Context, place: &Place) -> Option<Figures> {
    if let Some(answer) = cx.csi.stats(&place.uid, &place.volume).await {
        return answer;
    }
    let path = cx.records.pod_dir(&place.uid).join("volumes").join(&place.volume);
    tokio::task::spawn_blocking(move || Figures::of_path(&path)).await.ok().flatten()
}

fn places(pod: &Pod) -> Vec<Place> {
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let place = |volume: &wasmk_api::k8s_openapi::api::core::v1::Volume| {
        Some(Place {
            uid: part(&pod.metadata.uid),
            volume: volume.name.clone(),
            namespace: part(&pod.metadata.namespace),
            claim: claim_of(pod, volume)?,
        })
    };
    volumes.filter_map(place).collect()
}

impl Read {
    fn of(figures: impl Iterator<Item = (Place, Figures)>) -> Self {
        let mut pods: HashMap<String, Vec<(Place, Figures)>> = HashMap::new();
        for (place, figures) in figures {
            pods.entry(place.uid.clone()).or_default().push((place, figures));
        }
        Self(pods)
    }

    /// A pod's volumes as the summary has them.
    pub(crate) fn of_pod(&self, uid: &str, now: Timestamp) -> Vec<Value> {
        let one = |(place, figures): &(Place, Figures)| {
            let mut value = json!({
                "time": now, "name": place.volume,
                "pvcRef": {"name": place.claim, "namespace": place.namespace},
            });
            for (names, figures) in [
                (["capacityBytes", "availableBytes", "usedBytes"], figures.bytes),
                (["inodes", "inodesFree", "inodesUsed"], figures.inodes),
            ] {
                for (name, figure) in names.into_iter().zip(figures.into_iter().flatten()) {
                    value[name] = figure.into();
                }
            }
            value
        };
        self.0.get(uid).into_iter().flatten().map(one).collect()
    }

    /// The kubelet's metrics, one line for each claim however many pods use it.
    pub(crate) fn metrics(&self, out: &mut String) {
        let mut claims: Vec<&(Place, Figures)> = self.0.values().flatten().collect();
        claims.sort_by_key(|(place, _)| (&place.namespace, &place.claim));
        claims.dedup_by_key(|(place, _)| (&place.namespace, &place.claim));
        type Pick = fn(&Figures) -> Option<i64>;
        let rows: [(&str, Pick); 6] = [
            ("capacity_bytes", |f| Some(f.bytes?[0])),
            ("available_bytes", |f| Some(f.bytes?[1])),
            ("used_bytes", |f| Some(f.bytes?[2])),
            ("inodes", |f| Some(f.inodes?[0])),
            ("inodes_free", |f| Some(f.inodes?[1])),
            ("inodes_used", |f| Some(f.inodes?[2])),
        ];
        for (name, pick) in rows {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "# TYPE kubelet_volume_stats_{name} gauge");
            for (place, figures) in &claims {
                let Some(figure) = pick(figures) else { continue };
                let (namespace, claim) = (&place.namespace, &place.claim);
                let _ = writeln!(
                    out,
                    "kubelet_volume_stats_{name}{{namespace=\"{namespace}\",persistentvolumeclaim=\"{claim}\"}} {figure}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_per_pod_and_per_claim() {
        let place = |uid: &str| Place {
            uid: uid.into(),
            volume: "v".into(),
            namespace: "ns".into(),
            claim: "data".into(),
        };
        let figures = Figures { bytes: Some([10, 6, 4]), inodes: None };
        let read = Read::of([(place("a"), figures), (place("b"), figures)].into_iter());
        let now = Timestamp::now();
        let shown = read.of_pod("b", now);
        assert_eq!(
            shown,
            [json!({"time": now, "name": "v", "pvcRef": {"name": "data", "namespace": "ns"},
                "capacityBytes": 10, "availableBytes": 6, "usedBytes": 4})]
        );
        let mut out = String::new();
        read.metrics(&mut out);
        let line = "kubelet_volume_stats_used_bytes{namespace=\"ns\",persistentvolumeclaim=\"data\"} 4";
        assert_eq!(out.lines().filter(|l| *l == line).count(), 1, "{out}");
        assert!(!out.contains("inodes{"), "{out}");
    }

    #[test]
    fn directories_have_the_figures_of_their_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let [all, left, taken] = Figures::of_path(dir.path()).unwrap().bytes.unwrap();
        assert!(all > 0 && left <= all && taken <= all);
        assert_eq!(Figures::of_path(&dir.path().join("absent")), None);
    }
}

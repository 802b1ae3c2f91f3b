//! Ends pods that take too much: more of an `emptyDir` than its limit, or of the node's memory or disk
//! than the node can spare. Which one goes first is decided by [`first_to_go`], which is pure.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use wasmk_api::{Quantity, k8s_openapi::api::core::v1::Pod};

use crate::{
    context::Context,
    engine::Usage,
    garbage::{Collector, ImageCollection},
    pods::Pods,
    running::Running,
    shortage::{Short, Thresholds},
};

/// Files of a volume that are counted at most; more are taken for too many.
const FILES: usize = 1_000_000;

/// Priority from which a pod is one that the cluster cannot do without.
const CRITICAL: i32 = 2_000_000_000;

/// What [`run`] keeps to.
pub(crate) struct Rules {
    /// Where the node keeps its things.
    pub(crate) data: PathBuf,
    /// Time between two looks.
    pub(crate) period: Duration,
    /// When the node is short of something.
    pub(crate) thresholds: Thresholds,
    /// When images go.
    pub(crate) images: ImageCollection,
}

/// Time between two looks at whose keys and values are kept.
const SWEEP: Duration = Duration::from_secs(60);

/// Looks after the node's resources until told to stop.
pub(crate) async fn run(cx: Arc<Context>, pods: Arc<Pods>, rules: Rules, stop: CancellationToken) {
    let mut images = Collector::default();
    let mut swept = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rules.period) => {}
        }
        for pod in pods.list().into_iter().filter(|pod| !is_critical(pod)) {
            if let Some(text) = over_volume_limit(&cx, &pod).await {
                pods.evict(&pod, text);
            }
        }
        if swept.elapsed() >= SWEEP {
            crate::keyvalue::sweep(&*cx.engine, &*cx.sources).await;
            swept = Instant::now();
        }
        let short = || Short::now(&rules.data, &rules.thresholds);
        images.pass(&cx, &pods, &rules.data, rules.images, short().disk).await;
        // What the images took is free again now.
        let short = short();
        let low = [("memory", short.memory), ("ephemeral-storage", short.disk), ("pids", short.processes)];
        if let Some((resource, _)) = low.into_iter().find(|(_, low)| *low) {
            evict_one(&cx, &pods, resource).await;
        }
    }
}

/// What is wrong when a volume of the pod holds more than it may.
async fn over_volume_limit(cx: &Context, pod: &Pod) -> Option<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    for volume in volumes {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) else { continue };
        let Some(most) = limit.0.parse::<Quantity>().ok().and_then(|q| u64::try_from(q.value()).ok()) else {
            continue;
        };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let dir = cx.records.dir().join(uid).join("volumes").join(&volume.name);
        let used = tokio::task::spawn_blocking(move || size(&dir)).await.unwrap_or_default();
        if most > 0 && used > most {
            let name = &volume.name;
            return Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\".", limit.0));
        }
    }
    None
}

/// Bytes of all files below a directory, which may be a link itself.
fn size(dir: &Path) -> u64 {
    let (mut total, mut seen, mut open) = (0_u64, 0, vec![dir.to_path_buf()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            seen += 1;
            if seen > FILES {
                return u64::MAX;
            }
            // Not followed: what a link points to is not in the volume.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                open.push(entry.path());
            } else {
                total = total.saturating_add(meta.len());
            }
        }
    }
    total
}

/// Bytes that each pod's own directory holds, by uid.
async fn sizes(cx: &Context, pods: &[Arc<Pod>]) -> HashMap<String, u64> {
    let uids: Vec<String> = pods.iter().filter_map(|p| p.metadata.uid.clone()).collect();
    let dir = cx.records.dir().to_path_buf();
    let measure = move || uids.into_iter().map(|uid| (uid.clone(), size(&dir.join(uid)))).collect();
    tokio::task::spawn_blocking(measure).await.unwrap_or_default()
}

async fn evict_one(cx: &Context, pods: &Pods, resource: &str) {
    let theirs = match &cx.containers {
        Some(containers) => containers.usage().await,
        None => Vec::new(),
    };
    let all: Vec<Arc<Pod>> = pods.list().into_iter().filter(|p| is_candidate(p)).collect();
    let on_disk = if resource == "ephemeral-storage" { sizes(cx, &all).await } else { HashMap::new() };
    let memory = |pod: &Pod| -> u64 {
        let part = |s: &Option<String>| s.clone().unwrap_or_default();
        let (meta, uid) = (&pod.metadata, part(&pod.metadata.uid));
        let one = |name: &str| match cx.running.find(&uid, name) {
            Some(Running::Wasm(_)) => {
                cx.engine.usage(&format!("{}/{}/{name}", part(&meta.namespace), part(&meta.name)))
            }
            Some(Running::Container(_)) => {
                theirs.iter().find(|u| u.uid == uid && u.container == name).map(|u| u.usage)
            }
            None => None,
        };
        let names = pod.spec.iter().flat_map(|s| s.containers.iter().map(|c| c.name.as_str()));
        names.filter_map(one).map(|u: Usage| u.memory).sum()
    };
    let disk = |pod: &Pod| -> u64 {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let written = theirs.iter().filter(|u| u.uid == uid).map(|u| u.disk).sum::<u64>();
        on_disk.get(&uid).copied().unwrap_or_default().saturating_add(written)
    };
    let used = |pod: &Pod| if resource == "ephemeral-storage" { disk(pod) } else { memory(pod) };
    let candidates: Vec<Candidate> = all.iter().map(|p| Candidate::of(p, used(p), resource)).collect();
    let Some(victim) = first_to_go(&candidates) else { return };
    if let Some(pod) = all.iter().find(|p| p.metadata.uid.as_deref() == Some(&victim.uid)) {
        pods.evict(pod, format!("The node was low on resource: {resource}."));
    }
}

/// Pods that are over or on their way out have nothing to give, and critical ones stay.
fn is_candidate(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none() && !is_critical(pod)
}

/// Whether the cluster cannot do without the pod: the node's own, and those of a critical priority.
fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|s| s.priority);
    crate::static_pods::is_static(pod) || priority.is_some_and(|p| p >= CRITICAL)
}

/// What counts when a pod has to go.
#[derive(Clone, Debug, PartialEq)]
struct Candidate {
    uid: String,
    priority: i32,
    used: u64,
    requested: u64,
}

impl Candidate {
    fn of(pod: &Pod, used: u64, resource: &str) -> Self {
        let spec = pod.spec.as_ref();
        let request = |c: &wasmk_api::k8s_openapi::api::core::v1::Container| {
            let requests = c.resources.as_ref()?.requests.as_ref()?;
            u64::try_from(requests.get(resource)?.0.parse::<Quantity>().ok()?.value()).ok()
        };
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.and_then(|s| s.priority).unwrap_or(0),
            used,
            requested: spec.map_or(0, |s| s.containers.iter().filter_map(request).sum()),
        }
    }
}

/// First those that use more than they asked for; among equals the less important ones; among equals the
/// ones that are furthest above what they asked for.
fn first_to_go(pods: &[Candidate]) -> Option<&Candidate> {
    let key = |c: &&Candidate| {
        let above = i128::from(c.used) - i128::from(c.requested);
        (above <= 0, c.priority, -above)
    };
    pods.iter().min_by_key(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_pod_goes_first() {
        let check = |pods: &[(&str, i32, u64, u64)], expect: Option<&str>| {
            let all: Vec<Candidate> = pods
                .iter()
                .map(|(uid, priority, used, requested)| Candidate {
                    uid: (*uid).into(),
                    priority: *priority,
                    used: *used,
                    requested: *requested,
                })
                .collect();
            assert_eq!(first_to_go(&all).map(|c| c.uid.as_str()), expect, "{pods:?}");
        };
        check(&[], None);
        check(&[("within", 0, 10, 20), ("above", 9, 11, 10)], Some("above"));
        check(&[("important", 9, 99, 0), ("other", 1, 1, 0)], Some("other"));
        check(&[("little", 0, 5, 0), ("much", 0, 50, 0)], Some("much"));
        check(&[("within", 0, 1, 2)], Some("within"));
    }

    #[test]
    fn critical_pods_are_no_candidates() {
        let check = |priority: Option<i32>, expect: bool| {
            let mut pod = Pod::default();
            pod.status.get_or_insert_default().phase = Some("Running".into());
            pod.spec.get_or_insert_default().priority = priority;
            assert_eq!(is_candidate(&pod), expect, "{priority:?}");
        };
        check(None, true);
        check(Some(1_000_000_000), true);
        check(Some(2_000_000_000), false);
        check(Some(2_000_001_000), false);
    }

    #[test]
    fn files_are_counted_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b"), [0; 100]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        assert_eq!(size(dir.path()), 100 + 1);
    }
}

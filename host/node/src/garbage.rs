//! Removes images that no pod needs when the disk is filling up.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use wasmk_api::k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::{context::Context, machine, pod::image_volumes, pods::Pods};

/// When images are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageCollection {
    /// Use of the disk, in hundredths, above which unused images go.
    pub above_percent: u8,
    /// How long an image is to be unused before it goes.
    pub unused_for: Duration,
}

impl Default for ImageCollection {
    fn default() -> Self {
        Self { above_percent: 85, unused_for: Duration::from_secs(120) }
    }
}

/// An image on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Unused {
    Wasm(String),
    Container(String),
    /// The files of one, by its digest.
    Files(String),
}

/// What is known of images nobody uses.
#[derive(Default)]
pub(crate) struct Collector {
    since: HashMap<Unused, Instant>,
}

impl Collector {
    /// Removes what has been unused for long enough, if the disk is that full; `now` when it is too
    /// full already.
    pub(crate) async fn pass(
        &mut self,
        cx: &Arc<Context>,
        pods: &Pods,
        data: &Path,
        rule: ImageCollection,
        now: bool,
    ) {
        if !now && !is_full(data, rule.above_percent) {
            self.since.clear();
            return;
        }
        let list = pods.list();
        let unused = look(cx, &used(cx, &list), &in_volumes(&list)).await;
        let seen = Instant::now();
        self.since.retain(|image, _| unused.contains(image));
        for image in unused {
            let since = *self.since.entry(image.clone()).or_insert(seen);
            if now || since.elapsed() >= rule.unused_for {
                remove(cx, &image).await;
                self.since.remove(&image);
            }
        }
    }
}

fn is_full(data: &Path, percent: u8) -> bool {
    machine::disk(data).is_some_and(|(available, total)| {
        i128::from(total - available) * 100 > i128::from(total) * i128::from(percent)
    })
}

/// Images that pods and functions of this node name.
fn used(cx: &Context, pods: &[Arc<Pod>]) -> Vec<String> {
    let mut all: BTreeSet<String> = cx.functions.images().into_iter().collect();
    all.extend(pods.iter().filter_map(|p| p.spec.as_ref()).flat_map(images).map(String::from));
    all.into_iter().collect()
}

/// Images that the containers of a pod name, of every kind.
fn images(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let debuggers = spec.ephemeral_containers.iter().flatten();
    containers.map(|c| &c.image).chain(debuggers.map(|c| &c.image)).flatten().map(String::as_str)
}

/// Images that volumes of pods are made of.
fn in_volumes(pods: &[Arc<Pod>]) -> Vec<String> {
    let specs = pods.iter().filter_map(|p| p.spec.as_ref());
    specs.flat_map(image_volumes::references).map(String::from).collect()
}

/// Directories that volumes of pods are links to: an image in use may have lost its name to another.
fn linked(pods: &Path) -> Vec<PathBuf> {
    let list = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let volumes = list(pods.to_path_buf()).flat_map(|pod| list(pod.join("volumes")));
    volumes.filter_map(|volume| std::fs::read_link(volume).ok()).collect()
}

async fn look(cx: &Context, used: &[String], in_volumes: &[String]) -> Vec<Unused> {
    let mut all: Vec<Unused> = cx.engine.unused_images(used).await.into_iter().map(Unused::Wasm).collect();
    let pods = cx.records.dir().to_path_buf();
    // Without this list nothing is known to be unused.
    if let Ok(linked) = tokio::task::spawn_blocking(move || linked(&pods)).await {
        all.extend(cx.engine.unused_files(in_volumes, &linked).await.into_iter().map(Unused::Files));
    }
    if let Some(containers) = &cx.containers {
        all.extend(containers.unused_images(used).await.into_iter().map(Unused::Container));
    }
    all
}

async fn remove(cx: &Context, image: &Unused) {
    let removed = match (image, &cx.containers) {
        (Unused::Wasm(name), _) => cx.engine.remove_image(name).await,
        (Unused::Files(digest), _) => cx.engine.remove_files(digest).await,
        (Unused::Container(id), Some(containers)) => containers.remove_image(id).await,
        (Unused::Container(_), None) => return,
    };
    match removed {
        Ok(()) => tracing::info!(?image, "an image that nothing uses was removed, the disk is filling up"),
        Err(error) => tracing::warn!(?image, error, "cannot remove an image that nothing uses"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_container_of_a_pod_uses_its_image() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "main", "image": "a"}, {"name": "later"}],
            "initContainers": [{"name": "init", "image": "b"}],
            "ephemeralContainers": [{"name": "debugger", "image": "c"}],
        }))
        .unwrap();
        assert_eq!(images(&spec).collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}

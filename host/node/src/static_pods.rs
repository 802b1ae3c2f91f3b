//! Static pods: manifests in a directory of this node, run without being told by the API. The API gets
//! a mirror of each, which shows its status and is made again when somebody deletes it.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use wasmk_api::k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};

use crate::{context::Context, pods::Pods};

/// Marks a mirror; the value tells the manifest.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// Tells the manifest that a pod is from.
const HASH: &str = "kubernetes.io/config.hash";
/// Where a pod is from.
const SOURCE: &str = "kubernetes.io/config.source";
/// How often the directory is read, and mirrors are looked after.
const PERIOD: Duration = Duration::from_secs(2);
/// Most manifests of a node.
const MANIFESTS: usize = 500;
/// Largest manifest, in bytes.
const MANIFEST_BYTES: u64 = 1 << 20;

/// Whether a pod is one of the node's own.
pub(crate) fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE) == Some("file")
}

/// Whether a pod in the API only mirrors one of a node's own.
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR).is_some()
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Follows the directory until told to stop.
pub(crate) async fn run(cx: Arc<Context>, pods: Arc<Pods>, dir: PathBuf, stop: CancellationToken) {
    let mut said: BTreeMap<PathBuf, String> = BTreeMap::new();
    loop {
        let (from, node) = (dir.clone(), cx.node.clone());
        let read = tokio::task::spawn_blocking(move || read(&from, &node)).await.unwrap_or_default();
        for (file, error) in &read.broken {
            if said.insert(file.clone(), error.clone()).as_ref() != Some(error) {
                tracing::warn!(file = %file.display(), error, "a manifest of a static pod is not usable");
            }
        }
        let running: Vec<Arc<Pod>> = pods.list().into_iter().filter(|p| is_static(p)).collect();
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        for pod in running.iter().filter(|p| !read.pods.contains_key(&uid(p))) {
            pods.end_static(pod);
        }
        for pod in read.pods.values() {
            if !running.iter().any(|p| p.metadata.uid == pod.metadata.uid) {
                pods.run_static(pod.clone());
            }
            match mirror(&cx, pod).await {
                Ok(false) => {}
                Ok(true) => pods.mirrored(pod),
                Err(error) => tracing::debug!(%error, "cannot mirror a static pod"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

#[derive(Default)]
struct Read {
    /// By uid.
    pods: HashMap<String, Pod>,
    broken: Vec<(PathBuf, String)>,
}

fn read(dir: &Path, node: &str) -> Read {
    let mut out = Read::default();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let usable = |p: &PathBuf| {
        matches!(p.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json")) && p.is_file()
    };
    let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(usable).collect();
    files.sort();
    for file in files.into_iter().take(MANIFESTS) {
        match manifest(&file, node) {
            Ok(pod) => drop(out.pods.insert(pod.metadata.uid.clone().unwrap_or_default(), pod)),
            Err(error) => out.broken.push((file, error)),
        }
    }
    out
}

fn manifest(file: &Path, node: &str) -> Result<Pod, String> {
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    if size > MANIFEST_BYTES {
        return Err(format!("it has {size} bytes, at most {MANIFEST_BYTES} are read"));
    }
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    parse(&text, &file.display().to_string(), node)
}

/// A pod of this node out of a manifest. Its uid follows from node, file and content: a changed manifest
/// is another pod.
fn parse(text: &str, file: &str, node: &str) -> Result<Pod, String> {
    let mut pod: Pod = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or("metadata.name is missing")?;
    let spec = pod.spec.as_mut().filter(|s| !s.containers.is_empty()).ok_or("spec.containers is missing")?;
    if spec.service_account_name.as_ref().is_some_and(|a| !a.is_empty()) {
        return Err("spec.serviceAccountName cannot be used by a static pod".into());
    }
    spec.node_name = Some(node.into());
    spec.automount_service_account_token = Some(false);
    let digest = Sha256::digest(format!("{node}\n{file}\n{text}"));
    let hash: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    let meta = &mut pod.metadata;
    meta.name = Some(format!("{name}-{node}"));
    meta.namespace = meta.namespace.clone().filter(|n| !n.is_empty()).or_else(|| Some("default".into()));
    meta.uid = Some(hash.clone());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(HASH.into(), hash);
    annotations.insert(SOURCE.into(), "file".into());
    pod.status = None;
    Ok(pod)
}

/// Makes the mirror in the API what it should be; whether it was made anew.
async fn mirror(cx: &Context, pod: &Pod) -> Result<bool, kube::Error> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let api: Api<Pod> =
        Api::namespaced(cx.client.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"));
    let hash = annotation(pod, HASH).unwrap_or_default().to_string();
    // Of its own pods a node may always ask; of one that is not there it may not.
    let own = ListParams::default().fields(&format!("spec.nodeName={},metadata.name={name}", cx.node));
    match api.list(&own).await?.items.into_iter().next() {
        Some(found) if annotation(&found, MIRROR) == Some(&hash) && !is_deleting(&found) => return Ok(false),
        Some(found) if is_mirror(&found) => {
            // Nothing runs under the mirror's name: it may go at once.
            let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            api.delete(&name, &params).await?;
        }
        // A pod of somebody else has that name.
        Some(_) => return Ok(false),
        None => {}
    }
    let nodes: Api<wasmk_api::k8s_openapi::api::core::v1::Node> = Api::all(cx.client.clone());
    let node = nodes.get(&cx.node).await?;
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: cx.node.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.into(), hash);
    api.create(&PostParams::default(), &mirror).await.map(|_| true)
}

fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The pod as its loop sees it when the manifest is gone.
pub(crate) fn ended(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.deletion_timestamp = Some(Time(wasmk_api::Timestamp::now().0));
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: a}]}\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let pod = parse(MANIFEST, "/m/web.yaml", "n1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-n1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        assert!(is_static(&pod) && !is_mirror(&pod));
        let other = parse(&MANIFEST.replace("image: a", "image: b"), "/m/web.yaml", "n1").unwrap();
        assert_ne!(pod.metadata.uid, other.metadata.uid);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expect) in [
            ("metadata: {}\nspec: {containers: [{name: c}]}\n", "metadata.name is missing"),
            ("metadata: {name: a}\n", "spec.containers is missing"),
            (
                "metadata: {name: a}\nspec: {serviceAccountName: x, containers: [{name: c}]}\n",
                "spec.serviceAccountName cannot be used by a static pod",
            ),
        ] {
            assert_eq!(parse(text, "f", "n").unwrap_err(), expect);
        }
        assert!(parse(": {", "f", "n").is_err());
    }
}

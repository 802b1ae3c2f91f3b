//! Asks for the volumes of CSI drivers to be attached to the nodes whose pods use them, and
//! detached afterwards.
//!
//! Reads pods, claims, volumes, nodes, drivers. Writes VolumeAttachments, which the drivers'
//! attachers act on, and nodes' `status.volumesAttached`, which nodes wait for before they
//! mount. A volume for one node is not asked for on a second one while the first has it. A
//! node that still uses a volume keeps it, unless it is gone or out of service, or stays
//! silent for [`FORCE_AFTER`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{
        AttachedVolume, CSIPersistentVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    },
    storage::v1::{CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec},
};
use kube::api::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha256};
use wasmk_api::Timestamp;

use crate::{
    base::{Context, EventKind, Informer, Key, Next, PodView, Queue, Result, is_deleting, is_finished, uid},
    pod_gc::is_out_of_service,
    scheduler::volumes::claim_names,
};

const NAME: &str = "persistentvolume-attach-detach-controller";
/// How long a node that is not ready may keep a volume that nobody on it uses any more.
const FORCE_AFTER: Duration = Duration::from_secs(360);
/// How soon to look again while a node still uses a volume.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

struct Keeper {
    cx: Context,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    nodes: Arc<Informer<Node>>,
    drivers: Arc<Informer<CSIDriver>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    /// Since when an attachment is not wanted any more, by its name.
    unwanted: Mutex<BTreeMap<String, Timestamp>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let keeper = Keeper {
        pods: cx.cache(),
        claims: cx.cache(),
        volumes: cx.cache(),
        nodes: cx.cache(),
        drivers: cx.cache(),
        attachments: cx.cache(),
        unwanted: Mutex::default(),
        cx: cx.clone(),
    };
    keeper.subscribe(&queue);
    keeper.pods.ready().await;
    keeper.claims.ready().await;
    keeper.volumes.ready().await;
    keeper.nodes.ready().await;
    keeper.drivers.ready().await;
    keeper.attachments.ready().await;
    // One worker: attachments of several volumes meet in a node's status.
    cx.work(NAME, &queue, 1, |key| keeper.reconcile(key)).await;
}

/// The volume of a claim, when it is a driver's.
fn csi(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    volume.spec.as_ref()?.csi.as_ref()
}

impl Keeper {
    /// Keys are volumes: what changes in pods, claims, attachments and nodes wakes those it concerns.
    fn subscribe(&self, queue: &Arc<Queue<Key>>) {
        let sink = queue.clone();
        self.volumes.subscribe(move |old, new| {
            if let Some(volume) = new.or(old).filter(|v| csi(v).is_some()) {
                sink.add(Key::of(&volume.metadata));
            }
        });
        let (sink, claims) = (queue.clone(), self.claims.clone());
        self.pods.subscribe(move |old, new| {
            let face = |p: &Arc<Pod>| (PodView(p).node().to_owned(), is_finished(p));
            let Some(pod) = new.or(old).filter(|_| old.map(face) != new.map(face)) else { return };
            for name in claim_names(pod) {
                let claim = claims.get(&Key::new(pod.metadata.namespace.clone().unwrap_or_default(), name));
                if let Some(volume) = claim.and_then(|c| c.spec.as_ref()?.volume_name.clone()) {
                    sink.add(Key::new("", volume));
                }
            }
        });
        let sink = queue.clone();
        self.attachments.subscribe(move |old, new| {
            let volume = new.or(old).and_then(|a| a.spec.source.persistent_volume_name.clone());
            volume.into_iter().for_each(|name| sink.add(Key::new("", name)));
        });
        let (sink, attachments) = (queue.clone(), self.attachments.clone());
        self.nodes.subscribe(move |old, new| {
            let face = |n: &Arc<Node>| {
                let status = n.status.as_ref();
                (status.and_then(|s| s.volumes_in_use.clone()), is_out_of_service(n), is_ready(n))
            };
            let Some(node) = new.or(old).filter(|_| old.map(face) != new.map(face)) else { return };
            let here = attachments
                .list()
                .into_iter()
                .filter(|a| Some(&a.spec.node_name) == node.metadata.name.as_ref());
            here.filter_map(|a| a.spec.source.persistent_volume_name.clone())
                .for_each(|name| sink.add(Key::new("", name)));
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Next> {
        let attachments = self.attachments.list();
        let of_volume =
            |a: &&Arc<VolumeAttachment>| a.spec.source.persistent_volume_name.as_ref() == Some(&key.name);
        let there: Vec<_> = attachments.iter().filter(of_volume).cloned().collect();
        let volume = self.volumes.get(&key).filter(|v| csi(v).is_some() && self.attaches(v));
        let wanted = volume.as_ref().map(|v| self.wanted(v)).unwrap_or_default();
        let plan = plan(volume.as_deref(), &wanted, &there);
        for attachment in &plan.create {
            match self.cx.create(attachment).await {
                Err(error) if error.is_already_exists() => {
                    self.cx.fetch::<VolumeAttachment>(&Key::of(&attachment.metadata)).await?;
                }
                other => drop(other?),
            }
        }
        for node in &plan.refused {
            self.tell_refusal(&key.name, node, &wanted);
        }
        let waits = self.detach(volume.as_deref(), &plan.unwanted).await?;
        let nodes: BTreeSet<&str> = there.iter().map(|a| a.spec.node_name.as_str()).collect();
        for node in nodes {
            self.note_on_node(node).await?;
        }
        let waits = waits || !plan.refused.is_empty();
        Ok(if waits { Next::After(LOOK_AGAIN) } else { Next::Change })
    }

    /// Whether the volume's driver attaches at all.
    fn attaches(&self, volume: &PersistentVolume) -> bool {
        let driver = csi(volume).and_then(|c| self.drivers.get(&Key::new("", c.driver.clone())));
        driver.is_none_or(|d| d.spec.attach_required != Some(false))
    }

    /// The nodes with pods that use the volume, and those pods.
    fn wanted(&self, volume: &PersistentVolume) -> BTreeMap<String, Vec<Arc<Pod>>> {
        let mut nodes: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        let Some(claim) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return nodes };
        let key =
            Key::new(claim.namespace.clone().unwrap_or_default(), claim.name.clone().unwrap_or_default());
        if self.claims.get(&key).is_none_or(|c| Some(uid(&*c)) != claim.uid.as_deref()) {
            return nodes;
        }
        for pod in self.pods.in_namespace(&key.namespace) {
            let node = PodView(&pod).node().to_owned();
            if !node.is_empty() && !is_finished(&pod) && claim_names(&pod).contains(&key.name) {
                nodes.entry(node).or_default().push(pod);
            }
        }
        nodes
    }

    /// Ends attachments nobody wants; whether some have to wait for their node.
    async fn detach(
        &self,
        volume: Option<&PersistentVolume>,
        unwanted: &[Arc<VolumeAttachment>],
    ) -> Result<bool> {
        let now = self.cx.clock.now();
        let mut waits = false;
        for attachment in unwanted {
            let name = attachment.metadata.name.clone().unwrap_or_default();
            let since = *self.unwanted.lock().entry(name.clone()).or_insert(now);
            let node = self.nodes.get(&Key::new("", attachment.spec.node_name.clone()));
            if must_wait(volume, node.as_deref(), now.since(since)) {
                waits = true;
                continue;
            }
            self.cx.delete(&**attachment, Default::default()).await?;
            self.unwanted.lock().remove(&name);
        }
        let live: BTreeSet<String> = self.attachments.keys().into_iter().map(|k| k.name).collect();
        self.unwanted.lock().retain(|name, _| live.contains(name));
        Ok(waits)
    }

    fn tell_refusal(&self, volume: &str, node: &str, wanted: &BTreeMap<String, Vec<Arc<Pod>>>) {
        let message = format!(
            "Multi-Attach error for volume {volume:?} Volume is already exclusively attached to one node and can't be attached to another"
        );
        for pod in wanted.get(node).into_iter().flatten() {
            self.cx.events.record(NAME, &**pod, EventKind::Warning, "FailedAttachVolume", &*message);
        }
    }

    /// Tells a node which volumes are attached to it.
    async fn note_on_node(&self, name: &str) -> Result<()> {
        let Some(node) = self.nodes.get(&Key::new("", name)) else { return Ok(()) };
        let attached = |a: &Arc<VolumeAttachment>| {
            let done = a.status.as_ref().is_some_and(|s| s.attached)
                && a.spec.node_name == name
                && !is_deleting(&**a);
            let volume = a.spec.source.persistent_volume_name.as_ref().filter(|_| done)?;
            let volume = self.volumes.get(&Key::new("", volume.clone()))?;
            Some(AttachedVolume { name: unique_name(csi(&volume)?), device_path: String::new() })
        };
        let list: Vec<AttachedVolume> = self.attachments.list().iter().filter_map(attached).collect();
        let old = node.status.as_ref().and_then(|s| s.volumes_attached.clone()).unwrap_or_default();
        if old == list {
            return Ok(());
        }
        let patch = json!({"status": {"volumesAttached": list}});
        self.cx.patch_sub(&*node, "status", patch).await.map(drop)
    }
}

/// The name that nodes list a driver's volume under.
fn unique_name(source: &CSIPersistentVolumeSource) -> String {
    format!("kubernetes.io/csi/{}^{}", source.driver, source.volume_handle)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether a volume nobody wants has to stay attached for now.
fn must_wait(volume: Option<&PersistentVolume>, node: Option<&Node>, unwanted: Duration) -> bool {
    let (Some(source), Some(node)) = (volume.and_then(csi), node) else { return false };
    let in_use = node.status.as_ref().and_then(|s| s.volumes_in_use.as_ref());
    let used = in_use.is_some_and(|all| all.contains(&unique_name(source)));
    used && !is_out_of_service(node) && (is_ready(node) || unwanted < FORCE_AFTER)
}

/// What a pass over a volume does.
#[derive(Debug, Default)]
struct Plan {
    create: Vec<VolumeAttachment>,
    unwanted: Vec<Arc<VolumeAttachment>>,
    /// Nodes that cannot have the volume while another has it.
    refused: Vec<String>,
}

fn plan(
    volume: Option<&PersistentVolume>,
    wanted: &BTreeMap<String, Vec<Arc<Pod>>>,
    there: &[Arc<VolumeAttachment>],
) -> Plan {
    let mut plan = Plan::default();
    let live = || there.iter().filter(|a| !is_deleting(&***a));
    plan.unwanted = live().filter(|a| !wanted.contains_key(&a.spec.node_name)).cloned().collect();
    let Some((volume, source)) = volume.and_then(|v| Some((v, csi(v)?))) else { return plan };
    let modes = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or(&[]);
    let shared = modes.iter().any(|m| matches!(&**m, "ReadWriteMany" | "ReadOnlyMany"));
    let mut taken = !there.is_empty();
    for node in wanted.keys() {
        if live().any(|a| a.spec.node_name == *node) {
            continue;
        }
        // One that is being detached from the same node is waited for as well.
        if there.iter().any(|a| a.spec.node_name == *node) || (taken && !shared) {
            plan.refused.push(node.clone());
            continue;
        }
        taken = true;
        plan.create.push(attachment(volume, source, node));
    }
    plan
}

fn attachment(volume: &PersistentVolume, source: &CSIPersistentVolumeSource, node: &str) -> VolumeAttachment {
    let digest = Sha256::digest(format!("{}{}{node}", source.volume_handle, source.driver));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    VolumeAttachment {
        metadata: ObjectMeta { name: Some(format!("csi-{digest}")), ..Default::default() },
        spec: VolumeAttachmentSpec {
            attacher: source.driver.clone(),
            node_name: node.into(),
            source: VolumeAttachmentSource {
                persistent_volume_name: volume.metadata.name.clone(),
                ..Default::default()
            },
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(mode: &str) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
            "accessModes": [mode], "csi": {"driver": "disk.example.com", "volumeHandle": "h"}}}))
        .unwrap()
    }

    /// Nodes that want the volume; nodes that have it, `-` in front for those losing it.
    fn check(mode: &str, wanted: &str, there: &str, expect: &str) {
        let volume = volume(mode);
        let wanted = wanted.split_whitespace().map(|n| (n.to_owned(), Vec::new())).collect();
        let source = csi(&volume).unwrap();
        let there: Vec<_> = there
            .split_whitespace()
            .map(|text| {
                let mut made = attachment(&volume, source, text.trim_start_matches('-'));
                if text.starts_with('-') {
                    made.metadata.deletion_timestamp = Some(crate::base::time(Timestamp::now()));
                }
                Arc::new(made)
            })
            .collect();
        let plan = plan(Some(&volume), &wanted, &there);
        let mut shown: Vec<String> =
            plan.create.iter().map(|a| format!("attach {}", a.spec.node_name)).collect();
        shown.extend(plan.unwanted.iter().map(|a| format!("detach {}", a.spec.node_name)));
        shown.extend(plan.refused.iter().map(|n| format!("refuse {n}")));
        assert_eq!(shown.join(", "), expect, "{mode} {there:?}");
    }

    #[test]
    fn one_node_at_a_time_unless_it_may_be_shared() {
        check("ReadWriteOnce", "a", "", "attach a");
        check("ReadWriteOnce", "a", "a", "");
        check("ReadWriteOnce", "b", "a", "detach a, refuse b");
        check("ReadWriteOnce", "a b", "", "attach a, refuse b");
        check("ReadWriteOnce", "b", "-a", "refuse b");
        check("ReadWriteOnce", "a", "-a", "refuse a");
        check("ReadWriteOnce", "", "a", "detach a");
        check("ReadWriteMany", "a b", "a", "attach b");
    }

    #[test]
    fn a_volume_in_use_stays_until_its_node_is_given_up() {
        let node = |ready: &str, taint: &str| -> Node {
            serde_json::from_value(json!({
                "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}],
                    "volumesInUse": ["kubernetes.io/csi/disk.example.com^h"]}}))
            .unwrap()
        };
        let volume = volume("ReadWriteOnce");
        let waits =
            |node: Option<&Node>, seconds| must_wait(Some(&volume), node, Duration::from_secs(seconds));
        assert!(waits(Some(&node("True", "x")), 1000));
        assert!(waits(Some(&node("Unknown", "x")), 300) && !waits(Some(&node("Unknown", "x")), 400));
        assert!(!waits(Some(&node("Unknown", "node.kubernetes.io/out-of-service")), 0));
        assert!(!waits(None, 0), "the node is gone");
        let mut idle = node("True", "x");
        idle.status.as_mut().unwrap().volumes_in_use = None;
        assert!(!waits(Some(&idle), 0));
    }
}

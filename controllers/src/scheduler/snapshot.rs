//! What the scheduler knows: nodes, the pods on them and what is left of their resources.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{
        Affinity, Container, Node, Pod, PodAffinityTerm, PodSpec, Taint, Toleration,
        TopologySpreadConstraint, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use sha2::{Digest, Sha256};
use wasmk_api::{LabelSelector, Quantity};

use crate::base::{Key, controller_of, is_deleting, uid};

/// The name of the scheduler of pods that name none.
pub(super) const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// What a container without a request counts for when nodes are compared.
const ASSUMED_CPU: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 << 20;

/// Amounts of resources: CPU in thousandths, the others in units (bytes, pods).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resources {
    pub(super) cpu: i64,
    pub(super) memory: i64,
    pub(super) storage: i64,
    pub(super) pods: i64,
    /// Anything else, by name.
    pub(super) other: BTreeMap<String, i64>,
}

impl Resources {
    pub(super) fn of(list: Option<&BTreeMap<String, ApiQuantity>>) -> Self {
        let mut all = Self::default();
        for (name, text) in list.into_iter().flatten() {
            let amount: Quantity = text.0.parse().unwrap_or_default();
            match &**name {
                "cpu" => all.cpu = amount.milli_value(),
                "memory" => all.memory = amount.value(),
                "ephemeral-storage" => all.storage = amount.value(),
                "pods" => all.pods = amount.value(),
                other => {
                    all.other.insert(other.into(), amount.value());
                }
            }
        }
        all
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.merge(more, i64::saturating_add);
    }

    fn subtract(&mut self, less: &Self) {
        self.merge(less, i64::saturating_sub);
    }

    /// Whether so much fits into it.
    pub(super) fn holds(&self, want: &Self) -> bool {
        let fits = |want: i64, left: i64| want <= 0 || want <= left;
        fits(want.cpu, self.cpu)
            && fits(want.memory, self.memory)
            && fits(want.storage, self.storage)
            && fits(want.pods, self.pods)
            && want.other.iter().all(|(name, n)| fits(*n, self.other.get(name).copied().unwrap_or(0)))
    }

    fn raise_to(&mut self, floor: &Self) {
        self.merge(floor, i64::max);
    }

    fn merge(&mut self, with: &Self, how: impl Fn(i64, i64) -> i64) {
        self.cpu = how(self.cpu, with.cpu);
        self.memory = how(self.memory, with.memory);
        self.storage = how(self.storage, with.storage);
        self.pods = how(self.pods, with.pods);
        for (name, amount) in &with.other {
            let slot = self.other.entry(name.clone()).or_insert(0);
            *slot = how(*slot, *amount);
        }
    }
}

/// What a pod asks of its node: the sum of its containers, or the peak of its init
/// containers if that is higher, plus the overhead of its runtime. Init containers that
/// keep running count from their start on.
pub(super) fn requests(spec: &PodSpec) -> Resources {
    let of = |c: &Container| Resources::of(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let mut total = Resources::default();
    spec.containers.iter().for_each(|c| total.add(&of(c)));
    let mut running = Resources::default();
    let mut peak = Resources::default();
    for init in spec.init_containers.iter().flatten() {
        let mut now = of(init);
        now.add(&running);
        peak.raise_to(&now);
        if init.restart_policy.as_deref() == Some("Always") {
            running = now;
        }
    }
    total.add(&running);
    total.raise_to(&peak);
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let whole_pod = Resources::of(Some(whole));
        let set = |name: &str| whole.contains_key(name);
        if set("cpu") {
            total.cpu = whole_pod.cpu;
        }
        if set("memory") {
            total.memory = whole_pod.memory;
        }
    }
    total.add(&Resources::of(spec.overhead.as_ref()));
    total.pods = 1;
    total
}

/// A pod as the scheduler sees it, read once.
#[derive(Clone, Debug)]
pub(super) struct PodInfo {
    pub(super) pod: Arc<Pod>,
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) owner: Option<String>,
    pub(super) requests: Resources,
    /// CPU and memory for comparing nodes.
    pub(super) weight: (i64, i64),
    pub(super) ports: BTreeSet<HostPort>,
    pub(super) priority: i32,
    pub(super) images: Vec<String>,
    /// The same for pods that look the same to others: namespace, labels, rules about others, and
    /// whether they are on their way out.
    pub(super) group: GroupId,
    /// Pods that must be, must not be, and had better be or not be nearby.
    pub(super) affinity: Vec<Term>,
    pub(super) anti_affinity: Vec<Term>,
    pub(super) preferred: Vec<(i64, Term)>,
}

/// Names a group of pods, by a digest of what they have in common.
pub(super) type GroupId = u128;

fn group(pod: &Pod) -> GroupId {
    let spec = pod.spec.as_ref();
    let affinity = spec.and_then(|s| s.affinity.as_ref());
    let rules = affinity.map(|a| (&a.pod_affinity, &a.pod_anti_affinity));
    let face = (&pod.metadata.namespace, &pod.metadata.labels, rules, is_deleting(pod));
    let digest = Sha256::digest(serde_json::to_vec(&face).unwrap_or_default());
    digest[..16].iter().fold(0, |id, byte| id << 8 | GroupId::from(*byte))
}

/// Protocol, address and number of a port on the node itself.
pub(super) type HostPort = (String, String, i32);

/// A term of pod affinity, with its selector read.
#[derive(Clone, Debug)]
pub(super) struct Term {
    pub(super) topology: String,
    selector: Option<LabelSelector>,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
}

impl Term {
    fn of(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let mut selector = term.label_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        let label = |key: &String| Some((key.clone(), pod.metadata.labels.as_ref()?.get(key)?.clone()));
        if let Some(selector) = &mut selector {
            let same = term.match_label_keys.iter().flatten().filter_map(label);
            selector.requirements.extend(LabelSelector::equals(same).requirements);
        }
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.metadata.namespace.clone());
        }
        let by_label = term.namespace_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        Self { topology: term.topology_key.clone(), selector, namespaces, namespace_selector: by_label }
    }

    /// Whether a pod is meant. `namespace_labels` finds the labels of a namespace.
    pub(super) fn matches(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        let Some(selector) = &self.selector else { return false };
        let here = self.namespaces.contains(&pod.key.namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| s.is_empty() || s.matches(namespaces.get(&pod.key.namespace)));
        here && selector.matches(pod.pod.metadata.labels.as_ref())
    }
}

/// Labels of namespaces.
pub(super) type Namespaces = HashMap<String, BTreeMap<String, String>>;

impl PodInfo {
    pub(super) fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let requests = requests(spec);
        let affinity = spec.affinity.as_ref();
        let required = |a: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            a.into_iter().flatten().map(|t| Term::of(t, &pod)).collect()
        };
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        Self {
            key: Key::of(&pod.metadata),
            uid: uid(&*pod).to_owned(),
            owner: controller_of(&*pod).map(|o| o.uid.clone()),
            weight: weight(spec, &requests),
            ports: host_ports(spec),
            priority: spec.priority.unwrap_or(0),
            group: group(&pod),
            images: spec.containers.iter().filter_map(|c| c.image.clone()).collect(),
            affinity: required(
                near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: required(
                far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred: preferred(affinity, &pod),
            requests,
            pod,
        }
    }

    pub(super) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// Whether it says something about pods near it.
    fn has_rules(&self) -> bool {
        !self.affinity.is_empty() || !self.preferred.is_empty()
    }

    /// Whether where it may go does not depend on where other pods are.
    pub(super) fn has_no_rules(&self) -> bool {
        self.affinity.is_empty() && self.anti_affinity.is_empty() && self.spread().is_empty()
    }

    /// Whether a pod takes the same place as another state of it.
    fn occupies_like(&self, other: &Self) -> bool {
        self.group == other.group
            && self.requests == other.requests
            && self.ports == other.ports
            && self.priority == other.priority
            && self.owner == other.owner
    }

    /// The node that room is being made on for it.
    pub(super) fn nominated(&self) -> Option<&str> {
        let node = self.pod.status.as_ref()?.nominated_node_name.as_deref()?;
        (!node.is_empty()).then_some(node)
    }

    pub(super) fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|s| s.tolerations.as_deref()).unwrap_or(&[])
    }

    pub(super) fn spread(&self) -> &[TopologySpreadConstraint] {
        self.spec().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or(&[])
    }
}

fn weight(spec: &PodSpec, requests: &Resources) -> (i64, i64) {
    let bare = |name: &str| {
        let without = |c: &&Container| {
            c.resources.as_ref().and_then(|r| r.requests.as_ref()).is_none_or(|r| !r.contains_key(name))
        };
        i64::try_from(spec.containers.iter().filter(without).count()).unwrap_or(0)
    };
    (requests.cpu + ASSUMED_CPU * bare("cpu"), requests.memory + ASSUMED_MEMORY * bare("memory"))
}

fn host_ports(spec: &PodSpec) -> BTreeSet<HostPort> {
    let text = |t: &Option<String>, default: &str| {
        t.clone().filter(|t| !t.is_empty()).unwrap_or_else(|| default.into())
    };
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            p.host_port.filter(|n| *n > 0).map(|n| (text(&p.protocol, "TCP"), text(&p.host_ip, "0.0.0.0"), n))
        })
        .collect()
}

fn preferred(affinity: Option<&Affinity>, pod: &Pod) -> Vec<(i64, Term)> {
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let far = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let read = |list: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, Term)> {
        let all = list.into_iter().flatten();
        all.map(|t| (sign * i64::from(t.weight), Term::of(&t.pod_affinity_term, pod))).collect()
    };
    let mut all = read(near, 1);
    all.extend(read(far, -1));
    all
}

fn images(node: &Node) -> HashMap<String, i64> {
    let all = node.status.iter().flat_map(|s| s.images.iter().flatten());
    let named = all.flat_map(|i| i.names.iter().flatten().map(|n| (n.clone(), i.size_bytes.unwrap_or(0))));
    named.collect()
}

/// A node and the pods that are, or are about to be, on it.
#[derive(Clone, Debug)]
pub(super) struct NodeInfo {
    pub(super) name: String,
    pub(super) node: Arc<Node>,
    pub(super) allocatable: Resources,
    pub(super) requested: Resources,
    /// CPU and memory for comparing nodes.
    pub(super) weight: (i64, i64),
    pub(super) ports: BTreeSet<HostPort>,
    /// Sizes of the images it has, by name.
    pub(super) images: Arc<HashMap<String, i64>>,
    /// Pods by uid.
    pub(super) pods: BTreeMap<String, Arc<PodInfo>>,
    /// Pods per controller.
    pub(super) owners: HashMap<String, u32>,
}

impl NodeInfo {
    pub(super) fn new(node: Arc<Node>) -> Self {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            allocatable: Resources::of(allocatable),
            images: Arc::new(images(&node)),
            node,
            requested: Resources::default(),
            weight: (0, 0),
            ports: BTreeSet::new(),
            pods: BTreeMap::new(),
            owners: HashMap::new(),
        }
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    pub(super) fn taints(&self) -> impl Iterator<Item = &Taint> {
        self.node.spec.iter().flat_map(|s| s.taints.iter().flatten())
    }

    pub(super) fn add(&mut self, pod: Arc<PodInfo>) {
        self.remove(&pod.uid);
        self.requested.add(&pod.requests);
        self.weight.0 += pod.weight.0;
        self.weight.1 += pod.weight.1;
        self.ports.extend(pod.ports.iter().cloned());
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_insert(0) += 1;
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        self.weight.0 -= pod.weight.0;
        self.weight.1 -= pod.weight.1;
        for port in &pod.ports {
            if !self.pods.values().any(|p| p.ports.contains(port)) {
                self.ports.remove(port);
            }
        }
        if let Some(count) = pod.owner.as_ref().and_then(|o| self.owners.get_mut(o)) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(pod.owner.as_deref().unwrap_or(""));
            }
        }
        Some(pod)
    }
}

/// Pods that look the same to others, and how many of them each node has.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Any of them.
    pub(super) sample: Arc<PodInfo>,
    /// Counts by the node's place in the snapshot.
    pub(super) nodes: HashMap<usize, i64>,
}

/// All nodes at one moment. Costs nothing to make: everything is shared until it changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) nodes: Arc<Vec<Arc<NodeInfo>>>,
    pub(super) groups: Arc<Groups>,
    pub(super) namespaces: Arc<Namespaces>,
    /// Pods that room is being made for, by node.
    pub(super) nominated: Arc<Nominated>,
}

impl Snapshot {
    /// The pods that room on a node is kept for, if they are not less important than `pod`.
    pub(super) fn nominated_on<'a>(
        &'a self,
        node: &str,
        pod: &'a PodInfo,
    ) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let here = self.nominated.get(node).into_iter().flat_map(BTreeMap::values);
        here.filter(|other| other.uid != pod.uid && other.priority >= pod.priority)
    }

    /// The same moment without some pods of a node.
    pub(super) fn without(&self, place: usize, pods: &[Arc<PodInfo>]) -> Self {
        let mut other = self.clone();
        let node = Arc::make_mut(&mut Arc::make_mut(&mut other.nodes)[place]);
        let groups = Arc::make_mut(&mut other.groups);
        for pod in pods {
            if node.remove(&pod.uid).is_some() {
                groups.remove(place, pod);
            }
        }
        other
    }

    /// The place of a node.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.name == name)
    }
}

/// All groups of placed pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    pub(super) all: HashMap<GroupId, Arc<Group>>,
    /// How many groups forbid others near them, and how many have wishes about them.
    pub(super) forbidding: usize,
    pub(super) wishing: usize,
}

impl Groups {
    fn add(&mut self, node: usize, pod: &Arc<PodInfo>) {
        let fresh = !self.all.contains_key(&pod.group);
        let group = self
            .all
            .entry(pod.group)
            .or_insert_with(|| Arc::new(Group { sample: pod.clone(), nodes: HashMap::new() }));
        *Arc::make_mut(group).nodes.entry(node).or_insert(0) += 1;
        if fresh {
            self.forbidding += usize::from(!pod.anti_affinity.is_empty());
            self.wishing += usize::from(pod.has_rules());
        }
    }

    fn remove(&mut self, node: usize, pod: &PodInfo) {
        let Some(group) = self.all.get_mut(&pod.group) else { return };
        let group = Arc::make_mut(group);
        if let Some(count) = group.nodes.get_mut(&node) {
            *count -= 1;
            if *count <= 0 {
                group.nodes.remove(&node);
            }
        }
        if group.nodes.is_empty() {
            self.forbidding -= usize::from(!group.sample.anti_affinity.is_empty());
            self.wishing -= usize::from(group.sample.has_rules());
            self.all.remove(&pod.group);
        }
    }
}

/// Pods that room is being made for: by node, then by uid.
pub(super) type Nominated = HashMap<String, BTreeMap<String, Arc<PodInfo>>>;

/// Where a placed pod is.
#[derive(Clone, Debug)]
struct Spot {
    node: String,
    pod: Arc<PodInfo>,
}

/// The state that changes feed and snapshots are taken from.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    nodes: Arc<Vec<Arc<NodeInfo>>>,
    /// Each node's place in `nodes`.
    index: HashMap<String, usize>,
    groups: Arc<Groups>,
    /// Placed pods by uid.
    spots: HashMap<String, Spot>,
    /// Pods on nodes that are not known (yet), by node.
    strays: HashMap<String, BTreeMap<String, Arc<PodInfo>>>,
    nominated: Arc<Nominated>,
    pub(super) namespaces: Arc<Namespaces>,
}

impl Cluster {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.clone(),
            groups: self.groups.clone(),
            namespaces: self.namespaces.clone(),
            nominated: self.nominated.clone(),
        }
    }

    /// What a node has left.
    pub(super) fn room_on(&self, node: &str) -> Option<Resources> {
        let info = &self.nodes[*self.index.get(node)?];
        let mut left = info.allocatable.clone();
        left.subtract(&info.requested);
        Some(left)
    }

    pub(super) fn put_node(&mut self, node: Arc<Node>) {
        let mut info = NodeInfo::new(node);
        match self.index.get(&info.name).copied() {
            Some(place) => {
                let old = self.nodes[place].clone();
                old.pods.values().for_each(|pod| info.add(pod.clone()));
                Arc::make_mut(&mut self.nodes)[place] = Arc::new(info);
            }
            None => {
                let place = self.nodes.len();
                self.index.insert(info.name.clone(), place);
                for pod in self.strays.remove(&info.name).unwrap_or_default().into_values() {
                    Arc::make_mut(&mut self.groups).add(place, &pod);
                    info.add(pod);
                }
                Arc::make_mut(&mut self.nodes).push(Arc::new(info));
            }
        }
    }

    /// Forgets a node; its pods become strays. The last node takes its place.
    pub(super) fn remove_node(&mut self, name: &str) {
        let Some(place) = self.index.remove(name) else { return };
        let nodes = Arc::make_mut(&mut self.nodes);
        let groups = Arc::make_mut(&mut self.groups);
        let gone = nodes.swap_remove(place);
        gone.pods.values().for_each(|pod| groups.remove(place, pod));
        let last = nodes.len();
        if let Some(moved) = nodes.get(place) {
            for pod in moved.pods.values() {
                groups.remove(last, pod);
                groups.add(place, pod);
            }
            self.index.insert(moved.name.clone(), place);
        }
        if !gone.pods.is_empty() {
            self.strays.insert(name.into(), gone.pods.clone());
        }
        Arc::make_mut(&mut self.nominated).remove(name);
    }

    /// Places a pod on a node, moving it there if it was thought to be elsewhere.
    pub(super) fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        if let Some(spot) = self.spots.get(&pod.uid) {
            if spot.node == node && spot.pod.occupies_like(&pod) {
                return;
            }
            let uid = pod.uid.clone();
            self.remove_pod(&uid);
        }
        self.unnominate(&pod.uid);
        self.spots.insert(pod.uid.clone(), Spot { node: node.into(), pod: pod.clone() });
        match self.index.get(node) {
            Some(place) => {
                Arc::make_mut(&mut self.groups).add(*place, &pod);
                Arc::make_mut(&mut Arc::make_mut(&mut self.nodes)[*place]).add(pod);
            }
            None => {
                self.strays.entry(node.into()).or_default().insert(pod.uid.clone(), pod);
            }
        }
    }

    /// Whether a pod is on a node, or about to be.
    pub(super) fn is_placed(&self, uid: &str) -> bool {
        self.spots.contains_key(uid)
    }

    /// Takes a pod off its node; the node's name.
    pub(super) fn remove_pod(&mut self, uid: &str) -> Option<String> {
        let Spot { node, pod } = self.spots.remove(uid)?;
        if let Some(place) = self.index.get(&node) {
            Arc::make_mut(&mut self.groups).remove(*place, &pod);
            Arc::make_mut(&mut Arc::make_mut(&mut self.nodes)[*place]).remove(uid);
        } else if let Some(pods) = self.strays.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.strays.remove(&node);
            }
        }
        Some(node)
    }

    /// Keeps room on a node for a pod. Less important pods that it was kept for lose it.
    pub(super) fn nominate(&mut self, node: &str, pod: Arc<PodInfo>) {
        if !self.index.contains_key(node) || self.is_nominated(node, &pod.uid) {
            return;
        }
        self.unnominate(&pod.uid);
        let here = Arc::make_mut(&mut self.nominated).entry(node.into()).or_default();
        here.retain(|_, other| other.priority >= pod.priority);
        here.insert(pod.uid.clone(), pod);
    }

    fn is_nominated(&self, node: &str, uid: &str) -> bool {
        self.nominated.get(node).is_some_and(|here| here.contains_key(uid))
    }

    /// Keeps no room for a pod any more.
    pub(super) fn unnominate(&mut self, uid: &str) {
        let Some(node) = self.nominated.iter().find(|(_, all)| all.contains_key(uid)).map(|(n, _)| n.clone())
        else {
            return;
        };
        let all = Arc::make_mut(&mut self.nominated);
        if let Some(here) = all.get_mut(&node) {
            here.remove(uid);
            if here.is_empty() {
                all.remove(&node);
            }
        }
    }
}

/// Whether the pod still needs its resources.
pub(super) fn occupies(pod: &Pod) -> bool {
    !crate::base::is_finished(pod)
}

/// The scheduler a pod is for.
pub(super) fn scheduler_of(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
    name.filter(|n| !n.is_empty()).unwrap_or(DEFAULT_SCHEDULER)
}

/// Whether a pod waits for a node.
pub(super) fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.node_name.as_deref().unwrap_or("").is_empty()
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && !is_deleting(pod)
        && occupies(pod)
}

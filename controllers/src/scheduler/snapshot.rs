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
use wasmk_api::{LabelSelector, Quantity};

use crate::base::{Key, controller_of, is_deleting, uid};

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
    /// Pods that must be, must not be, and had better be or not be nearby.
    pub(super) affinity: Vec<Term>,
    pub(super) anti_affinity: Vec<Term>,
    pub(super) preferred: Vec<(i64, Term)>,
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
    /// Pods by uid.
    pub(super) pods: BTreeMap<String, Arc<PodInfo>>,
    /// Pods per controller.
    pub(super) owners: HashMap<String, u32>,
    /// How many of the pods say what must not, or had better not, be near them.
    pub(super) with_anti_affinity: usize,
    pub(super) with_preferences: usize,
}

impl NodeInfo {
    pub(super) fn new(node: Arc<Node>) -> Self {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            allocatable: Resources::of(allocatable),
            node,
            requested: Resources::default(),
            weight: (0, 0),
            ports: BTreeSet::new(),
            pods: BTreeMap::new(),
            owners: HashMap::new(),
            with_anti_affinity: 0,
            with_preferences: 0,
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
        self.with_anti_affinity += usize::from(!pod.anti_affinity.is_empty());
        self.with_preferences += usize::from(!pod.preferred.is_empty() || !pod.affinity.is_empty());
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
        self.with_anti_affinity -= usize::from(!pod.anti_affinity.is_empty());
        self.with_preferences -= usize::from(!pod.preferred.is_empty() || !pod.affinity.is_empty());
        Some(pod)
    }
}

/// All nodes at one moment. Cheap to make: nodes are shared until they change.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) nodes: Vec<Arc<NodeInfo>>,
    pub(super) namespaces: Arc<Namespaces>,
    /// Whether any pod anywhere forbids others near it, or has wishes about them.
    pub(super) anti_affinity: bool,
    pub(super) preferences: bool,
}

/// The state that changes feed and snapshots are taken from.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    nodes: BTreeMap<String, Arc<NodeInfo>>,
    /// Where each pod is, by uid.
    places: HashMap<String, String>,
    /// Pods on nodes that are not known (yet), by node.
    strays: HashMap<String, BTreeMap<String, Arc<PodInfo>>>,
    pub(super) namespaces: Arc<Namespaces>,
}

impl Cluster {
    pub(super) fn snapshot(&self) -> Snapshot {
        let nodes: Vec<_> = self.nodes.values().cloned().collect();
        Snapshot {
            anti_affinity: nodes.iter().any(|n| n.with_anti_affinity > 0),
            preferences: nodes.iter().any(|n| n.with_preferences > 0),
            namespaces: self.namespaces.clone(),
            nodes,
        }
    }

    pub(super) fn put_node(&mut self, node: Arc<Node>) {
        let mut info = NodeInfo::new(node);
        let pods = match self.nodes.remove(&info.name) {
            Some(old) => old.pods.clone(),
            None => self.strays.remove(&info.name).unwrap_or_default(),
        };
        pods.into_values().for_each(|pod| info.add(pod));
        self.nodes.insert(info.name.clone(), Arc::new(info));
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        if let Some(old) = self.nodes.remove(name).filter(|o| !o.pods.is_empty()) {
            self.strays.insert(name.into(), old.pods.clone());
        }
    }

    /// Places a pod on a node, moving it there if it was thought to be elsewhere.
    pub(super) fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        if self.places.get(&pod.uid).is_some_and(|at| at != node) {
            self.remove_pod(&pod.uid);
        }
        self.places.insert(pod.uid.clone(), node.into());
        match self.nodes.get_mut(node) {
            Some(info) => Arc::make_mut(info).add(pod),
            None => {
                self.strays.entry(node.into()).or_default().insert(pod.uid.clone(), pod);
            }
        }
    }

    /// Whether a pod is on a node, or about to be.
    pub(super) fn is_placed(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    pub(super) fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(node) = self.places.remove(uid) else { return false };
        if let Some(info) = self.nodes.get_mut(&node) {
            Arc::make_mut(info).remove(uid);
        } else if let Some(pods) = self.strays.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.strays.remove(&node);
            }
        }
        true
    }
}

/// Whether the pod still needs its resources.
pub(super) fn occupies(pod: &Pod) -> bool {
    !crate::base::is_finished(pod)
}

/// Whether a pod waits for this scheduler.
pub(super) fn is_waiting(pod: &Pod, scheduler: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let name = spec.scheduler_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default-scheduler");
    spec.node_name.as_deref().unwrap_or("").is_empty()
        && name == scheduler
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && !is_deleting(pod)
        && occupies(pod)
}

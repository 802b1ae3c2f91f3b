//! Amounts of resources, and what a pod asks for.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use wasmk_api::Quantity;

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

    pub(super) fn subtract(&mut self, less: &Self) {
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

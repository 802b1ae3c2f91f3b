//! Gets a pod's surroundings ready: its sandbox in the container runtime if any of its containers runs
//! there, else an address of its own, and its volumes.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio_util::sync::{CancellationToken, DropGuard};
use wasmk_api::k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use wasmk_net::{policy::Gate, proxy};

use super::{
    env::Place,
    images::{self, Choice},
    ports, status, volumes,
};
use crate::{
    containers::{Before, Containers, Sandbox},
    context::Context,
    engine::Failure,
    events::Level,
    netfilter::Filter,
    netns::Netns,
    register::WASM_HANDLERS,
};

/// Longest wait for policies to know a pod.
const SETTLE: Duration = Duration::from_secs(1);
/// Images of one pod looked at at a time.
const LOOKS: usize = 4;

/// What a pod has got, whether or not everything succeeded.
#[derive(Debug, Default)]
pub(super) struct Placed {
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) sandbox: Option<Sandbox>,
    /// The sandbox was made just now: what ran in an earlier one is lost.
    pub(super) fresh: bool,
    /// What will run the images that were looked at, by container.
    pub(super) looked: HashMap<String, Choice>,
}

/// The work of setting a pod up.
pub(super) struct SetUp {
    pub(super) cx: Arc<Context>,
    pub(super) pod: Arc<Pod>,
    /// The pod's own directory.
    pub(super) dir: PathBuf,
    /// What it had before.
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) sandbox: Option<Sandbox>,
    /// It has just come to this node and had nothing anywhere.
    pub(super) new: bool,
}

impl SetUp {
    /// Does it. What was got before a failure is told, too, so that it is not lost.
    pub(super) async fn go(self) -> (Placed, Result<(), Failure>) {
        let mut placed = Placed { ip: self.ip, sandbox: self.sandbox.clone(), ..Placed::default() };
        // Files of volumes say nothing of the pod's address, so that neither need wait for the other.
        let (outcome, volumes) = tokio::join!(self.place(&mut placed), self.volumes());
        if outcome.is_ok() {
            let table = placed.ip.map(|ip| ports::table(&self.pod, ip.into(), self.cx.host_ip));
            let gate = Gate::new(self.cx.policies.clone());
            self.cx.running.set_ports(self.uid(), table.unwrap_or_default(), gate);
        }
        (placed, outcome.and(volumes))
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    async fn place(&self, placed: &mut Placed) -> Result<(), Failure> {
        if let Some(containers) = &self.cx.containers
            && (placed.sandbox.is_some() || self.needs_sandbox(&mut placed.looked).await)
        {
            return self.enter_sandbox(containers, placed).await;
        }
        let host_network = self.pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        if !host_network {
            let address = self.address(placed.ip);
            let address = address.map_err(|text| Failure::new("FailedCreatePodSandBox", text))?;
            placed.ip = Some(address);
            self.settle(address).await;
        }
        Ok(())
    }

    /// Whether any container of the pod runs in the container runtime. What was looked at until that was known is kept.
    async fn needs_sandbox(&self, looked: &mut HashMap<String, Choice>) -> bool {
        let default = PodSpec::default();
        let spec = self.pod.spec.as_ref().unwrap_or(&default);
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        let look = |container: &Container| {
            let container = container.clone();
            async move {
                // Where there is none, the container's own start will say what is wrong.
                let wanted = images::wanted(&self.cx, &self.pod, &container).await.ok()?;
                Some((container.name, images::choose_for(&self.cx, &wanted).await))
            }
        };
        let looks: Vec<_> = all.map(look).collect();
        let mut looks = stream::iter(looks).buffer_unordered(LOOKS);
        while let Some(found) = looks.next().await {
            let Some((name, choice)) = found else { continue };
            let container = matches!(choice, Choice::Container(_));
            looked.insert(name, choice);
            if container {
                return true;
            }
        }
        false
    }

    fn before(&self) -> Before {
        match &self.sandbox {
            Some(known) => Before::Known(known.clone()),
            None if self.new => Before::Nothing,
            None => Before::Unknown,
        }
    }

    async fn enter_sandbox(&self, containers: &Arc<Containers>, placed: &mut Placed) -> Result<(), Failure> {
        let handler = self.handler().await?;
        let ready = containers.sandbox(&self.pod, self.before(), &handler).await?;
        let namespace = match ready.sandbox.netns.as_deref().map(Netns::open) {
            Some(Ok(namespace)) => Some(namespace),
            Some(Err(error)) => {
                tracing::warn!(pod = self.uid(), %error, "cannot open a pod's network namespace");
                None
            }
            None => None,
        };
        placed.ip = ready.sandbox.ip.or(placed.ip);
        if let Some(ip) = ready.sandbox.ip {
            self.settle(ip).await;
        }
        let surroundings = match namespace {
            Some(netns) => Some(self.serve(netns, ready.sandbox.ip).await),
            None => None,
        };
        self.cx.running.set_namespace(self.uid(), surroundings);
        placed.fresh = ready.fresh;
        placed.sandbox = Some(ready.sandbox);
        Ok(())
    }

    /// The addresses of Services are on the machine's loopback, which a pod's namespace has not: a proxy
    /// inside has them instead.
    async fn serve(&self, netns: Netns, ip: Option<Ipv4Addr>) -> (Netns, DropGuard) {
        let stop = CancellationToken::new();
        if let Some(ip) = ip {
            self.filter(netns.clone(), ip, stop.clone()).await;
        }
        if self.cx.proxy {
            let (view, node, place) = (self.cx.view.clone(), self.cx.node.clone(), Arc::new(netns.clone()));
            let policies = self.cx.policies.clone();
            let gate =
                ip.map_or_else(|| Gate::new(policies.clone()), |ip| Gate::of(policies.clone(), ip.into()));
            let asked = (self.cx.connections.clone(), gate);
            tokio::spawn(proxy::run_in(view, node, place, asked, stop.clone()));
        }
        (netns, stop.drop_guard())
    }

    /// Lets policies know the pod before it is anybody's peer.
    async fn settle(&self, ip: Ipv4Addr) {
        self.cx.policies.place(&self.pod, ip.into());
        self.cx.policies.settled(ip.into(), SETTLE).await;
    }

    /// Holds what comes and goes by the pod's namespace to the policies, from now on.
    async fn filter(&self, netns: Netns, ip: Ipv4Addr, stop: CancellationToken) {
        let mut filter = Filter::new(self.cx.policies.clone(), netns, ip);
        let (cx, pod) = (self.cx.clone(), self.pod.clone());
        let failed = move |error: &std::io::Error| {
            let text =
                format!("network policies are not enforced for this pod (is nftables installed?): {error}");
            tracing::warn!(pod = pod.metadata.name, "{text}");
            cx.events.pod(&pod, Level::Warning, "NetworkPolicyNotEnforced", &text);
        };
        // What fails now is tried and told again.
        let _ = filter.update().await;
        tokio::spawn(filter.keep(failed, stop));
    }

    /// The runtime's handler for the pod; those of WebAssembly are ours and mean its default.
    async fn handler(&self) -> Result<String, Failure> {
        let class = self.pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_ref());
        let Some(class) = class.filter(|c| !c.is_empty()) else { return Ok(String::new()) };
        let found = self.cx.sources.runtime_class(class).await?;
        let missing =
            || Failure::new("FailedCreatePodSandBox", format!("RuntimeClass \"{class}\" not found"));
        let handler = found.ok_or_else(missing)?.handler;
        Ok(if WASM_HANDLERS.contains(&handler.as_str()) { String::new() } else { handler })
    }

    /// The pod's address: the one it had, or the lowest free one.
    fn address(&self, had: Option<Ipv4Addr>) -> Result<Ipv4Addr, String> {
        let pool = self.cx.addresses.borrow().clone();
        let pool = pool.ok_or("the node has no range of pod addresses yet")?;
        if let Some(ip) = had.filter(|ip| pool.claim(*ip, self.uid())) {
            return Ok(ip);
        }
        pool.take(self.uid()).map_err(|e| e.to_string())
    }

    async fn volumes(&self) -> Result<(), Failure> {
        let place = place(&self.cx, &self.pod, self.ip);
        make_volumes(&self.cx, &self.pod, &self.dir.join("volumes"), &place).await
    }
}

/// Makes all volumes of a pod, or brings them up to date.
pub(super) async fn make_volumes(cx: &Context, pod: &Pod, dir: &Path, place: &Place) -> Result<(), Failure> {
    volumes::prepare(pod, dir, place, &*cx.sources).await?;
    cx.csi.prepare(pod, dir, &*cx.sources).await
}

/// Where a pod is.
pub(super) fn place(cx: &Context, pod: &Pod, ip: Option<Ipv4Addr>) -> Place {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    Place {
        pod_ip: status::pod_ip(spec, ip, cx.host_ip),
        host_ip: cx.host_ip,
        allocatable: cx.allocatable.clone(),
        memory: cx.memory_dir.clone(),
    }
}

//! The cluster's controllers and its scheduler, as ordinary API clients.
//!
//! Each controller is one file: a pure `plan` from what the caches hold to what has to be
//! done, and a thin layer that does it. All are level-based: woken by a change or by a
//! period, told only which object, safe to stop anywhere and safe to run twice (every
//! write is conditional, and children's names are a function of their owner). They need
//! nothing but a [`kube::Client`] and would run against any Kubernetes.
//!
//! Adding one is a file and a line in [`CONTROLLERS`].

use std::sync::Arc;

use futures::future::BoxFuture;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod account_token;
mod attach_detach;
mod autoscaler;
pub mod base;
mod bootstrap_signer;
mod cronjob;
mod csr;
mod daemonset;
mod deployment;
mod disruption;
pub mod election;
mod endpoints;
mod ephemeral_volume;
mod gc;
mod history;
mod job;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod pod_gc;
mod quota;
mod replicas;
mod replicaset;
mod replicationcontroller;
mod role_aggregation;
mod root_ca;
pub mod scheduler;
mod service_lb;
mod serviceaccount;
mod statefulset;
mod taint_eviction;
mod token_cleaner;
mod ttl;
mod volume_binder;
mod volume_expander;
mod volume_protection;

pub use base::{
    Accounts, Clock, Context, Discovery, Error, Informers, LoadBalancer, Recorder, Result, Settings,
};

/// One controller.
pub struct Entry {
    /// Its name in [`Settings::enabled`].
    pub name: &'static str,
    /// The service account of `kube-system` it writes as; empty for the program's own user.
    pub account: &'static str,
    /// What it keeps true.
    pub about: &'static str,
    /// Runs it until the context's shutdown.
    pub run: fn(Context) -> BoxFuture<'static, ()>,
}

macro_rules! entries {
    ($($name:literal as $account:literal, $run:path, $about:literal;)*) => {
        &[$(Entry { name: $name, account: $account, about: $about, run: |cx| Box::pin($run(cx)) }),*]
    };
}

/// All controllers, by the names that kube-controller-manager gives them.
pub const CONTROLLERS: &[Entry] = entries![
    "namespace-controller" as "namespace-controller", namespace::run, "Empties namespaces that are being deleted.";
    "serviceaccount-controller" as "service-account-controller", serviceaccount::run, "Gives every namespace a default service account.";
    "root-ca-certificate-publisher-controller" as "root-ca-cert-publisher", root_ca::run, "Publishes the API's root certificate to every namespace.";
    "garbage-collector-controller" as "generic-garbage-collector", gc::run, "Deletes what has lost its owners.";
    "deployment-controller" as "deployment-controller", deployment::run, "Rolls each Deployment out over ReplicaSets.";
    "replicaset-controller" as "replicaset-controller", replicaset::run, "Keeps each ReplicaSet at its wanted number of pods.";
    "replicationcontroller-controller" as "replication-controller", replicationcontroller::run, "Keeps each ReplicationController at its wanted number of pods.";
    "daemonset-controller" as "daemon-set-controller", daemonset::run, "Keeps a pod of each DaemonSet on every fitting node.";
    "statefulset-controller" as "statefulset-controller", statefulset::run, "Keeps each StatefulSet's numbered pods and their claims.";
    "cronjob-controller" as "cronjob-controller", cronjob::run, "Makes a Job at each time of a CronJob's schedule.";
    "job-controller" as "job-controller", job::run, "Runs each Job's pods until enough have succeeded.";
    "ttl-after-finished-controller" as "ttl-after-finished-controller", ttl::run, "Deletes Jobs some time after their end.";
    "persistentvolume-binder-controller" as "persistent-volume-binder", volume_binder::run, "Brings claims and volumes together.";
    "persistentvolumeclaim-protection-controller" as "pvc-protection-controller", volume_protection::run_claims, "Keeps claims that pods use.";
    "persistentvolume-protection-controller" as "pv-protection-controller", volume_protection::run_volumes, "Keeps volumes that claims use.";
    "persistentvolume-expander-controller" as "expand-controller", volume_expander::run, "Grows volumes whose claim asks for more.";
    "persistentvolume-attach-detach-controller" as "attachdetach-controller", attach_detach::run, "Asks drivers to attach volumes where pods use them.";
    "ephemeral-volume-controller" as "ephemeral-volume-controller", ephemeral_volume::run, "Makes the claims of pods' ephemeral volumes.";
    "bootstrap-signer-controller" as "bootstrap-signer", bootstrap_signer::run, "Signs the cluster's public information with bootstrap tokens.";
    "certificatesigningrequest-approving-controller" as "certificate-controller", csr::run_approver, "Approves certificate requests of nodes.";
    "certificatesigningrequest-signing-controller" as "certificate-controller", csr::run_signer, "Signs approved certificate requests.";
    "certificatesigningrequest-cleaner-controller" as "certificate-controller", csr::run_cleaner, "Deletes old certificate requests.";
    "resourcequota-controller" as "resourcequota-controller", quota::run, "Counts what each ResourceQuota's namespace uses.";
    "disruption-controller" as "disruption-controller", disruption::run, "Says how many pods of a PodDisruptionBudget may be evicted.";
    "clusterrole-aggregation-controller" as "clusterrole-aggregation-controller", role_aggregation::run, "Fills ClusterRoles made up of others.";
    "serviceaccount-token-controller" as "", account_token::run, "Fills token secrets of service accounts.";
    "token-cleaner-controller" as "token-cleaner", token_cleaner::run, "Deletes bootstrap tokens that have run out.";
    "endpoints-controller" as "endpoint-controller", endpoints::legacy::run, "Lists the pods behind each Service in its Endpoints.";
    "endpointslice-mirroring-controller" as "endpointslicemirroring-controller", endpoints::mirror::run, "Copies Endpoints made by hand into EndpointSlices.";
    "horizontal-pod-autoscaler-controller" as "horizontal-pod-autoscaler", autoscaler::run, "Scales workloads with their pods' use of resources.";
    "endpointslice-controller" as "endpointslice-controller", endpoints::slices::run, "Lists the pods behind each Service in EndpointSlices.";
    "service-lb-controller" as "service-controller", service_lb::run, "Gives Services of type LoadBalancer an address.";
    "node-lifecycle-controller" as "node-controller", node_lifecycle::run, "Taints nodes that are silent or unfit.";
    "taint-eviction-controller" as "node-controller", taint_eviction::run, "Deletes pods that do not tolerate their node's NoExecute taints.";
    "node-ipam-controller" as "node-controller", node_ipam::run, "Gives every node a range of pod addresses.";
    "pod-garbage-collector-controller" as "pod-garbage-collector", pod_gc::run, "Deletes pods of nodes that are gone, and finished ones beyond a number.";
];

impl Context {
    /// What controllers need, over one client: caches, discovery and an event writer begin here.
    pub fn new(client: Client, settings: Settings, clock: Clock, shutdown: CancellationToken) -> Self {
        Self {
            informers: Informers::new(client.clone(), shutdown.clone()),
            discovery: Arc::new(Discovery::new(client.clone())),
            events: Recorder::start(client.clone(), clock, shutdown.clone()),
            client,
            clock,
            settings: Arc::new(settings),
            accounts: None,
            shutdown,
        }
    }
}

/// Runs the enabled controllers until `shutdown`.
///
/// # Errors
/// When a setting names no controller, or a controller's task panicked.
pub async fn run(client: Client, settings: Settings, shutdown: CancellationToken) -> Result<()> {
    run_in(Context::new(client, settings, Clock::System, shutdown)).await
}

/// Runs the enabled controllers of a context that may be shared with a scheduler.
///
/// # Errors
/// As [`run`].
pub async fn run_in(cx: Context) -> Result<()> {
    check_names(&cx.settings)?;
    let mut tasks = JoinSet::new();
    for entry in CONTROLLERS.iter().filter(|e| cx.settings.is_enabled(e.name)) {
        tasks.spawn((entry.run)(as_account(&cx, entry.account)));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Error::Invalid(format!("a controller stopped: {error}")))?;
    }
    Ok(())
}

/// The context of a controller that writes as its own account. What is read is shared by all.
fn as_account(cx: &Context, account: &str) -> Context {
    match &cx.accounts {
        Some(accounts) if !account.is_empty() => Context { client: accounts(account), ..cx.clone() },
        _ => cx.clone(),
    }
}

fn check_names(settings: &Settings) -> Result<()> {
    for text in &settings.enabled {
        let name = text.strip_prefix('-').unwrap_or(text);
        if name != "*" && !CONTROLLERS.iter().any(|e| e.name == name) {
            return Err(Error::Invalid(format!("there is no controller {name:?}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_chosen_as_in_kube_controller_manager() {
        let settings = |list: &[&str]| Settings {
            enabled: list.iter().map(|s| (*s).to_owned()).collect(),
            ..Settings::default()
        };
        let all = settings(&["*", "-replicaset-controller"]);
        assert!(all.is_enabled("deployment-controller") && !all.is_enabled("replicaset-controller"));
        let one = settings(&["replicaset-controller"]);
        assert!(!one.is_enabled("deployment-controller") && one.is_enabled("replicaset-controller"));
        assert!(check_names(&settings(&["nonsense"])).is_err());
        assert!(check_names(&all).is_ok());
    }
}

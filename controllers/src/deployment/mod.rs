//! Rolls each Deployment out over ReplicaSets: one per version of the pod template.
//!
//! Reads deployments, their ReplicaSets and pods. Writes ReplicaSets, the deployment's
//! revision annotation and status. Never touches pods. One step of a rollout per pass;
//! the change it makes brings the next pass.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use serde_json::json;
use wasmk_api::{LabelSelector, Timestamp};

use crate::base::{
    Claim, Context, Error, EventKind, Informer, Key, Next, Queue, Result, is_deleting, on_change, on_child,
    on_orphan, owner_key, uid,
};

mod plan;
mod rollout;
mod status;
mod template;

use plan::{Plan, View};
pub(crate) use rollout::scaled;

const COMPONENT: &str = "deployment-controller";

/// The deployment's and ReplicaSet's place in the history.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Places a ReplicaSet had before, separated by commas.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// How many pods the deployment wanted when it last scaled the ReplicaSet.
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with the surge added.
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

struct Roller {
    cx: Context,
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (deployments, sets, pods) = (cx.cache::<Deployment>(), cx.cache::<ReplicaSet>(), cx.cache::<Pod>());
    on_change(&deployments, &queue);
    on_child::<Deployment, ReplicaSet>(&sets, &queue);
    let known = deployments.clone();
    on_orphan(&sets, &queue, move |set| matching(&known, set));
    wake_on_pod_end(&pods, &sets, &queue);
    deployments.ready().await;
    sets.ready().await;
    pods.ready().await;
    let roller = Roller { cx: cx.clone(), deployments, sets, pods };
    cx.work(COMPONENT, &queue, cx.settings.workers, |key| roller.reconcile(key)).await;
}

fn matching(deployments: &Informer<Deployment>, set: &ReplicaSet) -> Vec<Key> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or("");
    let wants = |d: &Arc<Deployment>| {
        selector(d).is_ok_and(|s| !s.is_empty() && s.matches(set.metadata.labels.as_ref()))
    };
    deployments.in_namespace(namespace).iter().filter(|d| wants(d)).map(|d| Key::of(&d.metadata)).collect()
}

fn selector(deployment: &Deployment) -> Result<LabelSelector> {
    let Some(spec) = &deployment.spec else { return Ok(LabelSelector::default()) };
    LabelSelector::from_api(&spec.selector).map_err(|e| Error::Invalid(e.to_string()))
}

/// A Recreate rollout waits for the last old pod: its going or ending wakes the deployment.
fn wake_on_pod_end(pods: &Informer<Pod>, sets: &Arc<Informer<ReplicaSet>>, queue: &Arc<Queue<Key>>) {
    let (sets, queue) = (sets.clone(), queue.clone());
    pods.subscribe(move |old, new| {
        let Some(pod) = old else { return };
        if new.is_some_and(|p| !crate::base::is_finished(p)) {
            return;
        }
        let set = owner_key::<ReplicaSet, Pod>(pod).and_then(|key| sets.get(&key));
        if let Some(owner) = set.and_then(|set| owner_key::<Deployment, ReplicaSet>(&set)) {
            queue.add(owner);
        }
    });
}

impl Roller {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(deployment) = self.deployments.get(&key) else { return Ok(Next::Change) };
        let selector = selector(&deployment)?;
        if selector.is_empty() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.cx.events.record(COMPONENT, &*deployment, EventKind::Warning, "SelectingAll", message);
            return Ok(Next::Change);
        }
        let sets = Claim::apply(&self.cx, &*deployment, &selector, &self.sets).await?;
        let now = self.cx.clock.now();
        let plan = plan::plan(&self.view(&deployment, sets), now);
        let created = self.apply(&deployment, &plan).await?;
        if let Created::Refused(message) = &created {
            let status = status::with_create_failure(&plan.status, message, now);
            self.write_status(&deployment, status).await?;
            return Err(Error::Invalid(message.clone()));
        }
        let mut status = plan.status;
        if let Created::Collision = created {
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        }
        self.write_status(&deployment, status).await?;
        Ok(Next::after(plan.again))
    }

    fn view(&self, deployment: &Arc<Deployment>, sets: Vec<Arc<ReplicaSet>>) -> View {
        let pods = sets
            .iter()
            .map(|set| {
                let pods = self.pods.controlled_by(uid(&**set));
                let running = pods.iter().filter(|p| !crate::base::is_finished(p)).count();
                (uid(&**set).to_owned(), running)
            })
            .collect::<BTreeMap<_, _>>();
        View { deployment: deployment.clone(), sets, pods }
    }

    async fn apply(&self, deployment: &Arc<Deployment>, plan: &Plan) -> Result<Created> {
        for set in &plan.update {
            self.cx.replace(set).await?;
        }
        let mut created = Created::Nothing;
        if let Some(set) = &plan.create {
            created = self.create(deployment, set).await?;
        }
        for (from, to, set) in &plan.scale {
            self.cx.replace(set).await?;
            self.tell_scaling(deployment, set, *from, *to);
        }
        for set in &plan.delete {
            match self.cx.delete_background(&**set).await {
                Err(error) if error.is_not_found() => {}
                other => other?,
            }
        }
        if let Some(revision) = plan.revision.as_ref().filter(|_| !matches!(created, Created::Refused(_))) {
            let patch = json!({"metadata": {"annotations": {REVISION: revision}}});
            // By way of the status: an annotation written to the object itself would be a new generation.
            self.cx.patch_sub(&**deployment, "status", patch).await?;
        }
        Ok(created)
    }

    fn tell_scaling(&self, deployment: &Deployment, set: &ReplicaSet, from: i32, to: i32) {
        let way = if to > from { "up" } else { "down" };
        let name = set.metadata.name.as_deref().unwrap_or("");
        let message = format!("Scaled {way} replica set {name} from {from} to {to}");
        self.cx.events.record(COMPONENT, deployment, EventKind::Normal, "ScalingReplicaSet", message);
    }

    async fn create(&self, deployment: &Arc<Deployment>, set: &ReplicaSet) -> Result<Created> {
        match self.cx.create(set).await {
            Ok(_) => {
                let replicas = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
                if replicas > 0 {
                    self.tell_scaling(deployment, set, 0, replicas);
                }
                Ok(Created::Made)
            }
            Err(error) if error.is_already_exists() => self.judge_collision(deployment, set, error).await,
            Err(error) if error.is_namespace_terminating() => Ok(Created::Nothing),
            Err(error) => {
                let name = set.metadata.name.as_deref().unwrap_or("");
                let message = format!("Failed to create new replica set {name:?}: {}", error.message());
                self.cx.events.record(
                    COMPONENT,
                    &**deployment,
                    EventKind::Warning,
                    "ReplicaSetCreateError",
                    &*message,
                );
                Ok(Created::Refused(message))
            }
        }
    }

    /// The name is taken: by our own earlier work (fine), or by a set of another template
    /// with the same hash (count the collision, which changes the next hash).
    async fn judge_collision(&self, d: &Arc<Deployment>, set: &ReplicaSet, error: Error) -> Result<Created> {
        let there = self.cx.fetch::<ReplicaSet>(&Key::of(&set.metadata)).await?;
        let ours = there.is_some_and(|there| {
            owner_key::<Deployment, _>(&*there) == Some(Key::of(&d.metadata)) && template::is_of(&there, d)
        });
        if ours { Err(error) } else { Ok(Created::Collision) }
    }

    async fn write_status(
        &self,
        deployment: &Arc<Deployment>,
        status: k8s_openapi::api::apps::v1::DeploymentStatus,
    ) -> Result<()> {
        // The annotation patch has moved the version on: write on top of the newest.
        let key = Key::of(&deployment.metadata);
        let Some(latest) = self.deployments.get(&key).filter(|d| uid(&**d) == uid(&**deployment)) else {
            return Ok(());
        };
        if latest.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let mut next = (*latest).clone();
        next.status = Some(status);
        match self.cx.replace_status(&next).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// What became of a new ReplicaSet.
enum Created {
    Nothing,
    Made,
    Collision,
    Refused(String),
}

/// Whether the deployment is on its way out: then only its status is kept.
fn is_going(deployment: &Deployment) -> bool {
    is_deleting(deployment)
}

/// A wait until a moment, at least a second.
fn until(at: Timestamp, now: Timestamp) -> Duration {
    at.since(now) + Duration::from_secs(1)
}

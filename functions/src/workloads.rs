//! The Deployments of revisions: who makes them and who says how many pods they have.
//!
//! A revision that is answered in place and that nobody calls has none: it comes with the first pod that is to
//! account for requests. One that needs pods has its own from the start.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use wasmk_api::knative::{
    REVISION_LABEL, REVISION_UID_LABEL, ROUTES_ANNOTATION, ROUTING_MODIFIED_ANNOTATION, ROUTING_STATE_LABEL,
    Revision,
};

use crate::{
    admission::DEADLINE,
    autoscaler::Class,
    cache::Cache,
    config::{Live, duration},
    context::{MANAGER, owner},
    fleet::{Key, Limits, Member},
    names,
    revision::{Way, pod_spec},
};

/// Makes and scales them.
pub(crate) struct Workloads {
    client: Client,
    live: Live,
    revisions: Arc<Cache<Revision>>,
}

impl Workloads {
    /// Those of these revisions.
    pub(crate) fn new(client: Client, live: Live, revisions: Arc<Cache<Revision>>) -> Self {
        Self { client, live, revisions }
    }

    /// Whether a revision has one before anybody calls it.
    pub(crate) fn needed_at_rest(way: &Way, limits: &Limits) -> bool {
        replicas(way, limits) > 0 || limits.bounds.class != Class::Kpa || matches!(way, Way::Pods)
    }

    /// Makes the one of a revision, with as many pods as it begins with.
    pub(crate) async fn make(
        &self,
        revision: &Revision,
        way: &Way,
        limits: &Limits,
    ) -> kube::Result<Deployment> {
        self.make_with(revision, way, replicas(way, limits)).await
    }

    /// Has a revision have that many pods.
    pub(crate) async fn scale(&self, member: &Member, pods: i32) -> kube::Result<()> {
        let Key { namespace, name } = &member.key;
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(json!({"spec": {"replicas": pods}}));
        match api.patch(&names::deployment(name), &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => return done.map(drop),
        }
        let Some(revision) = self.revisions.get(&member.key).filter(|_| pods > 0) else {
            // The revision went meanwhile, and its deployment with it.
            return Ok(());
        };
        let way = match &*member.in_place() {
            Some(prepared) => Way::InPlace(prepared.image.clone()),
            None => Way::Pods,
        };
        self.make_with(&revision, &way, pods).await.map(drop)
    }

    async fn make_with(&self, revision: &Revision, way: &Way, pods: i32) -> kube::Result<Deployment> {
        let wanted = deployment(revision, way, pods, self.live.get().progress_deadline);
        let wanted = serde_json::from_value(wanted).map_err(kube::Error::SerdeError)?;
        let namespace = revision.namespace().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        let parameters = PostParams { field_manager: Some(MANAGER.into()), ..Default::default() };
        api.create(&parameters, &wanted).await
    }
}

/// The pods a revision begins with.
fn replicas(way: &Way, limits: &Limits) -> i32 {
    match (way, limits.bounds.class) {
        (Way::Pods, _) | (_, Class::Hpa) => limits.bounds.initial.max(limits.bounds.min),
        _ => limits.bounds.min,
    }
}

/// The Deployment of a revision's pods. `deadline`: seconds it may make no progress.
fn deployment(revision: &Revision, way: &Way, pods: i32, deadline: u64) -> Value {
    let name = revision.name_any();
    let mut labels: BTreeMap<String, String> = revision.metadata.labels.clone().unwrap_or_default();
    // These change while the pods stay.
    labels.remove(ROUTING_STATE_LABEL);
    labels.insert("app".into(), name.clone());
    labels.insert(REVISION_LABEL.into(), name.clone());
    labels.insert(REVISION_UID_LABEL.into(), revision.uid().unwrap_or_default());
    let mut annotations = revision.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| ![ROUTES_ANNOTATION, ROUTING_MODIFIED_ANNOTATION].contains(&key.as_str()));
    let asked = DEADLINE.iter().find_map(|key| annotations.get(*key)).and_then(|d| duration(d));
    let deadline = asked.map_or(deadline, |d| d.as_secs()).max(1);
    let metadata = ObjectMeta {
        name: Some(names::deployment(&name)),
        namespace: revision.metadata.namespace.clone(),
        labels: Some(labels.clone()),
        annotations: Some(annotations.clone()),
        owner_references: Some(vec![owner(revision)]),
        ..Default::default()
    };
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": pods,
            "selector": {"matchLabels": {REVISION_UID_LABEL: labels[REVISION_UID_LABEL]}},
            "progressDeadlineSeconds": deadline,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": pod_spec(revision, way),
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(min: &str, class: &str) -> Revision {
        serde_json::from_value(json!({
            "metadata": {"name": "hello-00001", "namespace": "default", "uid": "u", "labels": {
                "serving.knative.dev/service": "hello", "serving.knative.dev/configuration": "hello"},
                "annotations": {"autoscaling.knative.dev/min-scale": min,
                    "autoscaling.knative.dev/class": format!("{class}.autoscaling.knative.dev")}},
            "spec": {"containers": [{"name": "", "image": "hello:1", "env": [{"name": "TARGET", "value": "x"}],
                "readinessProbe": {"successThreshold": 1, "tcpSocket": {"port": 0}}}]},
        }))
        .unwrap()
    }

    fn limits(revision: &Revision) -> Limits {
        let bounds = crate::autoscaler::Bounds::read(&revision.metadata, 0, &Default::default());
        Limits { bounds, ..Limits::default() }
    }

    #[test]
    fn the_deployment_follows_the_runtime_contract() {
        let of = |way: &Way| deployment(&revision("0", "kpa"), way, 1, 600);
        let (pods, in_place) = (of(&Way::Pods), of(&Way::InPlace(String::new())));
        let container = &pods["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["name"], "user-container");
        assert_eq!(container["ports"][0]["containerPort"], 8080);
        let env: Vec<_> =
            container["env"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
        assert_eq!(env, ["TARGET", "PORT", "K_REVISION", "K_CONFIGURATION", "K_SERVICE"]);
        assert_eq!(
            (&pods["spec"]["replicas"], &pods["spec"]["progressDeadlineSeconds"]),
            (&json!(1), &json!(600))
        );
        assert_eq!(container["readinessProbe"]["tcpSocket"]["port"], 8080);
        assert_eq!(in_place["spec"]["template"]["spec"]["containers"][0].get("readinessProbe"), None);
    }

    #[test]
    fn what_is_answered_in_place_has_pods_only_when_asked_for() {
        let check = |way: Way, min: &str, class: &str, expected: (bool, i32)| {
            let limits = limits(&revision(min, class));
            assert_eq!(
                (Workloads::needed_at_rest(&way, &limits), replicas(&way, &limits)),
                expected,
                "{way:?} {min} {class}"
            );
        };
        let in_place = || Way::InPlace(String::new());
        check(in_place(), "0", "kpa", (false, 0));
        check(in_place(), "2", "kpa", (true, 2));
        check(in_place(), "0", "hpa", (true, 1));
        check(Way::Pods, "0", "kpa", (true, 1));
        check(Way::Pods, "3", "kpa", (true, 3));
    }
}

//! Scales workloads with their pods' use of resources, and with any other measure.
//!
//! Reads autoscalers, pods, and what the metrics APIs say ([`sources`]). Writes the `scale`
//! subresource of the target and the autoscaler's status. Without metrics it changes
//! nothing and says so.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::{
    autoscaling::{
        v1::Scale,
        v2::{
            HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
            MetricSpec, MetricStatus, MetricTarget, ResourceMetricSource,
        },
    },
    core::v1::Pod,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, PostParams},
};
use parking_lot::Mutex;
use wasmk_api::{LabelSelector, Timestamp};

use crate::base::{Context, Error, EventKind, Informer, Key, Next, PodView, Queue, Result, time, uid};

mod plan;
mod sources;

use plan::{Limits, Memory, Tolerance};
use sources::Sources;

const NAME: &str = "horizontal-pod-autoscaler";
const PERIOD: Duration = Duration::from_secs(15);
/// What an autoscaler without metrics aims at.
const DEFAULT_CPU: i32 = 80;

struct Autoscaler {
    cx: Context,
    all: Arc<Informer<HorizontalPodAutoscaler>>,
    pods: Arc<Informer<Pod>>,
    memory: Mutex<HashMap<String, Memory>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let scaler = Autoscaler { all: cx.cache(), pods: cx.cache(), memory: Mutex::default(), cx: cx.clone() };
    // The status is written here: only a new spec is news.
    let sink = queue.clone();
    scaler.all.subscribe(move |old, new| {
        if let Some(new) = new.filter(|n| old.is_none_or(|o| o.spec != n.spec)) {
            sink.add(Key::of(&new.metadata));
        }
    });
    scaler.all.ready().await;
    scaler.pods.ready().await;
    cx.work(NAME, &queue, cx.settings.workers, |key| scaler.reconcile(key)).await;
}

/// What one pass found out.
struct Findings {
    current: i32,
    desired: i32,
    metrics: Vec<MetricStatus>,
    conditions: Vec<(&'static str, bool, &'static str, String)>,
    scaled: bool,
}

impl Autoscaler {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(hpa) = self.all.get(&key) else {
            let live: Vec<String> = self.all.list().iter().map(|h| uid(&**h).to_owned()).collect();
            self.memory.lock().retain(|id, _| live.contains(id));
            return Ok(Next::Change);
        };
        let found = match self.target(&hpa).await {
            Ok((resource, scale)) => self.scale(&hpa, &resource, &scale).await?,
            Err(error) => {
                self.cx.events.record(NAME, &*hpa, EventKind::Warning, "FailedGetScale", error.message());
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {}",
                    error.message()
                );
                let old = hpa.status.clone().unwrap_or_default();
                Findings {
                    current: old.current_replicas.unwrap_or(0),
                    desired: old.desired_replicas,
                    metrics: Vec::new(),
                    conditions: vec![("AbleToScale", false, "FailedGetScale", message)],
                    scaled: false,
                }
            }
        };
        self.write_status(&hpa, found).await?;
        Ok(Next::After(PERIOD))
    }

    async fn target(&self, hpa: &HorizontalPodAutoscaler) -> Result<(ApiResource, Scale)> {
        let target = hpa.spec.scale_target_ref.clone();
        let group =
            target.api_version.as_deref().and_then(|v| v.split_once('/')).map_or("", |(g, _)| g).to_owned();
        let resources = self.cx.discovery.resources().await?;
        let served = resources.iter().find(|s| s.resource.kind == target.kind && s.resource.group == group);
        let Some(served) = served else {
            return Err(Error::Invalid(format!("no matches for kind {:?} in group {group:?}", target.kind)));
        };
        let api = self.api(hpa, &served.resource);
        let scale = api.get_scale(&target.name).await;
        let scale =
            scale.map_err(|e| Error::api("get the scale of", &target.kind, Key::new("", target.name), e))?;
        Ok((served.resource.clone(), scale))
    }

    fn api(&self, hpa: &HorizontalPodAutoscaler, resource: &ApiResource) -> Api<DynamicObject> {
        let namespace = hpa.metadata.namespace.as_deref().unwrap_or("");
        Api::namespaced_with(self.cx.client.clone(), namespace, resource)
    }

    async fn scale(
        &self,
        hpa: &Arc<HorizontalPodAutoscaler>,
        resource: &ApiResource,
        scale: &Scale,
    ) -> Result<Findings> {
        let spec = &hpa.spec;
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let limits = Limits { min: spec.min_replicas.unwrap_or(1), max: spec.max_replicas };
        let mut found = Findings {
            current,
            desired: current,
            metrics: Vec::new(),
            conditions: vec![(
                "AbleToScale",
                true,
                "SucceededGetScale",
                "the HPA controller was able to get the target's current scale".into(),
            )],
            scaled: false,
        };
        if current == 0 && limits.min != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            found.conditions.push(("ScalingActive", false, "ScalingDisabled", message.into()));
            found.desired = 0;
            return Ok(found);
        }
        let now = self.cx.clock.now();
        let wanted = if current > limits.max {
            limits.max
        } else if current < limits.min {
            limits.min
        } else {
            match self.measure(hpa, scale, current, &mut found).await {
                Some(wanted) => {
                    let mut memory = self.memory.lock();
                    let memory = memory.entry(uid(&**hpa).to_owned()).or_default();
                    let (wanted, limited) =
                        plan::smooth(current, wanted, limits, spec.behavior.as_ref(), memory, now);
                    found.conditions.push(match limited {
                        Some((reason, message)) => ("ScalingLimited", true, reason, message.into()),
                        None => (
                            "ScalingLimited",
                            false,
                            "DesiredWithinRange",
                            "the desired count is within the acceptable range".into(),
                        ),
                    });
                    wanted
                }
                None => current,
            }
        };
        found.desired = wanted;
        if wanted != current {
            self.rescale(hpa, resource, scale, wanted, now).await?;
            found.scaled = true;
        }
        Ok(found)
    }

    async fn rescale(
        &self,
        hpa: &Arc<HorizontalPodAutoscaler>,
        resource: &ApiResource,
        scale: &Scale,
        to: i32,
        now: Timestamp,
    ) -> Result<()> {
        let name = hpa.spec.scale_target_ref.name.clone();
        let mut next = scale.clone();
        let from = next.spec.get_or_insert_default().replicas.replace(to).unwrap_or(0);
        // As a whole: the role of autoscalers has no right to patch.
        let written = self.api(hpa, resource).replace_scale(&name, &PostParams::default(), &next).await;
        written.map_err(|e| Error::api("scale", &resource.kind, Key::new("", name), e))?;
        let mut memory = self.memory.lock();
        memory.entry(uid(&**hpa).to_owned()).or_default().changes.push((now, to - from));
        let message =
            format!("New size: {to}; reason: metrics {} target", if to > from { "above" } else { "below" });
        self.cx.events.record(NAME, &**hpa, EventKind::Normal, "SuccessfulRescale", message);
        Ok(())
    }

    /// The largest proposal of all metrics. With one that cannot be read, no scaling down.
    async fn measure(
        &self,
        hpa: &Arc<HorizontalPodAutoscaler>,
        scale: &Scale,
        current: i32,
        found: &mut Findings,
    ) -> Option<i32> {
        let selector = scale.status.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        let default = vec![MetricSpec {
            type_: "Resource".into(),
            resource: Some(ResourceMetricSource {
                name: "cpu".into(),
                target: MetricTarget {
                    type_: "Utilization".into(),
                    average_utilization: Some(DEFAULT_CPU),
                    ..Default::default()
                },
            }),
            ..Default::default()
        }];
        let metrics = hpa.spec.metrics.clone().filter(|m| !m.is_empty()).unwrap_or(default);
        let pods = self.selected(hpa, &selector);
        let mut sources = Sources {
            cx: &self.cx,
            namespace: hpa.metadata.namespace.as_deref().unwrap_or(""),
            selector: &selector,
            pods: &pods,
            current,
            tolerance: Tolerance::of(hpa.spec.behavior.as_ref()),
            usage: None,
        };
        let (mut best, mut failure) = (None, None);
        for metric in &metrics {
            match sources.read(metric).await {
                Ok((replicas, status)) => {
                    best = best.max(Some(replicas));
                    found.metrics.push(status);
                }
                Err(why) => failure = failure.or(Some(why)),
            }
        }
        let safe = best.filter(|b| failure.is_none() || *b > current);
        match (safe, failure) {
            (Some(_), _) => {
                let message = "the HPA was able to successfully calculate a replica count from the metrics";
                found.conditions.push(("ScalingActive", true, "ValidMetricFound", message.into()));
            }
            (None, failure) => {
                let (reason, message) =
                    failure.unwrap_or(("FailedGetResourceMetric", "no metric could be read".into()));
                self.cx.events.record(NAME, &**hpa, EventKind::Warning, reason, message.clone());
                let message = format!("the HPA was unable to compute the replica count: {message}");
                found.conditions.push(("ScalingActive", false, reason, message));
            }
        }
        safe
    }

    fn selected(&self, hpa: &HorizontalPodAutoscaler, selector: &str) -> Vec<Arc<Pod>> {
        let Ok(selector) = LabelSelector::parse(selector) else { return Vec::new() };
        let mut pods = self.pods.in_namespace(hpa.metadata.namespace.as_deref().unwrap_or(""));
        pods.retain(|p| PodView(p).is_active() && selector.matches(p.metadata.labels.as_ref()));
        pods
    }

    async fn write_status(&self, hpa: &Arc<HorizontalPodAutoscaler>, found: Findings) -> Result<()> {
        let now = self.cx.clock.now();
        let old = hpa.status.clone().unwrap_or_default();
        let status = HorizontalPodAutoscalerStatus {
            current_replicas: Some(found.current),
            desired_replicas: found.desired,
            current_metrics: (!found.metrics.is_empty()).then_some(found.metrics),
            conditions: Some(conditions(&old, &found.conditions, now)),
            last_scale_time: if found.scaled { Some(time(now)) } else { old.last_scale_time.clone() },
            observed_generation: hpa.metadata.generation,
        };
        if status == old {
            return Ok(());
        }
        let mut next = (**hpa).clone();
        next.status = Some(status);
        self.cx.replace_status(&next).await.map(drop)
    }
}

fn conditions(
    old: &HorizontalPodAutoscalerStatus,
    new: &[(&'static str, bool, &'static str, String)],
    now: Timestamp,
) -> Vec<HorizontalPodAutoscalerCondition> {
    let mut all = old.conditions.clone().unwrap_or_default();
    for (kind, holds, reason, message) in new {
        let status = if *holds { "True" } else { "False" };
        let before = all.iter().position(|c| c.type_ == *kind);
        let same = before.filter(|i| all[*i].status == status);
        let since = same.and_then(|i| all[i].last_transition_time.clone()).or_else(|| Some(time(now)));
        let condition = HorizontalPodAutoscalerCondition {
            type_: (*kind).into(),
            status: status.into(),
            reason: Some((*reason).into()),
            message: Some(message.clone()),
            last_transition_time: since,
        };
        match before {
            Some(i) => all[i] = condition,
            None => all.push(condition),
        }
    }
    all
}

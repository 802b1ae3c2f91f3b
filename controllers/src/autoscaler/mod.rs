//! Scales workloads with their pods' use of CPU and memory.
//!
//! Reads autoscalers, pods, and pod metrics of `metrics.k8s.io`. Writes the `scale`
//! subresource of the target and the autoscaler's status. Without metrics it changes
//! nothing and says so.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{
        autoscaling::{
            v1::Scale,
            v2::{
                ContainerResourceMetricStatus, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
                HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
                ResourceMetricSource, ResourceMetricStatus,
            },
        },
        core::v1::{Container, Pod},
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use wasmk_api::{LabelSelector, Quantity, Timestamp};

use crate::base::{
    Context, Error, EventKind, Informer, Key, Next, PodView, Queue, Result, is_ready, time, uid,
};

mod plan;

use plan::{Limits, Memory, Proposal, Sample, Target};

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
            self.rescale(hpa, resource, current, wanted, now).await?;
            found.scaled = true;
        }
        Ok(found)
    }

    async fn rescale(
        &self,
        hpa: &Arc<HorizontalPodAutoscaler>,
        resource: &ApiResource,
        from: i32,
        to: i32,
        now: Timestamp,
    ) -> Result<()> {
        let name = hpa.spec.scale_target_ref.name.clone();
        let patch = Patch::Merge(json!({"spec": {"replicas": to}}));
        let written = self.api(hpa, resource).patch_scale(&name, &PatchParams::default(), &patch).await;
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
        let usage = self.usage(hpa.metadata.namespace.as_deref().unwrap_or(""), &selector).await;
        let pods = self.selected(hpa, &selector);
        let (mut best, mut failure) = (None, None);
        for metric in &metrics {
            let outcome = match &usage {
                Ok(usage) => one_metric(metric, current, &pods, usage),
                Err(error) => {
                    Err(format!("unable to fetch metrics from resource metrics API: {}", error.message()))
                }
            };
            match outcome {
                Ok((proposal, status)) => {
                    best = best.max(Some(proposal.replicas));
                    found.metrics.push(status);
                }
                Err(message) => failure = Some(message),
            }
        }
        let safe = best.filter(|b| failure.is_none() || *b > current);
        match (safe, failure) {
            (Some(_), _) => {
                let message = "the HPA was able to successfully calculate a replica count from the metrics";
                found.conditions.push(("ScalingActive", true, "ValidMetricFound", message.into()));
            }
            (None, failure) => {
                let message = failure.unwrap_or_else(|| "no metric could be read".into());
                self.cx.events.record(
                    NAME,
                    &**hpa,
                    EventKind::Warning,
                    "FailedGetResourceMetric",
                    message.clone(),
                );
                let message = format!("the HPA was unable to compute the replica count: {message}");
                found.conditions.push(("ScalingActive", false, "FailedGetResourceMetric", message));
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

    /// What each container of each pod uses, by the metrics API.
    async fn usage(&self, namespace: &str, selector: &str) -> Result<Usage> {
        let resource = ApiResource {
            group: "metrics.k8s.io".into(),
            version: "v1beta1".into(),
            api_version: "metrics.k8s.io/v1beta1".into(),
            kind: "PodMetrics".into(),
            plural: "pods".into(),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.cx.client.clone(), namespace, &resource);
        let list = api.list(&ListParams::default().labels(selector)).await;
        let list = list.map_err(|e| Error::api("list", "PodMetrics", Key::new(namespace, ""), e))?;
        let mut usage = Usage::new();
        for pod in list {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let containers =
                pod.data.get("containers").and_then(|c| c.as_array()).cloned().unwrap_or_default();
            let containers = containers.iter().filter_map(|c| {
                let amounts: BTreeMap<String, ApiQuantity> =
                    serde_json::from_value(c.get("usage")?.clone()).ok()?;
                Some((c.get("name")?.as_str()?.to_owned(), amounts))
            });
            usage.insert(name, containers.collect());
        }
        Ok(usage)
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

/// Amounts by pod and container.
type Usage = HashMap<String, BTreeMap<String, BTreeMap<String, ApiQuantity>>>;

fn one_metric(
    metric: &MetricSpec,
    current: i32,
    pods: &[Arc<Pod>],
    usage: &Usage,
) -> Result<(Proposal, MetricStatus), String> {
    let (name, container, target) = match (&metric.resource, &metric.container_resource) {
        (Some(m), _) => (&m.name, None, &m.target),
        (None, Some(m)) => (&m.name, Some(m.container.as_str()), &m.target),
        (None, None) => {
            return Err(format!("metrics of type {:?} are not offered by this cluster", metric.type_));
        }
    };
    // CPU in thousandths, everything else in units.
    let amount = |q: &ApiQuantity| {
        let q: Quantity = q.0.parse().unwrap_or_default();
        if name == "cpu" { q.milli_value() } else { q.value() }
    };
    let goal = match (target.average_utilization, &target.average_value) {
        (Some(percent), _) => Target::Utilization(i64::from(percent)),
        (None, Some(value)) => Target::Average(amount(value)),
        (None, None) => {
            return Err("the metric's target has neither averageUtilization nor averageValue".into());
        }
    };
    let samples: Vec<Sample> = pods.iter().map(|pod| sample(pod, name, container, usage, &amount)).collect();
    let proposal = plan::propose(current, &samples, goal)?;
    let average =
        if name == "cpu" { Quantity::millis(proposal.average) } else { Quantity::units(proposal.average) };
    let measured = MetricValueStatus {
        average_utilization: proposal.percent.and_then(|p| i32::try_from(p).ok()),
        average_value: Some(ApiQuantity(average.to_string())),
        value: None,
    };
    let mut status = MetricStatus { type_: metric.type_.clone(), ..Default::default() };
    match container {
        None => status.resource = Some(ResourceMetricStatus { name: name.clone(), current: measured }),
        Some(c) => {
            status.container_resource = Some(ContainerResourceMetricStatus {
                name: name.clone(),
                container: c.into(),
                current: measured,
            });
        }
    }
    Ok((proposal, status))
}

fn sample(
    pod: &Pod,
    name: &str,
    container: Option<&str>,
    usage: &Usage,
    amount: &impl Fn(&ApiQuantity) -> i64,
) -> Sample {
    let wanted = |c: &str| container.is_none_or(|w| w == c);
    let spec = pod.spec.iter().flat_map(|s| s.containers.iter()).filter(|c| wanted(&c.name));
    let request = |c: &Container| c.resources.as_ref()?.requests.as_ref()?.get(name).map(amount);
    let measured = usage.get(pod.metadata.name.as_deref().unwrap_or(""));
    let used = measured.map(|containers| {
        let right = containers.iter().filter(|(c, _)| wanted(c));
        right.filter_map(|(_, amounts)| amounts.get(name).map(amount)).sum()
    });
    Sample { usage: used, request: spec.filter_map(request).sum(), ready: is_ready(pod) }
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

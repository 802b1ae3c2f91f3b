//! Where autoscalers' measures come from: `metrics.k8s.io` for what pods and containers use,
//! `custom.metrics.k8s.io` for what pods and other objects are measured by, and
//! `external.metrics.k8s.io` for everything outside. The first is part of every cluster; the
//! others are offered by adapters that are installed as aggregated APIs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, CrossVersionObjectReference, ExternalMetricSource,
            ExternalMetricStatus, MetricIdentifier, MetricSpec, MetricStatus, MetricTarget,
            MetricValueStatus, ObjectMetricSource, ObjectMetricStatus, PodsMetricSource, PodsMetricStatus,
            ResourceMetricStatus,
        },
        core::v1::{Container, Pod},
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde::Deserialize;
use wasmk_api::{LabelSelector, Quantity};

use crate::base::{Context, Error, Key, PodView, is_ready};

use super::plan::{self, Proposal, Sample, Target, Tolerance};

/// Versions of the custom metrics API, the newest first.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// Amounts by pod and container.
type Usage = HashMap<String, BTreeMap<String, BTreeMap<String, ApiQuantity>>>;

/// Why a metric says nothing: reason and message of the condition.
pub(super) type Failure = (&'static str, String);

/// What one pass of an autoscaler reads from.
pub(super) struct Sources<'a> {
    pub(super) cx: &'a Context,
    pub(super) namespace: &'a str,
    /// The target's pods, as a selector and as they are.
    pub(super) selector: &'a str,
    pub(super) pods: &'a [Arc<Pod>],
    /// The target's size.
    pub(super) current: i32,
    pub(super) tolerance: Tolerance,
    /// What pods use, once it has been read.
    pub(super) usage: Option<Usage>,
}

/// A measure of the custom or external metrics API.
#[derive(Debug, Deserialize)]
struct Measured {
    value: ApiQuantity,
    #[serde(rename = "describedObject", default)]
    object: CrossVersionObjectReference,
}

#[derive(Debug, Deserialize)]
struct MeasuredList {
    items: Vec<Measured>,
}

impl Sources<'_> {
    /// The replicas that would bring a metric to its target, and the metric as it is.
    pub(super) async fn read(&mut self, metric: &MetricSpec) -> Result<(i32, MetricStatus), Failure> {
        let failed = |reason| move |message: String| (reason, message);
        let mut status = MetricStatus { type_: metric.type_.clone(), ..Default::default() };
        let replicas = match (&*metric.type_, metric) {
            ("Resource", MetricSpec { resource: Some(source), .. }) => {
                let (replicas, current) = self
                    .resource(&source.name, None, &source.target)
                    .await
                    .map_err(failed("FailedGetResourceMetric"))?;
                status.resource = Some(ResourceMetricStatus { name: source.name.clone(), current });
                replicas
            }
            ("ContainerResource", MetricSpec { container_resource: Some(source), .. }) => {
                let (replicas, current) = self
                    .resource(&source.name, Some(&source.container), &source.target)
                    .await
                    .map_err(failed("FailedGetContainerResourceMetric"))?;
                let (name, container) = (source.name.clone(), source.container.clone());
                status.container_resource = Some(ContainerResourceMetricStatus { name, container, current });
                replicas
            }
            ("Pods", MetricSpec { pods: Some(source), .. }) => {
                let (replicas, current) =
                    self.of_pods(source).await.map_err(failed("FailedGetPodsMetric"))?;
                status.pods = Some(PodsMetricStatus { metric: source.metric.clone(), current });
                replicas
            }
            ("Object", MetricSpec { object: Some(source), .. }) => {
                let (replicas, current) =
                    self.of_object(source).await.map_err(failed("FailedGetObjectMetric"))?;
                status.object = Some(ObjectMetricStatus {
                    metric: source.metric.clone(),
                    described_object: source.described_object.clone(),
                    current,
                });
                replicas
            }
            ("External", MetricSpec { external: Some(source), .. }) => {
                let (replicas, current) =
                    self.external(source).await.map_err(failed("FailedGetExternalMetric"))?;
                status.external = Some(ExternalMetricStatus { metric: source.metric.clone(), current });
                replicas
            }
            (kind, _) => {
                return Err(("InvalidMetricSourceType", format!("unknown metric source type {kind:?}")));
            }
        };
        Ok((replicas, status))
    }

    async fn resource(
        &mut self,
        name: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(i32, MetricValueStatus), String> {
        if self.usage.is_none() {
            let usage = self.usage().await.map_err(|error| {
                format!("unable to get metrics for resource {name}: unable to fetch metrics from resource metrics API: {}", error.message())
            })?;
            self.usage = Some(usage);
        }
        let empty = Usage::new();
        let usage = self.usage.as_ref().unwrap_or(&empty);
        // CPU in thousandths, everything else in units.
        let amount = |q: &ApiQuantity| if name == "cpu" { millis(q) } else { units(q) };
        let goal = match (target.average_utilization, &target.average_value) {
            (Some(percent), _) => Target::Utilization(i64::from(percent)),
            (None, Some(value)) => Target::Average(amount(value)),
            (None, None) => {
                return Err("the metric's target has neither averageUtilization nor averageValue".into());
            }
        };
        let samples: Vec<Sample> =
            self.pods.iter().map(|pod| sample(pod, name, container, usage, &amount)).collect();
        let found = plan::propose(self.current, &samples, goal, self.tolerance)?;
        let average =
            if name == "cpu" { Quantity::millis(found.average) } else { Quantity::units(found.average) };
        let current = MetricValueStatus {
            average_utilization: found.percent.and_then(|p| i32::try_from(p).ok()),
            average_value: Some(ApiQuantity(average.to_string())),
            value: None,
        };
        Ok((found.replicas, current))
    }

    /// What each container of each pod uses, by the resource metrics API.
    async fn usage(&self) -> Result<Usage, Error> {
        let resource = ApiResource {
            group: "metrics.k8s.io".into(),
            version: "v1beta1".into(),
            api_version: "metrics.k8s.io/v1beta1".into(),
            kind: "PodMetrics".into(),
            plural: "pods".into(),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.cx.client.clone(), self.namespace, &resource);
        let list = api.list(&ListParams::default().labels(self.selector)).await;
        let list = list.map_err(|e| Error::api("list", "PodMetrics", Key::new(self.namespace, ""), e))?;
        Ok(list.into_iter().map(usage_of).collect())
    }

    /// A measure of every pod.
    async fn of_pods(&self, source: &PodsMetricSource) -> Result<(i32, MetricValueStatus), String> {
        let target =
            source.target.average_value.as_ref().ok_or("a metric of pods needs a target averageValue")?;
        let mut query = query(&[("labelSelector", self.selector)]);
        query.push_str(&selected(&source.metric, "metricLabelSelector")?);
        let path = format!("namespaces/{}/pods/*/{}?{query}", self.namespace, source.metric.name);
        let measured = self.custom(&path).await?;
        let values: HashMap<&str, i64> =
            measured.iter().map(|m| (m.object.name.as_str(), millis(&m.value))).collect();
        let sample = |pod: &Arc<Pod>| Sample {
            usage: values.get(pod.metadata.name.as_deref().unwrap_or("")).copied(),
            request: 0,
            ready: PodView(pod).phase() != "Pending",
        };
        let samples: Vec<Sample> = self.pods.iter().map(sample).collect();
        let found: Proposal =
            plan::propose(self.current, &samples, Target::Average(millis(target)), self.tolerance)?;
        Ok((found.replicas, average(found.average)))
    }

    /// A measure of one object.
    async fn of_object(&self, source: &ObjectMetricSource) -> Result<(i32, MetricValueStatus), String> {
        let object = &source.described_object;
        let group = object.api_version.as_deref().and_then(|v| v.split_once('/')).map_or("", |(g, _)| g);
        let resources = self.cx.discovery.resources().await.map_err(|e| e.message())?;
        let served = resources.iter().find(|s| s.resource.kind == object.kind && s.resource.group == group);
        let served =
            served.ok_or_else(|| format!("no matches for kind {:?} in group {group:?}", object.kind))?;
        let plural = match group {
            "" => served.resource.plural.clone(),
            group => format!("{}.{group}", served.resource.plural),
        };
        let place = match (&*plural, served.namespaced) {
            ("namespaces", _) => format!("namespaces/{}/metrics", object.name),
            (_, true) => format!("namespaces/{}/{plural}/{}", self.namespace, object.name),
            (_, false) => format!("{plural}/{}", object.name),
        };
        let query = selected(&source.metric, "metricLabelSelector")?;
        let measured = self.custom(&format!("{place}/{}?{query}", source.metric.name)).await?;
        let value = measured.first().map(|m| millis(&m.value));
        let value = value.ok_or_else(|| {
            format!("no metric {:?} of {} {:?}", source.metric.name, object.kind, object.name)
        })?;
        self.against(value, &source.target)
    }

    /// A measure of something outside: the sum of all series that are selected.
    async fn external(&self, source: &ExternalMetricSource) -> Result<(i32, MetricValueStatus), String> {
        let query = selected(&source.metric, "labelSelector")?;
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}?{query}",
            self.namespace, source.metric.name
        );
        let measured = self.get(&path).await.map_err(|error| {
            format!("unable to fetch metrics from external metrics API: {}", told(&error))
        })?;
        if measured.is_empty() {
            return Err(format!(
                "no metrics returned from external metrics API for {:?}",
                source.metric.name
            ));
        }
        let sum = measured.iter().fold(0_i64, |sum, m| sum.saturating_add(millis(&m.value)));
        self.against(sum, &source.target)
    }

    /// Compares a measure of the whole, in thousandths, with its target.
    fn against(&self, value: i64, target: &MetricTarget) -> Result<(i32, MetricValueStatus), String> {
        if let Some(whole) = &target.value {
            let ready = self.pods.iter().filter(|p| PodView(p).phase() == "Running" && is_ready(p)).count();
            let ready = i32::try_from(ready).unwrap_or(i32::MAX);
            let replicas = plan::whole(self.current, ready, value, millis(whole), self.tolerance);
            let value = Some(ApiQuantity(Quantity::millis(value).to_string()));
            return Ok((replicas, MetricValueStatus { value, ..Default::default() }));
        }
        let each =
            target.average_value.as_ref().ok_or("the metric's target has neither value nor averageValue")?;
        let replicas = plan::shared(self.current, value, millis(each), self.tolerance);
        let count = i64::from(self.current.max(1));
        Ok((replicas, average(value.saturating_add(count - 1) / count)))
    }

    /// Reads the custom metrics API, in the newest version that is there.
    async fn custom(&self, path: &str) -> Result<Vec<Measured>, String> {
        let mut last = String::new();
        for version in CUSTOM_VERSIONS {
            match self.get(&format!("/apis/custom.metrics.k8s.io/{version}/{path}")).await {
                Ok(measured) => return Ok(measured),
                Err(kube::Error::Api(status)) if status.code == 404 => last.clone_from(&status.message),
                Err(error) => {
                    return Err(format!("unable to fetch metrics from custom metrics API: {}", told(&error)));
                }
            }
        }
        Err(format!("unable to fetch metrics from custom metrics API: {last}"))
    }

    async fn get(&self, path: &str) -> Result<Vec<Measured>, kube::Error> {
        let request = get_request(path)?;
        let list: MeasuredList = self.cx.client.request(request).await?;
        Ok(list.items)
    }
}

/// A GET of a path.
fn get_request(path: &str) -> Result<http::Request<Vec<u8>>, kube::Error> {
    http::Request::get(path.trim_end_matches('?')).body(Vec::new()).map_err(kube::Error::HttpError)
}

/// The API's own words about a failure.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn millis(quantity: &ApiQuantity) -> i64 {
    quantity.0.parse::<Quantity>().unwrap_or_default().milli_value()
}

fn units(quantity: &ApiQuantity) -> i64 {
    quantity.0.parse::<Quantity>().unwrap_or_default().value()
}

/// An average per pod, from thousandths.
fn average(millis: i64) -> MetricValueStatus {
    let average_value = Some(ApiQuantity(Quantity::millis(millis).to_string()));
    MetricValueStatus { average_value, ..Default::default() }
}

/// Parameters of a query; those that are empty are left out.
fn query(pairs: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        query.append_pair(key, value);
    }
    query.finish()
}

/// A metric's own selector, as a parameter that may follow others.
fn selected(metric: &MetricIdentifier, parameter: &str) -> Result<String, String> {
    let Some(selector) = &metric.selector else { return Ok(String::new()) };
    let selector = LabelSelector::from_api(selector).map_err(|e| e.to_string())?;
    Ok(format!("&{}", query(&[(parameter, &selector.to_string())])))
}

/// A pod's name and what its containers use.
fn usage_of(pod: DynamicObject) -> (String, BTreeMap<String, BTreeMap<String, ApiQuantity>>) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let containers = pod.data.get("containers").and_then(|c| c.as_array()).cloned().unwrap_or_default();
    let containers = containers.iter().filter_map(|c| {
        let amounts: BTreeMap<String, ApiQuantity> = serde_json::from_value(c.get("usage")?.clone()).ok()?;
        Some((c.get("name")?.as_str()?.to_owned(), amounts))
    });
    (name, containers.collect())
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
    // What a pod computes while it starts says little; what it has in memory counts as ever.
    let ready = if name == "cpu" { is_ready(pod) } else { PodView(pod).phase() != "Pending" };
    Sample { usage: used, request: spec.filter_map(request).sum(), ready }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Clock, Settings};
    use http::{Request, Response};
    use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    /// An API that answers these paths and queries, and says of all others that they are not there.
    fn client(answers: &'static [(&'static str, &'static str)]) -> kube::Client {
        let service = tower::service_fn(move |request: Request<Body>| async move {
            let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            let found = answers.iter().find(|(known, _)| *known == path);
            let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                "reason": "NotFound", "message": format!("nothing at {path}")});
            let (code, text) =
                found.map_or((404, missing.to_string()), |(_, text)| (200, (*text).to_owned()));
            Ok::<_, std::convert::Infallible>(
                Response::builder().status(code).body(Body::from(text.into_bytes())).unwrap(),
            )
        });
        kube::Client::new(service, "default")
    }

    const ANSWERS: &[(&str, &str)] = &[
        (
            "/apis/custom.metrics.k8s.io/v1beta1/namespaces/ns/pods/*/requests?labelSelector=app%3Dweb",
            r#"{"items": [{"describedObject": {"kind": "Pod", "name": "a"}, "value": "300"},
                {"describedObject": {"kind": "Pod", "name": "b"}, "value": "100"}]}"#,
        ),
        (
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/queue?&labelSelector=name%3Dmail",
            r#"{"items": [{"metricName": "queue", "value": "25"}, {"metricName": "queue", "value": "5500m"}]}"#,
        ),
        ("/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/none", r#"{"items": []}"#),
        (
            "/apis/metrics.k8s.io/v1beta1/namespaces/ns/pods?&labelSelector=app%3Dweb",
            r#"{"apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetricsList", "metadata": {}, "items": [
                {"metadata": {"name": "a"}, "containers": [{"name": "c", "usage": {"cpu": "150m"}},
                    {"name": "side", "usage": {"cpu": "10m"}}]},
                {"metadata": {"name": "b"}, "containers": [{"name": "c", "usage": {"cpu": "50m"}}]}]}"#,
        ),
    ];

    fn pod(name: &str) -> Arc<Pod> {
        let container = |name: &str| json!({"name": name, "resources": {"requests": {"cpu": "100m"}}});
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"},
                "spec": {"containers": [container("c"), container("side")]},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}))
            .unwrap(),
        )
    }

    /// What two pods become by one metric, and the metric's status; or the reason of the failure.
    async fn check(metric: Value, expect: Result<(i32, Value), &str>) {
        let stop = CancellationToken::new();
        let cx = Context::new(client(ANSWERS), Settings::default(), Clock::System, stop);
        let pods = [pod("a"), pod("b")];
        let behavior = HorizontalPodAutoscalerBehavior {
            scale_up: Some(HPAScalingRules::default()),
            ..Default::default()
        };
        let mut sources = Sources {
            cx: &cx,
            namespace: "ns",
            selector: "app=web",
            pods: &pods,
            current: 2,
            tolerance: Tolerance::of(Some(&behavior)),
            usage: None,
        };
        let spec: MetricSpec = serde_json::from_value(metric.clone()).unwrap();
        let found = sources.read(&spec).await;
        let shown = found.map(|(replicas, status)| {
            let kind = metric["type"].as_str().unwrap();
            let field = kind[..1].to_lowercase() + &kind[1..];
            (replicas, serde_json::to_value(status).unwrap()[field]["current"].clone())
        });
        match (&shown, &expect) {
            (Err((reason, message)), Err(wanted)) => assert_eq!(reason, wanted, "{message}"),
            (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{metric}"),
            other => panic!("{metric}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn each_kind_of_metric_has_its_source() {
        let cpu = |target: Value| json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        let half = json!({"type": "Utilization", "averageUtilization": 25});
        let current = json!({"averageUtilization": 52, "averageValue": "105m"});
        check(cpu(half), Ok((5, current))).await;
        let of_container = json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
            "target": {"type": "AverageValue", "averageValue": "50m"}}});
        check(of_container, Ok((4, json!({"averageValue": "100m"})))).await;

        let pods = |name: &str| {
            json!({"type": "Pods", "pods": {"metric": {"name": name},
                "target": {"type": "AverageValue", "averageValue": "100"}}})
        };
        check(pods("requests"), Ok((4, json!({"averageValue": "200"})))).await;
        check(pods("unheard-of"), Err("FailedGetPodsMetric")).await;

        let outside = |name: &str, target: Value| {
            json!({"type": "External", "external": {"metric": {"name": name,
                "selector": {"matchLabels": {"name": "mail"}}}, "target": target}})
        };
        let each = json!({"type": "AverageValue", "averageValue": "10"});
        check(outside("queue", each), Ok((4, json!({"averageValue": "15250m"})))).await;
        let whole = json!({"type": "Value", "value": "10"});
        check(outside("queue", whole.clone()), Ok((7, json!({"value": "30500m"})))).await;
        check(outside("missing", whole), Err("FailedGetExternalMetric")).await;
        check(json!({"type": "Guess"}), Err("InvalidMetricSourceType")).await;
    }
}

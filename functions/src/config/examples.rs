//! The ConfigMaps of a new cluster: what they can say, with the defaults, under `_example`.

use serde_json::{Value, json};

use super::NAMESPACE;

const AUTOSCALER: &str = "\
# Share of the target that pods are loaded to, in percent.
container-concurrency-target-percentage: \"70\"
# Requests at a time, and per second, for a pod.
container-concurrency-target-default: \"100\"
requests-per-second-target-default: \"200\"
# Requests that may come at once and find spare room; -1 keeps the queue in the path.
target-burst-capacity: \"211\"
# The window that decides in calm times, and the part of it that notices bursts.
stable-window: \"60s\"
panic-window-percentage: \"10.0\"
panic-threshold-percentage: \"200.0\"
# Most growth and shrinking in one decision, as factors.
max-scale-up-rate: \"1000.0\"
max-scale-down-rate: \"2.0\"
# Scale to zero, and how long the last pod stays.
enable-scale-to-zero: \"true\"
scale-to-zero-grace-period: \"30s\"
scale-to-zero-pod-retention-period: \"0s\"
# Who scales: kpa.autoscaling.knative.dev or hpa.autoscaling.knative.dev.
pod-autoscaler-class: \"kpa.autoscaling.knative.dev\"
# Where a revision's annotations say nothing.
initial-scale: \"1\"
allow-zero-initial-scale: \"false\"
min-scale: \"0\"
max-scale: \"0\"
max-scale-limit: \"0\"
scale-down-delay: \"0s\"
";

const DEFAULTS: &str = "\
# Seconds an answer may take, and the most a template may ask for.
revision-timeout-seconds: \"300\"
max-revision-timeout-seconds: \"600\"
# Seconds until an answer's first byte, and those it may pause; 0 for no limit.
revision-response-start-timeout-seconds: \"0\"
revision-idle-timeout-seconds: \"0\"
# Resources of containers that ask for none; all are unset at first.
revision-cpu-request: \"400m\"
revision-memory-request: \"100M\"
revision-ephemeral-storage-request: \"500M\"
revision-cpu-limit: \"1000m\"
revision-memory-limit: \"200M\"
revision-ephemeral-storage-limit: \"750M\"
# Names of containers that have none.
container-name-template: \"user-container\"
init-container-name-template: \"init-container\"
# Requests at a time; 0 for no limit.
container-concurrency: \"0\"
container-concurrency-max-limit: \"1000\"
allow-container-concurrency-zero: \"true\"
# Whether pods get variables of the services around them: true, false or default.
enable-service-links: \"false\"
";

const DOMAIN: &str = "\
# Suffixes of host names with the labels a route needs for each; the most specific one that fits is taken.
example.com: \"\"
example.org: |
  selector:
    app: nonprofit
# Reached from inside the cluster only.
svc.cluster.local: |
  selector:
    app: secret
";

const FEATURES: &str = "\
# enabled, allowed or disabled.
multi-container: \"enabled\"
tag-header-based-routing: \"disabled\"
kubernetes.podspec-affinity: \"disabled\"
kubernetes.podspec-fieldref: \"disabled\"
kubernetes.podspec-init-containers: \"disabled\"
kubernetes.podspec-nodeselector: \"disabled\"
kubernetes.podspec-persistent-volume-claim: \"disabled\"
kubernetes.podspec-persistent-volume-write: \"disabled\"
kubernetes.podspec-runtimeclassname: \"disabled\"
kubernetes.podspec-securitycontext: \"disabled\"
kubernetes.podspec-tolerations: \"disabled\"
kubernetes.podspec-volumes-emptydir: \"enabled\"
";

const GC: &str = "\
# A revision without a route is kept this long after it was made and after it last had one...
retain-since-create-time: \"48h\"
retain-since-last-active-time: \"15h\"
# ...but always so many, and never more than so many. `disabled` turns a rule off.
min-non-active-revisions: \"20\"
max-non-active-revisions: \"1000\"
";

const NETWORK: &str = "\
# Host names of routes and of their tags.
domain-template: \"{{.Name}}.{{.Namespace}}.{{.Domain}}\"
tag-template: \"{{.Tag}}-{{.Name}}\"
default-external-scheme: \"http\"
http-protocol: \"enabled\"
# Seconds that a new revision takes to get all of its traffic.
rollout-duration: \"0\"
";

const DEPLOYMENT: &str = "\
# How long a deployment may make no progress before its revision has failed.
progress-deadline: \"600s\"
";

const OBSERVABILITY: &str = "\
# Whether each request becomes a line of the program's log.
logging.enable-request-log: \"false\"
";

/// The ConfigMaps, to be made where they are not there yet.
pub(crate) fn config_maps() -> Vec<Value> {
    // Wasm pods are chosen by runtime class; a claim or an init container hurts nobody.
    let on = json!({
        "kubernetes.podspec-runtimeclassname": "enabled",
        "kubernetes.podspec-init-containers": "enabled",
        "kubernetes.podspec-persistent-volume-claim": "enabled",
        "kubernetes.podspec-persistent-volume-write": "enabled",
    });
    [
        ("autoscaler", AUTOSCALER, json!({})),
        ("defaults", DEFAULTS, json!({})),
        ("domain", DOMAIN, json!({})),
        ("features", FEATURES, on),
        ("gc", GC, json!({})),
        ("network", NETWORK, json!({})),
        ("deployment", DEPLOYMENT, json!({})),
        ("observability", OBSERVABILITY, json!({})),
    ]
    .into_iter()
    .map(|(name, example, mut data)| {
        data["_example"] = example.into();
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": format!("config-{name}"), "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/name": "knative-serving"}},
            "data": data,
        })
    })
    .collect()
}

//! Which behaviour a group and kind has.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::Kind;
use crate::core::{config, endpoints, event, namespace, node, quota, service, service_account};
use crate::workloads::{cron_job, daemon_set, deployment, job, replica_set, revision, stateful_set};
use crate::pod;

/// A kind with nothing special.
struct Neutral;

impl Kind for Neutral {}

type Row = (&'static str, &'static str, &'static dyn Kind);

const ROWS: &[Row] = &[
    ("", "ComponentStatus", &service_account::ComponentStatus),
    ("", "ConfigMap", &config::ConfigMap),
    ("", "Endpoints", &endpoints::Endpoints),
    ("", "Event", &event::Event),
    ("", "LimitRange", &quota::LimitRange),
    ("", "Namespace", &namespace::Namespace),
    ("", "Node", &node::Node),
    ("", "Pod", &pod::Pod),
    ("", "PodTemplate", &pod::PodTemplate),
    ("", "ReplicationController", &replica_set::ReplicationController),
    ("", "ResourceQuota", &quota::ResourceQuota),
    ("", "Secret", &config::Secret),
    ("", "Service", &service::Service),
    ("", "ServiceAccount", &service_account::ServiceAccount),
    ("apps", "ControllerRevision", &revision::ControllerRevision),
    ("apps", "DaemonSet", &daemon_set::DaemonSet),
    ("apps", "Deployment", &deployment::Deployment),
    ("apps", "ReplicaSet", &replica_set::ReplicaSet),
    ("apps", "StatefulSet", &stateful_set::StatefulSet),
    ("batch", "CronJob", &cron_job::CronJob),
    ("batch", "Job", &job::Job),
    ("discovery.k8s.io", "EndpointSlice", &endpoints::EndpointSlice),
    ("events.k8s.io", "Event", &event::NewEvent),
];

static TABLE: LazyLock<HashMap<(&'static str, &'static str), &'static dyn Kind>> =
    LazyLock::new(|| ROWS.iter().map(|(group, kind, behaviour)| ((*group, *kind), *behaviour)).collect());

/// The behaviour of that kind; a neutral one when there is nothing special about it.
pub fn kind(group: &str, kind: &str) -> &'static dyn Kind {
    TABLE.get(&(group, kind)).copied().unwrap_or(&Neutral)
}

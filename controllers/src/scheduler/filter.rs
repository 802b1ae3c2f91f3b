//! Which nodes a pod may go to: a list of small questions, asked in order until one says no.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint,
};
use wasmk_api::{Operator, Requirement};

use crate::taint_eviction::tolerates;

use super::{
    cycle::Cycle,
    explain::{Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
};

/// One question. The cycle holds what was worked out once for all nodes.
pub(super) type Filter = fn(&PodInfo, &NodeInfo, &Cycle) -> Result<(), Rejection>;

/// All questions: cheap and often decisive ones first.
pub(super) const FILTERS: &[Filter] = &[
    unschedulable,
    node_name,
    taints,
    node_affinity,
    runtime_handler,
    host_ports,
    resources,
    volumes,
    volume_limits,
    topology_spread,
    pod_affinity,
];

/// Whether the node may take the pod.
pub(super) fn admit(pod: &PodInfo, node: &NodeInfo, cycle: &Cycle) -> Result<(), Rejection> {
    FILTERS.iter().try_for_each(|filter| filter(pod, node, cycle))
}

fn unschedulable(pod: &PodInfo, node: &NodeInfo, _: &Cycle) -> Result<(), Rejection> {
    let marked = node.node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    let mark = || Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    if !marked || pod.tolerations().iter().any(|t| tolerates(t, &mark())) {
        return Ok(());
    }
    Err(Rejection::by_node(Plugin::NodeUnschedulable, "node(s) were unschedulable"))
}

fn node_name(pod: &PodInfo, node: &NodeInfo, _: &Cycle) -> Result<(), Rejection> {
    match pod.spec().and_then(|s| s.node_name.as_deref()) {
        Some(name) if !name.is_empty() && name != node.name => {
            Err(Rejection::by_node(Plugin::NodeName, "node(s) didn't match the requested node name"))
        }
        _ => Ok(()),
    }
}

fn taints(pod: &PodInfo, node: &NodeInfo, _: &Cycle) -> Result<(), Rejection> {
    let repels = |t: &&Taint| {
        matches!(&*t.effect, "NoSchedule" | "NoExecute") && !pod.tolerations().iter().any(|o| tolerates(o, t))
    };
    if node.taints().any(|t| repels(&t)) {
        return Err(Rejection::by_node(Plugin::TaintToleration, "node(s) had untolerated taint(s)"));
    }
    Ok(())
}

/// Whether a daemon's pod may start on a node, and whether one that runs there may stay.
/// Resources do not count: the scheduler looks at them when it comes to that.
pub(crate) fn suits_daemon(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let repels = |effect: &str| {
        let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).filter(|t| t.effect == effect);
        taints.into_iter().any(|t| !spec.tolerations.iter().flatten().any(|o| tolerates(o, t)))
    };
    let named = spec.node_name.as_deref().filter(|name| !name.is_empty());
    let fits = named.is_none_or(|name| name == name_of(node)) && suits_affinity(spec, node);
    let stay = fits && !repels("NoExecute");
    (stay && !repels("NoSchedule"), stay)
}

fn name_of(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or("")
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn node_affinity(pod: &PodInfo, node: &NodeInfo, cycle: &Cycle) -> Result<(), Rejection> {
    if fits_affinity(pod, node) && cycle.class_selector.as_ref().is_none_or(|s| selected(s, &node.node)) {
        return Ok(());
    }
    Err(Rejection::by_node(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector"))
}

fn selected(wanted: &BTreeMap<String, String>, node: &Node) -> bool {
    wanted.iter().all(|(key, value)| label(node, key) == Some(value))
}

/// Whether the pod's node selector and required node affinity allow the node.
pub(super) fn fits_affinity(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.spec().is_none_or(|spec| suits_affinity(spec, &node.node))
}

fn suits_affinity(spec: &PodSpec, node: &Node) -> bool {
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    spec.node_selector.as_ref().is_none_or(|s| selected(s, node)) && required.is_none_or(|r| selects(r, node))
}

/// Whether any term of a selector matches the node.
pub(super) fn selects(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// Whether all of a term's requirements hold; an empty term matches nothing.
pub(super) fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (labels, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    if labels.clone().next().is_none() && fields.clone().next().is_none() {
        return false;
    }
    let by_label = labels.map(|r| (r, label(node, &r.key)));
    let by_field = fields.map(|r| (r, (r.key == "metadata.name").then_some(name_of(node))));
    by_label.chain(by_field).all(|(r, value)| requirement(r).is_some_and(|r| r.matches(value)))
}

fn requirement(wanted: &NodeSelectorRequirement) -> Option<Requirement> {
    let values = || wanted.values.clone().unwrap_or_default();
    let number = || values().first()?.parse().ok();
    let operator = match &*wanted.operator {
        "In" => Operator::In(values()),
        "NotIn" => Operator::NotIn(values()),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::Gt(number()?),
        "Lt" => Operator::Lt(number()?),
        _ => return None,
    };
    Some(Requirement { key: wanted.key.clone(), operator })
}

/// A node that says which runtimes it has must have the pod's.
fn runtime_handler(_: &PodInfo, node: &NodeInfo, cycle: &Cycle) -> Result<(), Rejection> {
    let Some(wanted) = &cycle.runtime_handler else { return Ok(()) };
    let offered = node.node.status.as_ref().and_then(|s| s.runtime_handlers.as_deref()).unwrap_or(&[]);
    if offered.is_empty() || offered.iter().any(|h| h.name.as_ref() == Some(wanted)) {
        return Ok(());
    }
    Err(Rejection::by_node(
        Plugin::RuntimeHandler,
        format!("node(s) didn't offer runtime handler {wanted:?}"),
    ))
}

fn host_ports(pod: &PodInfo, node: &NodeInfo, _: &Cycle) -> Result<(), Rejection> {
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    let clash = |(protocol, ip, port): &(String, String, i32)| {
        node.ports.iter().any(|(p, i, n)| p == protocol && n == port && (i == ip || any(i) || any(ip)))
    };
    if !pod.ports.iter().any(clash) {
        return Ok(());
    }
    let reason = "node(s) didn't have free ports for the requested pod ports";
    Err(Rejection::by_pods(Plugin::NodePorts, vec![reason.into()]))
}

fn resources(pod: &PodInfo, node: &NodeInfo, _: &Cycle) -> Result<(), Rejection> {
    let (want, all, used) = (&pod.requests, &node.allocatable, &node.requested);
    let mut lacks: Vec<Cow<'static, str>> = Vec::new();
    // More than the whole node has is not to be had by removing others.
    let mut resolvable = true;
    if used.pods + 1 > all.pods {
        lacks.push("Too many pods".into());
        resolvable = all.pods > 0;
    }
    let mut need = |reason: Cow<'static, str>, want: i64, all: i64, used: i64| {
        if want > 0 && want > all - used {
            lacks.push(reason);
            resolvable &= want <= all;
        }
    };
    need("Insufficient cpu".into(), want.cpu, all.cpu, used.cpu);
    need("Insufficient memory".into(), want.memory, all.memory, used.memory);
    need("Insufficient ephemeral-storage".into(), want.storage, all.storage, used.storage);
    for (name, amount) in &want.other {
        let of = |map: &BTreeMap<String, i64>| map.get(name).copied().unwrap_or(0);
        need(format!("Insufficient {name}").into(), *amount, of(&all.other), of(&used.other));
    }
    if lacks.is_empty() {
        return Ok(());
    }
    Err(Rejection { filter: Plugin::NodeResourcesFit, reasons: lacks, resolvable })
}

fn volumes(_: &PodInfo, node: &NodeInfo, cycle: &Cycle) -> Result<(), Rejection> {
    match cycle.volume_places.iter().find(|place| !selects(&place.nodes, &node.node)) {
        None => Ok(()),
        Some(place) => Err(Rejection::by_node(place.filter, place.reason)),
    }
}

fn volume_limits(_: &PodInfo, node: &NodeInfo, cycle: &Cycle) -> Result<(), Rejection> {
    if cycle.volume_limits.as_ref().is_none_or(|limits| limits.allow(node)) {
        return Ok(());
    }
    Err(Rejection::by_pods(Plugin::NodeVolumeLimits, vec!["node(s) exceed max volume count".into()]))
}

fn topology_spread(_: &PodInfo, node: &NodeInfo, cycle: &Cycle) -> Result<(), Rejection> {
    const NAME: Plugin = Plugin::PodTopologySpread;
    let base = "node(s) didn't match pod topology spread constraints";
    for constraint in &cycle.others.spread {
        match constraint.skew_at(node.place) {
            None => return Err(Rejection::by_node(NAME, format!("{base} (missing required label)"))),
            Some(skew) if skew > constraint.max_skew => {
                return Err(Rejection::by_pods(NAME, vec![base.into()]));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn pod_affinity(_: &PodInfo, node: &NodeInfo, cycle: &Cycle) -> Result<(), Rejection> {
    const NAME: Plugin = Plugin::InterPodAffinity;
    let others = &cycle.others;
    if !others.is_near(node.place) {
        return Err(Rejection::by_node(NAME, "node(s) didn't match pod affinity rules"));
    }
    if !others.is_far(node.place) {
        return Err(Rejection::by_pods(NAME, vec!["node(s) didn't match pod anti-affinity rules".into()]));
    }
    if !others.is_wanted(node.place) {
        let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
        return Err(Rejection::by_pods(NAME, vec![reason.into()]));
    }
    Ok(())
}

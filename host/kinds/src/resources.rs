//! What containers ask for together, and the quality of service that follows.

use serde_json::{Map, Value};
use wasmk_api::Quantity;

use crate::value::{entries, list, map, or_null, text};

fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

/// What all containers of a pod request of one resource together, as its quantity's text; `None` when no
/// container states a request.
///
/// Init containers run before the others: the larger of their largest request and the sum of the others
/// counts. Init containers that restart always run beside everything after them.
pub(crate) fn sum_of_requests(spec: &Map<String, Value>, resource: &str) -> Option<String> {
    let items = |key: &str| spec.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let request = |c: &Value| quantity(or_null(or_null(or_null(c, "resources"), "requests"), resource));
    let mut found = false;
    let mut note = |c: &Value| {
        let amount = request(c);
        found |= amount.is_some();
        amount.unwrap_or_default()
    };
    let mut sidecars = Quantity::default();
    let mut peak = Quantity::default();
    for c in items("initContainers") {
        let amount = note(c);
        if text(c, "restartPolicy") == "Always" {
            sidecars = sidecars + amount;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + amount);
        }
    }
    let together = items("containers").iter().map(&mut note).sum::<Quantity>() + sidecars;
    found.then(|| together.max(peak).to_string())
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let pod_level = or_null(spec, "resources");
    let has_pod_level = map(pod_level, "requests").is_some() || map(pod_level, "limits").is_some();
    let containers = list(spec, "containers").iter().chain(list(spec, "initContainers"));
    let holders: Vec<&Value> =
        if has_pod_level { vec![pod_level] } else { containers.map(|c| or_null(c, "resources")).collect() };
    let positive = |holder: &Value, key: &str| {
        entries(holder, key)
            .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"))
            .filter_map(|(name, value)| Some((name.clone(), quantity(value)?)))
            .filter(|(_, amount)| *amount > Quantity::default())
            .collect::<Vec<_>>()
    };
    let mut guaranteed = true;
    let mut requests: Vec<(String, Quantity)> = Vec::new();
    let mut limits: Vec<(String, Quantity)> = Vec::new();
    for holder in holders {
        let own_limits = positive(holder, "limits");
        guaranteed &= own_limits.len() == 2;
        add_up(&mut requests, positive(holder, "requests"));
        add_up(&mut limits, own_limits);
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal = requests.len() == limits.len() && requests.iter().all(|r| limits.contains(r));
    if guaranteed && equal { "Guaranteed" } else { "Burstable" }
}

fn add_up(sums: &mut Vec<(String, Quantity)>, amounts: Vec<(String, Quantity)>) {
    for (name, amount) in amounts {
        match sums.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = *sum + amount,
            None => sums.push((name, amount)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quality_of_service() {
        let pod = |resources: Value| json!({"containers": [{"name": "c", "resources": resources}]});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (
                json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}),
                "Guaranteed",
            ),
            (
                json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}),
                "Burstable",
            ),
        ] {
            assert_eq!(qos_class(&pod(resources)), class);
        }
    }
}

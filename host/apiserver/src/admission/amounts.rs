//! Amounts of resources of containers, pods and claims.

use std::collections::BTreeMap;

use serde_json::Value;
use wasmk_api::{Object, Quantity};

/// Amounts by resource name.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// An amount at a key of a map.
pub(crate) fn amount(map: Option<&Value>, name: &str) -> Option<Quantity> {
    quantity(map?.get(name)?)
}

/// A quantity written as text or number.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// All amounts of a map.
pub(crate) fn amounts(map: Option<&Value>) -> Amounts {
    let pairs = map.and_then(Value::as_object).into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((name.clone(), quantity(value)?))).collect()
}

/// An amount as messages show it: with binary suffixes when `like` has one.
pub(crate) fn show(amount: Quantity, like: &str) -> String {
    const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if !like.ends_with('i') || !amount.is_whole() {
        return amount.to_string();
    }
    let (mut value, mut step) = (amount.value(), 0);
    while step < BINARY.len() - 1 && value != 0 && value % 1024 == 0 {
        value /= 1024;
        step += 1;
    }
    format!("{value}{}", BINARY[step])
}

fn containers<'a>(pod: &'a Object, list: &'a str) -> impl Iterator<Item = &'a Value> {
    pod.at(&["spec", list]).and_then(Value::as_array).into_iter().flatten()
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = *sum + *amount;
    }
}

fn greatest(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let most = total.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

/// What a pod asks for (`kind` is `requests` or `limits`): its containers together, or more where an init container
/// needs more, with its overhead. What the pod says as a whole goes first.
pub(crate) fn of_pod(pod: &Object, kind: &str) -> Amounts {
    let of = |container: &Value| amounts(container.get("resources").and_then(|r| r.get(kind)));
    let mut total = Amounts::new();
    containers(pod, "containers").for_each(|c| add(&mut total, &of(c)));
    let (mut beside, mut peak) = (Amounts::new(), Amounts::new());
    for container in containers(pod, "initContainers") {
        let mut need = of(container);
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            // A sidecar goes on beside everything that starts after it.
            add(&mut beside, &need);
            greatest(&mut peak, &beside);
        } else {
            add(&mut need, &beside);
            greatest(&mut peak, &need);
        }
    }
    add(&mut total, &beside);
    greatest(&mut total, &peak);
    for (name, amount) in amounts(pod.at(&["spec", "resources", kind])) {
        total.insert(name, amount);
    }
    let overhead = amounts(pod.at(&["spec", "overhead"]));
    if kind == "requests" {
        add(&mut total, &overhead);
    } else {
        let limited: Amounts = overhead.into_iter().filter(|(name, _)| total.contains_key(name)).collect();
        add(&mut total, &limited);
    }
    total
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_asks_for_its_containers_or_its_greediest_start() {
        let pod = |init: Value| {
            Object::from_value(json!({"spec": {
                "containers": [{"resources": {"requests": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "500m"}}}],
                "initContainers": [init], "overhead": {"cpu": "100m"},
            }}))
            .unwrap()
        };
        let cpu = |pod: Object| of_pod(&pod, "requests")["cpu"].to_string();
        assert_eq!(cpu(pod(json!({"resources": {"requests": {"cpu": 1}}}))), "1600m");
        assert_eq!(cpu(pod(json!({"resources": {"requests": {"cpu": 4}}}))), "4100m");
        assert_eq!(
            cpu(pod(json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": 4}}}))),
            "5600m"
        );
    }

    #[test]
    fn amounts_are_shown_as_they_were_written() {
        assert_eq!(show("2048Mi".parse().unwrap(), "3Gi"), "2Gi");
        assert_eq!(show("1500m".parse().unwrap(), "2"), "1500m");
    }
}

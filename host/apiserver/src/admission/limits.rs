//! Limit ranges: defaults for containers that say nothing, and bounds for those that do.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wasmk_api::{Object, Quantity, Status};

use super::{
    PODS,
    amounts::{amount, amounts, of_pod, quantity},
};
use crate::{
    cache::Filter,
    write::{Mode, Work},
};

const NOTE: &str = "kubernetes.io/limit-ranger";

/// One item of a limit range's limits.
struct Limit(Value);

fn limits(work: &Work<'_>) -> Vec<Limit> {
    let filter = Filter { namespace: work.namespace().into(), ..Filter::default() };
    let ranges = work.core.caches.of("core/limitranges").list(&filter);
    let items = ranges.iter().flat_map(|e| {
        e.object().at(&["spec", "limits"]).and_then(Value::as_array).cloned().unwrap_or_default()
    });
    items.map(Limit).collect()
}

impl Limit {
    fn is(&self, kind: &str) -> bool {
        self.0.get("type").and_then(Value::as_str) == Some(kind)
    }
}

/// Gives the containers of a new pod the defaults of the namespace.
pub(crate) fn mutate(work: &Work<'_>, pod: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if old.is_some() {
        return Ok(());
    }
    let filter = Filter { namespace: work.namespace().into(), ..Filter::default() };
    for range in work.core.caches.of("core/limitranges").list(&filter) {
        let range = range.object();
        let (mut requests, mut most) = (serde_json::Map::new(), serde_json::Map::new());
        for item in range.at(&["spec", "limits"]).and_then(Value::as_array).into_iter().flatten() {
            if item.get("type").and_then(Value::as_str) == Some("Container") {
                for (key, into) in [("defaultRequest", &mut requests), ("default", &mut most)] {
                    into.extend(item.get(key).and_then(Value::as_object).cloned().into_iter().flatten());
                }
            }
        }
        if requests.is_empty() && most.is_empty() {
            continue;
        }
        let mut notes = Vec::new();
        for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
            let containers =
                pod.0.get_mut("spec").and_then(|s| s.get_mut(list)).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                fill(container, word, &requests, &most, &mut notes);
            }
        }
        if !notes.is_empty() {
            let text = format!("LimitRanger plugin set: {}", notes.join("; "));
            let annotations = pod.metadata_mut().entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.insert(NOTE.into(), text.into());
            }
        }
    }
    Ok(())
}

fn fill(
    container: &mut Value,
    word: &str,
    requests: &serde_json::Map<String, Value>,
    most: &serde_json::Map<String, Value>,
    notes: &mut Vec<String>,
) {
    let name = container.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
    for (kind, defaults, singular) in [("requests", requests, "request"), ("limits", most, "limit")] {
        let mut set = Vec::new();
        let Some(resources) =
            container.as_object_mut().map(|c| c.entry("resources").or_insert_with(|| json!({})))
        else {
            return;
        };
        let Some(resources) = resources.as_object_mut() else { return };
        for (resource, value) in defaults {
            let map = resources.entry(kind).or_insert_with(|| json!({}));
            if let Some(map) = map.as_object_mut()
                && !map.contains_key(resource)
            {
                map.insert(resource.clone(), value.clone());
                set.push(resource.clone());
            }
        }
        if !set.is_empty() {
            set.sort();
            notes.push(format!("{} {singular} for {word} {name}", set.join(", ")));
        }
    }
}

/// Refuses what is outside of the bounds.
pub(crate) fn validate(work: &Work<'_>, new: &Object, old: Option<&Object>, _: Mode) -> Result<(), Status> {
    if old.is_some() {
        return Ok(());
    }
    let limits = limits(work);
    if limits.is_empty() {
        return Ok(());
    }
    let mut wrong = Vec::new();
    if work.resource.storage == PODS {
        for limit in limits.iter().filter(|l| l.is("Container")) {
            for list in ["containers", "initContainers"] {
                for container in new.at(&["spec", list]).and_then(Value::as_array).into_iter().flatten() {
                    let requests = container.pointer("/resources/requests");
                    let most = container.pointer("/resources/limits");
                    bounds(limit, "Container", &texts(requests), &texts(most), &mut wrong);
                }
            }
        }
        let (requests, most) = (shown(&of_pod(new, "requests")), shown(&of_pod(new, "limits")));
        for limit in limits.iter().filter(|l| l.is("Pod")) {
            let only = |amounts: &Texts, other: &str| -> Texts {
                let exact = texts_of_single(new, other);
                amounts.iter().map(|(k, v)| (k.clone(), exact.get(k).unwrap_or(v).clone())).collect()
            };
            bounds(limit, "Pod", &only(&requests, "requests"), &only(&most, "limits"), &mut wrong);
        }
    } else {
        let requests = texts(new.at(&["spec", "resources", "requests"]));
        for limit in limits.iter().filter(|l| l.is("PersistentVolumeClaim")) {
            claim_bounds(limit, &requests, &mut wrong);
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let why = if wrong.len() == 1 { wrong.remove(0) } else { format!("[{}]", wrong.join(", ")) };
    Err(Status::forbidden(&work.resource.group_resource(), new.name(), &why))
}

/// Amounts with the text they are shown as.
type Texts = BTreeMap<String, (Quantity, String)>;

fn texts(map: Option<&Value>) -> Texts {
    let pairs = map.and_then(Value::as_object).into_iter().flatten();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), Into::into);
    pairs.filter_map(|(k, v)| Some((k.clone(), (quantity(v)?, text(v))))).collect()
}

fn shown(amounts: &super::amounts::Amounts) -> Texts {
    amounts.iter().map(|(k, v)| (k.clone(), (*v, v.to_string()))).collect()
}

/// What the only container of a pod says, in its own writing.
fn texts_of_single(pod: &Object, kind: &str) -> Texts {
    let containers = pod.at(&["spec", "containers"]).and_then(Value::as_array);
    match containers.map(Vec::as_slice) {
        Some([only]) if pod.at(&["spec", "initContainers"]).is_none() => {
            texts(only.get("resources").and_then(|r| r.get(kind)))
        }
        _ => Texts::new(),
    }
}

fn bounds(limit: &Limit, kind: &str, requests: &Texts, most: &Texts, wrong: &mut Vec<String>) {
    for (name, (bound, text)) in texts(limit.0.get("min")) {
        let (request, upper) = (requests.get(&name), most.get(&name));
        match (request, upper) {
            (None, None) => {
                wrong.push(format!("minimum {name} usage per {kind} is {text}.  No request is specified"))
            }
            (Some((amount, shown)), _) if *amount < bound => {
                wrong.push(format!("minimum {name} usage per {kind} is {text}, but request is {shown}"));
            }
            (_, Some((amount, shown))) if *amount < bound => {
                wrong.push(format!("minimum {name} usage per {kind} is {text}, but limit is {shown}"));
            }
            (None, Some(_)) => {
                wrong.push(format!("minimum {name} usage per {kind} is {text}.  No request is specified"))
            }
            _ => {}
        }
    }
    for (name, (bound, text)) in texts(limit.0.get("max")) {
        match (requests.get(&name), most.get(&name)) {
            (_, None) => {
                wrong.push(format!("maximum {name} usage per {kind} is {text}.  No limit is specified"))
            }
            (_, Some((amount, shown))) if *amount > bound => {
                wrong.push(format!("maximum {name} usage per {kind} is {text}, but limit is {shown}"));
            }
            (Some((amount, shown)), _) if *amount > bound => {
                wrong.push(format!("maximum {name} usage per {kind} is {text}, but request is {shown}"));
            }
            _ => {}
        }
    }
    for (name, ratio) in amounts(limit.0.get("maxLimitRequestRatio")) {
        let text = limit
            .0
            .pointer("/maxLimitRequestRatio")
            .and_then(|m| m.get(&name))
            .cloned()
            .unwrap_or(Value::Null);
        let text = text.as_str().map_or_else(|| text.to_string(), Into::into);
        match (requests.get(&name), most.get(&name)) {
            (Some((request, _)), Some((upper, _))) if request.milli_value() > 0 => {
                #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
                let found = upper.milli_value() as f64 / request.milli_value() as f64;
                #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
                let allowed = ratio.milli_value() as f64 / 1000.0;
                if found > allowed {
                    wrong.push(format!(
                        "{name} max limit to request ratio per {kind} is {text}, but provided ratio is {found:.6}"
                    ));
                }
            }
            (None, _) => wrong.push(format!("{name} max limit to request ratio per {kind} is {text}, but no request is specified or request is 0")),
            (_, None) => wrong.push(format!("{name} max limit to request ratio per {kind} is {text}, but no limit is specified or limit is 0")),
            _ => {}
        }
    }
}

fn claim_bounds(limit: &Limit, requests: &Texts, wrong: &mut Vec<String>) {
    let kind = "PersistentVolumeClaim";
    for (key, word) in [("min", "minimum"), ("max", "maximum")] {
        let Some(bound) = amount(limit.0.get(key), "storage") else { continue };
        let text = &texts(limit.0.get(key))["storage"].1.clone();
        match requests.get("storage") {
            None => {
                wrong.push(format!("{word} storage usage per {kind} is {text}.  No request is specified"))
            }
            Some((asked, shown)) if (key == "min" && *asked < bound) || (key == "max" && *asked > bound) => {
                wrong.push(format!("{word} storage usage per {kind} is {text}, but request is {shown}"));
            }
            Some(_) => {}
        }
    }
}

//! Pods: priority, default tolerations, what their runtime class adds.

use serde_json::{Value, json};
use wasmk_api::{Object, Status};

use crate::{cache::Filter, write::Work};

const CLASSES: &str = "scheduling.k8s.io/priorityclasses";
/// How long pods stay on a node that is not ready, in seconds.
const TOLERATED: i64 = 300;

fn text<'a>(pod: &'a Object, key: &str) -> &'a str {
    pod.at(&["spec", key]).and_then(Value::as_str).unwrap_or("")
}

fn forbidden(work: &Work<'_>, pod: &Object, why: &str) -> Status {
    Status::forbidden(&work.resource.group_resource(), pod.name(), why)
}

fn set(pod: &mut Object, key: &str, value: Value) {
    if let Some(spec) = pod.0.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert(key.into(), value);
    }
}

/// Resolves the priority class of a pod that is created.
pub(crate) fn priority(work: &Work<'_>, pod: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if let Some(old) = old {
        for key in ["priority", "preemptionPolicy"] {
            if let (None, Some(value)) = (pod.at(&["spec", key]), old.at(&["spec", key]).cloned()) {
                set(pod, key, value);
            }
        }
        return Ok(());
    }
    let classes = work.core.caches.of(CLASSES);
    let class = match text(pod, "priorityClassName") {
        "" => default_class(work),
        name => match classes.get(name) {
            Some(entry) => Some(entry.object()),
            None => {
                return Err(forbidden(work, pod, &format!("no PriorityClass with name {name} was found")));
            }
        },
    };
    let value = class.as_ref().and_then(|c| c.0.get("value")).and_then(Value::as_i64).unwrap_or(0);
    let given = pod.at(&["spec", "priority"]).and_then(Value::as_i64);
    if let Some(given) = given.filter(|g| *g != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(forbidden(work, pod, &why));
    }
    let policy = class.as_ref().and_then(|c| c.0.get("preemptionPolicy")).and_then(Value::as_str);
    let policy = policy.unwrap_or("PreemptLowerPriority");
    let wanted = text(pod, "preemptionPolicy");
    if !wanted.is_empty() && wanted != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({wanted}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(forbidden(work, pod, &why));
    }
    if let Some(class) = &class
        && text(pod, "priorityClassName").is_empty()
    {
        set(pod, "priorityClassName", class.name().into());
    }
    set(pod, "priority", value.into());
    set(pod, "preemptionPolicy", policy.into());
    Ok(())
}

/// The class marked as default, the lowest if there are several.
fn default_class(work: &Work<'_>) -> Option<Object> {
    let all = work.core.caches.of(CLASSES).list(&Filter::default());
    let marked =
        all.iter().map(|e| e.object()).filter(|c| c.0.get("globalDefault") == Some(&Value::Bool(true)));
    marked.min_by_key(|c| c.0.get("value").and_then(Value::as_i64))
}

/// Only one class may be the default.
pub(crate) fn priority_class(work: &Work<'_>, class: &mut Object, _: Option<&Object>) -> Result<(), Status> {
    if class.0.get("globalDefault") != Some(&Value::Bool(true)) {
        return Ok(());
    }
    match default_class(work) {
        Some(other) if other.name() != class.name() => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other.name()
            );
            Err(forbidden(work, class, &why))
        }
        _ => Ok(()),
    }
}

/// Pods stay for a while on a node that is not ready or cannot be reached, unless they say otherwise.
pub(crate) fn tolerations(_: &Work<'_>, pod: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    if old.is_some() {
        return Ok(());
    }
    let Some(spec) = pod.0.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return Ok(()) };
    let text = |t: &Value, key: &str| t.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|t| {
            (text(t, "key") == key || text(t, "key").is_empty())
                && matches!(&*text(t, "effect"), "NoExecute" | "")
        });
        if !tolerated {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATED,
            }));
        }
    }
    Ok(())
}

/// Adds the overhead and the scheduling constraints of the runtime class a pod names.
pub(crate) fn runtime_class(work: &Work<'_>, pod: &mut Object, old: Option<&Object>) -> Result<(), Status> {
    let name = text(pod, "runtimeClassName").to_owned();
    if old.is_some() {
        return Ok(());
    }
    if name.is_empty() {
        let given = pod.at(&["spec", "overhead"]).and_then(Value::as_object).is_some_and(|o| !o.is_empty());
        return match given {
            true => Err(forbidden(
                work,
                pod,
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            false => Ok(()),
        };
    }
    let Some(class) = work.core.caches.of("node.k8s.io/runtimeclasses").get(&name) else {
        return Err(forbidden(work, pod, &format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    let class = class.object();
    let fixed = class.at(&["overhead", "podFixed"]).filter(|o| o.as_object().is_some_and(|o| !o.is_empty()));
    let given = pod.at(&["spec", "overhead"]).filter(|o| o.as_object().is_some_and(|o| !o.is_empty()));
    match (fixed, given) {
        (Some(fixed), None) => set(pod, "overhead", fixed.clone()),
        (Some(fixed), Some(given)) if fixed == given => {}
        (None, None) => {}
        _ => {
            return Err(forbidden(
                work,
                pod,
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ));
        }
    }
    schedule(work, pod, &class)
}

fn schedule(work: &Work<'_>, pod: &mut Object, class: &Object) -> Result<(), Status> {
    if let Some(wanted) = class.at(&["scheduling", "nodeSelector"]).and_then(Value::as_object) {
        let mut selector =
            pod.at(&["spec", "nodeSelector"]).and_then(Value::as_object).cloned().unwrap_or_default();
        for (key, value) in wanted {
            match selector.get(key) {
                Some(own) if own != value => {
                    return Err(forbidden(
                        work,
                        pod,
                        &format!(
                            "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                            value.as_str().unwrap_or(""),
                            own.as_str().unwrap_or("")
                        ),
                    ));
                }
                _ => {
                    selector.insert(key.clone(), value.clone());
                }
            }
        }
        set(pod, "nodeSelector", selector.into());
    }
    if let Some(more) = class.at(&["scheduling", "tolerations"]).and_then(Value::as_array) {
        let mut all = pod.at(&["spec", "tolerations"]).and_then(Value::as_array).cloned().unwrap_or_default();
        let new: Vec<Value> = more.iter().filter(|t| !all.contains(t)).cloned().collect();
        all.extend(new);
        set(pod, "tolerations", all.into());
    }
    Ok(())
}

//! The pod that `POD` or `TYPE/NAME` means.

use anyhow::{Result, bail};
use serde_json::Value;

use super::{api::Api, output::Output, resources::Resources, selection::with_query};

/// The pod of that name, or one of the workload's: the oldest that is ready, else the oldest.
///
/// # Errors
/// When there is no such object, or it has no pods.
pub(super) async fn one(api: &Api, word: &str) -> Result<Value> {
    let namespace = api.default_namespace();
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let (kind, name) = word.split_once('/').unwrap_or(("pods", word));
    let resources = Resources::discover(api).await?;
    let resource = resources.single(kind)?;
    let object = api.get(&format!("{}/{name}", resource.path(Some(namespace)))).await?;
    if resource.kind == "Pod" {
        return Ok(object);
    }
    let selector = selector_of(&object);
    if selector.is_empty() {
        bail!("{} selects no pods", resource.named(name));
    }
    let mut pods = listed(api, &path, &selector).await?;
    pods.sort_by_key(|p| (!is_ready(p), text(&p["metadata"]["creationTimestamp"])));
    if pods.is_empty() {
        bail!("no pods of {} are there", resource.named(name));
    }
    if pods.len() > 1 {
        let chosen = text(&pods[0]["metadata"]["name"]);
        Output::default().note(format!("Found {} pods, using pod/{chosen}", pods.len()));
    }
    Ok(pods.swap_remove(0))
}

/// The pods with those labels.
pub(super) async fn listed(api: &Api, path: &str, selector: &str) -> Result<Vec<Value>> {
    let list = api.get(&with_query(path, &[("labelSelector", selector)])).await?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// The container meant when none is named: as an annotation says, or the first.
pub(super) fn default_container(pod: &Value) -> Option<String> {
    let mut names =
        pod["spec"]["containers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str());
    let wanted = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let first = names.next()?;
    let chosen = wanted.filter(|wanted| *wanted == first || names.any(|name| name == *wanted));
    Some(chosen.unwrap_or(first).into())
}

/// The equality selector of a workload: `spec.selector.matchLabels`, or a plain map (services, controllers).
pub(super) fn selector_of(object: &Value) -> String {
    let selector = &object["spec"]["selector"];
    let labels = selector.get("matchLabels").unwrap_or(selector);
    let labels = labels.as_object().into_iter().flatten();
    labels.filter_map(|(k, v)| Some(format!("{k}={}", v.as_str()?))).collect::<Vec<_>>().join(",")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A text of JSON, or nothing.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_chosen() {
        let pod = |wanted: &str| {
            let annotations = json!({"kubectl.kubernetes.io/default-container": wanted});
            let containers = json!([{"name": "a"}, {"name": "b"}]);
            json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}})
        };
        for (wanted, expect) in [("a", "a"), ("b", "b"), ("gone", "a"), ("", "a")] {
            assert_eq!(default_container(&pod(wanted)).as_deref(), Some(expect), "{wanted}");
        }
        assert_eq!(
            default_container(&json!({"spec": {"containers": [{"name": "c"}]}})).as_deref(),
            Some("c")
        );
        assert_eq!(default_container(&Value::Null), None);
    }
}

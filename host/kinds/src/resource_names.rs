//! Names of resources and amounts of them.

use serde_json::Value;
use wasmk_api::Quantity;
use wasmk_machinery::names;

use crate::errors::{At, Errors};
use crate::meta::NOT_NEGATIVE;

/// Prefix of the resources Kubernetes itself defines.
const NATIVE: &str = "kubernetes.io/";
const STANDARD_CONTAINER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const STANDARD: [&str; 24] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
    "requests.hugepages-",
    "hugepages-",
    "bindings",
    "attachable-volumes-",
];
const QUOTA_COUNTS: [&str; 9] = [
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Whether it names huge pages, which are counted in whole pages.
pub(crate) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether it names a resource some vendor defines.
pub(crate) fn is_extended(name: &str) -> bool {
    let foreign = name.contains('/') && !name.contains(NATIVE);
    foreign && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether no more of it can be promised than there is.
pub(crate) fn is_overcommittable(name: &str) -> bool {
    (!name.contains('/') || name.contains(NATIVE)) && !is_huge_page(name)
}

fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name) || is_huge_page(name) || name.starts_with("requests.hugepages-")
}

/// Checks the name of a resource of any use.
pub(crate) fn any(name: &str, at: &At<'_>, errors: &mut Errors) {
    let wrong = names::qualified_name(name);
    for why in &wrong {
        errors.invalid_text(at, name, why);
    }
    if wrong.is_empty() && !name.contains('/') && !is_standard(name) {
        errors.invalid_text(at, name, "must be a standard resource type or fully qualified");
    }
}

/// Checks the name of a resource a container can have.
pub(crate) fn of_container(name: &str, at: &At<'_>, errors: &mut Errors) {
    any(name, at, errors);
    if name.contains('/') {
        if !name.contains(NATIVE) && !is_extended(name) {
            errors.invalid_text(at, name, "doesn't follow extended resource name standard");
        }
    } else if !STANDARD_CONTAINER.contains(&name) && !is_huge_page(name) {
        errors.invalid_text(at, name, "must be a standard resource for containers");
    }
}

/// Checks the name of a resource a quota can limit.
pub(crate) fn of_quota(name: &str, at: &At<'_>, errors: &mut Errors) {
    any(name, at, errors);
    let quota = STANDARD.contains(&name) || is_huge_page(name) || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !quota {
        errors.invalid_text(at, name, "must be a standard resource for quota");
    }
}

/// Whether amounts of it are whole numbers.
fn is_counted(name: &str) -> bool {
    QUOTA_COUNTS.contains(&name) || name.starts_with("count/") || is_extended(name)
}

/// Reads a quantity.
pub(crate) fn read(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

/// Checks an amount of a resource: not below zero, whole where it is counted.
pub(crate) fn quantity_of(name: &str, value: &Value, at: &At<'_>, errors: &mut Errors) {
    let Some(amount) = read(value) else { return };
    if amount.is_negative() {
        errors.invalid(at, value, NOT_NEGATIVE);
    }
    if is_counted(name) && !amount.is_whole() {
        errors.invalid(at, value, "must be an integer");
    }
}

/// Checks that an amount is not below zero.
pub(crate) fn not_negative(value: &Value, at: &At<'_>, errors: &mut Errors) {
    if read(value).is_some_and(Quantity::is_negative) {
        errors.invalid(at, value, NOT_NEGATIVE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_resources_have_a_foreign_prefix() {
        assert!(is_extended("example.com/gpu"));
        assert!(!is_extended("cpu"));
        assert!(!is_extended("kubernetes.io/x"));
        assert!(!is_extended("requests.example.com/gpu"));
    }
}

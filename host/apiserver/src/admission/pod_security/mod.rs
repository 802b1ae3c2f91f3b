//! Pod security: the levels `baseline` and `restricted`, as the labels of a namespace ask for.
//!
//! Each check is a row: the level it belongs to, the minor version it began in, and a function that says what a pod
//! does wrong.

mod checks;

use serde_json::Value;
use wasmk_api::{Cause, Object, Status};

use checks::{Complaint, Pod};

use crate::write::{Mode, Work};

const PREFIX: &str = "pod-security.kubernetes.io/";

/// What pods are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

type Check = fn(&Pod<'_>) -> Complaint;

/// No restricted check takes the place of a check.
const ALWAYS: u32 = u32::MAX;

/// Level, first minor version, the minor version from which a restricted check takes its place, and the check.
const CHECKS: [(Level, u32, u32, Check); 18] = [
    (Level::Baseline, 0, ALWAYS, checks::app_armor),
    (Level::Baseline, 0, 22, checks::capabilities),
    (Level::Baseline, 0, ALWAYS, checks::host_namespaces),
    (Level::Baseline, 0, ALWAYS, checks::host_paths),
    (Level::Baseline, 0, ALWAYS, checks::host_ports),
    (Level::Baseline, 34, ALWAYS, checks::host_probes),
    (Level::Baseline, 0, ALWAYS, checks::privileged),
    (Level::Baseline, 0, ALWAYS, checks::proc_mount),
    (Level::Baseline, 0, ALWAYS, checks::se_linux),
    (Level::Baseline, 19, 0, checks::seccomp_baseline),
    (Level::Baseline, 0, ALWAYS, checks::sysctls),
    (Level::Baseline, 0, ALWAYS, checks::host_process),
    (Level::Restricted, 8, ALWAYS, checks::escalation),
    (Level::Restricted, 22, ALWAYS, checks::capabilities_restricted),
    (Level::Restricted, 0, ALWAYS, checks::volumes),
    (Level::Restricted, 0, ALWAYS, checks::non_root),
    (Level::Restricted, 23, ALWAYS, checks::root_user),
    (Level::Restricted, 19, ALWAYS, checks::seccomp_restricted),
];

/// What a pod violates at a level of a minor version, as text; empty when nothing.
fn violations(object: &Object, level: Level, minor: u32) -> String {
    let Some(spec) = object.at(&["spec"]).and_then(Value::as_object) else { return String::new() };
    let windows =
        minor >= 25 && object.at(&["spec", "os", "name"]).and_then(Value::as_str) == Some("windows");
    let pod = Pod { object, windows, spec };
    let checks = CHECKS.iter().filter(|(of, since, replaced, _)| {
        let replaced = level == Level::Restricted && minor >= *replaced && *replaced != ALWAYS;
        *of <= level && *since <= minor && !replaced
    });
    let found: Vec<(&str, String)> = checks.filter_map(|(_, _, _, check)| check(&pod)).collect();
    found.iter().map(|(what, where_)| format!("{what} ({where_})")).collect::<Vec<_>>().join(", ")
}

/// A level and version that a namespace's labels ask for in a mode (`enforce`, `warn`).
fn wanted(namespace: &Object, mode: &str) -> (Level, String, u32) {
    let level =
        namespace.label(&format!("{PREFIX}{mode}")).and_then(Level::parse).unwrap_or(Level::Privileged);
    let version = namespace.label(&format!("{PREFIX}{mode}-version")).unwrap_or("latest");
    let minor = version.strip_prefix("v1.").and_then(|m| m.parse().ok()).unwrap_or(u32::MAX);
    (level, if minor == u32::MAX { "latest".into() } else { version.into() }, minor)
}

/// Holds a pod to what its namespace asks for.
pub(crate) fn validate(
    work: &Work<'_>,
    new: &Object,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    let looks = match (mode, old) {
        (Mode::Main, Some(old)) => new.at(&["spec"]) != old.at(&["spec"]),
        (Mode::Main, None) | (Mode::Free("ephemeralcontainers"), _) => true,
        _ => false,
    };
    if !looks {
        return Ok(());
    }
    let Some(entry) = work.core.caches.of("core/namespaces").get(work.namespace()) else { return Ok(()) };
    if entry.labels().all(|(key, _)| !key.starts_with(PREFIX)) {
        return Ok(());
    }
    let namespace = entry.object();
    let (level, version, minor) = wanted(&namespace, "enforce");
    let wrong = violations(new, level, minor);
    if !wrong.is_empty() {
        let why = format!("violates PodSecurity \"{}:{version}\": {wrong}", level.word());
        return Err(Status::forbidden(&work.resource.group_resource(), new.name(), &why));
    }
    let (level, version, minor) = wanted(&namespace, "warn");
    let wrong = violations(new, level, minor);
    if !wrong.is_empty() {
        work.call.warn(format!("would violate PodSecurity \"{}:{version}\": {wrong}", level.word()));
    }
    Ok(())
}

/// Checks the labels of a namespace.
pub(crate) fn validate_namespace(
    work: &Work<'_>,
    new: &Object,
    old: Option<&Object>,
    _: Mode,
) -> Result<(), Status> {
    let mut causes = Vec::new();
    for mode in ["audit", "enforce", "warn"] {
        let mut check = |key: String, good: &dyn Fn(&str) -> bool, expected: &str| {
            let Some(value) = new.label(&key) else { return };
            if !good(value) && old.and_then(|o| o.label(&key)) != Some(value) {
                causes.push(Cause {
                    reason: "FieldValueInvalid".into(),
                    message: format!("Invalid value: {value:?}: must be {expected}"),
                    field: format!("metadata.labels[{key}]"),
                });
            }
        };
        let version =
            |v: &str| v == "latest" || v.strip_prefix("v1.").is_some_and(|m| m.parse::<u32>().is_ok());
        check(
            format!("{PREFIX}{mode}"),
            &|v| Level::parse(v).is_some(),
            "one of privileged, baseline, restricted",
        );
        check(format!("{PREFIX}{mode}-version"), &version, "\"latest\" or \"v1.x\"");
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(&work.resource.group_kind(), new.name(), &causes))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: Value, level: Level, expect: &str) {
        let pod = Object::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap();
        let found = violations(&pod, level, u32::MAX);
        assert!(if expect.is_empty() { found.is_empty() } else { found.contains(expect) }, "{found}");
    }

    #[test]
    fn levels() {
        let plain = json!({ "containers": [{ "name": "c" }] });
        check(plain.clone(), Level::Baseline, "");
        check(plain, Level::Restricted, "runAsNonRoot != true (pod or container \"c\" must set");
        let host = json!({ "hostPID": true, "containers": [{ "name": "c" }] });
        check(host.clone(), Level::Baseline, "host namespaces (hostPID=true)");
        check(host, Level::Privileged, "");
        let good = json!({
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "c", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
            } }],
        });
        check(good, Level::Restricted, "");
        let port = json!({ "containers": [{ "name": "c", "ports": [{ "hostPort": 80 }] }] });
        check(port, Level::Baseline, "hostPort (container \"c\" uses hostPort 80)");
    }
}

//! What pods and containers are allowed to do.

use serde_json::Value;
use wasmk_machinery::names;

use super::fields::descending_path;
use crate::errors::{At, Errors};
use crate::internal;
use crate::value::{flag, get, int, list, or_null, text, text_at, texts};

const MAX_SYSCTL: usize = 253;
const SYSCTL_FORM: &str = "([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
const LARGEST_ID: i64 = 2_147_483_647;

fn ids(context: &Value, keys: &[&str], at: &At<'_>, errors: &mut Errors) {
    for key in keys {
        if let Some(id) = int(context, key) {
            for why in names::in_range(id, 0, LARGEST_ID) {
                errors.invalid_int(&at.field(key), id, &why);
            }
        }
    }
}

/// Checks the security context of a pod.
pub(super) fn pod(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let Some(context) = get(spec, "securityContext") else { return };
    let at = at.field("securityContext");
    ids(context, &["fsGroup", "runAsUser", "runAsGroup"], &at, errors);
    let place = at.field("supplementalGroups");
    for (i, group) in list(context, "supplementalGroups").iter().filter_map(Value::as_i64).enumerate() {
        for why in names::in_range(group, 0, LARGEST_ID) {
            errors.invalid_int(&place.index(i), group, &why);
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&at.field("shareProcessNamespace"), &true.into(), why);
    }
    sysctls(list(context, "sysctls"), &at.field("sysctls"), errors);
    for (key, allowed) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        if let Some(policy) = text_at(context, key).filter(|p| !allowed.contains(p)) {
            errors.unsupported(&at.field(key), policy, &allowed);
        }
    }
    profiles(context, &at, errors);
}

fn sysctls(sysctls: &[Value], at: &At<'_>, errors: &mut Errors) {
    for (i, sysctl) in sysctls.iter().enumerate() {
        let at = at.index(i);
        let name = text(sysctl, "name");
        if name.is_empty() {
            errors.required(&at.field("name"), "");
        } else if !is_sysctl(name) {
            let why = format!("must have at most {MAX_SYSCTL} characters and match regex ^{SYSCTL_FORM}$");
            errors.invalid_text(&at.field("name"), name, &why);
        } else if sysctls[..i].iter().any(|other| text(other, "name") == name) {
            errors.duplicate_text(&at.field("name"), name);
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let segment = |s: &str| {
        s.starts_with(word) && s.ends_with(word) && s.chars().all(|c| word(c) || matches!(c, '-' | '_'))
    };
    name.len() <= MAX_SYSCTL && name.split(['.', '/']).all(segment)
}

/// Checks the profiles a context names.
fn profiles(context: &Value, at: &At<'_>, errors: &mut Errors) {
    if let Some(profile) = get(context, "seccompProfile") {
        let at = at.field("seccompProfile");
        let local = text_at(profile, "localhostProfile");
        match (text(profile, "type"), local) {
            ("Localhost", None) => {
                errors.required(&at.field("localhostProfile"), "must be set when seccomp type is Localhost");
            }
            ("Localhost", Some(path)) => descending_path(path, &at.field("localhostProfile"), errors),
            ("", _) => errors.required(&at.field("type"), "type is required when seccompProfile is set"),
            (kind, local) => {
                if let Some(path) = local {
                    let why = "can only be set when seccomp type is Localhost";
                    errors.invalid_text(&at.field("localhostProfile"), path, why);
                }
                let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
                if !kinds.contains(&kind) {
                    errors.unsupported(&at.field("type"), kind, &kinds);
                }
            }
        }
    }
    if let Some(profile) = get(context, "appArmorProfile") {
        let at = at.field("appArmorProfile");
        let local = text_at(profile, "localhostProfile");
        match (text(profile, "type"), local) {
            ("Localhost", None) => {
                errors.required(&at.field("localhostProfile"), "must be set when AppArmor type is Localhost");
            }
            ("Localhost", Some(_)) => {}
            ("", _) => errors.required(&at.field("type"), "type is required when appArmorProfile is set"),
            (kind, local) => {
                if let Some(path) = local {
                    let why = "can only be set when AppArmor type is Localhost";
                    errors.invalid_text(&at.field("localhostProfile"), path, why);
                }
                let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
                if !kinds.contains(&kind) {
                    errors.unsupported(&at.field("type"), kind, &kinds);
                }
            }
        }
    }
}

/// Checks the security context of a container.
pub(super) fn container(container: &Value, host_users: bool, at: &At<'_>, errors: &mut Errors) {
    let Some(context) = get(container, "securityContext") else { return };
    let at = at.field("securityContext");
    ids(context, &["runAsUser", "runAsGroup"], &at, errors);
    match text_at(context, "procMount") {
        None | Some("Default") => {}
        Some("Unmasked") => {
            if host_users {
                let why = "`hostUsers` must be false to use `Unmasked`";
                errors.invalid_text(&at.field("procMount"), "Unmasked", why);
            }
        }
        Some(other) => errors.unsupported(&at.field("procMount"), other, &["Default", "Unmasked"]),
    }
    profiles(context, &at, errors);
    if context.get("allowPrivilegeEscalation").and_then(Value::as_bool) != Some(false) {
        return;
    }
    let shown = || internal::line(context, "v1.SecurityContext");
    if flag(context, "privileged") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.invalid_shown(&at, &shown(), why);
    }
    if texts(or_null(context, "capabilities"), "add").any(|c| c == "CAP_SYS_ADMIN") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        errors.invalid_shown(&at, &shown(), why);
    }
}

/// Checks that a pod of host processes shares the host's network, and is one throughout.
pub(super) fn windows_host_process(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    let host_process = |holder: &Value| {
        let options = or_null(or_null(holder, "securityContext"), "windowsOptions");
        options.get("hostProcess").and_then(Value::as_bool)
    };
    let whole = host_process(spec);
    let all = || {
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|key| list(spec, key))
    };
    let runs = |c: &Value| host_process(c).or(whole).unwrap_or(false);
    let count = all().filter(|c| runs(c)).count();
    if count == 0 {
        return;
    }
    if count != all().count() {
        let why =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid_text(at, "", why);
    }
    if !flag(spec, "hostNetwork") {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(&at.field("hostNetwork"), &false.into(), why);
    }
}

/// A pod with users of its own shares nothing of the host's.
pub(super) fn host_users(spec: &Value, at: &At<'_>, errors: &mut Errors) {
    if spec.get("hostUsers").and_then(Value::as_bool) != Some(false) {
        return;
    }
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if flag(spec, key) {
            errors.forbidden(&at.field(key), "when `hostUsers` is false");
        }
    }
}

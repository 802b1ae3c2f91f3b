//! What a pod may not do: one small function for each thing.

use serde_json::{Map, Value};
use wasmk_api::Object;

/// A check's complaint: what is forbidden, and where it was found.
pub(super) type Complaint = Option<(&'static str, String)>;

/// A pod with what checks look at.
pub(super) struct Pod<'a> {
    pub(super) object: &'a Object,
    pub(super) windows: bool,
    pub(super) spec: &'a Map<String, Value>,
}

impl Pod<'_> {
    fn context(&self) -> Option<&Value> {
        self.spec.get("securityContext")
    }

    /// All containers with their names.
    fn containers(&self) -> impl Iterator<Item = (&str, &Value)> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .filter_map(|list| self.spec.get(list)?.as_array())
            .flatten()
            .map(|c| (c.get("name").and_then(Value::as_str).unwrap_or(""), c))
    }

    /// The names of containers that a condition holds of.
    fn which(&self, condition: impl Fn(&Value) -> bool) -> Vec<&str> {
        self.containers().filter(|(_, c)| condition(c)).map(|(name, _)| name).collect()
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ")
}

/// `container "c"` or `containers "c", "d"`.
fn named(names: &[&str]) -> String {
    format!("container{} {}", if names.len() == 1 { "" } else { "s" }, quoted(names))
}

fn all_set<'a>(items: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all: Vec<&str> = items.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    all
}

pub(super) fn app_armor(pod: &Pod<'_>) -> Complaint {
    let bad = |holder: Option<&Value>| {
        let kind = holder.and_then(|h| h.pointer("/appArmorProfile/type")).and_then(Value::as_str);
        kind.filter(|k| !matches!(*k, "RuntimeDefault" | "Localhost")).map(str::to_owned)
    };
    let mut found = Vec::new();
    if let Some(kind) = bad(pod.context()) {
        found.push(format!("pod must not set AppArmor profile type to {kind:?}"));
    }
    let names = pod.which(|c| bad(c.get("securityContext")).is_some());
    if !names.is_empty() {
        found.push(format!("{} must not set AppArmor profile type to \"Unconfined\"", named(&names)));
    }
    for (key, value) in pod.object.annotations() {
        let own = key.starts_with("container.apparmor.security.beta.kubernetes.io/");
        if own && !(value.is_empty() || value == "runtime/default" || value.starts_with("localhost/")) {
            found.push(format!("annotation {key}={value:?}"));
        }
    }
    complaint(
        if found.len() == 1 { "forbidden AppArmor profile" } else { "forbidden AppArmor profiles" },
        found,
    )
}

fn complaint(what: &'static str, found: Vec<String>) -> Complaint {
    if found.is_empty() { None } else { Some((what, found.join("; "))) }
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    let add = container.pointer("/securityContext/capabilities/add").and_then(Value::as_array);
    add.into_iter().flatten().filter_map(Value::as_str)
}

pub(super) fn capabilities(pod: &Pod<'_>) -> Complaint {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let bad = |c: &&str| !ALLOWED.contains(c);
    let names = pod.which(|c| added(c).any(|a| bad(&a)));
    let all = all_set(pod.containers().flat_map(|(_, c)| added(c)).filter(bad));
    (!names.is_empty()).then(|| {
        (
            "non-default capabilities",
            format!(
                "{} must not include {} in securityContext.capabilities.add",
                named(&names),
                quoted(&all)
            ),
        )
    })
}

pub(super) fn host_namespaces(pod: &Pod<'_>) -> Complaint {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|key| pod.spec.get(*key) == Some(&Value::Bool(true)))
        .map(|key| format!("{key}=true"))
        .collect();
    (!set.is_empty()).then(|| ("host namespaces", set.join(", ")))
}

fn volume_list<'a>(pod: &'a Pod<'_>) -> impl Iterator<Item = (&'a str, &'a Map<String, Value>)> {
    pod.spec
        .get("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|v| Some((v.get("name").and_then(Value::as_str).unwrap_or(""), v.as_object()?)))
}

pub(super) fn host_paths(pod: &Pod<'_>) -> Complaint {
    let names: Vec<&str> =
        volume_list(pod).filter(|(_, v)| v.contains_key("hostPath")).map(|(n, _)| n).collect();
    let s = if names.len() == 1 { "" } else { "s" };
    (!names.is_empty()).then(|| ("hostPath volumes", format!("volume{s} {}", quoted(&names))))
}

pub(super) fn host_ports(pod: &Pod<'_>) -> Complaint {
    let ports = |c: &Value| -> Vec<u64> {
        let all = c.get("ports").and_then(Value::as_array);
        all.into_iter().flatten().filter_map(|p| p.get("hostPort")?.as_u64()).filter(|p| *p > 0).collect()
    };
    let names = pod.which(|c| !ports(c).is_empty());
    let mut all: Vec<u64> = pod.containers().flat_map(|(_, c)| ports(c)).collect();
    all.sort_unstable();
    all.dedup();
    let s = if all.len() == 1 { "" } else { "s" };
    let uses = if names.len() == 1 { "uses" } else { "use" };
    let list: Vec<String> = all.iter().map(u64::to_string).collect();
    (!names.is_empty())
        .then(|| ("hostPort", format!("{} {uses} hostPort{s} {}", named(&names), list.join(", "))))
}

pub(super) fn host_probes(pod: &Pod<'_>) -> Complaint {
    let sets_host = |action: Option<&Value>| {
        ["httpGet", "tcpSocket"].iter().any(|kind| {
            let host = action.and_then(|a| a.get(*kind)).and_then(|a| a.get("host")).and_then(Value::as_str);
            host.is_some_and(|h| !matches!(h, "" | "127.0.0.1" | "::1"))
        })
    };
    let names = pod.which(|c| {
        ["livenessProbe", "readinessProbe", "startupProbe"].iter().any(|probe| sets_host(c.get(*probe)))
            || ["postStart", "preStop"].iter().any(|hook| sets_host(c.pointer(&format!("/lifecycle/{hook}"))))
    });
    let uses = if names.len() == 1 { "uses" } else { "use" };
    (!names.is_empty())
        .then(|| ("probe or lifecycle host", format!("{} {uses} probe or lifecycle hosts", named(&names))))
}

fn flag(container: &Value, name: &str) -> Option<bool> {
    container.pointer(&format!("/securityContext/{name}")).and_then(Value::as_bool)
}

pub(super) fn privileged(pod: &Pod<'_>) -> Complaint {
    let names = pod.which(|c| flag(c, "privileged") == Some(true));
    (!names.is_empty())
        .then(|| ("privileged", format!("{} must not set securityContext.privileged=true", named(&names))))
}

pub(super) fn proc_mount(pod: &Pod<'_>) -> Complaint {
    if pod.spec.get("hostUsers") == Some(&Value::Bool(false)) {
        return None;
    }
    let kind = |c: &Value| {
        c.pointer("/securityContext/procMount")
            .and_then(Value::as_str)
            .filter(|k| *k != "Default")
            .map(str::to_owned)
    };
    let names = pod.which(|c| kind(c).is_some());
    let kinds: Vec<String> = pod.containers().filter_map(|(_, c)| kind(c)).collect();
    let kinds = all_set(kinds.iter().map(String::as_str));
    (!names.is_empty()).then(|| {
        (
            "procMount",
            format!("{} must not set securityContext.procMount to {}", named(&names), quoted(&kinds)),
        )
    })
}

pub(super) fn se_linux(pod: &Pod<'_>) -> Complaint {
    let faults = |holder: Option<&Value>| -> Vec<String> {
        let Some(options) = holder.and_then(|h| h.get("seLinuxOptions")) else { return Vec::new() };
        let text = |key: &str| options.get(key).and_then(Value::as_str).unwrap_or("");
        let mut found = Vec::new();
        if !matches!(
            text("type"),
            "" | "container_t" | "container_init_t" | "container_kvm_t" | "container_engine_t"
        ) {
            found.push(format!("type {:?}", text("type")));
        }
        for key in ["user", "role"] {
            if !text(key).is_empty() {
                found.push(format!("{key} may not be set"));
            }
        }
        found
    };
    let of_pod = faults(pod.context());
    let names = pod.which(|c| !faults(c.get("securityContext")).is_empty());
    let mut all = of_pod.clone();
    all.extend(pod.containers().flat_map(|(_, c)| faults(c.get("securityContext"))));
    let mut setters = Vec::new();
    if !of_pod.is_empty() {
        setters.push("pod".to_owned());
    }
    if !names.is_empty() {
        setters.push(named(&names));
    }
    let mut unique: Vec<String> = Vec::new();
    for fault in all {
        if !unique.contains(&fault) {
            unique.push(fault);
        }
    }
    (!setters.is_empty()).then(|| {
        (
            "seLinuxOptions",
            format!(
                "{} set forbidden securityContext.seLinuxOptions: {}",
                setters.join(" and "),
                unique.join("; ")
            ),
        )
    })
}

fn seccomp(holder: Option<&Value>) -> Option<&str> {
    holder.and_then(|h| h.pointer("/seccompProfile/type")).and_then(Value::as_str)
}

fn seccomp_bad(kind: Option<&str>) -> bool {
    kind.is_some_and(|k| !matches!(k, "RuntimeDefault" | "Localhost"))
}

pub(super) fn seccomp_baseline(pod: &Pod<'_>) -> Complaint {
    let mut setters = Vec::new();
    let mut kinds = Vec::new();
    if seccomp_bad(seccomp(pod.context())) {
        setters.push("pod".to_owned());
        kinds.extend(seccomp(pod.context()));
    }
    let names = pod.which(|c| seccomp_bad(seccomp(c.get("securityContext"))));
    if !names.is_empty() {
        setters.push(named(&names));
        kinds.extend(
            pod.containers()
                .filter_map(|(_, c)| seccomp(c.get("securityContext")))
                .filter(|k| seccomp_bad(Some(k))),
        );
    }
    let kinds = all_set(kinds);
    (!setters.is_empty()).then(|| {
        (
            "seccompProfile",
            format!(
                "{} must not set securityContext.seccompProfile.type to {}",
                setters.join(" and "),
                quoted(&kinds)
            ),
        )
    })
}

pub(super) fn seccomp_restricted(pod: &Pod<'_>) -> Complaint {
    if pod.windows {
        return None;
    }
    let wrong = seccomp_baseline(pod);
    if wrong.is_some() {
        return wrong;
    }
    if seccomp(pod.context()).is_some() {
        return None;
    }
    let names = pod.which(|c| seccomp(c.get("securityContext")).is_none());
    (!names.is_empty()).then(|| {
        ("seccompProfile", format!("pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"", named(&names)))
    })
}

pub(super) fn sysctls(pod: &Pod<'_>) -> Complaint {
    const ALLOWED: [&str; 10] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    ];
    let set = pod.context().and_then(|c| c.get("sysctls")).and_then(Value::as_array);
    let bad: Vec<&str> = set
        .into_iter()
        .flatten()
        .filter_map(|s| s.get("name")?.as_str())
        .filter(|name| !ALLOWED.contains(name) && !matches!(*name, "net.ipv4.tcp_rmem" | "net.ipv4.tcp_wmem"))
        .collect();
    (!bad.is_empty()).then(|| ("forbidden sysctls", bad.join(", ")))
}

pub(super) fn host_process(pod: &Pod<'_>) -> Complaint {
    let set = |holder: Option<&Value>| {
        holder.and_then(|h| h.pointer("/windowsOptions/hostProcess")) == Some(&Value::Bool(true))
    };
    let mut setters = Vec::new();
    if set(pod.context()) {
        setters.push("pod".to_owned());
    }
    let names = pod.which(|c| set(c.get("securityContext")));
    if !names.is_empty() {
        setters.push(named(&names));
    }
    (!setters.is_empty()).then(|| {
        (
            "hostProcess",
            format!("{} must not set securityContext.windowsOptions.hostProcess=true", setters.join(" and ")),
        )
    })
}

pub(super) fn escalation(pod: &Pod<'_>) -> Complaint {
    if pod.windows {
        return None;
    }
    let names = pod.which(|c| flag(c, "allowPrivilegeEscalation") != Some(false));
    (!names.is_empty()).then(|| {
        (
            "allowPrivilegeEscalation != false",
            format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&names)),
        )
    })
}

pub(super) fn capabilities_restricted(pod: &Pod<'_>) -> Complaint {
    if pod.windows {
        return None;
    }
    let drops_all = |c: &Value| {
        let drop = c.pointer("/securityContext/capabilities/drop").and_then(Value::as_array);
        drop.is_some_and(|d| d.iter().any(|n| n == "ALL"))
    };
    let bad = |c: &&str| *c != "NET_BIND_SERVICE";
    let (keep, add) = (pod.which(|c| !drops_all(c)), pod.which(|c| added(c).any(|a| bad(&a))));
    let mut found = Vec::new();
    if !keep.is_empty() {
        found.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keep)));
    }
    if !add.is_empty() {
        let all = all_set(pod.containers().flat_map(|(_, c)| added(c)).filter(bad));
        found.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            named(&add),
            quoted(&all)
        ));
    }
    complaint("unrestricted capabilities", found)
}

pub(super) fn volumes(pod: &Pod<'_>) -> Complaint {
    const ALLOWED: [&str; 8] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let kind = |v: &Map<String, Value>| v.keys().find(|k| *k != "name").cloned().unwrap_or_default();
    let bad: Vec<(&str, String)> = volume_list(pod)
        .map(|(n, v)| (n, kind(v)))
        .filter(|(_, k)| !k.is_empty() && !ALLOWED.contains(&k.as_str()))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let names: Vec<&str> = bad.iter().map(|(n, _)| *n).collect();
    let kinds = all_set(bad.iter().map(|(_, k)| k.as_str()));
    let (s, use_s) = if names.len() == 1 { ("", "s") } else { ("s", "") };
    let types = if kinds.len() == 1 { "type" } else { "types" };
    Some((
        "restricted volume types",
        format!("volume{s} {} use{use_s} restricted volume {types} {}", quoted(&names), quoted(&kinds)),
    ))
}

pub(super) fn non_root(pod: &Pod<'_>) -> Complaint {
    if pod.spec.get("hostUsers") == Some(&Value::Bool(false)) {
        return None;
    }
    let of_pod = pod.context().and_then(|c| c.get("runAsNonRoot")).and_then(Value::as_bool);
    let explicit = pod.which(|c| flag(c, "runAsNonRoot") == Some(false));
    let unsaid = pod.which(|c| flag(c, "runAsNonRoot").is_none());
    let mut setters = Vec::new();
    if of_pod == Some(false) && !unsaid.is_empty() {
        setters.push("pod".to_owned());
    }
    if !explicit.is_empty() {
        setters.push(named(&explicit));
    }
    if !setters.is_empty() {
        return Some((
            "runAsNonRoot != true",
            format!("{} must not set securityContext.runAsNonRoot=false", setters.join(" and ")),
        ));
    }
    (of_pod.is_none() && !unsaid.is_empty()).then(|| {
        (
            "runAsNonRoot != true",
            format!("pod or {} must set securityContext.runAsNonRoot=true", named(&unsaid)),
        )
    })
}

pub(super) fn root_user(pod: &Pod<'_>) -> Complaint {
    if pod.spec.get("hostUsers") == Some(&Value::Bool(false)) {
        return None;
    }
    let root =
        |holder: Option<&Value>| holder.and_then(|h| h.get("runAsUser")).and_then(Value::as_i64) == Some(0);
    let mut setters = Vec::new();
    if root(pod.context()) {
        setters.push("pod".to_owned());
    }
    let names = pod.which(|c| root(c.get("securityContext")));
    if !names.is_empty() {
        setters.push(named(&names));
    }
    (!setters.is_empty())
        .then(|| ("runAsUser=0", format!("{} must not set runAsUser=0", setters.join(" and "))))
}

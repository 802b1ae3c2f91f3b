//! One container of a template.

use serde_json::Value;

use super::{pod::set_fields, problem::Problems, volumes};
use crate::config::Config;

/// Which part a container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It gets the requests.
    User,
    /// It runs beside that one.
    Sidecar,
    /// It runs before them.
    Init,
}

const OPEN: [&str; 17] = [
    "name",
    "args",
    "command",
    "env",
    "workingDir",
    "envFrom",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
];
const SECURITY: [&str; 8] = [
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "seccompProfile",
    "capabilities",
    "privileged",
];
const PROBE: [&str; 10] = [
    "exec",
    "httpGet",
    "tcpSocket",
    "grpc",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
];
/// Variables that Knative sets itself.
const VARIABLES: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
/// Ports that Knative's own parts take in a pod.
const PORTS: [i64; 6] = [8012, 8013, 8022, 9090, 9091, 8008];

/// Checks a container of a pod. `port` is the name of the port that requests come to.
pub(super) fn check(
    container: &Value,
    at: &str,
    part: Part,
    port: &str,
    pod: &Value,
    config: &Config,
    problems: &mut Problems,
) {
    let beside_probes = |f: &&str| !(part == Part::Init && (f.ends_with("Probe") || *f == "lifecycle"));
    for field in set_fields(container).filter(beside_probes).filter(|f| !OPEN.contains(f)) {
        problems.disallowed(format!("{at}.{field}"));
    }
    if container["name"] == "queue-proxy" {
        problems.add("\"queue-proxy\" is a reserved container name", format!("{at}.name"));
    }
    probes(container, at, part, port, config, problems);
    variables(container, at, part, config, problems);
    image(container, at, problems);
    for (i, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        container_port(port, &format!("{at}.ports"), i == 0 && part != Part::Init, problems);
    }
    security(&container["securityContext"], &format!("{at}.securityContext"), config, problems);
    let policy = container["terminationMessagePolicy"].as_str().unwrap_or("");
    if !["", "File", "FallbackToLogsOnError"].contains(&policy) {
        problems.invalid(policy, format!("{at}.terminationMessagePolicy"));
    }
    volumes::mounts(container, at, pod, config, problems);
}

fn image(container: &Value, at: &str, problems: &mut Problems) {
    let image = container["image"].as_str().unwrap_or("");
    if image.is_empty() {
        return problems.missing(format!("{at}.image"));
    }
    if !is_reference(image) {
        let details = format!("image: {image:?}, error: could not parse reference: {image}");
        problems.detailed("Failed to parse image reference", format!("{at}.image"), &details);
    }
}

/// `[host[:port]/]path[:tag][@digest]`
fn is_reference(text: &str) -> bool {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let hex = |d: &str| d.len() == 64 && d.chars().all(|c| c.is_ascii_hexdigit());
    let digest_fits = digest.is_none_or(|d| d.strip_prefix("sha256:").is_some_and(hex));
    let slash = name.rfind('/').map_or(0, |i| i + 1);
    let (path, tag) = match name[slash..].find(':') {
        Some(i) => (&name[..slash + i], Some(&name[slash + i + 1..])),
        None => (name, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let tag_fits = tag.is_none_or(|t| !t.is_empty() && t.len() <= 128 && t.chars().all(word));
    let (host, rest) = match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("", path),
    };
    let part = |p: &str| !p.is_empty() && p.chars().all(|c| word(c) && !c.is_ascii_uppercase());
    let host_fits = host.chars().all(|c| word(c) || ":[]".contains(c));
    digest_fits && tag_fits && host_fits && rest.split('/').all(part)
}

fn container_port(port: &Value, at: &str, requests: bool, problems: &mut Problems) {
    for field in ["hostIP", "hostPort"].iter().filter(|f| !port[**f].is_null()) {
        problems.disallowed(format!("{at}.{field}"));
    }
    let number = port["containerPort"].as_i64().unwrap_or(0);
    if PORTS.contains(&number) {
        let details = format!("{number} is a reserved port, please use a different value");
        let message = format!("invalid value: {number} is a reserved port");
        problems.detailed(message, format!("{at}.containerPort"), &details);
    }
    if !(0..=65535).contains(&number) {
        problems.bounds(number, 0, 65535, format!("{at}.containerPort"));
    }
    if !requests {
        return;
    }
    let protocol = port["protocol"].as_str().unwrap_or("");
    if !["", "TCP"].contains(&protocol) {
        problems.invalid(protocol, format!("{at}.protocol"));
    }
    let name = port["name"].as_str().unwrap_or("");
    if !["", "h2c", "http1"].contains(&name) {
        let details = "Name must be empty, or one of: 'h2c', 'http1'";
        problems.detailed(format!("Port name {name} is not allowed"), at, details);
    }
}

fn variables(container: &Value, at: &str, part: Part, config: &Config, problems: &mut Problems) {
    for (i, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.env[{i}]");
        let name = variable["name"].as_str().unwrap_or("");
        let reserved = VARIABLES.contains(&name) && (part == Part::User || name != "PORT");
        if name.is_empty() {
            problems.missing(format!("{at}.name"));
        } else if reserved {
            problems.add(format!("{name:?} is a reserved environment variable"), format!("{at}.name"));
        }
        for field in ["fieldRef", "resourceFieldRef"] {
            if !variable["valueFrom"][field].is_null() && !config.features.has("kubernetes.podspec-fieldref")
            {
                problems.disallowed(format!("{at}.valueFrom.{field}"));
            }
        }
    }
    for (i, source) in container["envFrom"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.envFrom[{i}]");
        let names = ["configMapRef", "secretRef"];
        match names.iter().filter(|n| source[**n].is_object()).count() {
            0 => problems.neither(&at, &names),
            1 => {}
            _ => problems.both(&at, &names),
        }
    }
}

fn security(context: &Value, at: &str, config: &Config, problems: &mut Problems) {
    for field in set_fields(context).filter(|f| !SECURITY.contains(f)) {
        problems.disallowed(format!("{at}.{field}"));
    }
    if context["privileged"] == true {
        problems.disallowed(format!("{at}.privileged"));
    }
    if context["allowPrivilegeEscalation"] == true {
        problems.disallowed(format!("{at}.allowPrivilegeEscalation"));
    }
    let added = context["capabilities"]["add"].as_array().map(Vec::as_slice).unwrap_or_default();
    let plain = added.iter().all(|c| c == "NET_BIND_SERVICE");
    if !plain && !config.features.has("kubernetes.containerspec-addcapabilities") {
        problems.disallowed(format!("{at}.capabilities.add"));
    }
    for field in ["runAsUser", "runAsGroup"] {
        let id = context[field].as_i64().unwrap_or(0);
        if !(0..=i64::from(i32::MAX)).contains(&id) {
            problems.bounds(id, 0, i32::MAX, format!("{at}.{field}"));
        }
    }
}

fn probes(container: &Value, at: &str, part: Part, port: &str, config: &Config, problems: &mut Problems) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (probe, at) = (&container[name], format!("{at}.{name}"));
        if !probe.is_object() {
            continue;
        }
        match part {
            Part::Init => problems.add("field not allowed in an init container", at),
            Part::Sidecar if !config.features.has("multi-container-probing") => {
                set_fields(probe).for_each(|f| problems.disallowed(format!("{at}.{f}")));
            }
            _ => self::probe(probe, &at, (part == Part::User).then_some(port), name, problems),
        }
    }
    if part == Part::Init && container["lifecycle"].is_object() {
        problems.add("field not allowed in an init container", format!("{at}.lifecycle"));
    }
}

fn probe(probe: &Value, at: &str, port: Option<&str>, name: &str, problems: &mut Problems) {
    for field in set_fields(probe).filter(|f| !PROBE.contains(f)) {
        problems.disallowed(format!("{at}.{field}"));
    }
    let handlers: Vec<&str> = PROBE[..4].iter().copied().filter(|h| probe[*h].is_object()).collect();
    match handlers.len() {
        0 => problems.neither(at, &["httpGet", "tcpSocket", "exec", "grpc"]),
        1 => {}
        _ => problems.both(at, &handlers),
    }
    for handler in ["httpGet", "tcpSocket"].iter().filter(|h| probe[**h].is_object()) {
        let (named, number) =
            (probe[*handler]["port"].as_str().unwrap_or(""), probe[*handler]["port"].as_i64());
        let path = format!("{at}.{handler}.port");
        match port {
            Some(port) if !named.is_empty() && named != port => {
                problems.detailed(
                    format!("invalid value: {named}"),
                    path,
                    "Probe port must match container port",
                );
            }
            None if named.is_empty() && number.unwrap_or(0) == 0 => {
                problems.detailed("invalid value: 0", path, "Probe port must be specified");
            }
            _ => {}
        }
    }
    if name == "readinessProbe" {
        readiness(probe, at, problems);
    }
}

fn readiness(probe: &Value, at: &str, problems: &mut Problems) {
    let number = |key: &str| probe[key].as_i64().unwrap_or(0);
    for (key, least) in [("periodSeconds", 0), ("initialDelaySeconds", 0), ("successThreshold", 1)] {
        if number(key) < least {
            problems.bounds(number(key), least, i32::MAX, format!("{at}.{key}"));
        }
    }
    for key in ["failureThreshold", "timeoutSeconds"] {
        let path = format!("{at}.{key}");
        match (number("periodSeconds"), number(key)) {
            (0, 0) => {}
            (0, _) => problems.add(format!("{key} is disallowed when periodSeconds is zero"), path),
            (_, n) if n < 1 => problems.bounds(n, 1, i32::MAX, path),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_reference;

    #[test]
    fn references() {
        let digest = "a".repeat(64);
        for good in [
            "hello",
            "hello:1",
            "a/b/c:x_1",
            "localhost:5000/x",
            "127.0.0.1:5000/a/b:1",
            &format!("r.io/x@sha256:{digest}"),
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["Hello", "a b", "x:", "x@sha256:1", "r.io/", "foo:bar:baz", "a//b"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}

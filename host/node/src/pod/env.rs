//! Works out what a container is told: environment, arguments, downward fields. Pure but for
//! the [`Sources`] asked for ConfigMaps and Secrets.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use wasmk_api::{
    Quantity,
    k8s_openapi::{
        ByteString,
        api::{
            core::v1::{
                ConfigMap, Container, EnvFromSource, EnvVarSource, Namespace, PersistentVolume,
                PersistentVolumeClaim, Pod, ResourceFieldSelector, Secret, Service,
            },
            node::v1::RuntimeClass,
            storage::v1::CSIDriver,
        },
    },
};

use crate::engine::Failure;

/// Reason of a container whose configuration cannot be worked out.
pub const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// Where ConfigMaps, Secrets, Services and tokens come from.
#[async_trait]
pub trait Sources: Send + Sync {
    /// A ConfigMap, or `None` when there is none of that name.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, Failure>;
    /// A Secret, or `None` when there is none of that name.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Failure>;
    /// A token of a service account, bound to the pod.
    async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String, Failure>;
    /// Services of the namespace, and `kubernetes` of `default`.
    fn services(&self, namespace: &str) -> Vec<Arc<Service>>;
    /// A claim, or `None` when there is none of that name.
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, Failure>;
    /// A persistent volume, or `None` when there is none of that name.
    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, Failure>;
    /// A namespace, or `None` when there is none of that name.
    async fn namespace(&self, name: &str) -> Result<Option<Namespace>, Failure>;
    /// What the cluster knows of a storage driver, or `None` when it knows nothing.
    async fn csi_driver(&self, name: &str) -> Result<Option<CSIDriver>, Failure> {
        let _ = name;
        Ok(None)
    }
    /// A runtime class, or `None` when there is none of that name.
    async fn runtime_class(&self, name: &str) -> Result<Option<RuntimeClass>, Failure>;
}

/// What downward fields need beside the pod itself.
#[derive(Clone, Debug)]
pub struct Place {
    /// The pod's address.
    pub pod_ip: Option<IpAddr>,
    /// The node's address.
    pub host_ip: IpAddr,
    /// Allocatable resources of the node: what an absent limit means.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Directory for volumes that are never to be on a disk, if there is one.
    pub memory: Option<PathBuf>,
}

/// The environment of a container, in the order it is given.
///
/// # Errors
/// [`CONFIG_ERROR`] naming what is missing.
pub async fn environment(
    pod: &Pod,
    container: &Container,
    place: &Place,
    sources: &dyn Sources,
) -> Result<Vec<(String, String)>, Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut out = Variables::default();
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    for service in sources.services(namespace) {
        let master = service.metadata.name.as_deref() == Some("kubernetes")
            && service.metadata.namespace.as_deref() == Some("default");
        let same = service.metadata.namespace.as_deref() == Some(namespace);
        if master || (links && same) {
            service_variables(&service, &mut out);
        }
    }
    out.set("HOSTNAME", hostname(pod));
    for from in container.env_from.iter().flatten() {
        env_from(namespace, from, sources, &mut out).await?;
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(source)) => match env_source(pod, container, source, place, sources).await? {
                Some(value) => value,
                None => continue,
            },
            (value, None) => expand(value.as_deref().unwrap_or(""), &out.by_name),
        };
        out.set(&var.name, value);
    }
    Ok(out.into_list())
}

/// Variables in order of first mention.
#[derive(Default)]
struct Variables {
    order: Vec<String>,
    by_name: HashMap<String, String>,
}

impl Variables {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        if self.by_name.insert(name.to_string(), value.into()).is_none() {
            self.order.push(name.to_string());
        }
    }

    fn into_list(mut self) -> Vec<(String, String)> {
        let take = |name: String| {
            let value = self.by_name.remove(&name).unwrap_or_default();
            (name, value)
        };
        self.order.into_iter().map(take).collect()
    }
}

/// A container's `command` or `args` after expansion.
pub fn words(words: Option<&Vec<String>>, env: &[(String, String)]) -> Option<Vec<String>> {
    // An empty list is no list.
    let words = words.filter(|w| !w.is_empty())?;
    let known: HashMap<String, String> = env.iter().cloned().collect();
    Some(words.iter().map(|w| expand(w, &known)).collect())
}

/// Replaces `$(NAME)` by its value; unknown names stay, `$$` is a dollar sign.
pub fn expand(text: &str, known: &HashMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|r| r.split_once(')'));
        match name {
            Some((name, after)) => {
                match known.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

async fn env_from(
    namespace: &str,
    from: &EnvFromSource,
    sources: &dyn Sources,
    out: &mut Variables,
) -> Result<(), Failure> {
    let prefix = from.prefix.as_deref().unwrap_or("");
    if let Some(source) = &from.config_map_ref {
        match sources.config_map(namespace, &source.name).await? {
            Some(map) => {
                for (key, value) in map.data.iter().flatten() {
                    out.set(&format!("{prefix}{key}"), value.clone());
                }
            }
            None if source.optional == Some(true) => {}
            None => return Err(missing("configmap", &source.name)),
        }
    }
    if let Some(source) = &from.secret_ref {
        match sources.secret(namespace, &source.name).await? {
            Some(secret) => {
                for (key, value) in secret.data.iter().flatten() {
                    out.set(&format!("{prefix}{key}"), text(value));
                }
            }
            None if source.optional == Some(true) => {}
            None => return Err(missing("secret", &source.name)),
        }
    }
    Ok(())
}

fn text(value: &ByteString) -> String {
    String::from_utf8_lossy(&value.0).into_owned()
}

fn missing(what: &str, name: &str) -> Failure {
    Failure::new(CONFIG_ERROR, format!("{what} \"{name}\" not found"))
}

fn no_key(what: &str, key: &str, namespace: &str, name: &str) -> Failure {
    Failure::new(CONFIG_ERROR, format!("couldn't find key {key} in {what} {namespace}/{name}"))
}

/// `None` leaves the variable out (optional and absent).
async fn env_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    place: &Place,
    sources: &dyn Sources,
) -> Result<Option<String>, Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, place).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_value(pod, container, field, place).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = sources.config_map(namespace, &key.name).await? else {
            return if optional { Ok(None) } else { Err(missing("configmap", &key.name)) };
        };
        let value = map.data.and_then(|mut d| d.remove(&key.key));
        return match value {
            None if !optional => Err(no_key("ConfigMap", &key.key, namespace, &key.name)),
            value => Ok(value),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = sources.secret(namespace, &key.name).await? else {
            return if optional { Ok(None) } else { Err(missing("secret", &key.name)) };
        };
        let value = secret.data.and_then(|mut d| d.remove(&key.key));
        return match value {
            None if !optional => Err(no_key("Secret", &key.key, namespace, &key.name)),
            value => Ok(value.map(|v| text(&v))),
        };
    }
    Err(Failure::new(CONFIG_ERROR, "valueFrom names a source that this node does not have"))
}

/// A field of the pod as the downward API gives it.
///
/// # Errors
/// [`CONFIG_ERROR`] for a path the downward API does not have.
pub fn field_value(pod: &Pod, path: &str, place: &Place) -> Result<String, Failure> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let or_empty = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(unknown_field(path)),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let address = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    Ok(match path {
        "metadata.name" => or_empty(&meta.name),
        "metadata.namespace" => or_empty(&meta.namespace),
        "metadata.uid" => or_empty(&meta.uid),
        "metadata.labels" => quoted_map(meta.labels.as_ref()),
        "metadata.annotations" => quoted_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec.map(|s| or_empty(&s.node_name)).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".into())
        }
        "status.hostIP" | "status.hostIPs" => place.host_ip.to_string(),
        "status.podIP" | "status.podIPs" => address(place.pod_ip),
        _ => return Err(unknown_field(path)),
    })
}

fn unknown_field(path: &str) -> Failure {
    Failure::new(CONFIG_ERROR, format!("unsupported fieldPath: {path}"))
}

/// `key="value"` lines, sorted.
fn quoted_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// A request or limit of a container, divided by the divisor and rounded up.
///
/// # Errors
/// [`CONFIG_ERROR`] for an unknown container or resource.
pub fn resource_value(
    pod: &Pod,
    container: &Container,
    field: &ResourceFieldSelector,
    place: &Place,
) -> Result<String, Failure> {
    let named = |name: &String| {
        let spec = pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == *name)
    };
    let container = match field.container_name.as_ref().filter(|n| !n.is_empty()) {
        Some(name) => {
            named(name).ok_or_else(|| Failure::new(CONFIG_ERROR, format!("container {name} not found")))?
        }
        None => container,
    };
    let bad = || Failure::new(CONFIG_ERROR, format!("unsupported resource: {}", field.resource));
    let (side, resource) = field.resource.split_once('.').ok_or_else(bad)?;
    let resources = container.resources.as_ref();
    let amount = |limits: bool| {
        let map = resources.and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() });
        map.and_then(|m| m.get(resource)).and_then(|q| q.0.parse::<Quantity>().ok())
    };
    let value = match side {
        "limits" => amount(true).or_else(|| place.allocatable.get(resource).copied()),
        "requests" => amount(false).or_else(|| amount(true)),
        _ => return Err(bad()),
    };
    let divisor =
        field.divisor.as_ref().and_then(|q| q.0.parse::<Quantity>().ok()).map(Quantity::milli_value);
    let divisor = divisor.filter(|d| *d > 0).unwrap_or(1000);
    let millis = value.unwrap_or_default();
    // Whole bytes may not fit into thousandths, so the common divisor of one is exact.
    if divisor == 1000 {
        return Ok(millis.value().to_string());
    }
    let (millis, divisor) = (i128::from(millis.milli_value()), i128::from(divisor));
    Ok((millis.div_euclid(divisor) + i128::from(millis.rem_euclid(divisor) != 0)).to_string())
}

/// The host name a pod sees.
pub fn hostname(pod: &Pod) -> String {
    let given = pod.spec.as_ref().and_then(|s| s.hostname.clone());
    given.or_else(|| pod.metadata.name.clone()).unwrap_or_default()
}

/// `<NAME>_SERVICE_HOST` and its companions.
fn service_variables(service: &Service, out: &mut Variables) {
    let Some(spec) = &service.spec else { return };
    let (Some(ip), Some(name)) = (spec.cluster_ip.as_deref(), service.metadata.name.as_deref()) else {
        return;
    };
    let Some(first) = spec.ports.iter().flatten().next() else { return };
    if ip.is_empty() || ip == "None" {
        return;
    }
    let upper = |s: &str| s.to_uppercase().replace('-', "_");
    let name = upper(name);
    out.set(&format!("{name}_SERVICE_HOST"), ip);
    out.set(&format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in spec.ports.iter().flatten() {
        if let Some(label) = port.name.as_deref().filter(|n| !n.is_empty()) {
            out.set(&format!("{name}_SERVICE_PORT_{}", upper(label)), port.port.to_string());
        }
    }
    let url = |protocol: &str, port: i32| format!("{}://{ip}:{port}", protocol.to_lowercase());
    let protocol = |p: &Option<String>| p.clone().unwrap_or_else(|| "TCP".into());
    out.set(&format!("{name}_PORT"), url(&protocol(&first.protocol), first.port));
    for port in spec.ports.iter().flatten() {
        let (kind, number) = (protocol(&port.protocol), port.port);
        let prefix = format!("{name}_PORT_{number}_{kind}");
        out.set(&prefix, url(&kind, number));
        out.set(&format!("{prefix}_PROTO"), kind.to_lowercase());
        out.set(&format!("{prefix}_PORT"), number.to_string());
        out.set(&format!("{prefix}_ADDR"), ip);
    }
}

#[cfg(test)]
#[path = "env_tests.rs"]
pub(crate) mod tests;

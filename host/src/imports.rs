//! Wasm that guests of this cluster cannot be: where the cluster's own registry lists what an artifact imports, a pod
//! that names it is refused at once, and whoever writes a template for pods is warned. Other registries are not asked;
//! what is there is looked at when a node pulls it.

use std::{collections::HashMap, net::SocketAddr};

use parking_lot::Mutex;
use serde_json::Value;
use wasmk_api::{GroupResource, Object, Status};
use wasmk_apiserver::KindHook;
use wasmk_registry::{Digest, Storage};
use wasmk_runtime::{Reference, offers};

/// Largest config of an artifact that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Artifacts remembered at most; others are looked at again.
const MOST: usize = 10_000;
/// What a node mirrors of pods that it has already.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Where objects have the spec of a pod.
const PLACES: [&[&str]; 3] =
    [&["spec", "jobTemplate", "spec", "template", "spec"], &["spec", "template", "spec"], &["spec"]];
/// Lists of a pod's containers.
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// What makes pods of a template.
const OWNERS: [(&str, &str); 9] = [
    ("", "replicationcontrollers"),
    ("apps", "daemonsets"),
    ("apps", "deployments"),
    ("apps", "replicasets"),
    ("apps", "statefulsets"),
    ("batch", "cronjobs"),
    ("batch", "jobs"),
    ("serving.knative.dev", "configurations"),
    ("serving.knative.dev", "services"),
];

/// The hook; artifacts it has seen are remembered by their manifest's digest.
pub(crate) struct Imports {
    storage: Storage,
    registry: SocketAddr,
    seen: Mutex<HashMap<Digest, Option<String>>>,
}

impl Imports {
    /// Looks at what `storage`, served at `registry`, holds.
    pub(crate) fn new(storage: Storage, registry: SocketAddr) -> Self {
        Self { storage, registry, seen: Mutex::default() }
    }

    /// What is wrong with the containers of a pod or a template.
    fn problems(&self, object: &Object) -> Vec<String> {
        images(object)
            .filter_map(|(container, image)| {
                let missing = self.missing(image)?;
                Some(format!(
                    "container \"{container}\": image {image} imports {missing}, which WebAssembly is not offered on \
                     this cluster"
                ))
            })
            .collect()
    }

    /// The first import of an image of this registry that guests are not offered.
    fn missing(&self, image: &str) -> Option<String> {
        let reference: Reference = image.parse().ok().filter(|r: &Reference| self.is_here(r.registry()))?;
        let digest = match reference.digest() {
            Some(digest) => Digest::parse(digest).ok()?,
            None => self.storage.peek_tag(reference.repository(), reference.tag().unwrap_or("latest"))?,
        };
        if let Some(known) = self.seen.lock().get(&digest) {
            return known.clone();
        }
        let missing = self.look(&digest)?;
        let mut seen = self.seen.lock();
        if seen.len() >= MOST {
            seen.clear();
        }
        seen.insert(digest, missing.clone());
        missing
    }

    /// What an artifact lacks; `None` if it is not here.
    fn look(&self, manifest: &Digest) -> Option<Option<String>> {
        let manifest: Value = serde_json::from_slice(&self.storage.peek(manifest, MAX_CONFIG)?).ok()?;
        Some(self.listed(&manifest))
    }

    /// The first import that a manifest's config lists and that guests are not offered.
    fn listed(&self, manifest: &Value) -> Option<String> {
        let read = |digest: &Digest| -> Option<Value> {
            serde_json::from_slice(&self.storage.peek(digest, MAX_CONFIG)?).ok()
        };
        let config = read(&Digest::parse(manifest.pointer("/config/digest")?.as_str()?).ok()?)?;
        let imports = config.pointer("/component/imports")?.as_array()?;
        // Names without a package are functions and types of the world, which a config need not list by kind.
        let mut interfaces = imports.iter().filter_map(Value::as_str).filter(|name| name.contains(':'));
        interfaces.find(|name| !offers(name)).map(String::from)
    }

    /// Whether a registry's name in an image stands for this one.
    fn is_here(&self, name: &str) -> bool {
        let Some((host, port)) = name.rsplit_once(':') else { return false };
        let local = host
            .parse()
            .map_or(host == "localhost", |ip: std::net::IpAddr| ip == self.registry.ip() || ip.is_loopback());
        local && port.parse() == Ok(self.registry.port())
    }
}

/// The containers of a pod or a template with their images.
fn images(object: &Object) -> impl Iterator<Item = (&str, &str)> {
    let spec = PLACES.iter().find_map(|path| object.at(path).filter(|spec| spec.get("containers").is_some()));
    let lists = CONTAINERS.iter().filter_map(move |list| spec?.get(list)?.as_array());
    lists.flatten().filter_map(|container| {
        let name = container.get("name").and_then(Value::as_str).unwrap_or("");
        Some((name, container.get("image")?.as_str()?))
    })
}

impl KindHook for Imports {
    fn applies(&self, group: &str, resource: &str) -> bool {
        (group, resource) == ("", "pods") || OWNERS.contains(&(group, resource))
    }

    fn mutate(&self, _object: &mut Object, _old: Option<&Object>, _user: &str) {}

    fn validate(&self, object: &Object, old: Option<&Object>) -> Result<(), Status> {
        if object.kind() != "Pod" || object.annotation(MIRROR).is_some() {
            return Ok(());
        }
        if old.is_some_and(|old| images(old).eq(images(object))) {
            return Ok(());
        }
        match self.problems(object).first() {
            Some(why) => Err(Status::forbidden(&GroupResource::new("", "pods"), object.name(), why)),
            None => Ok(()),
        }
    }

    fn warnings(&self, object: &Object) -> Vec<String> {
        if object.kind() == "Pod" { Vec::new() } else { self.problems(object) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wasmk_registry::{Repository, Tag};

    use super::*;

    /// Stores an artifact with a config of these imports.
    async fn store(storage: &Storage, tag: &str, imports: Value) {
        let config = json!({"component": {"imports": imports}}).to_string();
        let id = storage.begin().await.unwrap();
        let chunks = futures::stream::iter([Ok::<_, std::io::Error>(config.clone().into())]);
        storage.append(id, None, chunks).await.unwrap();
        let digest = Digest::of(config.as_bytes());
        storage.finish(id, &digest).await.unwrap();
        let manifest = json!({"schemaVersion": 2, "config": {"digest": digest.to_string()}}).to_string();
        let (name, tag) = (Repository::parse("team/app").unwrap(), Tag::parse(tag).unwrap());
        storage.put_manifest(&name, Some(&tag), "m", manifest.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn artifacts_of_this_registry_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path(), Default::default()).await.unwrap();
        store(&storage, "good", json!(["wasi:io/poll@0.2.3", "helper"])).await;
        store(&storage, "bad", json!(["wasi:io/poll@0.2.3", "acme:tools/hammer@1.0.0"])).await;
        store(&storage, "odd", json!("none")).await;
        let hook = Imports::new(storage, "127.0.0.1:5050".parse().unwrap());
        let pod = |image: &str| {
            let spec = json!({"containers": [{"name": "c", "image": image}]});
            Object::from_value(json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        let check = |image: &str, refused: bool| {
            let said = hook.validate(&pod(image), None).map_err(|e| e.to_string());
            let expect = format!(
                "pods \"p\" is forbidden: container \"c\": image {image} imports acme:tools/hammer@1.0.0, which \
                 WebAssembly is not offered on this cluster"
            );
            assert_eq!(said, if refused { Err(expect) } else { Ok(()) }, "{image}");
        };
        // Twice: the second time from memory.
        for _ in 0..2 {
            check("127.0.0.1:5050/team/app:bad", true);
            check("localhost:5050/team/app:bad", true);
            check("127.0.0.1:5050/team/app:good", false);
        }
        check("127.0.0.1:5050/team/app:odd", false);
        check("127.0.0.1:5050/team/app:none", false);
        check("127.0.0.1:5051/team/app:bad", false);
        check("registry.example.com:5050/team/app:bad", false);
        check("app:bad", false);
        check("not an image", false);
        let bad = pod("127.0.0.1:5050/team/app:bad");
        assert!(hook.validate(&bad, Some(&bad)).is_ok(), "it was there before");
    }

    #[test]
    fn images_are_found_in_templates() {
        let check = |object: Value, expect: &[(&str, &str)]| {
            let object = Object::from_value(object).unwrap();
            assert_eq!(images(&object).collect::<Vec<_>>(), expect);
        };
        let pod =
            json!({"initContainers": [{"name": "i", "image": "1"}], "containers": [{"image": "2"}, {}]});
        check(json!({"spec": pod}), &[("i", "1"), ("", "2")]);
        check(json!({"spec": {"template": {"spec": pod}}}), &[("i", "1"), ("", "2")]);
        let job = json!({"spec": {"template": {"spec": pod}}});
        check(json!({"spec": {"jobTemplate": job}}), &[("i", "1"), ("", "2")]);
        check(json!({"spec": {}}), &[]);
    }
}

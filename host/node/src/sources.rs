//! Reads what pods refer to (ConfigMaps, Secrets, Services, tokens) from the API.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use kube::{Api, api::PostParams};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use wasmk_api::k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{
        ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
    },
    node::v1::RuntimeClass,
    storage::v1::CSIDriver,
};
use wasmk_net::View;

use crate::{
    engine::Failure,
    memory::SOURCES,
    pod::env::{CONFIG_ERROR, Sources},
};

/// Longest wait for one read.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Part of a token's life in which it is used; then a new one takes its place.
const FRESH: f64 = 0.8;
/// Tokens remembered at most; others are asked for anew each time.
const KEPT_TOKENS: usize = 20_000;
/// What Secrets are called here.
const SECRET: &str = "secret";
/// Objects kept on disk for the time when the API is out of reach.
const KEPT: usize = 1024;

/// Sources over an API client. Services are in the shared view; ConfigMaps and Secrets are read
/// when needed, and kept on disk so that pods can be started again without the API.
pub(crate) struct ApiSources {
    client: kube::Client,
    view: View,
    dir: PathBuf,
    /// Where Secrets are kept: not on a disk, if that can be had.
    secret_dir: PathBuf,
    tokens: Mutex<HashMap<TokenKey, (Instant, String)>>,
}

/// Whose token it is (the pod's uid), for whom, and for how long in seconds.
type TokenKey = (String, String, i64);

impl ApiSources {
    /// Sources over a client and a view; `dir` keeps what was read, and `memory`, where there is such a
    /// place, what must not be on a disk.
    pub(crate) fn new(client: kube::Client, view: View, dir: PathBuf, memory: Option<&Path>) -> Self {
        trim(&dir);
        let secret_dir = memory.map_or_else(|| dir.clone(), |memory| memory.join(SOURCES));
        trim(&secret_dir);
        Self { client, view, dir, secret_dir, tokens: Mutex::default() }
    }

    async fn read<K>(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<K>, Failure>
    where
        K: Serialize + DeserializeOwned + Clone + std::fmt::Debug,
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        self.read_from(api, kind, namespace, name).await
    }

    async fn read_cluster<K>(&self, kind: &str, name: &str) -> Result<Option<K>, Failure>
    where
        K: Serialize + DeserializeOwned + Clone + std::fmt::Debug,
        K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>,
    {
        self.read_from(Api::all(self.client.clone()), kind, "", name).await
    }

    async fn read_from<K>(
        &self,
        api: Api<K>,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<K>, Failure>
    where
        K: Serialize + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let dir = if kind == SECRET { &self.secret_dir } else { &self.dir };
        let file = dir.join(format!("{kind}_{namespace}_{name}.json"));
        let failure = match tokio::time::timeout(READ_LIMIT, api.get_opt(name)).await {
            Ok(Ok(None)) => {
                let _ = std::fs::remove_file(file);
                return Ok(None);
            }
            Ok(Ok(Some(object))) => {
                if let Err(error) = keep(&file, &object) {
                    tracing::warn!(%error, file = %file.display(), "cannot keep an object for later");
                }
                return Ok(Some(object));
            }
            // The API answered, so what it says counts.
            Ok(Err(error @ kube::Error::Api(_))) => return Err(failed(&format!("{kind} \"{name}\""), error)),
            Ok(Err(error)) => failed(&format!("{kind} \"{name}\""), error),
            Err(_) => failed(&format!("{kind} \"{name}\""), "no answer from the API"),
        };
        let kept = std::fs::read(file).ok().and_then(|b| serde_json::from_slice(&b).ok());
        kept.map(Some).ok_or(failure)
    }

    /// A token that still has most of its life before it.
    fn known_token(&self, key: &TokenKey) -> Option<String> {
        let tokens = self.tokens.lock();
        tokens.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, token)| token.clone())
    }

    fn remember_token(&self, key: TokenKey, seconds: i64, token: &str) {
        let mut tokens = self.tokens.lock();
        let now = Instant::now();
        // Looked through only when it would grow: there may be many.
        if tokens.len() >= tokens.capacity().min(KEPT_TOKENS) {
            tokens.retain(|_, (until, _)| *until > now);
        }
        if tokens.len() < KEPT_TOKENS {
            let fresh = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).mul_f64(FRESH);
            tokens.insert(key, (now + fresh, token.into()));
        }
    }
}

fn failed(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(CONFIG_ERROR, format!("{what}: {why}"))
}

/// Written for the agent alone: Secrets are among them.
fn keep(file: &Path, object: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(object)?;
    if std::fs::read(file).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(dir) = file.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let fresh = file.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    io::Write::write_all(&mut out, &bytes)?;
    std::fs::rename(fresh, file)
}

/// Removes the oldest beyond the bound.
fn trim(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<_> =
        entries.filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
    files.sort();
    let excess = files.len().saturating_sub(KEPT);
    for (_, file) in files.into_iter().take(excess) {
        let _ = std::fs::remove_file(file);
    }
}

async fn limited<T>(what: &str, work: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(READ_LIMIT, work).await {
        Ok(outcome) => outcome.map_err(|error| failed(what, error)),
        Err(_) => Err(failed(what, "no answer from the API")),
    }
}

#[async_trait]
impl Sources for ApiSources {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, Failure> {
        self.read("configmap", namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Failure> {
        self.read(SECRET, namespace, name).await
    }

    async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String, Failure> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
        let account = account.filter(|a| !a.is_empty()).unwrap_or_else(|| "default".into());
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (uid, audience.unwrap_or_default().to_string(), seconds);
        if let Some(token) = self.known_token(&key) {
            return Ok(token);
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.map(String::from).into_iter().collect()),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(seconds),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let asked = api.create_token_request(&account, &params, &request);
        let answer = limited(&format!("token of serviceaccount \"{account}\""), asked).await?;
        let none =
            || Failure::new(CONFIG_ERROR, format!("serviceaccount \"{account}\": the API gave no token"));
        let token = answer.status.and_then(|s| s.token).ok_or_else(none)?;
        self.remember_token(key, seconds, &token);
        Ok(token)
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, Failure> {
        self.read("persistentvolumeclaim", namespace, name).await
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, Failure> {
        self.read_cluster("persistentvolume", name).await
    }

    async fn namespace(&self, name: &str) -> Result<Option<Namespace>, Failure> {
        self.read_cluster("namespace", name).await
    }

    async fn csi_driver(&self, name: &str) -> Result<Option<CSIDriver>, Failure> {
        self.read_cluster("csidriver", name).await
    }

    async fn runtime_class(&self, name: &str) -> Result<Option<RuntimeClass>, Failure> {
        self.read_cluster("runtimeclass", name).await
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let wanted = |s: &Arc<Service>| {
            let at = s.metadata.namespace.as_deref();
            at == Some(namespace)
                || (at == Some("default") && s.metadata.name.as_deref() == Some("kubernetes"))
        };
        let mut list: Vec<_> = self.view.services().into_iter().filter(wanted).collect();
        list.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        list
    }
}

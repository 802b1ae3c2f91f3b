//! One run of one container, from its image to its end. Everything that happens is told to
//! the pod's loop; nothing is decided here.

use std::{path::PathBuf, sync::Arc};

use base64::Engine as _;
use tokio::sync::mpsc;
use wasmk_api::{
    Quantity,
    k8s_openapi::api::core::v1::{Container, Pod},
};
use wasmk_runtime::StopSignal;

use super::{
    env::{self, CONFIG_ERROR, Place, Sources},
    probe::{self, Finding, Tell, Which},
    volumes,
};
use crate::{
    context::Context,
    engine::{End, Failure, Handler, Kind, Launch, Login, Prepared, PullPolicy, Wanted},
    events::Level,
    logs::{LogName, LogWriter},
    network::PodNetwork,
    serve,
};

/// Port of an HTTP component when neither the container nor its environment names one.
const HTTP_PORT: u16 = 8080;
/// Most logins tried for one image.
const MAX_LOGINS: usize = 32;
/// Label that ties a pod to a revision of a function.
const REVISION_LABEL: &str = "serving.knative.dev/revision";

/// What a run tells the pod's loop.
#[derive(Debug)]
pub(super) enum Progress {
    /// It runs (or is served).
    Started { image_id: String, served: bool },
    /// It could not be started.
    Blocked(Failure),
    /// The run is over.
    Ended(End),
    /// A probe found something.
    Probed(Which, Finding),
}

/// One run; `number` tells it from earlier ones of the same container.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) cx: Arc<Context>,
    pub(super) pod: Arc<Pod>,
    pub(super) container: Arc<Container>,
    pub(super) number: u64,
    /// Which log; counts restarts.
    pub(super) attempt: u32,
    pub(super) place: Place,
    pub(super) volumes: PathBuf,
    pub(super) stop: StopSignal,
    pub(super) news: mpsc::Sender<(String, u64, Progress)>,
}

impl Run {
    /// From image to end.
    pub(super) async fn go(self) {
        match self.start().await {
            Err(failure) => {
                self.event(Level::Warning, "Failed", &format!("Error: {failure}"));
                self.report(Progress::Blocked(failure)).await;
            }
            Ok(ready) => self.run(ready).await,
        }
    }

    async fn report(&self, progress: Progress) -> bool {
        self.news.send((self.container.name.clone(), self.number, progress)).await.is_ok()
    }

    fn event(&self, level: Level, reason: &str, message: &str) {
        self.cx.events.container(&self.pod, &self.container.name, level, reason, message);
    }

    async fn start(&self) -> Result<(Prepared, Launch, Arc<LogWriter>), Failure> {
        let prepared = self.image().await?;
        let env = env::environment(&self.pod, &self.container, &self.place, &*self.cx.sources).await?;
        let mounts = volumes::mounts(&self.pod, &self.container, &self.volumes)?;
        let log = self.open_log()?;
        self.event(Level::Normal, "Created", &format!("Container created: {}", self.container.name));
        let launch = Launch {
            name: self.full_name(),
            command: env::words(self.container.command.as_ref(), &env),
            args: env::words(self.container.args.as_ref(), &env),
            working_dir: self.container.working_dir.clone(),
            env,
            mounts,
            network: PodNetwork::new(self.cx.view.clone(), self.namespace(), self.place.pod_ip),
            memory: memory_limit(&self.container),
            cpu_millis: cpu_limit(&self.container),
            timeout: None,
            concurrency: None,
            log: log.clone(),
        };
        Ok((prepared, launch, log))
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    fn full_name(&self) -> String {
        let meta = &self.pod.metadata;
        let part = |s: &Option<String>| s.clone().unwrap_or_default();
        format!("{}/{}/{}", part(&meta.namespace), part(&meta.name), self.container.name)
    }

    fn open_log(&self) -> Result<Arc<LogWriter>, Failure> {
        let meta = &self.pod.metadata;
        let name = LogName {
            namespace: meta.namespace.as_deref().unwrap_or_default(),
            pod: meta.name.as_deref().unwrap_or_default(),
            uid: meta.uid.as_deref().unwrap_or_default(),
            container: &self.container.name,
            run: self.attempt,
        };
        self.cx.logs.create(&name).map_err(|e| Failure::new("CreateContainerError", format!("log: {e}")))
    }

    async fn image(&self) -> Result<Prepared, Failure> {
        let image = self.container.image.clone().filter(|i| !i.is_empty());
        let image = image.ok_or_else(|| Failure::new("InvalidImageName", "container names no image"))?;
        let policy = pull_policy(&self.container, &image);
        if policy == PullPolicy::Always {
            self.event(Level::Normal, "Pulling", &format!("Pulling image \"{image}\""));
        }
        let logins = logins(&*self.cx.sources, &self.pod).await?;
        let began = tokio::time::Instant::now();
        // Bounded: a hundred pods that arrive at once do not compile at once.
        let _permit = self.cx.starts.acquire().await;
        let wanted = Wanted { image: image.clone(), policy, logins };
        let prepared = self.cx.engine.prepare(&wanted).await.inspect_err(|e| {
            if e.reason == "ErrImagePull" {
                self.event(Level::Warning, "Failed", &format!("Failed to pull image \"{image}\": {e}"));
            }
        })?;
        let text = if prepared.fetched {
            let took = began.elapsed().as_millis();
            let size = prepared.size;
            format!("Successfully pulled image \"{image}\" in {took}ms. Image size: {size} bytes.")
        } else {
            format!("Container image \"{image}\" already present on machine")
        };
        self.event(Level::Normal, "Pulled", &text);
        Ok(prepared)
    }

    async fn run(self, (prepared, launch, log): (Prepared, Launch, Arc<LogWriter>)) {
        let served = prepared.kind == Kind::Http;
        if served {
            self.serve(prepared, launch, &log).await;
        } else {
            self.started(prepared.image_id, false).await;
            let run = prepared.program.run(launch, self.stop.clone());
            let end = tokio::select! {
                end = run => end,
                never = self.probes() => match never {},
            };
            log.close();
            self.report(Progress::Ended(end)).await;
        }
    }

    async fn started(&self, image_id: String, served: bool) {
        self.event(Level::Normal, "Started", &format!("Container started: {}", self.container.name));
        self.report(Progress::Started { image_id, served }).await;
    }

    async fn serve(self, prepared: Prepared, launch: Launch, log: &Arc<LogWriter>) {
        let port = default_port(&self.container, &launch.env);
        let address = self.place.pod_ip.unwrap_or(self.place.host_ip);
        let function = self.revision().and_then(|(ns, revision)| self.cx.functions.get(&ns, &revision));
        let handler: Result<Arc<dyn Handler>, Failure> = match &function {
            Some(function) => Ok(function.handler()),
            None => prepared.program.handler(launch),
        };
        let ready = match handler {
            Ok(handler) => serve::bind((address, port).into()).map(|l| (handler, l)),
            Err(failure) => Err(failure),
        };
        let (handler, listener) = match ready {
            Ok(ready) => ready,
            Err(failure) => {
                self.event(Level::Warning, "Failed", &format!("Error: {failure}"));
                self.report(Progress::Blocked(failure)).await;
                return;
            }
        };
        if let Some(function) = &function {
            function.log().attach(log.clone());
        }
        self.started(prepared.image_id, true).await;
        tokio::select! {
            () = serve::run(listener, handler, self.stop.clone()) => {}
            never = self.probes() => match never {},
        }
        if let Some(function) = &function {
            function.log().detach(log);
        }
        log.close();
        let end = End { code: 0, reason: "Completed".into(), message: String::new() };
        self.report(Progress::Ended(end)).await;
    }

    fn revision(&self) -> Option<(String, String)> {
        let revision = self.pod.metadata.labels.as_ref()?.get(REVISION_LABEL)?;
        Some((self.pod.metadata.namespace.clone()?, revision.clone()))
    }

    async fn probe(&self, which: Which) {
        let address = self.place.pod_ip.unwrap_or(self.place.host_ip);
        probe::watch(which, &self.container, address, self).await;
    }

    /// Runs the probes beside the container; never ends.
    async fn probes(&self) -> std::convert::Infallible {
        self.probe(Which::Startup).await;
        tokio::join!(self.probe(Which::Liveness), self.probe(Which::Readiness));
        std::future::pending().await
    }
}

impl Tell for Run {
    async fn tell(&self, which: Which, finding: Finding) -> bool {
        self.report(Progress::Probed(which, finding)).await
    }
}

/// When the image is fetched: as written, or by its tag.
fn pull_policy(container: &Container, image: &str) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None => {
            let last = image.rsplit('/').next().unwrap_or(image);
            let latest = !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
            if latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}

/// The port an HTTP component is served on: the container's first, `PORT`, or 8080.
fn default_port(container: &Container, env: &[(String, String)]) -> u16 {
    let declared = container.ports.iter().flatten().next().and_then(|p| u16::try_from(p.container_port).ok());
    let told = || env.iter().find(|(k, _)| k == "PORT").and_then(|(_, v)| v.parse().ok());
    declared.filter(|p| *p > 0).or_else(told).unwrap_or(HTTP_PORT)
}

/// The container's memory limit in bytes.
pub(crate) fn memory_limit(container: &Container) -> Option<u64> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get("memory")?;
    let bytes = limit.0.parse::<Quantity>().ok()?.value();
    u64::try_from(bytes).ok().filter(|b| *b > 0)
}

/// The container's processor limit in thousandths of a core.
pub(crate) fn cpu_limit(container: &Container) -> Option<u32> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get("cpu")?;
    let millis = limit.0.parse::<Quantity>().ok()?.milli_value();
    u32::try_from(millis).ok().filter(|m| *m > 0)
}

/// The logins of the pod's image pull secrets.
pub(crate) async fn logins(sources: &dyn Sources, pod: &Pod) -> Result<Vec<Login>, Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut out = Vec::new();
    for reference in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()).take(MAX_LOGINS) {
        // A missing secret is no error: the image may be public.
        let Some(secret) = sources.secret(namespace, &reference.name).await? else { continue };
        if let Some(config) = secret.data.as_ref().and_then(|d| d.get(".dockerconfigjson")) {
            out.extend(docker_logins(&config.0).map_err(|e| {
                Failure::new(
                    CONFIG_ERROR,
                    format!("secret \"{}\" key .dockerconfigjson: {e}", reference.name),
                )
            })?);
        }
    }
    out.truncate(MAX_LOGINS);
    Ok(out)
}

fn docker_logins(config: &[u8]) -> Result<Vec<Login>, String> {
    let config: serde_json::Value = serde_json::from_slice(config).map_err(|e| e.to_string())?;
    let auths = config.get("auths").and_then(|a| a.as_object());
    let mut out = Vec::new();
    for (registry, auth) in auths.into_iter().flatten() {
        let field = |name: &str| auth.get(name).and_then(|v| v.as_str()).map(String::from);
        let packed = || {
            let bytes = base64::engine::general_purpose::STANDARD.decode(field("auth")?).ok()?;
            let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
            Some((user.to_string(), password.to_string()))
        };
        let Some((username, password)) = field("username").zip(field("password")).or_else(packed) else {
            continue;
        };
        let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
        let registry = bare.split('/').next().unwrap_or(bare).to_string();
        out.push(Login { registry, username, password });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (policy, image, expect) in [
            (None, "a/b", PullPolicy::Always),
            (None, "host:5000/b:latest", PullPolicy::Always),
            (None, "host:5000/b", PullPolicy::Always),
            (None, "a/b:1", PullPolicy::IfNotPresent),
            (None, "a/b@sha256:00", PullPolicy::IfNotPresent),
            (Some("Never"), "a/b", PullPolicy::Never),
        ] {
            let container = Container { image_pull_policy: policy.map(String::from), ..Container::default() };
            assert_eq!(pull_policy(&container, image), expect, "{policy:?} {image}");
        }
    }

    #[test]
    fn ports_and_limits() {
        let container: Container = serde_json::from_value(json!({
            "name": "c", "ports": [{"containerPort": 9000}], "resources": {"limits": {"memory": "1Mi"}},
        }))
        .unwrap();
        assert_eq!((default_port(&container, &[]), memory_limit(&container)), (9000, Some(1 << 20)));
        let env = [("PORT".to_string(), "81".to_string())];
        assert_eq!(default_port(&Container::default(), &env), 81);
        assert_eq!(default_port(&Container::default(), &[]), HTTP_PORT);
    }

    #[test]
    fn pull_secrets_are_read() {
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "r:5000": {"username": "a", "password": "b"},
            "empty": {},
        }});
        let logins = docker_logins(config.to_string().as_bytes()).unwrap();
        let shown: Vec<_> =
            logins.iter().map(|l| format!("{} {}:{}", l.registry, l.username, l.password)).collect();
        assert_eq!(shown, ["index.docker.io u:p", "r:5000 a:b"]);
    }
}

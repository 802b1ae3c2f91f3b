//! One run of one container, from its image to its end. Everything that happens is told to
//! the pod's loop; nothing is decided here.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use tokio::sync::mpsc;
use wasmk_api::{
    PerRequest, Quantity,
    k8s_openapi::api::core::v1::{Container, Pod},
};
use wasmk_runtime::StopSignal;

use super::{
    attend::Attended,
    env::{self, Place},
    image_volumes,
    images::{self, Choice},
    message,
    probe::{Finding, Tell, Which},
    volumes,
};
use wasmk_net::policy::Gate;

use crate::{
    containers::Sandbox,
    context::Context,
    engine::{End, Failure, Handler, Kind, Launch, Prepared, PullPolicy, Wanted},
    events::Level,
    exec::InGuest,
    logs::{LogName, LogWriter},
    network::PodNetwork,
    running::Running,
    serve,
};

/// Port of an HTTP component when neither the container nor its environment names one.
const HTTP_PORT: u16 = 8080;
/// Label that ties a pod to a revision of a function.
const REVISION_LABEL: &str = "serving.knative.dev/revision";

/// What a run tells the pod's loop.
#[derive(Debug)]
pub(super) enum Progress {
    /// It runs (or is served).
    Started(Started),
    /// It could not be started.
    Blocked(Failure),
    /// The run is over; when it ran, if somebody else knows better.
    Ended(End, Option<crate::containers::run::Ran>),
    /// A probe found something.
    Probed(Which, Finding),
}

/// How a container was started.
#[derive(Clone, Debug)]
pub(super) struct Started {
    /// Reference of its image by digest.
    pub(super) image_id: String,
    /// It is served by this agent, without a run of its own.
    pub(super) served: bool,
    /// What the container runtime calls it, if it runs there.
    pub(super) foreign: Option<String>,
}

/// A container that was found running.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// What the container runtime calls it.
    pub(super) id: String,
    /// Its startup probe has passed already.
    pub(super) started: bool,
}

/// What was found of a container while its sandbox was made.
#[derive(Clone, Debug, Default)]
pub(super) struct First {
    /// What runs its image, if that was looked at.
    pub(super) choice: Option<Choice>,
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
    /// The pod's own directory.
    pub(super) dir: PathBuf,
    pub(super) sandbox: Option<Sandbox>,
    /// Nobody has tried to start it in that sandbox before.
    pub(super) first: Option<First>,
    /// It runs already and is only to be attended to.
    pub(super) found: Option<Found>,
    pub(super) stop: StopSignal,
    pub(super) news: mpsc::Sender<(String, u64, Progress)>,
}

impl Run {
    /// From image to end.
    pub(super) async fn go(self) {
        if let Some(found) = self.found.clone() {
            return self.go_on(found).await;
        }
        if let Err(failure) = self.start().await {
            self.event(Level::Warning, "Failed", &format!("Error: {failure}"));
            self.report(Progress::Blocked(failure)).await;
        }
    }

    pub(super) async fn report(&self, progress: Progress) -> bool {
        self.news.send((self.container.name.clone(), self.number, progress)).await.is_ok()
    }

    pub(super) fn event(&self, level: Level, reason: &str, message: &str) {
        self.cx.events.container(&self.pod, &self.container.name, level, reason, message);
    }

    /// An error is from before anything ran.
    async fn start(&self) -> Result<(), Failure> {
        let wanted = images::wanted(&self.cx, &self.pod, &self.container).await?;
        if let (Some(sandbox), Some(containers)) = (&self.sandbox, &self.cx.containers)
            && let Choice::Container(known) = self.choice(&wanted).await
        {
            return self.contain(containers, sandbox, &wanted, known).await;
        }
        let prepared = self.image(&wanted).await?;
        let mut env = env::environment(&self.pod, &self.container, &self.place, &*self.cx.sources).await?;
        let per_request = per_request(&self.pod)?;
        let command = prepared.kind == Kind::Command && !per_request.wagi;
        self.image_volumes().await?;
        let grant = self.cx.devices.give(&self.pod, &self.container).await?;
        grant.add_env(&mut env);
        if !grant.devices.is_empty() || !grant.cdi.is_empty() {
            let text = "a Wasm container can be given variables and directories only, and its limits ask for devices";
            return Err(Failure::new(env::CONFIG_ERROR, text));
        }
        if let Some(device) = self.container.volume_devices.iter().flatten().next() {
            let text = "a Wasm container can be given directories only, and this is a device";
            let text = format!("volumeDevice {}: {text}", device.device_path);
            return Err(Failure::new(env::CONFIG_ERROR, text));
        }
        let mut mounts = volumes::mounts(&self.pod, &self.container, &self.volumes(), &env, false)?;
        grant.add_mounts(&mut mounts);
        if command {
            message::offer_directory(&self.container, &self.dir, &mut mounts);
        }
        let log = self.cx.logs.create(&self.log_name());
        self.event(Level::Normal, "Created", &format!("Container created: {}", self.container.name));
        let namespace = self.cx.running.namespace(self.uid());
        let network =
            PodNetwork::of_pod(self.cx.neighbours(), self.namespace(), self.place.pod_ip, namespace);
        let launch = Launch {
            name: self.full_name(),
            command: env::words(self.container.command.as_ref(), &env),
            args: env::words(self.container.args.as_ref(), &env),
            working_dir: self.container.working_dir.clone(),
            env,
            mounts,
            network,
            memory: memory_limit(&self.container),
            cpu_millis: cpu_limit(&self.container),
            timeout: None,
            concurrency: None,
            per_request,
            keyvalue: crate::keyvalue::given(&self.pod, &*self.cx.sources).await?,
            blobs: crate::keyvalue::containers(&self.pod, &*self.cx.sources).await?,
            log: log.clone(),
            stdin: None,
            isolated: self.cx.classes.isolated(&self.pod, &*self.cx.sources).await?,
        };
        let outcome = if command {
            self.run(prepared, launch, &log).await;
            Ok(())
        } else {
            self.serve(prepared, launch, &log).await
        };
        log.close();
        outcome
    }

    /// What runs the image.
    async fn choice(&self, wanted: &Wanted) -> Choice {
        match self.first.as_ref().and_then(|first| first.choice.clone()) {
            Some(choice) => choice,
            None => images::choose_for(&self.cx, wanted).await,
        }
    }

    pub(super) fn volumes(&self) -> PathBuf {
        self.dir.join("volumes")
    }

    pub(super) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    pub(super) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) fn full_name(&self) -> String {
        let name = self.pod.metadata.name.as_deref().unwrap_or_default();
        format!("{}/{name}/{}", self.namespace(), self.container.name)
    }

    pub(super) fn log_name(&self) -> LogName<'_> {
        LogName {
            namespace: self.pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod: self.pod.metadata.name.as_deref().unwrap_or_default(),
            uid: self.uid(),
            container: &self.container.name,
            run: self.attempt,
        }
    }

    async fn image(&self, wanted: &Wanted) -> Result<Prepared, Failure> {
        self.pulling(wanted);
        let began = tokio::time::Instant::now();
        // Bounded: a hundred pods that arrive at once do not compile at once.
        let _permit = self.cx.starts.acquire().await;
        let prepared = self.cx.engine.prepare(wanted).await.inspect_err(|e| self.not_pulled(wanted, e))?;
        self.pulled(wanted, prepared.fetched, prepared.size, began);
        Ok(prepared)
    }

    /// Gets the images ready whose files the container mounts.
    pub(super) async fn image_volumes(&self) -> Result<(), Failure> {
        for (name, source) in image_volumes::mounted(&self.pod, &self.container) {
            let place = self.volumes().join(name);
            if place.is_dir() {
                // It stays what it was for as long as the pod lives.
                continue;
            }
            let wanted = image_volumes::wanted(&*self.cx.sources, &self.pod, source).await?;
            self.pulling(&wanted);
            let began = tokio::time::Instant::now();
            let files = self.cx.engine.files(&wanted).await.inspect_err(|e| self.not_pulled(&wanted, e))?;
            self.pulled(&wanted, files.fetched, files.size, began);
            image_volumes::place(&place, &files.path)?;
        }
        Ok(())
    }

    pub(super) fn pulling(&self, wanted: &Wanted) {
        if wanted.policy == PullPolicy::Always {
            self.event(Level::Normal, "Pulling", &format!("Pulling image \"{}\"", wanted.image));
        }
    }

    pub(super) fn not_pulled(&self, wanted: &Wanted, failure: &Failure) {
        if failure.reason == "ErrImagePull" {
            let text = format!("Failed to pull image \"{}\": {failure}", wanted.image);
            self.event(Level::Warning, "Failed", &text);
        }
    }

    pub(super) fn pulled(&self, wanted: &Wanted, fetched: bool, size: u64, began: tokio::time::Instant) {
        let image = &wanted.image;
        let text = if fetched {
            let took = began.elapsed().as_millis();
            format!("Successfully pulled image \"{image}\" in {took}ms. Image size: {size} bytes.")
        } else {
            format!("Container image \"{image}\" already present on machine")
        };
        self.event(Level::Normal, "Pulled", &text);
    }

    async fn run(&self, prepared: Prepared, launch: Launch, log: &Arc<LogWriter>) {
        let launch = Arc::new(launch);
        let exec = InGuest { engine: self.cx.engine.clone(), launch: launch.clone() };
        let _entry = self.cx.running.enter(self.uid(), &self.container.name, Running::Wasm(launch.clone()));
        let started = Started { image_id: prepared.image_id, served: false, foreign: None };
        let run = |stop| prepared.program.run((*launch).clone(), stop);
        let mut end = Attended { run: self, exec: &exec }.attend(Some(started), run).await;
        log.close();
        message::of_end(self, &mut end).await;
        self.report(Progress::Ended(end, None)).await;
    }

    async fn serve(&self, prepared: Prepared, launch: Launch, log: &Arc<LogWriter>) -> Result<(), Failure> {
        let port = default_port(&self.container, &launch.env);
        let function = self.revision().and_then(|(ns, revision)| self.cx.functions.get(&ns, &revision));
        let launch = Arc::new(launch);
        let handler: Arc<dyn Handler> = match &function {
            Some(function) => function.handler(),
            None => prepared.program.handler((*launch).clone())?,
        };
        let namespace = self.cx.running.namespace(self.uid());
        // What comes into a namespace of its own is judged there.
        let gate = match &namespace {
            Some(_) => Gate::open(),
            None => Gate::new(self.cx.policies.clone()),
        };
        let listener = match namespace {
            // All addresses there are the pod's own, and its other containers use the loopback.
            Some(namespace) => serve::bind_in(&namespace, (IpAddr::V4(Ipv4Addr::UNSPECIFIED), port).into()),
            None => serve::bind((self.place.pod_ip.unwrap_or(self.place.host_ip), port).into()),
        }?;
        if let Some(function) = &function {
            function.log().attach(log.clone());
        }
        let exec = InGuest { engine: self.cx.engine.clone(), launch: launch.clone() };
        let _entry = self.cx.running.enter(self.uid(), &self.container.name, Running::Wasm(launch));
        let started = Started { image_id: prepared.image_id, served: true, foreign: None };
        let run = |stop| async {
            tokio::select! {
                biased;
                end = handler.ended() => end,
                () = serve::run(listener, handler.clone(), gate, stop) => {
                    End { code: 0, reason: "Completed".into(), message: String::new() }
                }
            }
        };
        let end = Attended { run: self, exec: &exec }.attend(Some(started), run).await;
        if let Some(function) = &function {
            function.log().detach(log);
        }
        log.close();
        self.report(Progress::Ended(end, None)).await;
        Ok(())
    }

    fn revision(&self) -> Option<(String, String)> {
        let revision = self.pod.metadata.labels.as_ref()?.get(REVISION_LABEL)?;
        Some((self.pod.metadata.namespace.clone()?, revision.clone()))
    }
}

impl Tell for Run {
    async fn tell(&self, which: Which, finding: Finding) -> bool {
        self.report(Progress::Probed(which, finding)).await
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

/// The limits of requests that the pod's annotations say.
pub(crate) fn per_request(pod: &Pod) -> Result<PerRequest, Failure> {
    let annotations = pod.metadata.annotations.as_ref();
    let read = PerRequest::read(|key| annotations?.get(key).map(String::as_str));
    read.map_err(|wrong| Failure::new(env::CONFIG_ERROR, wrong))
}

/// The container's processor limit in thousandths of a core.
pub(crate) fn cpu_limit(container: &Container) -> Option<u32> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get("cpu")?;
    let millis = limit.0.parse::<Quantity>().ok()?.milli_value();
    u32::try_from(millis).ok().filter(|m| *m > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
}

//! A run in the container runtime.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use wasmk_cri::v1::Image;

use super::{
    attend::Attended,
    container::{Found, Progress, Run, Started},
    env, message, volumes,
};
use crate::{
    containers::{Containers, Identity, Sandbox, hosts, run::file_mount},
    engine::{End, Failure, Wanted},
    events::Level,
    exec::InContainer,
    running::Running,
};

/// Where a pod's names are.
const HOSTS: &str = "/etc/hosts";

impl Run {
    /// Fetches the image, unless it is `known` to be there, makes and starts the container, and stays until its end.
    pub(super) async fn contain(
        &self,
        containers: &Arc<Containers>,
        sandbox: &Sandbox,
        wanted: &Wanted,
        known: Option<Box<Image>>,
    ) -> Result<(), Failure> {
        self.pulling(wanted);
        let began = tokio::time::Instant::now();
        let image = {
            let _permit = self.cx.starts.acquire().await;
            containers
                .pull(wanted, known.map(|image| *image))
                .await
                .inspect_err(|e| self.not_pulled(wanted, e))?
        };
        self.pulled(wanted, image.fetched, image.size, began);
        let mut env = env::environment(&self.pod, &self.container, &self.place, &*self.cx.sources).await?;
        let grant = self.cx.devices.give(&self.pod, &self.container).await?;
        grant.add_env(&mut env);
        self.image_volumes().await?;
        let mut mounts = volumes::mounts(&self.pod, &self.container, &self.volumes(), &env, true)?;
        let broken = |e: std::io::Error| Failure::new("CreateContainerError", e);
        file_mount(&mut mounts, self.write_hosts().map_err(broken)?, HOSTS);
        let (host, guest) = message::offer_file(&self.container, &self.dir).map_err(broken)?;
        file_mount(&mut mounts, host, &guest);
        // The runtime opens the log by itself; its directory must be there.
        self.cx.logs.attend(&self.log_name()).map_err(broken)?;
        grant.add_mounts(&mut mounts);
        let mut devices = volumes::devices(&self.pod, &self.container, &self.volumes())?;
        devices.extend(grant.devices());
        let of = Identity {
            pod: &self.pod,
            container: &self.container,
            attempt: self.attempt,
            image: &image.reference,
            user: &image.user,
            command: env::words(self.container.command.as_ref(), &env),
            args: env::words(self.container.args.as_ref(), &env),
            env: &env,
            mounts,
            devices,
            cdi: grant.cdi,
            annotations: grant.annotations.into_iter().collect(),
            node_memory: self.cx.memory(),
        };
        let id = containers.launch(sandbox, of, self.first.is_none()).await?;
        self.event(Level::Normal, "Created", &format!("Container created: {}", self.container.name));
        let started = Started { image_id: image.image_id, served: false, foreign: Some(id.clone()) };
        self.stay(containers, &id, Some(started)).await;
        Ok(())
    }

    /// Attends to a container that ran before this agent was started.
    pub(super) async fn go_on(&self, found: Found) {
        match &self.cx.containers {
            Some(containers) => self.stay(containers, &found.id, None).await,
            None => {
                let message = "the node has no container runtime any longer";
                let end = End { code: 137, reason: "ContainerStatusUnknown".into(), message: message.into() };
                self.report(Progress::Ended(end, None)).await;
            }
        }
    }

    async fn stay(&self, containers: &Arc<Containers>, id: &str, started: Option<Started>) {
        let exec = InContainer { containers: containers.clone(), id: id.into() };
        let running = Running::Container(id.into());
        let _entry = self.cx.running.enter(self.uid(), &self.container.name, running);
        let ran = OnceLock::new();
        let run = |stop| async {
            let (end, when) = containers.attend(id, stop).await;
            let _ = ran.set(when);
            end
        };
        let log = self.cx.logs.attend(&self.log_name());
        let attended = Attended { run: self, exec: &exec };
        let attended = attended.attend(started, run);
        let mut end = match &log {
            Ok(log) => tokio::select! {
                end = attended => end,
                never = containers.keep_log(id, log) => match never {},
            },
            Err(_) => attended.await,
        };
        if let Ok(log) = &log {
            log.close();
        }
        message::of_end(self, &mut end).await;
        self.report(Progress::Ended(end, ran.get().copied().flatten())).await;
    }

    /// The file that containers see as their own list of host names.
    fn write_hosts(&self) -> std::io::Result<PathBuf> {
        let file = self.dir.join("etc-hosts");
        let of_node = std::fs::read_to_string(HOSTS).unwrap_or_default();
        let ip: Option<IpAddr> = self.place.pod_ip;
        std::fs::write(&file, hosts(&self.pod, ip, &of_node))?;
        Ok(file)
    }
}

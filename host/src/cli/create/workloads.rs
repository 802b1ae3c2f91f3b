//! Deployments, jobs and cron jobs.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{super::Context, object};
use crate::cli::{
    api::Api,
    make::{self, Flags},
};

/// The image, and what it runs instead of its own program.
#[derive(Clone, Debug, clap::Args)]
struct Program {
    /// The image; of a deployment several may be given
    #[arg(long, value_name = "IMAGE")]
    image: Vec<String>,
    /// What to run
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Program {
    fn containers(&self, name: Option<&str>, port: Option<u16>) -> Vec<Value> {
        let container = |image: &String| {
            let named = name.map_or_else(|| container_name(image), str::to_string);
            let mut container = json!({"name": named, "image": image});
            if !self.command.is_empty() {
                container["command"] = json!(self.command);
            }
            if let Some(port) = port {
                container["ports"] = json!([{"containerPort": port}]);
            }
            container
        };
        self.image.iter().map(container).collect()
    }

    fn one(&self) -> Result<()> {
        match self.image.len() {
            1 => Ok(()),
            n => bail!("--image must be given once, it was given {n} times"),
        }
    }
}

/// The last part of an image's name, without tag and digest.
pub(in crate::cli) fn container_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    let bare = last.split(['@', ':']).next().unwrap_or(last).to_lowercase();
    let name: String = bare.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    name.trim_matches('-').into()
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Deployment {
    name: String,
    #[command(flatten)]
    program: Program,
    /// How many pods
    #[arg(short, long, default_value_t = 1)]
    replicas: u32,
    /// The port the container has
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    flags: Flags,
}

impl Deployment {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        if self.program.image.is_empty() {
            bail!("--image must be given");
        }
        let containers = self.program.containers(None, self.port);
        make::make(
            cx,
            &self.flags,
            deployment(&self.name, &json!({"app": self.name}), self.replicas, &containers),
        )
        .await
    }
}

/// A deployment whose pods have the labels.
pub(in crate::cli) fn deployment(name: &str, labels: &Value, replicas: u32, containers: &[Value]) -> Value {
    let mut deployment = object("apps/v1", "Deployment", name);
    deployment["metadata"]["labels"] = labels.clone();
    deployment["spec"] = json!({
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
    });
    deployment
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Job {
    name: String,
    /// Take the template of `cronjob/NAME`
    #[arg(long, value_name = "cronjob/NAME", conflicts_with = "image")]
    from: Option<String>,
    #[command(flatten)]
    program: Program,
    #[command(flatten)]
    flags: Flags,
}

impl Job {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        let Some(from) = &self.from else {
            self.program.one()?;
            let containers = self.program.containers(Some(&self.name), None);
            return make::make(cx, &self.flags, job(&self.name, "Never", &containers)).await;
        };
        let name = from
            .strip_prefix("cronjob/")
            .or_else(|| from.strip_prefix("cj/"))
            .with_context(|| format!("--from must be cronjob/NAME, not {from}"))?;
        let api = Api::new(cx.client().await?);
        let path = format!("/apis/batch/v1/namespaces/{}/cronjobs/{name}", api.default_namespace());
        let cron = api.get(&path).await?;
        let template = &cron["spec"]["jobTemplate"];
        let mut job = object("batch/v1", "Job", &self.name);
        job["metadata"]["labels"] = template["metadata"]["labels"].clone();
        job["metadata"]["annotations"] = json!({"cronjob.kubernetes.io/instantiate": "manual"});
        job["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "batch/v1", "kind": "CronJob", "name": name, "uid": cron["metadata"]["uid"], "controller": true,
        }]);
        job["spec"] = template["spec"].clone();
        make::make(cx, &self.flags, job).await
    }
}

/// A job of those containers.
pub(in crate::cli) fn job(name: &str, restart: &str, containers: &[Value]) -> Value {
    let mut job = object("batch/v1", "Job", name);
    job["spec"] = json!({"template": {"spec": {"restartPolicy": restart, "containers": containers}}});
    job
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct CronJob {
    name: String,
    /// When, in cron's five fields
    #[arg(long)]
    schedule: String,
    /// What becomes of a container that fails
    #[arg(long, default_value = "OnFailure")]
    restart: String,
    #[command(flatten)]
    program: Program,
    #[command(flatten)]
    flags: Flags,
}

impl CronJob {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        self.program.one()?;
        let containers = self.program.containers(Some(&self.name), None);
        make::make(cx, &self.flags, cron_job(&self.name, &self.schedule, &self.restart, &containers)).await
    }
}

/// A cron job of those containers.
pub(in crate::cli) fn cron_job(name: &str, schedule: &str, restart: &str, containers: &[Value]) -> Value {
    let mut cron = object("batch/v1", "CronJob", name);
    cron["spec"] = json!({
        "schedule": schedule,
        "jobTemplate": {
            "metadata": {"name": name},
            "spec": {"template": {"spec": {"restartPolicy": restart, "containers": containers}}},
        },
    });
    cron
}

#[cfg(test)]
mod tests {
    use super::container_name;

    #[test]
    fn containers_are_named_for_their_image() {
        for (image, name) in [
            ("nginx", "nginx"),
            ("127.0.0.1:5050/default/hello:1", "hello"),
            ("kiamol/ch02_Hello@sha256:00", "ch02-hello"),
        ] {
            assert_eq!(container_name(image), name);
        }
    }
}

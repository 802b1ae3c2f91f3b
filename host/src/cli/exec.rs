//! `wasmk exec`: a command in a container.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use futures::{SinkExt, channel::mpsc};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::api::{AttachParams, AttachedProcess, TerminalSize};
use serde_json::Value;
use tokio::{
    io::{AsyncWriteExt, copy},
    signal::unix::{SignalKind, signal},
};

use super::{Context, Exit, api::Api, pods, selection::with_query};

/// A container, and how to talk with a process in it.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// POD, or TYPE/NAME of something that has pods
    pod: String,
    /// The container [default: as the pod's annotation says, or the first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub(super) stdin: bool,
    /// In a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// The command; `--` before it is optional
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Target {
    /// The pod meant.
    pub(super) async fn pod(&self, api: &Api) -> Result<Value> {
        pods::one(api, &self.pod).await
    }

    /// The container of that pod, with the streams asked for.
    pub(super) fn parameters(&self, pod: &Value) -> AttachParams {
        let usual = || pods::default_container(pod).unwrap_or_default();
        AttachParams::default()
            .container(self.container.clone().unwrap_or_else(usual))
            .stdin(self.stdin)
            .stdout(true)
            .stderr(!self.tty)
            .tty(self.tty)
    }
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let pod = args.target.pod(&api).await?;
    let name = pods::text(&pod["metadata"]["name"]);
    let parameters = args.target.parameters(&pod);
    let kube: kube::Api<Pod> = kube::Api::default_namespaced(api.client.clone());
    let process = match kube.exec(&name, args.command.clone(), &parameters).await {
        Ok(process) => process,
        Err(error) => {
            let container = parameters.container.unwrap_or_default();
            let refusal = refusal(&api, &name, &container, &args.command).await;
            return Err(refusal.unwrap_or_else(|| anyhow!(error)));
        }
    };
    converse(process, args.target.tty).await
}

/// The server's own words: those of a refused upgrade get lost, so the same is asked without one.
async fn refusal(api: &Api, pod: &str, container: &str, command: &[String]) -> Option<anyhow::Error> {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/exec", api.default_namespace());
    let mut query = vec![("container", container), ("stdout", "true")];
    query.extend(command.iter().map(|word| ("command", word.as_str())));
    api.text(&with_query(&path, &query)).await.err()
}

/// Connects this process's input and output with a remote one's until that ends; answers its exit code.
///
/// # Errors
/// When the terminal cannot be set up, or what runs remotely failed to start.
pub(super) async fn converse(mut process: AttachedProcess, tty: bool) -> Result<Exit> {
    let in_terminal = tty && std::io::IsTerminal::is_terminal(&std::io::stdin());
    let _raw = in_terminal.then(Raw::enter).transpose()?;
    let status = process.take_status();
    let sizes = process.terminal_size().filter(|_| in_terminal).map(|to| tokio::spawn(resize(to)));
    let input = process.stdin().map(|mut to| {
        tokio::spawn(async move {
            let _ = copy(&mut tokio::io::stdin(), &mut to).await;
            let _ = to.shutdown().await;
        })
    });
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let out = async {
        if let Some(mut from) = stdout {
            let _ = copy(&mut from, &mut tokio::io::stdout()).await;
            let _ = tokio::io::stdout().flush().await;
        }
    };
    let err = async {
        if let Some(mut from) = stderr {
            let _ = copy(&mut from, &mut tokio::io::stderr()).await;
        }
    };
    tokio::join!(out, err);
    for task in [sizes, input].into_iter().flatten() {
        task.abort();
    }
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    outcome(status)
}

/// What the status at the end of a remote process means; none counts as a good end.
///
/// # Errors
/// When it failed to start or to go on.
pub(super) fn outcome(status: Option<Status>) -> Result<Exit> {
    let Some(status) = status.filter(|s| s.status.as_deref() == Some("Failure")) else {
        return Ok(Exit::Done);
    };
    let causes = status.details.and_then(|d| d.causes).unwrap_or_default();
    let code = causes
        .iter()
        .find(|c| c.reason.as_deref() == Some("ExitCode"))
        .and_then(|c| c.message.as_deref()?.parse().ok());
    match code {
        Some(code) => Ok(Exit::Code(code)),
        None => bail!("{}", status.message.unwrap_or_default()),
    }
}

/// Tells the size of the terminal, at first and whenever it changes.
async fn resize(mut to: mpsc::Sender<TerminalSize>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        let Some((width, height)) = size() else { return };
        if to.send(TerminalSize { width, height }).await.is_err() || changes.recv().await.is_none() {
            return;
        }
    }
}

/// Columns and rows of the terminal.
fn size() -> Option<(u16, u16)> {
    let text = stty(&["size"]).ok()?;
    let (rows, columns) = text.trim().split_once(' ')?;
    Some((columns.parse().ok()?, rows.parse().ok()?))
}

/// The terminal without echo and line editing, until dropped; it keeps what was set before.
struct Raw(String);

impl Raw {
    fn enter() -> Result<Self> {
        let before = stty(&["-g"])?;
        stty(&["raw", "-echo"])?;
        Ok(Self(before.trim().into()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = stty(&[&self.0]);
    }
}

/// Runs `stty` on this terminal; what it printed.
fn stty(args: &[&str]) -> Result<String> {
    let out =
        Command::new("stty").args(args).stdin(Stdio::inherit()).output().context("cannot start stty")?;
    if !out.status.success() {
        bail!("stty {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8(out.stdout)?)
}

//! `wasmk down`: stop what `wasmk up` started.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::{Context, Exit, client::default_data_dir};
use crate::data_dir::DataDir;

/// Longest wait for pods to stop and data to reach the disk.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its data directory
    #[arg(long, value_name = "DIR", default_value_os_t = default_data_dir())]
    data_dir: PathBuf,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let data = DataDir::new(args.data_dir);
    let Some(running) = data.running()? else {
        cx.out.line(format!("nothing is running in {}", data.path().display()));
        return Ok(Exit::Done);
    };
    let pid = Pid::from_raw(i32::try_from(running.pid).context("the run file names no process")?);
    kill(pid, Signal::SIGTERM).with_context(|| format!("cannot stop process {pid}"))?;
    let deadline = Instant::now() + PATIENCE;
    while data.running()?.is_some() {
        if Instant::now() > deadline {
            bail!(
                "process {pid} did not stop within {} s; see {}",
                PATIENCE.as_secs(),
                data.join("wasmk.log").display()
            );
        }
        sleep(Duration::from_millis(20)).await;
    }
    cx.out.line("stopped");
    Ok(Exit::Done)
}

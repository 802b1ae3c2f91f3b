//! Waiting until a function can be called.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

use super::{
    super::{api::Api, hint::WithHint},
    path, ready,
};

/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for the present generation of a function to be ready and returns its URL.
///
/// # Errors
/// With the function's own words when it failed, or when it took too long.
pub(super) async fn until_ready(api: &Api, name: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(5);
    loop {
        let service = api.get(&path(api.default_namespace(), name)).await?;
        let state = ready(&service);
        let text = |key: &str| state.and_then(|c| c[key].as_str()).unwrap_or("").to_string();
        match text("status").as_str() {
            "True" => return Ok(service["status"]["url"].as_str().unwrap_or("").into()),
            "False" => {
                return Err(anyhow::anyhow!("{name} cannot start: {}", text("message"))).hint(|| {
                    format!("`kubectl describe revision -l serving.knative.dev/service={name}` tells more")
                });
            }
            _ if Instant::now() > deadline => {
                bail!(
                    "{name} was not ready within {} s: {} {}",
                    PATIENCE.as_secs(),
                    text("reason"),
                    text("message")
                )
            }
            _ => sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

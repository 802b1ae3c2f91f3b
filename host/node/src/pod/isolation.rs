//! Pods whose RuntimeClass asks for a process apart, behind the second wall.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use wasmk_api::k8s_openapi::api::core::v1::Pod;

use super::env::Sources;
use crate::{engine::Failure, register::ISOLATED_HANDLER};

/// A class's handler never changes, but a class of the same name may come after it.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Classes that are remembered at most.
const MOST: usize = 256;

/// What is known of RuntimeClasses, so that not every start of a container asks.
#[derive(Default)]
pub(crate) struct Classes(Mutex<HashMap<String, (Instant, bool)>>);

impl Classes {
    /// As [`isolated`], from what was read a moment ago.
    pub(crate) async fn isolated(&self, pod: &Pod, sources: &dyn Sources) -> Result<bool, Failure> {
        let Some(class) = class(pod) else { return Ok(false) };
        let known = self.0.lock().get(class).copied();
        if let Some((_, isolated)) = known.filter(|(at, _)| at.elapsed() < KNOWN_FOR) {
            return Ok(isolated);
        }
        let isolated = isolated(pod, sources).await?;
        let mut known = self.0.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(class.to_owned(), (Instant::now(), isolated));
        Ok(isolated)
    }
}

/// Whether the pod's RuntimeClass has the handler that stands for a process apart.
///
/// # Errors
/// When the class cannot be read, or there is none of that name.
pub(crate) async fn isolated(pod: &Pod, sources: &dyn Sources) -> Result<bool, Failure> {
    let Some(class) = class(pod) else { return Ok(false) };
    match sources.runtime_class(class).await? {
        Some(found) => Ok(found.handler == ISOLATED_HANDLER),
        // Static pods come before there is any.
        None if class == ISOLATED_HANDLER => Ok(true),
        None => Ok(false),
    }
}

fn class(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.runtime_class_name.as_deref().filter(|class| !class.is_empty())
}

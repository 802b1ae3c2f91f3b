//! Audit: who asked for what, when, and what became of it.
//!
//! A policy says of each request how much is kept: nothing, what it was about, what was sent, or also what was
//! answered. Events go to a file that is rotated, to a service elsewhere, or both. What is secret by its kind is
//! blanked before it is written.

pub(crate) mod around;
mod event;
mod file;
mod policy;
mod send;

use std::{path::PathBuf, sync::Arc, time::Duration};

use kube::config::Kubeconfig;
use serde_json::Value;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub(crate) use event::Trail;
pub(crate) use policy::{Level, Stage};
pub use policy::{Policy, PolicyError};

use crate::auth::RemoteError;

/// What is kept of requests, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is kept.
    pub policy: Policy,
    /// The file; `None` for none.
    pub file: Option<FileSettings>,
    /// The service; `None` for none.
    pub service: Option<ServiceSettings>,
}

/// A file of events, one a line.
#[derive(Clone, Debug)]
pub struct FileSettings {
    /// Where it is; `-` is standard output.
    pub path: PathBuf,
    /// Megabytes after which another is begun; 0 for never.
    pub max_megabytes: u64,
    /// Days after which a full one is deleted; 0 for never.
    pub max_days: u64,
    /// How many full ones are kept; 0 for all.
    pub max_backups: usize,
}

/// A service that is sent events.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// How it is reached.
    pub config: Kubeconfig,
    /// Most events that wait to be sent; what comes on top is lost, and counted.
    pub buffer: usize,
    /// Most events sent at once.
    pub batch: usize,
    /// Longest wait of an event for others to be sent with.
    pub wait: Duration,
}

/// Why events cannot be kept.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The file cannot be written.
    #[error("cannot write the audit log {path}")]
    File {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The service's settings cannot be used.
    #[error(transparent)]
    Service(#[from] RemoteError),
}

/// Keeps events.
pub(crate) struct Audit {
    policy: Policy,
    file: Option<file::Log>,
    service: Option<send::Sender>,
}

impl Audit {
    /// Opens the file and makes the way to the service, which ends with `stop`.
    ///
    /// # Errors
    /// When one cannot be used.
    pub(crate) async fn start(settings: Settings, stop: CancellationToken) -> Result<Self, AuditError> {
        let file = settings.file.map(file::Log::open).transpose()?;
        let service = match settings.service {
            Some(service) => Some(send::Sender::start(service, stop).await?),
            None => None,
        };
        Ok(Self { policy: settings.policy, file, service })
    }

    /// What is kept of requests.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Keeps an event. Waits while the file is behind: no event of the file is lost.
    pub(crate) async fn keep(&self, event: Value) {
        let event = Arc::new(event);
        if let Some(service) = &self.service {
            service.send(event.clone());
        }
        if let Some(file) = &self.file {
            file.write(&event).await;
        }
    }
}

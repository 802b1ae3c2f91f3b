//! Sends audit events to a service, many at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::ServiceSettings;
use crate::auth::{RemoteError, remote::Remote};

/// Longest wait for the last events when the server stops.
const LAST: Duration = Duration::from_secs(2);

/// The way to the service.
pub(crate) struct Sender {
    events: mpsc::Sender<Arc<Value>>,
    lost: Arc<AtomicU64>,
}

impl Sender {
    /// Starts sending, until `stop`.
    ///
    /// # Errors
    /// When the service's kubeconfig cannot be used.
    pub(crate) async fn start(
        settings: ServiceSettings,
        stop: CancellationToken,
    ) -> Result<Self, RemoteError> {
        let remote = Remote::new(settings.config.clone()).await?;
        let (events, waiting) = mpsc::channel(settings.buffer.max(1));
        let lost = Arc::new(AtomicU64::new(0));
        tokio::spawn(send(remote, settings, waiting, lost.clone(), stop));
        Ok(Self { events, lost })
    }

    /// Sends an event soon; it is lost when too many wait already.
    pub(crate) fn send(&self, event: Arc<Value>) {
        if self.events.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn send(
    remote: Remote,
    settings: ServiceSettings,
    mut waiting: mpsc::Receiver<Arc<Value>>,
    lost: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    loop {
        let first = tokio::select! {
            first = waiting.recv() => first,
            () = stop.cancelled() => {
                // What waits already is sent, nothing is waited for.
                waiting.close();
                let rest = async { while let Some(event) = waiting.recv().await { post(&remote, &[event]).await; } };
                let _ = tokio::time::timeout(LAST, rest).await;
                return;
            }
        };
        let Some(first) = first else { return };
        let mut batch = vec![first];
        let until = Instant::now() + settings.wait;
        while batch.len() < settings.batch.max(1) {
            let next = tokio::select! {
                next = timeout_at(until, waiting.recv()) => next,
                () = stop.cancelled() => break,
            };
            match next {
                Ok(Some(event)) => batch.push(event),
                _ => break,
            }
        }
        post(&remote, &batch).await;
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            lost => tracing::warn!(lost, "audit events were lost: the service is too slow"),
        }
    }
}

async fn post(remote: &Remote, batch: &[Arc<Value>]) {
    let items: Vec<&Value> = batch.iter().map(|event| &**event).collect();
    let list =
        json!({ "kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": items });
    if let Err(error) = remote.deliver(&list).await {
        tracing::warn!(%error, lost = batch.len(), "audit events were lost");
    }
}

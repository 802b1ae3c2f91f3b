//! Events about objects: repeats are counted, floods are cut off, nobody waits for them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use wasmk_api::Timestamp;

use super::{Clock, meta};

/// Events waiting to be written; more are dropped.
const MAX_WAITING: usize = 1024;
/// Distinct events remembered for counting.
const MAX_REMEMBERED: usize = 2048;
/// Events about one object in a burst; afterwards one per [`REFILL`].
const BURST: f64 = 25.0;
/// Time in which an object earns one more event.
const REFILL: Duration = Duration::from_secs(300);

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Something went as it should.
    Normal,
    /// Something did not.
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct What {
    component: &'static str,
    uid: String,
    kind: Kind,
    reason: String,
    message: String,
}

struct Note {
    what: What,
    about: ObjectReference,
    at: Timestamp,
}

/// Writes events in the background.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
    clock: Clock,
}

impl Recorder {
    /// Starts the writer; it ends with `shutdown`.
    pub fn start(client: Client, clock: Clock, shutdown: CancellationToken) -> Self {
        let (queue, notes) = mpsc::channel(MAX_WAITING);
        tokio::spawn(async move {
            let writer = Writer { client, seen: HashMap::new(), budget: HashMap::new() };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = writer.run(notes) => {}
            }
        });
        Self { queue, clock }
    }

    /// Records an event of a component about an object.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        object: &K,
        kind: Kind,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record_about(component, meta::reference(object), kind, reason, message);
    }

    /// The same, about an object known by reference only.
    pub fn record_about(
        &self,
        component: &'static str,
        about: ObjectReference,
        kind: Kind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let uid = about.uid.clone().unwrap_or_default();
        let what = What { component, uid, kind, reason: reason.into(), message: message.into() };
        if self.queue.try_send(Note { what, about, at: self.clock.now() }).is_err() {
            tracing::debug!("too many events wait, one was dropped");
        }
    }
}

struct Writer {
    client: Client,
    seen: HashMap<Arc<What>, Seen>,
    budget: HashMap<(String, &'static str), (f64, Instant)>,
}

struct Seen {
    name: String,
    count: i32,
    last: Instant,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            if self.afford(&note.what) {
                self.write(note).await;
            }
        }
    }

    /// A bucket of tokens per object and component.
    fn afford(&mut self, what: &What) -> bool {
        if self.budget.len() >= MAX_REMEMBERED {
            self.budget.retain(|_, (tokens, at)| *tokens + earned(at.elapsed()) < BURST);
            if self.budget.len() >= MAX_REMEMBERED {
                self.budget.clear();
            }
        }
        let now = Instant::now();
        let (tokens, at) = self.budget.entry((what.uid.clone(), what.component)).or_insert((BURST, now));
        *tokens = (*tokens + earned(now - *at)).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    async fn write(&mut self, note: Note) {
        let namespace =
            note.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Some(seen) = self.seen.get_mut(&note.what) {
            seen.count += 1;
            seen.last = Instant::now();
            let patch = json!({"count": seen.count, "lastTimestamp": meta::time(note.at)});
            if api.patch(&seen.name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                return;
            }
        }
        let event = event(&note, &namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "an event was refused");
            return;
        }
        if self.seen.len() >= MAX_REMEMBERED {
            self.forget_oldest();
        }
        self.seen.insert(Arc::new(note.what), Seen { name, count: 1, last: Instant::now() });
    }

    /// Drops the older half.
    fn forget_oldest(&mut self) {
        let mut times: Vec<Instant> = self.seen.values().map(|s| s.last).collect();
        times.sort_unstable();
        let middle = times[times.len() / 2];
        self.seen.retain(|_, seen| seen.last > middle);
    }
}

fn earned(span: Duration) -> f64 {
    span.as_secs_f64() / REFILL.as_secs_f64()
}

fn event(note: &Note, namespace: &str) -> Event {
    let nanos = note.at.0.as_nanosecond();
    let about = note.about.name.as_deref().unwrap_or("object");
    let at = Some(meta::time(note.at));
    Event {
        metadata: ObjectMeta {
            namespace: Some(namespace.into()),
            name: Some(format!("{about}.{nanos:016x}{:04x}", rand::random::<u16>())),
            ..Default::default()
        },
        involved_object: note.about.clone(),
        type_: Some(format!("{:?}", note.what.kind)),
        reason: Some(note.what.reason.clone()),
        message: Some(note.what.message.clone()),
        first_timestamp: at.clone(),
        last_timestamp: at,
        count: Some(1),
        source: Some(EventSource { component: Some(note.what.component.into()), host: None }),
        reporting_component: Some(note.what.component.into()),
        reporting_instance: Some(String::new()),
        ..Default::default()
    }
}

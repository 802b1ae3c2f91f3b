//! Events about pods, written in the background. Repeats are counted on the
//! event that is there; when the API cannot keep up, events are dropped, never waited for. Of many at a time
//! most are written later, as kubelets do: a thousand pods that start do not wait for what is told of them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use wasmk_api::{
    Timestamp,
    k8s_openapi::{
        api::core::v1::{Event, EventSource, ObjectReference, Pod},
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    },
};

/// Events that wait to be written at most.
const QUEUE: usize = 8192;
/// Events written one right after the other; beyond that one per [`PACE`].
const BURST: u32 = 200;
/// Time in which room for one more event is earned.
const PACE: Duration = Duration::from_millis(10);
/// Events remembered for counting repeats.
const REMEMBERED: usize = 1024;
/// Longest message of an event, in bytes; the API takes no more.
const MESSAGE_BYTES: usize = 1024;

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Information.
    Normal,
    /// Something a user should look at.
    Warning,
}

/// Records events. Clones share one queue.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Note>,
    node: Arc<str>,
}

struct Note {
    about: ObjectReference,
    level: Level,
    reason: String,
    message: String,
    time: Timestamp,
}

impl Events {
    /// A recorder, and the task that writes; the task ends when all recorders are dropped.
    pub(crate) fn new(client: kube::Client, node: &str) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, notes) = mpsc::channel(QUEUE);
        let node: Arc<str> = node.into();
        (Self { queue, node: node.clone() }, write_all(client, node, notes))
    }

    /// About a pod as a whole.
    pub(crate) fn pod(&self, pod: &Pod, level: Level, reason: &str, message: &str) {
        self.note(pod_reference(pod), level, reason, message);
    }

    /// About one container of a pod.
    pub(crate) fn container(&self, pod: &Pod, container: &str, level: Level, reason: &str, message: &str) {
        let init =
            pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten()).any(|c| c.name == container);
        let list = if init { "initContainers" } else { "containers" };
        let mut about = pod_reference(pod);
        about.field_path = Some(format!("spec.{list}{{{container}}}"));
        self.note(about, level, reason, message);
    }

    fn note(&self, about: ObjectReference, level: Level, reason: &str, message: &str) {
        let mut message = message.to_string();
        let mut end = message.len().min(MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        let note = Note { about, level, reason: reason.into(), message, time: Timestamp::now() };
        if self.queue.try_send(note).is_err() {
            tracing::debug!(node = %self.node, reason, "an event is dropped: too many are waiting");
        }
    }
}

fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// What makes two events the same.
#[derive(PartialEq)]
struct Key {
    uid: Option<String>,
    field: Option<String>,
    reason: String,
    message: String,
}

struct Counted {
    key: Key,
    namespace: String,
    name: String,
    count: i32,
}

/// When the next event may be written.
struct Pace {
    /// When as much room has been earned as there can be.
    full: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Takes the room for one event; from when on there is that.
    fn turn(&mut self, now: Instant) -> Instant {
        self.full = self.full.max(now) + PACE;
        now.max(self.full.checked_sub(PACE * BURST).unwrap_or(now))
    }
}

async fn write_all(client: kube::Client, node: Arc<str>, mut notes: mpsc::Receiver<Note>) {
    let mut known: VecDeque<Counted> = VecDeque::new();
    let mut pace = Pace::new(Instant::now());
    while let Some(note) = notes.recv().await {
        tokio::time::sleep_until(pace.turn(Instant::now())).await;
        if let Err(error) = write(&client, &node, note, &mut known).await {
            tracing::debug!(%error, "cannot write an event");
        }
    }
}

async fn write(
    client: &kube::Client,
    node: &str,
    note: Note,
    known: &mut VecDeque<Counted>,
) -> Result<(), kube::Error> {
    let key = Key {
        uid: note.about.uid.clone(),
        field: note.about.field_path.clone(),
        reason: note.reason.clone(),
        message: note.message.clone(),
    };
    let before = known.iter().position(|c| c.key == key).and_then(|at| known.remove(at));
    if let Some(mut counted) = before {
        counted.count = counted.count.saturating_add(1);
        let patch = json!({"count": counted.count, "lastTimestamp": Time(note.time.0)});
        let api: Api<Event> = Api::namespaced(client.clone(), &counted.namespace);
        let done = api.patch(&counted.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        if done.is_ok() {
            known.push_back(counted);
        }
        return done.map(drop);
    }
    let namespace = note.about.namespace.clone().unwrap_or_else(|| "default".into());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let event = event(node, &namespace, note);
    let name = event.metadata.name.clone().unwrap_or_default();
    api.create(&PostParams::default(), &event).await?;
    known.push_back(Counted { key, namespace, name, count: 1 });
    if known.len() > REMEMBERED {
        known.pop_front();
    }
    Ok(())
}

fn event(node: &str, namespace: &str, note: Note) -> Event {
    let about = note.about.name.clone().unwrap_or_default();
    let stamp = note.time.0.as_nanosecond();
    let time = Time(note.time.0);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{stamp:x}")),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        involved_object: note.about,
        type_: Some(if note.level == Level::Normal { "Normal" } else { "Warning" }.into()),
        reason: Some(note.reason),
        message: Some(note.message),
        count: Some(1),
        first_timestamp: Some(time.clone()),
        last_timestamp: Some(time),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node.into()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.into()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_written_in_its_time() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!((0..BURST).all(|_| pace.turn(now) == now));
        assert_eq!([pace.turn(now), pace.turn(now)], [now + PACE, now + PACE * 2]);
        let later = now + PACE * (BURST + 2);
        assert!((0..BURST).all(|_| pace.turn(later) == later), "rest earns all of it again, and no more");
        assert_eq!(pace.turn(later), later + PACE);
    }
}

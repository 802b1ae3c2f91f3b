//! Watches: a cursor into a resource's log of changes, turned into a stream of events.
//!
//! A watcher holds no queue. It reads the log at its own pace; when it falls behind what the log keeps, it is told
//! that its revision has expired and lists again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use rand::Rng;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use wasmk_api::{Object, Status};
use wasmk_machinery::protobuf;

use super::{Former, filter, partial};
use crate::{
    cache::{Cache, Compacted, Entry, Event, Filter},
    call::Call,
    http::{Answer, Form, Format, ListOptions, negotiate, query::parse_version},
    server::Core,
    table::Resource,
};

/// How long a watch lasts at least when the client does not say.
const MIN_SECONDS: u64 = 1800;
/// How often a quiet watch that wants bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Changes sent at once.
const BATCH: usize = 256;

/// Where a watch starts.
enum Start {
    /// With the present objects as added, then what follows.
    Present,
    /// After a revision.
    After(u64),
}

struct Watcher {
    core: Arc<Core>,
    call: Arc<Call>,
    resource: Arc<Resource>,
    cache: Arc<Cache>,
    filter: Filter,
    /// Waiting to be sent, in order.
    ready: VecDeque<Bytes>,
    position: u64,
    changed: watch::Receiver<u64>,
    bookmarks: bool,
    next_bookmark: Instant,
    /// The last revision the client was told of.
    told: u64,
    /// The revision it began after.
    began: u64,
    deadline: Instant,
    first_table: bool,
    ended: bool,
}

/// Answers `watch`.
pub(crate) async fn watch(
    core: &Arc<Core>,
    call: &Arc<Call>,
    resource: &Arc<Resource>,
) -> Result<Answer, Status> {
    if call.wanted.format == Format::Yaml {
        return Err(negotiate::no_stream());
    }
    let options = ListOptions::parse(&call.query, true)?;
    let filter = filter(call, resource, &options)?;
    let start = start(core, &options).await?;
    let cache = resource.cache.clone();
    let seconds = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => seconds,
        _ => rand::rng().random_range(MIN_SECONDS..MIN_SECONDS * 2),
    };
    let now = Instant::now();
    let mut watcher = Watcher {
        core: core.clone(),
        call: call.clone(),
        resource: resource.clone(),
        changed: cache.subscribe(),
        cache,
        filter,
        ready: VecDeque::new(),
        position: 0,
        bookmarks: options.bookmarks,
        next_bookmark: now + BOOKMARK_EVERY,
        told: 0,
        began: 0,
        deadline: now + Duration::from_secs(seconds.min(MIN_SECONDS * 48)),
        first_table: true,
        ended: false,
    };
    watcher.begin(start, options.send_initial_events == Some(true)).await?;
    let permit = core.metrics.watch_opened();
    let stream = futures::stream::unfold((watcher, permit), |(mut watcher, permit)| async move {
        let bytes = watcher.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), (watcher, permit)))
    });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = StatusCode::OK;
    let media = match call.wanted.format {
        Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => Format::Json.content_type(),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

async fn start(core: &Core, options: &ListOptions) -> Result<Start, Status> {
    let version = &*options.resource_version;
    match (version, options.send_initial_events) {
        ("", Some(false)) => Ok(Start::After(core.caches.catch_up().await?)),
        ("", _) => {
            core.caches.catch_up().await?;
            Ok(Start::Present)
        }
        ("0", Some(false)) => Ok(Start::After(core.caches.revision())),
        ("0", _) => Ok(Start::Present),
        (text, initial) => {
            let version = parse_version(text)?;
            core.caches.wait_for(version).await?;
            Ok(if initial == Some(true) { Start::Present } else { Start::After(version) })
        }
    }
}

impl Watcher {
    async fn begin(&mut self, start: Start, mark_end: bool) -> Result<(), Status> {
        match start {
            Start::After(revision) => {
                self.began = revision;
                match self.cache.position_after(revision) {
                    Ok(position) => self.position = position,
                    Err(compacted) => self.expire(compacted),
                }
            }
            Start::Present => {
                // Read before the list: a bookmark may not promise more than the list shows.
                let revision = self.core.caches.revision();
                let (entries, position) = self.cache.list_then(&self.filter);
                self.position = position;
                let shown = entries.iter().map(|e| e.revision).max().unwrap_or(0).max(revision);
                self.began = shown;
                let mut out = BytesMut::new();
                for entry in &self.resource.present(&self.core, entries).await? {
                    self.write(&mut out, "ADDED", entry);
                }
                if mark_end && self.bookmarks {
                    self.write_bookmark(&mut out, shown, true);
                }
                if !out.is_empty() {
                    self.ready.push_back(out.freeze());
                }
            }
        }
        Ok(())
    }

    /// Changes with their objects in the version that is watched.
    async fn converted(&self, events: Vec<Arc<Event>>) -> Result<Vec<Arc<Event>>, Status> {
        if !self.resource.converts() {
            return Ok(events);
        }
        let mut all = Vec::with_capacity(events.len());
        for event in events {
            let after = self.resource.present_one(&self.core, event.after.clone()).await?;
            let before = match event.before.clone() {
                Some(before) => Some(self.resource.present_one(&self.core, before).await?),
                None => None,
            };
            all.push(Arc::new(Event::new(event.revision, before, after, event.deleted)));
        }
        Ok(all)
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            // Also of a watch that has something to send all the time.
            if self.ended || self.core.shutdown.is_cancelled() || Instant::now() >= self.deadline {
                return None;
            }
            let reached = self.core.caches.revision();
            self.changed.mark_unchanged();
            match self.cache.events_from(self.position, BATCH) {
                Err(compacted) => self.expire(compacted),
                Ok(events) if events.is_empty() => self.wait(reached).await,
                Ok(events) => {
                    self.position += events.len() as u64;
                    let events = match self.converted(events).await {
                        Ok(events) => events,
                        Err(status) => {
                            self.fail(&status);
                            continue;
                        }
                    };
                    let mut out = BytesMut::new();
                    for event in events {
                        self.told = event.revision;
                        if let Some(change) = event.seen(&self.filter) {
                            self.write_change(&mut out, change.word(), &event);
                        }
                    }
                    if !out.is_empty() {
                        self.ready.push_back(out.freeze());
                    }
                }
            }
        }
    }

    /// Waits for a change, the next bookmark or the end. `reached` is a revision whose changes were all seen.
    async fn wait(&mut self, reached: u64) {
        let shutdown = self.core.shutdown.clone();
        tokio::select! {
            changed = self.changed.changed() => self.ended |= changed.is_err(),
            () = shutdown.cancelled() => self.ended = true,
            () = sleep_until(self.deadline) => {
                self.bookmark(reached);
                self.ended = true;
            }
            () = sleep_until(self.next_bookmark), if self.bookmarks => {
                self.bookmark(reached);
                self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
            }
        }
    }

    fn bookmark(&mut self, revision: u64) {
        if self.bookmarks && revision > self.told {
            self.told = revision;
            let mut out = BytesMut::new();
            self.write_bookmark(&mut out, revision, false);
            self.ready.push_back(out.freeze());
        }
    }

    fn write_bookmark(&mut self, out: &mut BytesMut, revision: u64, initial_end: bool) {
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = json!({
            "kind": self.resource.gvk.kind, "apiVersion": self.resource.gvk.api_version(), "metadata": metadata,
        });
        let object = Object::from_value(object).unwrap_or_default();
        self.write_object(out, "BOOKMARK", object);
    }

    fn write_change(&mut self, out: &mut BytesMut, word: &str, event: &Event) {
        if let (Form::Whole, Some(of)) = (self.call.wanted.form, self.binary())
            && (word != "DELETED" || event.deleted)
            && self.resource.serves(&event.after)
        {
            let write = |body: &[u8]| protobuf::object(&self.resource.gvk, of, body).ok();
            return match event.binary(write) {
                Some(object) => out.put_slice(&protobuf::event(word, &object)),
                None => tracing::warn!(revision = event.revision, "a change cannot be written in protobuf"),
            };
        }
        if word != "DELETED" || event.deleted {
            return self.write(out, word, &event.after);
        }
        // The object went out of sight: its last visible state, at the revision of the change.
        if let Some(before) = &event.before {
            self.write(out, word, &before.tombstone(event.revision));
        }
    }

    fn write(&mut self, out: &mut BytesMut, word: &str, entry: &Entry) {
        let plain = self.call.wanted.form == Form::Whole && self.binary().is_none();
        if plain && self.resource.serves(entry) {
            return frame(out, word, entry.length(), |out| entry.write(out));
        }
        if let Form::Partial(version) = self.call.wanted.form {
            return self.write_value(out, word, &partial(&entry.head(), version));
        }
        self.write_object(out, word, self.resource.shown(entry));
    }

    /// How objects are written in protobuf, if they are to be.
    fn binary(&self) -> Option<protobuf::Type> {
        self.resource.binary.filter(|_| self.call.wanted.format == Format::Protobuf)
    }

    fn write_object(&mut self, out: &mut BytesMut, word: &str, object: Object) {
        let value = match self.call.wanted.form {
            Form::Whole => object.into_value(),
            Form::Partial(version) => partial(&object, version),
            Form::Table(version) => self.table(version, &object),
        };
        self.write_value(out, word, &value);
    }

    fn write_value(&self, out: &mut BytesMut, word: &str, value: &Value) {
        if self.call.wanted.format != Format::Protobuf {
            let object = serde_json::to_vec(value).unwrap_or_default();
            return frame(out, word, object.len(), |out| out.put_slice(&object));
        }
        match protobuf::value(value) {
            Ok(object) => out.put_slice(&protobuf::event(word, &object)),
            Err(error) => tracing::warn!(%error, "a change cannot be written in protobuf"),
        }
    }

    fn table(&mut self, version: &str, object: &Object) -> Value {
        let head = std::mem::take(&mut self.first_table);
        let former = Former::new(&self.core, &self.call, &self.resource);
        former.table(version, std::slice::from_ref(object), object.resource_version(), None, None, head)
    }

    fn expire(&mut self, compacted: Compacted) {
        let revision = self.told.max(self.began);
        self.fail(&Status::expired(format!("too old resource version: {revision} ({})", compacted.oldest)));
    }

    /// Tells the client what went wrong and ends.
    fn fail(&mut self, status: &Status) {
        let mut out = BytesMut::new();
        self.write_value(&mut out, "ERROR", &status.to_value());
        self.ready.push_back(out.freeze());
        self.ended = true;
    }
}

/// One event of a watch; `object` writes at most `length` bytes.
fn frame(out: &mut BytesMut, word: &str, length: usize, object: impl FnOnce(&mut BytesMut)) {
    out.reserve(length + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(word.as_bytes());
    out.put_slice(b"\",\"object\":");
    object(out);
    out.put_slice(b"}\n");
}

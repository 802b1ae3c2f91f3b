//! Watches over etcd: one stream per process that sees every change there is, and a bounded history of them.
//!
//! Every revision of etcd changes some key, so a stream over all keys tells how far every watch is, whatever its
//! prefix, without asking for progress (which versions before 3.5.8 report too early). A watch that starts before
//! the history reads a stream of its own until it meets it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use super::convert::{prefix_range, revisions, to_i64, to_u64};
use super::members::Members;
use super::proto::{self, watch_client::WatchClient, watch_request::RequestUnion};
use super::{MAX_MESSAGE_BYTES, RETRY_LONGEST, RETRY_SHORTEST};
use crate::shared::Shared;
use crate::{Error, Event, History, Revision, Watch, WatchBatch, WatchSource};

/// Longest a watch may wait for the process's stream to reach the revision it starts from.
const REACH_LIMIT: Duration = Duration::from_secs(10);

/// A stream over all keys.
pub(super) struct Stream {
    responses: tonic::Streaming<proto::WatchResponse>,
    /// The member it comes from.
    member: usize,
    /// etcd ends the watch when this end is gone.
    _requests: mpsc::Sender<proto::WatchRequest>,
}

/// What a stream delivered.
pub(super) enum Delivery {
    Changes(Vec<(Revision, Vec<Event>)>),
    Compacted(Revision),
}

impl Stream {
    /// Every change after `from`.
    pub(super) async fn open(members: &Members, from: Revision) -> Result<Self, Error> {
        let (member, channel) = members.pick();
        let opened = Self::open_on(member, channel, from).await;
        if opened.is_err() {
            members.failed(member);
        }
        opened
    }

    async fn open_on(member: usize, channel: Channel, from: Revision) -> Result<Self, Error> {
        let (requests, receiver) = mpsc::channel(1);
        let (key, range_end) = prefix_range(b"");
        let create =
            proto::WatchCreateRequest { key, range_end, start_revision: to_i64(from + 1), prev_kv: true };
        let request = proto::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // There is room for one.
        let _ = requests.try_send(request);
        let mut client = WatchClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut watch = tonic::Request::new(ReceiverStream::new(receiver));
        // A member that has lost the others ends the stream instead of going quiet.
        watch.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let opened = tokio::time::timeout(super::REQUEST_LIMIT, client.watch(watch)).await;
        let opened = opened.map_err(|_| Error::Backend("etcd: no answer to a watch".into()))?;
        let responses =
            opened.map_err(|status| Error::Backend(format!("etcd: {}", status.message())))?.into_inner();
        Ok(Self { responses, member, _requests: requests })
    }

    /// The next changes, or that those are gone. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Result<Delivery, Error> {
        loop {
            let message = self.responses.message().await;
            let message = message.map_err(|status| Error::Backend(format!("etcd: {}", status.message())))?;
            let response = message.ok_or_else(|| Error::Backend("etcd ended a watch".into()))?;
            if response.compact_revision > 0 {
                return Ok(Delivery::Compacted(to_u64(response.compact_revision)));
            }
            if response.canceled {
                return Err(Error::Backend(format!("etcd ended a watch: {}", response.cancel_reason)));
            }
            if !response.events.is_empty() {
                return Ok(Delivery::Changes(revisions(response.events)));
            }
        }
    }
}

/// Keeps the history in step with etcd for ever; runs as a task that is aborted with the store.
pub(super) async fn follow(members: Arc<Members>, shared: Arc<Shared>, history: History, first: Stream) {
    let (mut stream, mut pause) = (Some(first), RETRY_SHORTEST);
    loop {
        let from = shared.state.read().revision();
        let result = match &mut stream {
            Some(stream) => stream.next().await,
            None => match Stream::open(&members, from).await {
                Ok(opened) => {
                    stream = Some(opened);
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        match result {
            Ok(Delivery::Changes(changes)) => {
                pause = RETRY_SHORTEST;
                record(&shared, &history, changes);
            }
            Ok(Delivery::Compacted(revision)) => {
                // What happened in between is gone; watches that were waiting for it have to hear that.
                tracing::warn!(from, revision, "etcd compacted changes before they were seen");
                shared.state.write().restart(revision.max(from));
                shared.ring_progress(None);
                stream = None;
            }
            Err(error) => {
                tracing::warn!(%error, retry_in = ?pause, "lost the stream of changes");
                if let Some(lost) = stream.take() {
                    members.failed(lost.member);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
            }
        }
    }
}

fn record(shared: &Shared, history: &History, changes: Vec<(Revision, Vec<Event>)>) {
    let now = Instant::now();
    let mut state = shared.state.write();
    for (revision, events) in changes {
        if revision > state.revision() {
            state.record(revision, events, now);
        }
    }
    state.expire(history, now);
    state.sweep(usize::MAX);
    drop(state);
    shared.ring_progress(None);
}

/// A watch from a revision that is known to be readable.
pub(super) async fn watch(
    members: &Members,
    shared: &Arc<Shared>,
    prefix: &[u8],
    from: Revision,
) -> Result<Watch, Error> {
    reach(shared, from).await?;
    if let Some(watch) = live(shared, prefix, from)? {
        return Ok(watch);
    }
    let stream = Stream::open(members, from).await?;
    let prefix = Bytes::copy_from_slice(prefix);
    Ok(Watch::new(CatchUp {
        shared: shared.clone(),
        prefix,
        phase: Phase::Behind(Box::new(stream)),
        reached: from,
    }))
}

/// Waits until the history is as far as `revision`.
async fn reach(shared: &Arc<Shared>, revision: Revision) -> Result<(), Error> {
    let known = shared.state.read().revision();
    if known >= revision {
        return Ok(());
    }
    let mut watch = shared.watch(b"", known)?;
    let reached = async {
        while let Some(batch) = watch.next().await {
            if batch?.revision >= revision {
                return Ok(());
            }
        }
        Err(Error::Closed)
    };
    let in_time = tokio::time::timeout(REACH_LIMIT, reached).await;
    in_time.unwrap_or_else(|_| Err(Error::Backend(format!("etcd's changes up to {revision} do not arrive"))))
}

/// A watch on the history, if that goes back to `from`.
fn live(shared: &Arc<Shared>, prefix: &[u8], from: Revision) -> Result<Option<Watch>, Error> {
    match shared.watch(prefix, from) {
        Ok(watch) => Ok(Some(watch)),
        Err(Error::Compacted { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

enum Phase {
    Behind(Box<Stream>),
    Live(Watch),
}

/// A watch that starts before the history.
struct CatchUp {
    shared: Arc<Shared>,
    prefix: Bytes,
    phase: Phase,
    reached: Revision,
}

#[async_trait]
impl WatchSource for CatchUp {
    async fn next(&mut self) -> Option<Result<WatchBatch, Error>> {
        loop {
            let stream = match &mut self.phase {
                Phase::Live(watch) => return watch.next().await,
                Phase::Behind(stream) => stream,
            };
            match live(&self.shared, &self.prefix, self.reached) {
                Ok(Some(watch)) => {
                    self.phase = Phase::Live(watch);
                    continue;
                }
                Ok(None) => {}
                // Ahead of the history: it is about to arrive there.
                Err(Error::FutureRevision { .. }) => match reach(&self.shared, self.reached).await {
                    Ok(()) => continue,
                    Err(error) => return Some(Err(error)),
                },
                Err(error) => return Some(Err(error)),
            }
            return Some(match stream.next().await {
                Ok(Delivery::Changes(changes)) => Ok(self.batch(changes)),
                Ok(Delivery::Compacted(compacted)) => {
                    Err(Error::Compacted { requested: self.reached, compacted })
                }
                Err(error) => Err(error),
            });
        }
    }
}

impl CatchUp {
    fn batch(&mut self, changes: Vec<(Revision, Vec<Event>)>) -> WatchBatch {
        self.reached = changes.last().map_or(self.reached, |(revision, _)| *revision);
        let events = changes.into_iter().flat_map(|(_, events)| events);
        let events = events.filter(|event| event.key().starts_with(&self.prefix)).collect();
        WatchBatch { events, revision: self.reached }
    }
}

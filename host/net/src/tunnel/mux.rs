//! Many streams over one link of frames, the same on both ends.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

use super::{
    TunnelStream,
    proto::{Finish, Frame, Open, frame::Kind},
};

/// Streams of one link at a time.
pub const STREAMS: usize = 1024;
/// Bytes a receiver grants ahead, per stream and direction.
pub const WINDOW: usize = 256 * 1024;
/// Most bytes in one frame.
pub const FRAME_BYTES: usize = 32 * 1024;
/// Frames that wait for the link.
pub const QUEUE: usize = 64;
/// The number of the first stream that a server opens.
pub(super) const OF_SERVER: u64 = 1;
/// The same of an agent: far enough from the server's.
pub(super) const OF_AGENT: u64 = 1 << 63;

/// One end of a link. Clones are the same end.
#[derive(Clone)]
pub(super) struct Mux {
    inner: Arc<Inner>,
}

struct Inner {
    out: mpsc::Sender<Frame>,
    streams: Mutex<HashMap<u64, Entry>>,
    next: AtomicU64,
    closed: CancellationToken,
}

struct Entry {
    /// Bounded by the window: more bytes than granted end the stream.
    input: mpsc::UnboundedSender<Input>,
    /// Bytes the peer may still send.
    granted: usize,
    /// Bytes this side may still send.
    credit: Arc<Semaphore>,
}

enum Input {
    Data(Bytes),
    Finish,
}

/// What one stream's pumps need.
struct Pump {
    mux: Mux,
    id: u64,
    input: mpsc::UnboundedReceiver<Input>,
    credit: Arc<Semaphore>,
}

impl Mux {
    /// An end that sends its frames to `out`, and numbers the streams that it opens from `first` on.
    pub(super) fn new(out: mpsc::Sender<Frame>, first: u64) -> Self {
        let inner = Inner {
            out,
            streams: Mutex::default(),
            next: AtomicU64::new(first),
            closed: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Ends the link with all its streams.
    pub(super) fn close(&self) {
        self.inner.closed.cancel();
        self.inner.streams.lock().clear();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner.closed.is_cancelled()
    }

    /// Resolves when the link is over.
    pub(super) async fn closed(&self) {
        self.inner.closed.cancelled().await;
    }

    /// Opens a stream to the other end.
    pub(super) async fn open(&self) -> io::Result<TunnelStream> {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let stream = self.add(id)?;
        // The link may be busy for longer than the caller waits: then the other end never hears of it.
        let unheard = Unheard { mux: self, id: Some(id) };
        self.send(id, Kind::Open(Open {})).await?;
        unheard.heard();
        Ok(stream)
    }

    /// Makes the stream `id` known and starts its pumps.
    fn add(&self, id: u64) -> io::Result<TunnelStream> {
        if self.is_closed() {
            return Err(gone());
        }
        let (input, inputs) = mpsc::unbounded_channel();
        let credit = Arc::new(Semaphore::new(WINDOW));
        {
            let mut streams = self.inner.streams.lock();
            if streams.len() >= STREAMS {
                let text = format!("the tunnel already carries {STREAMS} streams");
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
            }
            streams.insert(id, Entry { input, granted: WINDOW, credit: credit.clone() });
        }
        let (theirs, ours) = tokio::io::duplex(FRAME_BYTES);
        let pump = Pump { mux: self.clone(), id, input: inputs, credit };
        tokio::spawn(pump.run(ours));
        Ok(theirs)
    }

    async fn send(&self, stream: u64, kind: Kind) -> io::Result<()> {
        let frame = Frame { stream, kind: Some(kind) };
        tokio::select! {
            () = self.closed() => Err(gone()),
            sent = self.inner.out.send(frame) => sent.map_err(|_| gone()),
        }
    }

    /// Handles the peer's frames until it is gone. `opened` takes the streams it opens.
    pub(super) async fn receive<E>(
        &self,
        frames: impl Stream<Item = Result<Frame, E>>,
        opened: impl Fn(TunnelStream),
    ) {
        futures::pin_mut!(frames);
        loop {
            let frame = tokio::select! {
                () = self.closed() => break,
                frame = frames.next() => frame,
            };
            let Some(Ok(frame)) = frame else { break };
            let Some(kind) = frame.kind else { continue };
            self.handle(frame.stream, kind, &opened);
        }
        self.close();
    }

    /// One frame. Never waits: a stream that is not read must not hold up the others.
    fn handle(&self, id: u64, kind: Kind, opened: &impl Fn(TunnelStream)) {
        match kind {
            Kind::Open(_) => match self.add(id) {
                Ok(stream) => opened(stream),
                Err(error) => self.reset(id, &error.to_string()),
            },
            Kind::Data(bytes) => self.data(id, bytes.into()),
            Kind::Window(bytes) => self.credit(id, bytes as usize),
            Kind::Finish(_) => self.input(id, Input::Finish),
            Kind::Reset(reason) => {
                tracing::debug!(stream = id, reason, "the other end gave a stream up");
                self.inner.streams.lock().remove(&id);
            }
            Kind::Hello(_) => {}
        }
    }

    fn data(&self, id: u64, bytes: Bytes) {
        let within = {
            let mut streams = self.inner.streams.lock();
            // A stream that is over here: what was under way is dropped. Said each time, for there may not
            // have been room to say it before.
            let Some(entry) = streams.get_mut(&id) else {
                drop(streams);
                return self.reset(id, "there is no such stream");
            };
            let within = bytes.len() <= entry.granted;
            entry.granted -= bytes.len().min(entry.granted);
            within
        };
        if within {
            self.input(id, Input::Data(bytes));
        } else {
            self.inner.streams.lock().remove(&id);
            self.reset(id, "more bytes than granted");
        }
    }

    fn input(&self, id: u64, input: Input) {
        let sent = self.inner.streams.lock().get(&id).map(|entry| entry.input.send(input));
        // A pump that is over no longer listens; but of a stream that is not there the peer must learn.
        if sent.is_none() {
            self.reset(id, "there is no such stream");
        }
    }

    fn credit(&self, id: u64, bytes: usize) {
        if let Some(entry) = self.inner.streams.lock().get(&id) {
            // A peer that grants without end gains nothing.
            let room = WINDOW.saturating_sub(entry.credit.available_permits());
            entry.credit.add_permits(bytes.min(room));
        }
    }

    /// Tells the peer that a stream is over, if the link has room right now; if it has not,
    /// the peer learns it from the answer to its next frame.
    fn reset(&self, id: u64, reason: &str) {
        let _ = self.inner.out.try_send(Frame { stream: id, kind: Some(Kind::Reset(reason.into())) });
    }
}

/// A stream that the other end has not been told of; forgotten if that comes to nothing.
struct Unheard<'a> {
    mux: &'a Mux,
    id: Option<u64>,
}

impl Unheard<'_> {
    fn heard(mut self) {
        self.id = None;
    }
}

impl Drop for Unheard<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.mux.inner.streams.lock().remove(&id);
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the tunnel is closed")
}

impl Pump {
    async fn run(self, ours: TunnelStream) {
        let (reader, writer) = tokio::io::split(ours);
        let Self { mux, id, input, credit } = self;
        let both =
            async { tokio::join!(outward(&mux, id, reader, &credit), inward(&mux, id, writer, input)) };
        let outcome = tokio::select! {
            () = mux.closed() => return,
            (outward, inward) = both => outward.and(inward),
        };
        mux.inner.streams.lock().remove(&id);
        if let Err(error) = outcome {
            // The link is gone if this fails, and with it the stream.
            let _ = mux.send(id, Kind::Reset(error.to_string())).await;
        }
    }
}

/// From the user of the stream to the link, no more than the peer granted.
async fn outward(
    mux: &Mux,
    id: u64,
    mut reader: ReadHalf<TunnelStream>,
    credit: &Semaphore,
) -> io::Result<()> {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let length = reader.read(&mut buffer).await?;
        if length == 0 {
            return mux.send(id, Kind::Finish(Finish {})).await;
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            // At least one byte, then as many as are granted by now.
            credit.acquire().await.map_err(io::Error::other)?.forget();
            let more = credit.available_permits().min(rest.len() - 1);
            let taken = credit.try_acquire_many(more as u32).map_or(0, |p| {
                p.forget();
                more
            });
            let (now, later) = rest.split_at(1 + taken);
            mux.send(id, Kind::Data(now.to_vec())).await?;
            rest = later;
        }
    }
}

/// From the link to the user of the stream; grants as much again as the user took.
async fn inward(
    mux: &Mux,
    id: u64,
    mut writer: WriteHalf<TunnelStream>,
    mut input: mpsc::UnboundedReceiver<Input>,
) -> io::Result<()> {
    let mut taken = 0;
    loop {
        match input.recv().await {
            Some(Input::Data(bytes)) => {
                writer.write_all(&bytes).await?;
                taken += bytes.len();
            }
            Some(Input::Finish) => return writer.shutdown().await,
            // Removed: reset by the peer or by this end.
            None => return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the stream was reset")),
        }
        // Not for every frame: a grant costs a frame too.
        if taken >= WINDOW / 4 {
            if let Some(entry) = mux.inner.streams.lock().get_mut(&id) {
                entry.granted += taken;
            }
            mux.send(id, Kind::Window(taken as u32)).await?;
            taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_could_not_be_opened_takes_no_place() {
        let (out, _frames) = mpsc::channel(1);
        let mux = Mux::new(out.clone(), OF_SERVER);
        out.send(Frame { stream: 0, kind: None }).await.unwrap();
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_secs(1), mux.open()).await.is_err());
        }
        assert_eq!(mux.inner.streams.lock().len(), 0);
    }

    #[tokio::test]
    async fn who_uses_a_stream_that_is_not_there_is_told() {
        let (out, mut frames) = mpsc::channel(4);
        let mux = Mux::new(out, OF_SERVER);
        for kind in [Kind::Data(vec![1]), Kind::Finish(Finish {})] {
            mux.handle(7, kind, &|_| {});
            let frame = frames.try_recv().unwrap();
            assert!(frame.stream == 7 && matches!(frame.kind, Some(Kind::Reset(_))), "{frame:?}");
        }
        mux.handle(7, Kind::Reset(String::new()), &|_| {});
        assert!(frames.try_recv().is_err(), "that needs no answer");
    }
}

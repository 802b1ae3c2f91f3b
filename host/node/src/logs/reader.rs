//! Reads a run's log back, for `kubectl logs`.

use std::{
    collections::VecDeque,
    io::{self, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    sync::watch,
};
use wasmk_api::Timestamp;

use super::writer::{FILES, numbered};

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

/// A log on its way to a client.
pub type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// What part of a log is wanted, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogOptions {
    /// Stay until the run is over.
    pub follow: bool,
    /// Only so many lines from the end.
    pub tail: Option<usize>,
    /// Only lines at or after that time.
    pub since: Option<Timestamp>,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// End after so many bytes.
    pub limit: Option<usize>,
}

/// The wanted part; `live` is the log's version while the run goes on.
pub(super) fn stream(path: PathBuf, live: Option<Arc<watch::Sender<u64>>>, options: LogOptions) -> LogStream {
    // The sender itself is not kept: a follower must see when nobody writes any longer.
    let news = live.filter(|_| options.follow).map(|w| w.subscribe());
    let reader = Reader {
        left: options.limit.unwrap_or(usize::MAX),
        options,
        files: VecDeque::new(),
        path,
        file: None,
        moved: false,
        news,
        begun: false,
        pending: BytesMut::new(),
        in_line: false,
    };
    Box::pin(futures::stream::unfold(reader, |mut reader| async move {
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), reader)),
            Ok(None) => None,
            Err(error) => {
                reader.left = 0;
                Some((Err(error), reader))
            }
        }
    }))
}

struct Reader {
    options: LogOptions,
    path: PathBuf,
    /// Files still to read, oldest first, each with its starting offset.
    files: VecDeque<(PathBuf, u64)>,
    file: Option<File>,
    /// The file was moved away and is read to its end.
    moved: bool,
    news: Option<watch::Receiver<u64>>,
    begun: bool,
    /// The beginning of a line whose end is not read yet.
    pending: BytesMut,
    in_line: bool,
    left: usize,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if !self.begun {
            self.begun = true;
            let (path, tail) = (self.path.clone(), self.options.tail);
            let plan = tokio::task::spawn_blocking(move || start(&path, tail));
            self.files = plan.await.map_err(io::Error::other)??;
        }
        let mut raw = vec![0; CHUNK];
        while self.left > 0 {
            // Seen before reading, so that a write in between is not missed.
            let over = self.news.as_mut().is_none_or(|n| *n.borrow_and_update() == u64::MAX);
            if self.file.is_none() && !self.open_next().await? {
                return Ok(None);
            }
            let Some(file) = &mut self.file else { return Ok(None) };
            let n = file.read(&mut raw).await?;
            if n > 0 {
                let out = self.convert(&raw[..n]);
                if out.is_empty() {
                    continue;
                }
                return Ok(Some(out));
            }
            if self.moved {
                self.moved = false;
                self.files.push_back((self.path.clone(), 0));
            }
            if !self.files.is_empty() {
                self.file = None;
                continue;
            }
            if self.rotated().await? {
                // What was written between the read and the move is read before the current file.
                self.moved = true;
                continue;
            }
            match &mut self.news {
                // Without a writer nothing follows; what it wrote last is still read.
                Some(news) if !over => {
                    if news.changed().await.is_err() {
                        self.news = None;
                    }
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    async fn open_next(&mut self) -> io::Result<bool> {
        while let Some((path, offset)) = self.files.pop_front() {
            match File::open(&path).await {
                Ok(mut file) => {
                    file.seek(SeekFrom::Start(offset)).await?;
                    self.file = Some(file);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Whether the file read last is no longer the current one, so that nothing is added to it any more.
    async fn rotated(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let Ok(current) = tokio::fs::metadata(&self.path).await else { return Ok(false) };
        Ok(file.metadata().await?.ino() != current.ino())
    }

    /// Stored lines as the client wants them.
    fn convert(&mut self, raw: &[u8]) -> Bytes {
        self.pending.extend_from_slice(raw);
        let mut out = Vec::with_capacity(raw.len());
        while let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
            let line = self.pending.split_to(end + 1);
            self.one(&line[..end], &mut out);
        }
        out.truncate(self.left);
        self.left -= out.len();
        out.into()
    }

    fn one(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_), Some(tag), text) =
            (parts.next(), parts.next(), parts.next(), parts.next().unwrap_or_default())
        else {
            return;
        };
        let time = String::from_utf8_lossy(time);
        if let Some(since) = self.options.since
            && time.parse::<Timestamp>().is_ok_and(|t| t < since)
        {
            return;
        }
        if self.options.timestamps && !self.in_line {
            out.extend_from_slice(time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(text);
        self.in_line = tag == b"P";
        if !self.in_line {
            out.push(b'\n');
        }
    }
}

/// Which files to read from which offset, oldest first.
fn start(path: &Path, tail: Option<usize>) -> io::Result<VecDeque<(PathBuf, u64)>> {
    let mut out = VecDeque::new();
    let newest_first = std::iter::once(path.to_path_buf()).chain((1..FILES).map(|n| numbered(path, n)));
    let mut wanted = tail;
    for file in newest_first.filter(|f| f.exists()) {
        let Some(lines) = &mut wanted else {
            out.push_front((file, 0));
            continue;
        };
        // Files are bounded, so one is read whole.
        let text = std::fs::read(&file)?;
        let (offset, found) = tail_offset(&text, *lines);
        out.push_front((file, offset));
        *lines -= found;
        if *lines == 0 {
            break;
        }
    }
    Ok(out)
}

/// Where the last `lines` lines begin, and how many there are.
fn tail_offset(text: &[u8], lines: usize) -> (u64, usize) {
    if lines == 0 {
        return (text.len() as u64, 0);
    }
    let mut found = 0;
    for (at, _) in text.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
        if found == lines {
            return (at as u64 + 1, lines);
        }
        found += 1;
    }
    (0, found)
}

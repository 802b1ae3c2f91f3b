//! Frames over Unix sockets, some with open files.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as Blocking;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::message::HEAD;

/// Most files with one frame.
const MAX_FILES: usize = 4;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Length and number of files that a frame's head says.
fn head(bytes: &[u8], most: usize) -> io::Result<(usize, usize)> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(broken("a frame's head is cut short"));
    };
    let (length, files) = (u32::from_le_bytes(*length) as usize, rest.first().copied().unwrap_or(0));
    if length > most || usize::from(files) > MAX_FILES {
        return Err(broken("a frame is longer than allowed"));
    }
    Ok((length, files.into()))
}

/// Sends what fits, with the files.
fn send_some(socket: RawFd, bytes: &[u8], files: &[RawFd]) -> io::Result<usize> {
    let control = [ControlMessage::ScmRights(files)];
    let control = if files.is_empty() { &control[..0] } else { &control[..] };
    let pieces = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket, &pieces, control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives what is there, with files.
fn receive_some(socket: RawFd, bytes: &mut [u8], files: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FILES]);
    let mut pieces = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = match recvmsg::<()>(socket, &mut pieces, Some(&mut space), flags) {
        Err(Errno::EINTR) => return Err(io::ErrorKind::Interrupted.into()),
        received => received?,
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            files.extend(received.into_iter().map(own));
        }
    }
    Ok(message.bytes)
}

#[allow(unsafe_code)]
fn own(file: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made the descriptor for this process, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(file) }
}

/// Sends a frame and waits until it is sent.
pub(crate) fn send_blocking(socket: &Blocking, frame: &[u8], files: &[RawFd]) -> io::Result<()> {
    let sent = send_some(socket.as_raw_fd(), frame, files)?;
    let mut socket = socket;
    socket.write_all(&frame[sent..])
}

/// Waits for a frame, with at most [`MAX_FILES`] files.
pub(crate) fn receive_blocking(socket: &Blocking, most: usize) -> io::Result<(Vec<u8>, VecDeque<OwnedFd>)> {
    let mut files = VecDeque::new();
    let mut start = [0; HEAD];
    let mut read = 0;
    while read < HEAD {
        match receive_some(socket.as_raw_fd(), &mut start[read..], &mut files) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let (length, _) = head(&start, most)?;
    let mut body = vec![0; length];
    let mut socket = socket;
    socket.read_exact(&mut body)?;
    Ok((body, files))
}

/// Sends a frame.
pub(crate) async fn send(socket: &UnixStream, frame: &[u8], files: &[OwnedFd]) -> io::Result<()> {
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let raw = socket.as_raw_fd();
    let mut sent = socket.async_io(Interest::WRITABLE, || send_some(raw, frame, &files)).await?;
    while sent < frame.len() {
        sent += socket.async_io(Interest::WRITABLE, || send_some(raw, &frame[sent..], &[])).await?;
    }
    Ok(())
}

/// Reads a frame's body; `None` at the end. Files that come with it are closed by the system.
pub(crate) async fn receive(
    socket: &mut (impl AsyncReadExt + Unpin),
    most: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut start = [0; HEAD];
    match socket.read_exact(&mut start).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let (length, _) = head(&start, most)?;
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await?;
    Ok(Some(body))
}

/// Writes a frame that has no files.
pub(crate) async fn write(socket: &mut (impl AsyncWriteExt + Unpin), frame: &[u8]) -> io::Result<()> {
    socket.write_all(frame).await
}

/// Reads frames with files.
pub(crate) struct Reader<'a> {
    socket: &'a UnixStream,
    bytes: Vec<u8>,
    files: VecDeque<OwnedFd>,
    most: usize,
}

impl<'a> Reader<'a> {
    /// Frames of at most `most` bytes.
    pub(crate) fn new(socket: &'a UnixStream, most: usize) -> Self {
        Self { socket, bytes: Vec::new(), files: VecDeque::new(), most }
    }

    /// The next frame's body and files; `None` at the end.
    pub(crate) async fn next(&mut self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        loop {
            if let Some(frame) = self.whole()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    fn whole(&mut self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        if self.bytes.len() < HEAD {
            return Ok(None);
        }
        let (length, files) = head(&self.bytes, self.most)?;
        if self.bytes.len() < HEAD + length {
            return Ok(None);
        }
        if self.files.len() < files {
            return Err(broken("a frame lacks its files"));
        }
        let body = self.bytes[HEAD..HEAD + length].to_vec();
        self.bytes.drain(..HEAD + length);
        Ok(Some((body, self.files.drain(..files).collect())))
    }

    async fn fill(&mut self) -> io::Result<bool> {
        let (raw, files) = (self.socket.as_raw_fd(), &mut self.files);
        let mut piece = vec![0; PIECE];
        let read = self.socket.async_io(Interest::READABLE, || receive_some(raw, &mut piece, files)).await?;
        self.bytes.extend_from_slice(&piece[..read]);
        Ok(read > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::frame;

    #[tokio::test]
    async fn files_stay_with_their_frames() {
        let (near, far) = UnixStream::pair().unwrap();
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            OwnedFd::from(file)
        };
        let sender = async {
            send(&near, &frame(&"one", 1), &[file("1")]).await.unwrap();
            send(&near, &frame(&"x".repeat(1 << 20), 0), &[]).await.unwrap();
            send(&near, &frame(&"two", 2), &[file("2"), file("22")]).await.unwrap();
            drop(near);
        };
        let receiver = async {
            let mut reader = Reader::new(&far, 2 << 20);
            let mut counts = Vec::new();
            while let Some((body, files)) = reader.next().await.unwrap() {
                let text: String = crate::message::parse(&body).unwrap();
                let sizes = files.into_iter().map(|f| std::fs::File::from(f).metadata().unwrap().len());
                counts.push((text.len(), sizes.collect::<Vec<_>>()));
            }
            counts
        };
        let ((), counts) = tokio::join!(sender, receiver);
        assert_eq!(counts, [(3, vec![1]), (1 << 20, vec![]), (3, vec![1, 2])]);
    }

    #[tokio::test]
    async fn what_is_too_long_is_refused() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&[0xff, 0xff, 0xff, 0x7f, 0]).await.unwrap();
        assert!(Reader::new(&far, 1024).next().await.is_err());
        let (mut near, mut far) = UnixStream::pair().unwrap();
        near.write_all(&[0, 4, 0, 1, 0]).await.unwrap();
        assert!(receive(&mut far, 1024).await.is_err());
    }
}

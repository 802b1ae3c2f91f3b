//! Bodies as streams.

use std::io::{self, Read, Write};

use wasip2::http::types::{IncomingBody, OutgoingBody};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

/// Most bytes the host takes in one blocking write.
const MAX_WRITE: usize = 4096;
/// Most bytes read in one piece.
const MAX_READ: u64 = 64 * 1024;

/// A request's body, read as it comes in.
pub struct BodyReader {
    // Dropped before the body it belongs to, as the interface demands.
    stream: Option<InputStream>,
    _body: Option<IncomingBody>,
}

impl BodyReader {
    pub(crate) fn new(body: Option<IncomingBody>) -> Self {
        let stream = body.as_ref().and_then(|body| body.stream().ok());
        Self { stream, _body: body }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stream) = &self.stream else {
            return Ok(0);
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        match stream.blocking_read((buffer.len() as u64).min(MAX_READ)) {
            Ok(bytes) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            Err(StreamError::Closed) => Ok(0),
            Err(StreamError::LastOperationFailed(error)) => Err(io::Error::other(error.to_debug_string())),
        }
    }
}

/// A response's body, sent as it is written.
pub struct BodyWriter {
    stream: Option<OutputStream>,
    body: OutgoingBody,
}

impl BodyWriter {
    pub(crate) fn new(body: OutgoingBody) -> Self {
        Self { stream: body.write().ok(), body }
    }

    /// Ends the body. One that is not ended is broken off, which the client notices.
    pub(crate) fn finish(self) -> io::Result<()> {
        drop(self.stream);
        OutgoingBody::finish(self.body, None).map_err(|code| io::Error::other(format!("{code:?}")))
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(stream) = &self.stream else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let piece = &bytes[..bytes.len().min(MAX_WRITE)];
        match stream.blocking_write_and_flush(piece) {
            Ok(()) => Ok(piece.len()),
            Err(StreamError::Closed) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(StreamError::LastOperationFailed(error)) => Err(io::Error::other(error.to_debug_string())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Objects that outlive a request, in containers that the function's deployment names
//! (`wasmk fn deploy --blobstore NAME`).
//!
//! ```no_run
//! use wasmk_guest::{Request, Response, blobstore::{Container, Error}};
//!
//! fn pictures(request: Request) -> Result<Response, Error> {
//!     let pictures = Container::open("pictures")?;
//!     pictures.write("latest", request.path())?;
//!     Ok(Response::text(format!("{} pictures\n", pictures.objects()?.len())))
//! }
//! ```
//!
//! All functions of a namespace on one node that name a container have the same objects in it. An object is there
//! for the next request as soon as it is finished, also after a restart of the node. An object has up to 64 MiB, all of a
//! namespace's together 512 MiB.

use std::fmt;
use std::io::{self, Read, Write};

#[allow(missing_docs)]
mod bindings {
    wit_bindgen::generate!({
        inline: "package wasmk:guest-blobstore;
            world containers {
                import wasi:blobstore/blobstore@0.2.0-draft;
            }",
        path: ["../wit/deps/io.wit", "../wit/deps/blobstore.wit"],
        world: "wasmk:guest-blobstore/containers",
        with: {
            "wasi:io/error@0.2.12": wasip2::io::error,
            "wasi:io/poll@0.2.12": wasip2::io::poll,
            "wasi:io/streams@0.2.12": wasip2::io::streams,
        },
        generate_all,
    });
}

use bindings::wasi::blobstore::{blobstore, container, types};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

/// Bytes that are written at a time.
const CHUNK: usize = 4096;

/// Why a container did not do as asked, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// A container of objects.
pub struct Container {
    container: container::Container,
    name: String,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub created: u64,
}

impl Container {
    /// The container of that name, made if there is none yet.
    ///
    /// # Errors
    /// When the function was not given one of that name.
    pub fn open(name: &str) -> Result<Self, Error> {
        if blobstore::container_exists(name)? {
            return Self::get(name);
        }
        match blobstore::create_container(name) {
            Ok(container) => Ok(Self { container, name: name.to_owned() }),
            // Another request may have been quicker.
            Err(error) => Self::get(name).map_err(|_| error.into()),
        }
    }

    /// The container of that name.
    ///
    /// # Errors
    /// When there is none, or the function was not given it.
    pub fn get(name: &str) -> Result<Self, Error> {
        Ok(Self { container: blobstore::get_container(name)?, name: name.to_owned() })
    }

    /// Removes the container with its objects.
    ///
    /// # Errors
    /// When there is none of that name any more.
    pub fn remove(self) -> Result<(), Error> {
        Ok(blobstore::delete_container(&self.name)?)
    }

    /// A whole object of up to 16 MiB.
    ///
    /// # Errors
    /// When there is no such object, or it is longer.
    pub fn read(&self, object: &str) -> Result<Vec<u8>, Error> {
        let value = self.container.get_data(object, 0, u64::MAX)?;
        Ok(types::IncomingValue::incoming_value_consume_sync(value)?)
    }

    /// An object as a stream, from its byte `first` to its byte `last` if it has that many.
    ///
    /// # Errors
    /// When there is no such object, or the range begins behind its end.
    pub fn reader(&self, object: &str, first: u64, last: u64) -> Result<Reader, Error> {
        let value = self.container.get_data(object, first, last)?;
        Ok(Reader(types::IncomingValue::incoming_value_consume_async(value)?))
    }

    /// Writes an object, in place of one that was there.
    ///
    /// # Errors
    /// When it is too long, or there is no room.
    pub fn write(&self, object: &str, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
        let mut writer = self.writer()?;
        writer.write_all(bytes.as_ref())?;
        writer.finish(object)
    }

    /// Writes an object as a stream; [`Writer::finish`] makes it one.
    ///
    /// # Errors
    /// When the function has too many open.
    pub fn writer(&self) -> Result<Writer<'_>, Error> {
        let value = types::OutgoingValue::new_outgoing_value();
        let stream = value.outgoing_value_write_body();
        let stream = stream.map_err(|()| Error("no object can be written now".into()))?;
        Ok(Writer { container: &self.container, stream, value })
    }

    /// What is known of an object, if it is there.
    ///
    /// # Errors
    /// When the container cannot be read.
    pub fn info(&self, object: &str) -> Result<Option<Info>, Error> {
        if !self.container.has_object(object)? {
            return Ok(None);
        }
        let found = self.container.object_info(object)?;
        Ok(Some(Info { size: found.size, created: found.created_at }))
    }

    /// The names of all objects, in order.
    ///
    /// # Errors
    /// When the container cannot be read.
    pub fn objects(&self) -> Result<Vec<String>, Error> {
        let names = self.container.list_objects()?;
        let mut all = Vec::new();
        loop {
            let (page, over) = names.read_stream_object_names(u64::MAX)?;
            all.extend(page);
            if over {
                return Ok(all);
            }
        }
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// When the container cannot be written.
    pub fn delete(&self, object: &str) -> Result<(), Error> {
        Ok(self.container.delete_object(object)?)
    }

    /// Removes all objects.
    ///
    /// # Errors
    /// When the container cannot be written.
    pub fn clear(&self) -> Result<(), Error> {
        Ok(self.container.clear()?)
    }

    /// Copies an object into a container, in place of one that was there.
    ///
    /// # Errors
    /// When there is no such object, or no room.
    pub fn copy(&self, object: &str, to: &Container, name: &str) -> Result<(), Error> {
        let (from, to) = (self.id(object), to.id(name));
        Ok(blobstore::copy_object(&from, &to)?)
    }

    /// Moves an object into a container, in place of one that was there; or renames it.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn rename(&self, object: &str, to: &Container, name: &str) -> Result<(), Error> {
        let (from, to) = (self.id(object), to.id(name));
        Ok(blobstore::move_object(&from, &to)?)
    }

    fn id(&self, object: &str) -> types::ObjectId {
        types::ObjectId { container: self.name.clone(), object: object.to_owned() }
    }
}

/// Reads an object.
pub struct Reader(InputStream);

impl Read for Reader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self.0.blocking_read(to.len() as u64) {
            Ok(bytes) => {
                to[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            Err(StreamError::Closed) => Ok(0),
            Err(StreamError::LastOperationFailed(error)) => Err(io::Error::other(error.to_debug_string())),
        }
    }
}

/// Writes an object.
pub struct Writer<'a> {
    container: &'a container::Container,
    // Before the value, whose child it is.
    stream: OutputStream,
    value: types::OutgoingValue,
}

impl Writer<'_> {
    /// Makes what was written an object of that name, in place of one that was there.
    ///
    /// # Errors
    /// When not all could be written, or there is no room for it.
    pub fn finish(self, object: &str) -> Result<(), Error> {
        let Self { container, stream, value } = self;
        container.write_data(object, &value)?;
        drop(stream);
        Ok(types::OutgoingValue::finish(value)?)
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(CHUNK)];
        match self.stream.blocking_write_and_flush(piece) {
            Ok(()) => Ok(piece.len()),
            Err(StreamError::Closed) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(StreamError::LastOperationFailed(error)) => Err(io::Error::other(error.to_debug_string())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

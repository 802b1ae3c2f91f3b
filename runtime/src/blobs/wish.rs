//! What guests want of containers and objects, in a form that can be passed on to another process.

use serde::{Deserialize, Serialize};

/// What a guest wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the operations of wasi:blobstore")]
pub enum BlobWish {
    /// A new container.
    Create { container: String },
    /// When a container was made.
    Container { container: String },
    /// Whether there is a container.
    Exists { container: String },
    /// To remove a container with its objects.
    Remove { container: String },
    /// To remove a container's objects.
    Clear { container: String },
    /// To copy an object; or to move it.
    Copy { from: (String, String), to: (String, String), keep: bool },
    /// Names of objects, those after one.
    Objects { container: String, after: Option<String>, most: u32 },
    /// To remove objects.
    Delete { container: String, objects: Vec<String> },
    /// What is known of an object.
    Object { container: String, object: String },
    /// To read an object from its first to its last byte.
    Open { container: String, object: String, first: u64, last: u64 },
    /// Bytes of what was opened.
    Read { handle: u64, at: u64, most: u32 },
    /// To write an object.
    Begin,
    /// Bytes of what was begun.
    Append { handle: u64, bytes: Vec<u8> },
    /// What was begun is to be an object.
    Finish { handle: u64, container: String, object: String },
    /// What was opened or begun is not needed any more.
    Close { handle: u64 },
}

impl BlobWish {
    /// The containers it is about.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        let (one, other) = match self {
            Self::Create { container }
            | Self::Container { container }
            | Self::Exists { container }
            | Self::Remove { container }
            | Self::Clear { container }
            | Self::Objects { container, .. }
            | Self::Delete { container, .. }
            | Self::Object { container, .. }
            | Self::Open { container, .. }
            | Self::Finish { container, .. } => (Some(container), None),
            Self::Copy { from, to, .. } => (Some(&from.0), Some(&to.0)),
            Self::Read { .. } | Self::Begin | Self::Append { .. } | Self::Close { .. } => (None, None),
        };
        one.into_iter().chain(other).map(String::as_str)
    }

    /// Whether it is about what is open already, and short.
    pub(crate) fn is_piece(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Append { .. } | Self::Close { .. })
    }
}

/// The answer to a [`BlobWish`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobTold {
    /// It is done.
    Done,
    /// Yes or no.
    Flag(bool),
    /// When the container was made, in seconds since 1970.
    Container(u64),
    /// An object's size in bytes and when it was made, if it is there.
    Object(Option<(u64, u64)>),
    /// Names, and whether there are more.
    Names(Vec<String>, bool),
    /// A handle, and how many bytes can be read by it.
    Opened(u64, u64),
    /// A piece of an object.
    Bytes(Vec<u8>),
}

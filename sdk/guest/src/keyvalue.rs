//! Keys and values that outlive a request, in stores that the function's deployment names
//! (`wasmk fn deploy --keyvalue NAME`).
//!
//! ```no_run
//! use wasmk_guest::{Request, Response, keyvalue::Store};
//!
//! fn visits(request: Request) -> Result<Response, wasmk_guest::keyvalue::Error> {
//!     let store = Store::open("visits")?;
//!     let times = store.add(request.path(), 1)?;
//!     store.set("last", request.path())?;
//!     Ok(Response::text(format!("{times} times\n")))
//! }
//! ```
//!
//! All functions of a namespace on one node that name a store have the same keys in it. A change is there for
//! the next request as soon as the call returns, also after a restart of the node.

use std::fmt;

#[allow(missing_docs)]
mod bindings {
    wit_bindgen::generate!({
        inline: "package wasmk:guest-keyvalue;
            world stores {
                import wasi:keyvalue/store@0.2.0-draft2;
                import wasi:keyvalue/atomics@0.2.0-draft2;
                import wasi:keyvalue/batch@0.2.0-draft2;
            }",
        path: "../wit/deps/keyvalue.wit",
        world: "wasmk:guest-keyvalue/stores",
        generate_all,
    });
}

use bindings::wasi::keyvalue::{atomics, batch, store};

/// A store of keys and values. Keys have up to 1 KiB, values up to 1 MiB, all of a namespace's together 16 MiB.
pub struct Store(store::Bucket);

/// Why a store did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The deployment names stores, but not this one.
    NoSuchStore,
    /// The deployment names no stores.
    AccessDenied,
    /// In words.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchStore => f.write_str("there is no such key-value store"),
            Self::AccessDenied => f.write_str("this function has no key-value stores"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NoSuchStore => Self::NoSuchStore,
            store::Error::AccessDenied => Self::AccessDenied,
            store::Error::Other(text) => Self::Other(text),
        }
    }
}

impl Store {
    /// Opens a store.
    ///
    /// # Errors
    /// When the function was not given one of that name.
    pub fn open(name: &str) -> Result<Self, Error> {
        Ok(Self(store::open(name)?))
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(key)?)
    }

    /// The value of a key as text, if it has one.
    ///
    /// # Errors
    /// When the store cannot be read, or the value is not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<String>, Error> {
        let value = self.get(key)?.map(String::from_utf8).transpose();
        value.map_err(|_| Error::Other(format!("the value of {key} is no UTF-8")))
    }

    /// Gives a key a value.
    ///
    /// # Errors
    /// When the key or the value is too long, or the store is full.
    pub fn set(&self, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        Ok(self.0.set(key, value.as_ref())?)
    }

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        Ok(self.0.delete(key)?)
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn exists(&self, key: &str) -> Result<bool, Error> {
        Ok(self.0.exists(key)?)
    }

    /// All keys, in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn keys(&self) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.0.list_keys(cursor.as_deref())?;
            all.extend(page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// Adds to a value that is a decimal number, in one step whoever else does so; what it is then. A key that has
    /// no value counts as 0.
    ///
    /// # Errors
    /// When the value is no such number.
    pub fn add(&self, key: &str, delta: i64) -> Result<i64, Error> {
        Ok(atomics::increment(&self.0, key, delta)?)
    }

    /// Replaces a value by what `change` makes of it, again as often as another was quicker; the new value.
    ///
    /// # Errors
    /// When the new value is too long, or the store is full.
    pub fn update(&self, key: &str, change: impl Fn(Option<Vec<u8>>) -> Vec<u8>) -> Result<Vec<u8>, Error> {
        let mut seen = atomics::Cas::new(&self.0, key)?;
        loop {
            let value = change(seen.current()?);
            match atomics::swap(seen, &value) {
                Ok(()) => return Ok(value),
                Err(atomics::CasError::StoreError(error)) => return Err(error.into()),
                Err(atomics::CasError::CasFailed(now)) => seen = now,
            }
        }
    }

    /// Gives up to 1,000 keys their values in one call, one after another; the first that fails ends it.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_many(&self, pairs: &[(String, Vec<u8>)]) -> Result<(), Error> {
        Ok(batch::set_many(&self.0, pairs)?)
    }
}

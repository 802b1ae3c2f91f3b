//! Keys and values of an owner, wherever they are: in this process, or in one that is asked for them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::keyvalue::{Database, KeyValueError, MAX_KEY, MAX_VALUE};

/// The process that keeps the stores. It is asked from a guest's thread, which waits.
pub trait KeyValueElsewhere: Send + Sync + 'static {
    /// Has a wish done.
    ///
    /// # Errors
    /// In the words that the guest is told.
    fn ask(&self, wish: &Wish) -> Result<Told, String>;
}

/// What a guest wants of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the operations of wasi:keyvalue")]
pub enum Wish {
    /// To open a store.
    Load,
    /// The value of a key.
    Get { store: String, key: String },
    /// Whether there is a key.
    Exists { store: String, key: String },
    /// To set a value.
    Set { store: String, key: String, value: Vec<u8> },
    /// To remove a key.
    Delete { store: String, key: String },
    /// A page of keys, those after one.
    Keys { store: String, after: Option<String> },
    /// A page of keys, without the first so many.
    KeysFrom { store: String, skip: u64 },
    /// To add to a number.
    Add { store: String, key: String, delta: i64 },
    /// To set a value if it is still the one that was seen.
    Swap { store: String, key: String, seen: Option<Vec<u8>>, value: Vec<u8> },
}

impl Wish {
    /// The store it is about; `None` for all.
    pub fn store(&self) -> Option<&str> {
        match self {
            Self::Load => None,
            Self::Get { store, .. }
            | Self::Exists { store, .. }
            | Self::Set { store, .. }
            | Self::Delete { store, .. }
            | Self::Keys { store, .. }
            | Self::KeysFrom { store, .. }
            | Self::Add { store, .. }
            | Self::Swap { store, .. } => Some(store),
        }
    }
}

/// The answer to a [`Wish`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// It is done.
    Done,
    /// The value, if there is one.
    Value(Option<Vec<u8>>),
    /// Yes or no.
    Flag(bool),
    /// A page of keys, and whether there are more.
    Keys(Vec<String>, bool),
    /// The number now.
    Sum(i64),
    /// Set; or not, and the value now.
    Swapped(Result<(), Option<Vec<u8>>>),
}

/// Where an owner's keys and values are.
#[derive(Clone)]
pub(crate) enum Keys {
    Here(Arc<Database>),
    Elsewhere(Arc<dyn KeyValueElsewhere>),
}

type Result<T, E = KeyValueError> = std::result::Result<T, E>;

fn ask(keeper: &dyn KeyValueElsewhere, wish: &Wish) -> Result<Told> {
    keeper.ask(wish).map_err(KeyValueError::Elsewhere)
}

fn strange<T>() -> Result<T> {
    Err(KeyValueError::Elsewhere("the answer is to another question".into()))
}

fn owned(store: &str, key: &str) -> (String, String) {
    (store.to_owned(), key.to_owned())
}

/// What is too long anywhere is not sent.
fn fits(key: &str, value: usize) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(KeyValueError::Key(key.len()));
    }
    if value > MAX_VALUE { Err(KeyValueError::Value(value)) } else { Ok(()) }
}

impl Keys {
    pub(crate) async fn load(&self) -> Result<()> {
        match self {
            Self::Here(database) => database.load().await,
            Self::Elsewhere(keeper) => ask(&**keeper, &Wish::Load).map(drop),
        }
    }

    pub(crate) fn get(&self, store: &str, key: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Here(database) => database.get(store, key),
            // No key is longer.
            Self::Elsewhere(_) if key.len() > MAX_KEY => Ok(None),
            Self::Elsewhere(keeper) => {
                let (store, key) = owned(store, key);
                match ask(&**keeper, &Wish::Get { store, key })? {
                    Told::Value(value) => Ok(value),
                    _ => strange(),
                }
            }
        }
    }

    pub(crate) fn exists(&self, store: &str, key: &str) -> Result<bool> {
        match self {
            Self::Here(database) => database.exists(store, key),
            Self::Elsewhere(_) if key.len() > MAX_KEY => Ok(false),
            Self::Elsewhere(keeper) => {
                let (store, key) = owned(store, key);
                match ask(&**keeper, &Wish::Exists { store, key })? {
                    Told::Flag(there) => Ok(there),
                    _ => strange(),
                }
            }
        }
    }

    pub(crate) fn set(&self, store: &str, key: &str, value: Vec<u8>) -> Result<()> {
        match self {
            Self::Here(database) => database.set(store, key, value),
            Self::Elsewhere(keeper) => {
                fits(key, value.len())?;
                let (store, key) = owned(store, key);
                ask(&**keeper, &Wish::Set { store, key, value }).map(drop)
            }
        }
    }

    pub(crate) fn delete(&self, store: &str, key: &str) -> Result<()> {
        match self {
            Self::Here(database) => database.delete(store, key),
            Self::Elsewhere(_) if key.len() > MAX_KEY => Ok(()),
            Self::Elsewhere(keeper) => {
                let (store, key) = owned(store, key);
                ask(&**keeper, &Wish::Delete { store, key }).map(drop)
            }
        }
    }

    pub(crate) fn keys(&self, store: &str, after: Option<&str>) -> Result<(Vec<String>, bool)> {
        match self {
            Self::Here(database) => database.keys(store, after),
            Self::Elsewhere(keeper) => {
                let after = after.map(|key| key.chars().take(MAX_KEY).collect());
                match ask(&**keeper, &Wish::Keys { store: store.to_owned(), after })? {
                    Told::Keys(keys, more) => Ok((keys, more)),
                    _ => strange(),
                }
            }
        }
    }

    pub(crate) fn keys_from(&self, store: &str, skip: u64) -> Result<(Vec<String>, bool)> {
        match self {
            Self::Here(database) => database.keys_from(store, skip),
            Self::Elsewhere(keeper) => {
                match ask(&**keeper, &Wish::KeysFrom { store: store.to_owned(), skip })? {
                    Told::Keys(keys, more) => Ok((keys, more)),
                    _ => strange(),
                }
            }
        }
    }

    pub(crate) fn add(&self, store: &str, key: &str, delta: i64) -> Result<i64> {
        match self {
            Self::Here(database) => database.add(store, key, delta),
            Self::Elsewhere(keeper) => {
                fits(key, 0)?;
                let (store, key) = owned(store, key);
                match ask(&**keeper, &Wish::Add { store, key, delta })? {
                    Told::Sum(sum) => Ok(sum),
                    _ => strange(),
                }
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "the inner result is the answer, the outer the failure")]
    pub(crate) fn swap(
        &self,
        store: &str,
        key: &str,
        seen: Option<&[u8]>,
        value: Vec<u8>,
    ) -> Result<std::result::Result<(), Option<Vec<u8>>>> {
        match self {
            Self::Here(database) => database.swap(store, key, seen, value),
            Self::Elsewhere(keeper) => {
                fits(key, value.len())?;
                let (store, key) = owned(store, key);
                let seen = seen.map(<[u8]>::to_vec);
                match ask(&**keeper, &Wish::Swap { store, key, seen, value })? {
                    Told::Swapped(swapped) => Ok(swapped),
                    _ => strange(),
                }
            }
        }
    }

    pub(crate) async fn fulfil(&self, wish: Wish) -> Result<Told> {
        self.load().await?;
        Ok(match wish {
            Wish::Load => Told::Done,
            Wish::Get { store, key } => Told::Value(self.get(&store, &key)?),
            Wish::Exists { store, key } => Told::Flag(self.exists(&store, &key)?),
            Wish::Set { store, key, value } => {
                self.set(&store, &key, value)?;
                Told::Done
            }
            Wish::Delete { store, key } => {
                self.delete(&store, &key)?;
                Told::Done
            }
            Wish::Keys { store, after } => {
                let (keys, more) = self.keys(&store, after.as_deref())?;
                Told::Keys(keys, more)
            }
            Wish::KeysFrom { store, skip } => {
                let (keys, more) = self.keys_from(&store, skip)?;
                Told::Keys(keys, more)
            }
            Wish::Add { store, key, delta } => Told::Sum(self.add(&store, &key, delta)?),
            Wish::Swap { store, key, seen, value } => {
                Told::Swapped(self.swap(&store, &key, seen.as_deref(), value)?)
            }
        })
    }
}

//! Values encrypted on their way into a store, and decrypted on their way out.
//!
//! Which ones is told by the beginning of their keys. Everything else of the contract is the store's beneath.

mod cipher;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::cipher::Cipher;
use crate::{
    Error, Event, Health, KeyValue, Op, Range, RangeResult, Revision, Store, Txn, TxnOutcome, Watch,
    WatchBatch, WatchSource,
};

/// Values looked at in one go when old ones are written anew.
const RESEAL_PAGE: usize = 100;

/// A named key of a cipher. Its secret is never printed.
#[derive(Clone)]
pub struct Key {
    /// Its name, which stands in front of every value encrypted with it; without a colon.
    pub name: String,
    /// The secret, as long as the cipher wants it.
    pub secret: Vec<u8>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A way to write values, or to read those written so before.
#[derive(Debug, Clone)]
pub enum Provider {
    /// As they are.
    Identity,
    /// Encrypted; the first key writes, all read.
    Keys {
        /// The cipher.
        cipher: Cipher,
        /// At least one.
        keys: Vec<Key>,
    },
}

/// What happens to the keys that start with one of the prefixes.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The prefixes.
    pub prefixes: Vec<String>,
    /// The first writes, all read; at least one.
    pub providers: Vec<Provider>,
}

impl Rule {
    /// Checks names and lengths, with a message that names what is wrong.
    fn check(&self) -> Result<(), Error> {
        if self.providers.is_empty() {
            return Err(Error::Invalid(format!("no provider is given for {}", self.prefixes.join(", "))));
        }
        for provider in &self.providers {
            let Provider::Keys { cipher, keys } = provider else { continue };
            let (name, lengths) = (cipher.name(), cipher.key_lengths());
            if keys.is_empty() {
                return Err(Error::Invalid(format!("{name} has no keys")));
            }
            for (index, key) in keys.iter().enumerate() {
                if key.name.is_empty() || key.name.contains(':') {
                    return Err(Error::Invalid(format!("a key of {name} has the name {:?}", key.name)));
                }
                if keys[..index].iter().any(|other| other.name == key.name) {
                    return Err(Error::Invalid(format!("two keys of {name} are called {}", key.name)));
                }
                if !lengths.contains(&key.secret.len()) {
                    let len = key.secret.len();
                    let wanted = lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                    let text = format!("key {} of {name} has {len} bytes, expected {wanted}", key.name);
                    return Err(Error::Invalid(text));
                }
            }
        }
        Ok(())
    }

    fn seal(&self, at: &[u8], plain: &Bytes) -> Result<Bytes, Error> {
        let Some(Provider::Keys { cipher, keys }) = self.providers.first() else { return Ok(plain.clone()) };
        let Some(key) = keys.first() else { return Ok(plain.clone()) };
        let body = cipher.encrypt(&key.secret, at, plain).map_err(|reason| failed("encrypt", at, reason))?;
        Ok([cipher.prefix(&key.name), body].concat().into())
    }

    fn open(&self, at: &[u8], value: &Bytes) -> Result<Bytes, Error> {
        if !cipher::is_sealed(value) {
            let readable = self.providers.iter().any(|provider| matches!(provider, Provider::Identity));
            return if readable {
                Ok(value.clone())
            } else {
                Err(failed("decrypt", at, "it is not encrypted, and `identity` is not among the providers"))
            };
        }
        for provider in &self.providers {
            let Provider::Keys { cipher, keys } = provider else { continue };
            for key in keys {
                if let Some(body) = value.strip_prefix(&cipher.prefix(&key.name)[..]) {
                    let opened = cipher.decrypt(&key.secret, at, body);
                    return opened.map(Bytes::from).map_err(|reason| failed("decrypt", at, reason));
                }
            }
        }
        let head = value.splitn(6, |byte| *byte == b':').take(5).collect::<Vec<_>>().join(&b':');
        let head = String::from_utf8_lossy(&head[..head.len().min(100)]).into_owned();
        Err(failed("decrypt", at, &format!("no key is given for {head}")))
    }

    /// Whether a value is not in the form new ones get.
    fn is_stale(&self, value: &[u8]) -> bool {
        match self.providers.first() {
            Some(Provider::Keys { cipher, keys }) => {
                !keys.first().is_some_and(|key| value.starts_with(&cipher.prefix(&key.name)))
            }
            _ => cipher::is_sealed(value),
        }
    }
}

fn failed(action: &'static str, at: &[u8], reason: &str) -> Error {
    Error::Seal { action, key: String::from_utf8_lossy(at).into_owned(), reason: reason.into() }
}

/// The rules; of several that fit a key the first counts.
#[derive(Debug)]
struct Rules(Vec<Rule>);

impl Rules {
    fn of(&self, key: &[u8]) -> Option<&Rule> {
        let fits = |rule: &&Rule| rule.prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()));
        self.0.iter().find(fits)
    }

    fn open(&self, mut kv: KeyValue) -> Result<KeyValue, Error> {
        if let Some(rule) = self.of(&kv.key) {
            kv.value = rule.open(&kv.key, &kv.value)?;
        }
        Ok(kv)
    }

    /// What cannot be decrypted is passed on with an empty value: it must not hold up all that follows.
    fn open_event(&self, event: Event) -> Event {
        let open = |kv: KeyValue| {
            let empty = KeyValue { value: Bytes::new(), ..kv.clone() };
            self.open(kv).unwrap_or_else(|error| {
                tracing::error!(%error, "a change is passed on without its value");
                empty
            })
        };
        match event {
            Event::Put { kv, previous } => Event::Put { kv: open(kv), previous: previous.map(open) },
            Event::Delete { key, revision, previous } => {
                Event::Delete { key, revision, previous: previous.map(open) }
            }
        }
    }

    fn seal(&self, op: Op) -> Result<Op, Error> {
        match (&op, self.of(op.key())) {
            (Op::Put { key, value }, Some(rule)) => {
                Ok(Op::Put { key: key.clone(), value: rule.seal(key, value)? })
            }
            _ => Ok(op),
        }
    }
}

/// A store whose values are encrypted as rules say. Clones share it.
///
/// Reads fail at a value that cannot be decrypted; watches go on, with an empty value in its place.
#[derive(Clone)]
pub struct Sealed {
    store: Arc<dyn Store>,
    rules: Arc<Rules>,
}

impl Sealed {
    /// Puts the rules before a store. An error names the provider or key that cannot be used.
    pub fn new(store: Arc<dyn Store>, rules: Vec<Rule>) -> Result<Self, Error> {
        rules.iter().try_for_each(Rule::check)?;
        Ok(Self { store, rules: Arc::new(Rules(rules)) })
    }

    /// Writes every value anew that is not in the form new ones get, after a key was added or changed, and answers
    /// how many. Fails at the first that cannot be decrypted.
    pub async fn reseal(&self) -> Result<u64, Error> {
        let mut done = 0;
        for prefix in self.rules.0.iter().flat_map(|rule| &rule.prefixes) {
            let mut start: Option<Vec<u8>> = None;
            loop {
                let range = Range {
                    prefix: prefix.as_bytes(),
                    start: start.as_deref(),
                    limit: RESEAL_PAGE,
                    at: None,
                };
                let page = self.store.range(range).await?;
                start = page.items.last().map(|kv| [&kv.key[..], &[0]].concat());
                for kv in page.items {
                    done += u64::from(self.reseal_one(kv).await?);
                }
                if !page.more {
                    break;
                }
            }
        }
        Ok(done)
    }

    async fn reseal_one(&self, kv: KeyValue) -> Result<bool, Error> {
        let Some(rule) = self.rules.of(&kv.key) else { return Ok(false) };
        let plain = rule.open(&kv.key, &kv.value)?;
        if !rule.is_stale(&kv.value) {
            return Ok(false);
        }
        let txn = Txn::put(kv.key.clone(), rule.seal(&kv.key, &plain)?, kv.mod_revision);
        // Whoever changed it meanwhile wrote it in the new form.
        Ok(matches!(self.store.txn(txn).await?, TxnOutcome::Committed { .. }))
    }
}

#[async_trait]
impl Store for Sealed {
    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        self.store.get(key, at).await?.map(|kv| self.rules.open(kv)).transpose()
    }

    async fn range(&self, range: Range<'_>) -> Result<RangeResult, Error> {
        let mut result = self.store.range(range).await?;
        result.items = result.items.into_iter().map(|kv| self.rules.open(kv)).collect::<Result<_, _>>()?;
        Ok(result)
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, Error> {
        txn.ops = txn.ops.into_iter().map(|op| self.rules.seal(op)).collect::<Result<_, _>>()?;
        let current = match self.store.txn(txn).await? {
            TxnOutcome::Failed { current } => current,
            committed => return Ok(committed),
        };
        let open = |kv: Option<KeyValue>| kv.map(|kv| self.rules.open(kv)).transpose();
        Ok(TxnOutcome::Failed { current: current.into_iter().map(open).collect::<Result<_, _>>()? })
    }

    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, Error> {
        let watch = self.store.watch(prefix, from).await?;
        Ok(Watch::new(Opening { watch, rules: self.rules.clone() }))
    }

    async fn request_progress(&self, prefix: &[u8]) -> Result<(), Error> {
        self.store.request_progress(prefix).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.store.compact(revision).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.store.revision().await
    }

    async fn compacted(&self) -> Result<Revision, Error> {
        self.store.compacted().await
    }

    fn health(&self) -> Health {
        self.store.health()
    }
}

/// A watch that decrypts what it passes on. A value it cannot decrypt is empty.
struct Opening {
    watch: Watch,
    rules: Arc<Rules>,
}

#[async_trait]
impl WatchSource for Opening {
    async fn next(&mut self) -> Option<Result<WatchBatch, Error>> {
        let WatchBatch { events, revision } = match self.watch.next().await? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        let events = events.into_iter().map(|event| self.rules.open_event(event)).collect();
        Some(Ok(WatchBatch { events, revision }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    const SECRET: &str = "/registry/core/secrets/default/s";

    fn keys(cipher: Cipher, names: &[&str]) -> Provider {
        let key = |name: &&str| Key { name: name.to_string(), secret: vec![name.as_bytes()[0]; 32] };
        Provider::Keys { cipher, keys: names.iter().map(key).collect() }
    }

    fn sealed(memory: &Memory, providers: Vec<Provider>) -> Sealed {
        let rule = Rule { prefixes: vec!["/registry/core/secrets/".into()], providers };
        Sealed::new(Arc::new(memory.clone()), vec![rule]).unwrap()
    }

    async fn value(store: &dyn Store, key: &str) -> String {
        let kv = store.get(key.as_bytes(), None).await.unwrap().unwrap();
        String::from_utf8_lossy(&kv.value).into_owned()
    }

    #[tokio::test]
    async fn only_what_a_rule_names_is_encrypted_and_readers_do_not_notice() {
        let memory = Memory::new();
        for cipher in [Cipher::AesGcm, Cipher::AesCbc, Cipher::Secretbox] {
            let store = sealed(
                &memory,
                vec![keys(cipher, &["one"]), keys(Cipher::AesGcm, &["one"]), keys(Cipher::AesCbc, &["one"])],
            );
            let from = store.revision().await.unwrap();
            let mut watch = store.watch(b"/", from).await.unwrap();
            for key in [SECRET, "/registry/core/configmaps/default/c"] {
                let op = Op::Put { key: key.into(), value: "plain".into() };
                store.txn(Txn { ops: vec![op], ..Txn::default() }).await.unwrap();
                assert_eq!(value(&store, key).await, "plain");
            }
            let raw = value(&memory, SECRET).await;
            assert!(raw.starts_with(&format!("k8s:enc:{}:v1:one:", cipher.name())), "{raw}");
            assert!(!raw.contains("plain"));
            assert_eq!(value(&memory, "/registry/core/configmaps/default/c").await, "plain");
            let all = store.range(Range::default()).await.unwrap();
            assert!(all.items.iter().all(|kv| kv.value == "plain"));
            let mut seen = Vec::new();
            while seen.len() < 2 {
                seen.extend(watch.next().await.unwrap().unwrap().events);
            }
            for event in seen {
                let Event::Put { kv, previous } = event else { panic!("{event:?}") };
                assert_eq!(
                    (kv.value, previous.map_or("plain".into(), |kv| kv.value)),
                    ("plain".into(), Bytes::from("plain"))
                );
            }
            let TxnOutcome::Failed { current } = store.txn(Txn::put(SECRET, "new", 1)).await.unwrap() else {
                panic!("the condition does not hold")
            };
            assert_eq!(current[0].as_ref().unwrap().value, "plain");
        }
    }

    #[tokio::test]
    async fn keys_are_rotated_one_step_at_a_time() {
        let memory = Memory::new();
        let put = Txn::put(SECRET, "plain", 0);
        sealed(&memory, vec![Provider::Identity]).txn(put).await.unwrap();
        assert_eq!(value(&memory, SECRET).await, "plain");
        for (providers, form, rewritten) in [
            (vec![keys(Cipher::AesGcm, &["a"]), Provider::Identity], "k8s:enc:aesgcm:v1:a:", 1),
            // A new key is added behind the old one first, so that every server can read it.
            (vec![keys(Cipher::AesGcm, &["a", "b"])], "k8s:enc:aesgcm:v1:a:", 0),
            (vec![keys(Cipher::AesGcm, &["b", "a"])], "k8s:enc:aesgcm:v1:b:", 1),
            (
                vec![keys(Cipher::Secretbox, &["b"]), keys(Cipher::AesGcm, &["b"])],
                "k8s:enc:secretbox:v1:b:",
                1,
            ),
            (vec![Provider::Identity, keys(Cipher::Secretbox, &["b"])], "plain", 1),
        ] {
            let store = sealed(&memory, providers);
            assert_eq!(store.reseal().await.unwrap(), rewritten, "to {form}");
            assert_eq!(value(&store, SECRET).await, "plain");
            assert!(value(&memory, SECRET).await.starts_with(form), "{form}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_says_which_key_is_missing() {
        let memory = Memory::new();
        let put = Txn::put(SECRET, "plain", 0);
        sealed(&memory, vec![keys(Cipher::AesGcm, &["a"])]).txn(put).await.unwrap();
        for (providers, word) in [
            (vec![keys(Cipher::AesGcm, &["b"])], "no key is given for k8s:enc:aesgcm:v1:a"),
            (vec![Provider::Identity], "no key is given for k8s:enc:aesgcm:v1:a"),
            (vec![keys(Cipher::Secretbox, &["a"])], "no key is given"),
        ] {
            let store = sealed(&memory, providers);
            let error = store.get(SECRET.as_bytes(), None).await.unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(SECRET), "{error}");
            assert!(store.reseal().await.is_err());
        }
        let wrong = Key { name: "a".into(), secret: vec![9; 32] };
        let store = sealed(&memory, vec![Provider::Keys { cipher: Cipher::AesGcm, keys: vec![wrong] }]);
        let error = store.range(Range::default()).await.unwrap_err().to_string();
        assert!(error.contains("not encrypted with this key"), "{error}");
    }

    #[tokio::test]
    async fn a_watch_goes_on_after_what_it_cannot_read() {
        let memory = Memory::new();
        let (ours, theirs) = (
            sealed(&memory, vec![keys(Cipher::AesGcm, &["a"])]),
            sealed(&memory, vec![keys(Cipher::AesGcm, &["b"])]),
        );
        let plain = sealed(&memory, vec![Provider::Identity]);
        let mut watch = ours.watch(b"/", ours.revision().await.unwrap()).await.unwrap();
        for (store, value) in [(&theirs, "unknown key"), (&plain, "not encrypted"), (&ours, "known")] {
            let op = Op::Put { key: SECRET.into(), value: value.into() };
            store.txn(Txn { ops: vec![op], ..Txn::default() }).await.unwrap();
        }
        let mut seen = Vec::new();
        while seen.len() < 3 {
            seen.extend(watch.next().await.unwrap().unwrap().events);
        }
        let values = seen.into_iter().map(|event| match event {
            Event::Put { kv, previous } => (kv.value, previous.map(|kv| kv.value)),
            Event::Delete { .. } => panic!("{event:?}"),
        });
        let empty = Bytes::new;
        assert!(values.eq([
            (empty(), None),
            (empty(), Some(empty())),
            (Bytes::from("known"), Some(empty())),
        ]));
    }

    #[test]
    fn unusable_rules_are_refused_by_name() {
        let key = |name: &str, len: usize| Key { name: name.into(), secret: vec![1; len] };
        let gcm = |keys| vec![Provider::Keys { cipher: Cipher::AesGcm, keys }];
        for (providers, word) in [
            (vec![], "no provider"),
            (gcm(vec![]), "no keys"),
            (gcm(vec![key("a", 17)]), "has 17 bytes"),
            (gcm(vec![key("a:b", 16)]), "a:b"),
            (gcm(vec![key("", 16)]), "name"),
            (gcm(vec![key("a", 16), key("a", 16)]), "two keys"),
        ] {
            let rule = Rule { prefixes: vec!["/".into()], providers };
            let refused = Sealed::new(Arc::new(Memory::new()), vec![rule]).err().unwrap().to_string();
            assert!(refused.contains(word), "{refused}");
        }
        assert!(!format!("{:?}", key("a", 16)).contains('1'), "secrets are not printed");
    }
}

//! The store in an etcd, for several control planes on one state. Needs etcd 3.4 or later.
//!
//! The keys are kept as they are; the whole etcd belongs to the store. A transaction may have as many operations
//! as etcd was started with (`--max-txn-ops`, 128 unless told otherwise), a value as many bytes as
//! `--max-request-bytes`. Every write is as durable as etcd makes it; [`Durability::Relaxed`](crate::Durability)
//! makes no difference.

mod convert;
mod follow;
mod members;
#[allow(unreachable_pub, clippy::all)]
mod proto {
    tonic::include_proto!("etcdserverpb");
}

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use self::convert::{
    Refusal, key_value, prefix_range, refusal, revision, to_i64, to_u64, txn_outcome, txn_request,
};
use self::follow::Stream;
use self::members::Members;
use self::proto::kv_client::KvClient;
use crate::mvcc::State;
use crate::shared::Shared;
use crate::{Error, History, KeyValue, Range, RangeResult, Revision, Store, Txn, TxnOutcome, Watch};

/// Longest a request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Longest a connection may take to come up.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How often a connection is asked for a sign of life (etcd takes more than one in 5 s for an attack), and how long
/// it may take to give one.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(3);
/// Pauses between attempts to get a lost stream back.
const RETRY_SHORTEST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// Largest message taken from etcd, in bytes: a thousand revisions of large objects.
const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// Items asked for at once; a range without limit is put together from such pages.
const PAGE: usize = 1000;

/// How to prove who is who, all in PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// Certificates of the authority that signed etcd's.
    pub ca: String,
    /// Certificate and private key to show to etcd, if it wants to see one.
    pub identity: Option<(String, String)>,
}

/// A store in etcd. Clones share the connection.
#[derive(Clone)]
pub struct Etcd {
    inner: Arc<Inner>,
}

struct Inner {
    members: Arc<Members>,
    /// The recent changes; it knows no keys.
    shared: Arc<Shared>,
    follower: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
        self.shared.close();
    }
}

impl Etcd {
    /// Connects to any of the endpoints ("https://host:2379").
    pub async fn connect(endpoints: &[String], tls: Option<EtcdTls>) -> Result<Self, Error> {
        Self::connect_with(endpoints, tls, History::default()).await
    }

    /// As [`connect`](Self::connect), keeping so much of the past in memory for watches.
    pub async fn connect_with(
        endpoints: &[String],
        tls: Option<EtcdTls>,
        history: History,
    ) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::Invalid("no etcd endpoint is given".into()));
        }
        let endpoints: Vec<Endpoint> =
            endpoints.iter().map(|endpoint| configure(endpoint, tls.as_ref())).collect::<Result<_, _>>()?;
        let members = Arc::new(Members::new(&endpoints));
        let current = current_revision(&members).await?;
        let shared = Shared::new(State::load(current, []));
        let first = Stream::open(&members, current).await?;
        let follower = tokio::spawn(follow::follow(members.clone(), shared.clone(), history, first));
        Ok(Self { inner: Arc::new(Inner { members, shared, follower }) })
    }

    /// One page as etcd gives it.
    async fn page(&self, request: proto::RangeRequest) -> Result<proto::RangeResponse, Error> {
        let at = to_u64(request.revision);
        match read_range(&self.inner.members, request).await? {
            Ok(response) => Ok(response),
            Err(status) => Err(self.explain(&status, at).await),
        }
    }

    /// Puts the revisions into a refusal that concerns one.
    async fn explain(&self, status: &tonic::Status, requested: Revision) -> Error {
        let numbers = match refusal(status) {
            Refusal::Compacted => {
                self.compacted().await.map(|compacted| Error::Compacted { requested, compacted })
            }
            Refusal::Future => {
                self.revision().await.map(|current| Error::FutureRevision { requested, current })
            }
            Refusal::Other(error) => Ok(error),
        };
        numbers.unwrap_or_else(|error| error)
    }

    /// Whether etcd still has `revision`, which is not in the future.
    async fn has(&self, revision: Revision) -> Result<bool, Error> {
        let (key, _) = prefix_range(b"");
        let request =
            proto::RangeRequest { key, revision: to_i64(revision), keys_only: true, ..Default::default() };
        match read_range(&self.inner.members, request).await? {
            Ok(_) => Ok(true),
            Err(status) => match refusal(&status) {
                Refusal::Compacted => Ok(false),
                Refusal::Future => Err(Error::Backend(format!("etcd went back behind revision {revision}"))),
                Refusal::Other(error) => Err(error),
            },
        }
    }
}

fn configure(endpoint: &str, tls: Option<&EtcdTls>) -> Result<Endpoint, Error> {
    let invalid = |error: tonic::transport::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Error::Invalid(format!("etcd endpoint {endpoint:?}: {error}{cause}"))
    };
    let configured = Endpoint::from_shared(endpoint.to_string()).map_err(invalid)?;
    let configured = configured
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_LIMIT)
        .tcp_nodelay(true);
    let Some(tls) = tls else { return Ok(configured) };
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    configured.tls_config(config).map_err(invalid)
}

fn kv_client(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

async fn read_range(
    members: &Members,
    request: proto::RangeRequest,
) -> Result<Result<proto::RangeResponse, tonic::Status>, Error> {
    members
        .read(|channel| {
            let request = request.clone();
            async move { kv_client(channel).range(request).await }
        })
        .await
}

async fn current_revision(members: &Members) -> Result<Revision, Error> {
    let (key, _) = prefix_range(b"");
    let request = proto::RangeRequest { key, count_only: true, ..Default::default() };
    let response = read_range(members, request).await?;
    let response = response.map_err(|status| Error::Backend(format!("etcd: {}", status.message())))?;
    Ok(revision(response.header.as_ref()))
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        let key = Bytes::copy_from_slice(key);
        let request = proto::RangeRequest { key, revision: to_i64(at.unwrap_or(0)), ..Default::default() };
        Ok(self.page(request).await?.kvs.into_iter().next().map(key_value))
    }

    async fn range(&self, range: Range<'_>) -> Result<RangeResult, Error> {
        let (first, range_end) = prefix_range(range.prefix);
        let mut key = range.start.filter(|start| *start > &first[..]).map_or(first, Bytes::copy_from_slice);
        if !key.starts_with(range.prefix) {
            let revision =
                self.page(proto::RangeRequest { key, count_only: true, ..Default::default() }).await?;
            let revision = range.at.unwrap_or_else(|| convert::revision(revision.header.as_ref()));
            return Ok(RangeResult { items: Vec::new(), revision, more: false });
        }
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let mut result = RangeResult { items: Vec::new(), revision: range.at.unwrap_or(0), more: true };
        while result.more && result.items.len() < limit {
            let limit = (limit - result.items.len()).min(PAGE) as i64;
            let (revision, range_end) = (to_i64(result.revision), range_end.clone());
            let request = proto::RangeRequest { key, range_end, limit, revision, ..Default::default() };
            let page = self.page(request).await?;
            if result.revision == 0 {
                result.revision = convert::revision(page.header.as_ref());
            }
            result.more = page.more;
            result.items.extend(page.kvs.into_iter().map(key_value));
            // The key right after the last one.
            key = result.items.last().map_or(Bytes::new(), |kv| [&kv.key[..], &[0]].concat().into());
        }
        Ok(result)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        txn.check()?;
        let request = txn_request(txn);
        let send = |channel| {
            let request = request.clone();
            async move { kv_client(channel).txn(request).await }
        };
        match self.inner.members.write(send).await? {
            Ok(response) => Ok(txn_outcome(response)),
            Err(status) => Err(self.explain(&status, 0).await),
        }
    }

    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, Error> {
        // etcd would wait for the future, and start a little before what it has compacted.
        let from = from.max(1);
        let (key, _) = prefix_range(b"");
        self.page(proto::RangeRequest { key, revision: to_i64(from), keys_only: true, ..Default::default() })
            .await?;
        follow::watch(&self.inner.members, &self.inner.shared, prefix, from).await
    }

    async fn request_progress(&self, prefix: &[u8]) -> Result<(), Error> {
        self.inner.shared.ring_progress(Some(prefix));
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let request = proto::CompactionRequest { revision: to_i64(revision) };
        let send = |channel| async move { kv_client(channel).compact(request).await };
        match self.inner.members.read(send).await? {
            Ok(_) => Ok(()),
            Err(status) => match self.explain(&status, revision).await {
                Error::Compacted { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn revision(&self) -> Result<Revision, Error> {
        current_revision(&self.inner.members).await
    }

    /// etcd does not tell, so it is asked whether it has the revisions in question, halving their range each time.
    async fn compacted(&self) -> Result<Revision, Error> {
        if self.has(1).await? {
            return Ok(0);
        }
        let (mut gone, mut there) = (1, self.revision().await?);
        while there - gone > 1 {
            let middle = gone + (there - gone) / 2;
            if self.has(middle).await? {
                there = middle;
            } else {
                gone = middle;
            }
        }
        Ok(there)
    }
}

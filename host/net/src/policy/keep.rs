//! Keeps the table of policies as the API says.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::Either};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{task::JoinSet, time::Instant};
use wasmk_api::k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    Policies,
    book::{Book, Key},
    memory::Memory,
    table::{Labels, Member},
};
use crate::view::View;

/// Changes that come together are one pass.
const SETTLE: Duration = Duration::from_millis(20);
/// How long after a change the rules are kept on disk; what changes meanwhile is kept with it.
const KEEP_AFTER: Duration = Duration::from_secs(1);
/// Changes taken in one pass at the most.
const PASS: usize = 4096;
/// The services of the cluster's own, by namespace and name: what answers for one counts as pods with that label, as
/// it would be elsewhere.
const BUILT_IN: [(&str, &str, (&str, &str)); 2] = [
    ("kube-system", "kube-dns", ("k8s-app", "kube-dns")),
    ("knative-serving", "gateway", ("app", "gateway")),
];

type Events<K> = Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>;

/// What a watch says of the objects of one kind.
struct Watched<V> {
    /// The list that is on its way to take the place of all.
    coming: Option<HashMap<Key, V>>,
    complete: bool,
}

/// What is to be taken over of it.
enum Said<V> {
    Nothing,
    All(HashMap<Key, V>),
    One(Key, Option<V>),
}

impl<V> Watched<V> {
    /// `complete` when all of a former life are known.
    fn new(complete: bool) -> Self {
        Self { coming: None, complete }
    }

    fn take<K: Resource>(
        &mut self,
        event: watcher::Result<Event<K>>,
        reduce: impl Fn(K) -> Option<V>,
    ) -> Said<V> {
        match event {
            Ok(Event::Init) => self.coming = Some(HashMap::new()),
            Ok(Event::InitApply(object)) => {
                let key = key(&object);
                if let Some(value) = reduce(object) {
                    self.coming.get_or_insert_default().insert(key, value);
                }
            }
            Ok(Event::InitDone) => {
                self.complete = true;
                return Said::All(self.coming.take().unwrap_or_default());
            }
            Ok(Event::Apply(object)) => return Said::One(key(&object), reduce(object)),
            Ok(Event::Delete(object)) => return Said::One(key(&object), None),
            Err(error) => tracing::debug!(%error, "a watch for network policies broke off"),
        }
        Said::Nothing
    }
}

fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn events<K>(client: &kube::Client) -> Events<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let api: Api<K> = Api::all(client.clone());
    Box::pin(watcher(api, watcher::Config::default()).default_backoff())
}

/// Where all that the table is made of comes from.
struct Lists {
    client: kube::Client,
    book: Book,
    watch_policies: Events<NetworkPolicy>,
    /// Only while there is a policy.
    watch_rest: Option<(Events<Pod>, Events<Namespace>)>,
    policies: Watched<Arc<NetworkPolicy>>,
    pods: Watched<Arc<Member>>,
    namespaces: Watched<Labels>,
}

pub(super) async fn keep(to: Policies, book: Book, memory: Option<Memory>, client: kube::Client, view: View) {
    let known = book.is_active();
    let mut lists = Lists {
        watch_policies: events(&client),
        client,
        book,
        watch_rest: None,
        policies: Watched::new(known),
        pods: Watched::new(known),
        namespaces: Watched::new(known),
    };
    let mut keeper = Keeper { memory, due: None, writing: JoinSet::new() };
    let mut services = view.changes();
    loop {
        lists.follow();
        let endpoints = async {
            // Nobody may keep the view any more; the rules count all the same.
            if !to.is_active() || services.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = lists.next() => {}
            () = to.inner.news.notified() => {}
            () = endpoints => {}
            () = keeper.turn() => {
                keeper.keep(&lists.book);
                continue;
            }
        }
        // What arrives while the dust settles belongs to this pass.
        tokio::time::sleep(SETTLE).await;
        for _ in 0..PASS {
            if lists.next().now_or_never().is_none() {
                break;
            }
        }
        services.mark_unchanged();
        lists.follow();
        if view.is_ready() {
            lists.book.set_built_in(built_in(&lists.book, &view));
        }
        if lists.is_complete() && to.renew(&mut lists.book) {
            keeper.due.get_or_insert_with(|| Instant::now() + KEEP_AFTER);
        }
    }
}

impl Lists {
    /// Takes one change. May be dropped at any time.
    async fn next(&mut self) {
        let (pods, namespaces) = match &mut self.watch_rest {
            Some((pods, namespaces)) => (Either::Left(pods.next()), Either::Left(namespaces.next())),
            None => (Either::Right(std::future::pending()), Either::Right(std::future::pending())),
        };
        let book = &mut self.book;
        tokio::select! {
            Some(event) = self.watch_policies.next() => {
                match self.policies.take(event, |policy| Some(Arc::new(slim(policy)))) {
                    Said::All(all) => book.set_policies(all),
                    Said::One(key, policy) => book.set_policy(key, policy),
                    Said::Nothing => {}
                }
            }
            Some(event) = pods => match self.pods.take(event, |pod: Pod| Member::of(&pod).map(Arc::new)) {
                Said::All(all) => book.set_pods(all),
                Said::One(key, member) => book.set_pod(key, member),
                Said::Nothing => {}
            },
            Some(event) = namespaces => {
                match self.namespaces.take(event, |n: Namespace| Some(n.metadata.labels.unwrap_or_default())) {
                    Said::All(all) => {
                        book.set_namespaces(all.into_iter().map(|((_, name), labels)| (name, labels)).collect());
                    }
                    Said::One((_, name), labels) => book.set_namespace(name, labels),
                    Said::Nothing => {}
                }
            }
            else => std::future::pending().await,
        }
    }

    /// Begins to watch pods and namespaces with the first policy, and ends with the last.
    fn follow(&mut self) {
        if !self.book.is_active() {
            self.watch_rest = None;
            (self.pods, self.namespaces) = (Watched::new(false), Watched::new(false));
            self.book.set_pods(HashMap::new());
            self.book.set_namespaces(HashMap::new());
        } else if self.watch_rest.is_none() {
            self.watch_rest = Some((events(&self.client), events(&self.client)));
        }
    }

    /// Whether nothing of the table has still to arrive.
    fn is_complete(&self) -> bool {
        let rest = self.pods.complete && self.namespaces.complete;
        self.policies.complete && (rest || !self.book.is_active())
    }
}

/// Keeps the rules on disk, in the background and not with every change.
struct Keeper {
    memory: Option<Memory>,
    due: Option<Instant>,
    writing: JoinSet<io::Result<()>>,
}

impl Keeper {
    /// Waits until it is time to keep them. May be dropped at any time.
    async fn turn(&mut self) {
        while let Some(written) = self.writing.join_next().await {
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "network policies cannot be kept for the next start");
            }
        }
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn keep(&mut self, book: &Book) {
        self.due = None;
        if let Some(memory) = self.memory.clone() {
            let page = book.page();
            self.writing.spawn_blocking(move || memory.write(page));
        }
    }
}

/// Without what nobody asks for.
fn slim(policy: NetworkPolicy) -> NetworkPolicy {
    let ObjectMeta { namespace, name, .. } = policy.metadata;
    NetworkPolicy { metadata: ObjectMeta { namespace, name, ..ObjectMeta::default() }, spec: policy.spec }
}

/// The cluster's names and its functions are answered by pods elsewhere, and policies that are written for those shall
/// do here.
fn built_in(book: &Book, view: &View) -> HashMap<SocketAddr, Arc<Member>> {
    if !book.is_active() {
        return HashMap::new();
    }
    let (mut all, slices) = (HashMap::new(), view.slices());
    for (namespace, service, (label, value)) in BUILT_IN {
        let member = Arc::new(Member::new(namespace, [(label.to_string(), value.to_string())].into()));
        for slice in slices.of(namespace, service) {
            // A pod that answers for it is a pod already.
            let others = places(slice).filter(|place| !book.has(place.ip()));
            all.extend(others.map(|place| (place, member.clone())));
        }
    }
    all
}

fn places(slice: &EndpointSlice) -> impl Iterator<Item = SocketAddr> {
    let addresses = slice.endpoints.iter().flatten().flat_map(|e| &e.addresses);
    let addresses: Vec<IpAddr> = addresses.filter_map(|a| a.parse().ok()).collect();
    let ports = slice.ports.iter().flatten().filter_map(|p| p.port.and_then(|p| u16::try_from(p).ok()));
    ports.flat_map(move |port| addresses.clone().into_iter().map(move |ip| SocketAddr::new(ip, port)))
}

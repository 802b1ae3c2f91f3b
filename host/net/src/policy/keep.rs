//! Keeps the table of policies as the API says.

use std::{collections::HashMap, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use futures::{FutureExt, Stream, StreamExt, future::Either};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use wasmk_api::k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};

use super::{
    Policies,
    table::{Labels, Member, Table},
};
use crate::view::View;

/// Changes that come together are one pass.
const SETTLE: Duration = Duration::from_millis(20);
/// Changes taken in one pass at the most.
const PASS: usize = 4096;
/// The service of the cluster's names: what answers for it counts as pods with this label.
const DNS: (&str, &str) = ("kube-system", "kube-dns");
/// The label that such pods have elsewhere.
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");

type Key = (String, String);
type Events<K> = Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>;

/// What is kept of the objects of one kind.
struct Kept<V> {
    all: HashMap<Key, V>,
    /// The list that is on its way to take the place of all.
    coming: Option<HashMap<Key, V>>,
    complete: bool,
}

impl<V> Default for Kept<V> {
    fn default() -> Self {
        Self { all: HashMap::new(), coming: None, complete: false }
    }
}

impl<V> Kept<V> {
    fn take<K: Resource>(&mut self, event: watcher::Result<Event<K>>, reduce: impl Fn(K) -> Option<V>) {
        let put = |all: &mut HashMap<Key, V>, object: K| {
            let key = key(&object);
            match reduce(object) {
                Some(value) => drop(all.insert(key, value)),
                None => drop(all.remove(&key)),
            }
        };
        match event {
            Ok(Event::Init) => self.coming = Some(HashMap::new()),
            Ok(Event::InitApply(object)) => put(self.coming.get_or_insert_default(), object),
            Ok(Event::InitDone) => {
                self.all = self.coming.take().unwrap_or_default();
                self.complete = true;
            }
            Ok(Event::Apply(object)) => put(&mut self.all, object),
            Ok(Event::Delete(object)) => drop(self.all.remove(&key(&object))),
            Err(error) => tracing::debug!(%error, "a watch for network policies broke off"),
        }
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

/// All that the table is made of.
struct Lists {
    client: kube::Client,
    watch_policies: Events<NetworkPolicy>,
    /// Only while there is a policy.
    watch_rest: Option<(Events<Pod>, Events<Namespace>)>,
    policies: Kept<Arc<NetworkPolicy>>,
    pods: Kept<Arc<Member>>,
    namespaces: Kept<Labels>,
}

pub(super) async fn keep(to: Policies, client: kube::Client, view: View) {
    let mut lists = Lists {
        watch_policies: events(&client),
        client,
        watch_rest: None,
        policies: Kept::default(),
        pods: Kept::default(),
        namespaces: Kept::default(),
    };
    let mut services = view.changes();
    loop {
        let endpoints = async {
            if to.is_active() { services.changed().await.is_ok() } else { std::future::pending().await }
        };
        tokio::select! {
            () = lists.next() => {}
            () = to.inner.news.notified() => {}
            open = endpoints => if !open { return },
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
        if let Some(table) = lists.table(&to, &view)
            && (table.is_active() || to.is_active())
        {
            to.set(table);
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
        tokio::select! {
            Some(event) = self.watch_policies.next() => {
                self.policies.take(event, |policy| Some(Arc::new(slim(policy))));
            }
            Some(event) = pods => self.pods.take(event, |pod: Pod| Member::of(&pod).map(Arc::new)),
            Some(event) = namespaces => {
                self.namespaces.take(event, |n: Namespace| Some(n.metadata.labels.unwrap_or_default()));
            }
            else => std::future::pending().await,
        }
    }

    /// Begins to watch pods and namespaces with the first policy, and ends with the last.
    fn follow(&mut self) {
        if self.policies.all.is_empty() {
            self.watch_rest = None;
            (self.pods, self.namespaces) = Default::default();
        } else if self.watch_rest.is_none() {
            self.watch_rest = Some((events(&self.client), events(&self.client)));
        }
    }

    /// `None` while something of it has not arrived.
    fn table(&self, to: &Policies, view: &View) -> Option<Table> {
        if !self.policies.complete {
            return None;
        }
        if self.policies.all.is_empty() {
            return Some(Table::default());
        }
        if !self.pods.complete || !self.namespaces.complete {
            return None;
        }
        let policies: Vec<Arc<NetworkPolicy>> = self.policies.all.values().cloned().collect();
        let namespaces = self.namespaces.all.iter().map(|((_, name), labels)| (name.clone(), labels.clone()));
        let mut table = Table::new(&policies, namespaces.collect(), self.pods.all.values().cloned());
        for (key, placed) in &*to.inner.placed.lock() {
            // Its labels may have changed since; the API knows them.
            let known = self.pods.all.get(key).filter(|m| m.addresses.contains(&placed.address));
            table.place(placed.address, known.unwrap_or(&placed.member).clone());
        }
        build_in(&mut table, view);
        Some(table)
    }
}

/// Without what nobody asks for.
fn slim(mut policy: NetworkPolicy) -> NetworkPolicy {
    policy.metadata.managed_fields = None;
    policy.metadata.annotations = None;
    policy
}

/// The cluster's names are answered by pods elsewhere, and policies that are written for those shall do here.
fn build_in(table: &mut Table, view: &View) {
    let labels = [(DNS_LABEL.0.to_string(), DNS_LABEL.1.to_string())].into();
    let member = Arc::new(Member::new(DNS.0, labels));
    for slice in view.slices().of(DNS.0, DNS.1) {
        let addresses = slice.endpoints.iter().flatten().flat_map(|e| &e.addresses);
        let addresses: Vec<IpAddr> = addresses.filter_map(|a| a.parse().ok()).collect();
        let ports = slice.ports.iter().flatten().filter_map(|p| p.port.and_then(|p| u16::try_from(p).ok()));
        for port in ports {
            for address in &addresses {
                // A pod that answers for it is a pod already.
                if table.member(*address).is_none() {
                    table.build_in((*address, port).into(), member.clone());
                }
            }
        }
    }
}

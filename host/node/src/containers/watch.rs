//! What state the runtime's containers are in. One listing serves all who wait, and none is made
//! while nobody does.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};
use wasmk_cri::{
    Client,
    v1::{ContainerFilter, ContainerState, ListContainersRequest},
};

use super::labels;

/// Time between two listings.
const PERIOD: Duration = Duration::from_millis(200);
/// Time between two listings while the runtime does not answer.
const AWAY: Duration = Duration::from_secs(1);

/// What was seen of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Its process has ended.
    Ended,
    /// The runtime does not know it.
    Gone,
}

/// A listing, and which one it is.
type Listing = (u64, Arc<HashMap<String, ContainerState>>);

/// States of containers. Clones share the listings.
#[derive(Clone)]
pub(crate) struct States {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    filter: ContainerFilter,
    waiting: AtomicUsize,
    wanted: Notify,
    listing: watch::Sender<Listing>,
}

/// Counts somebody who waits, for as long as it is held.
struct Waiter<'a>(&'a Inner);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl States {
    /// Of the containers that an agent made, which several may do with one runtime.
    pub(crate) fn new(client: Client, owner: &str) -> Self {
        let listing = watch::Sender::new((0, Arc::default()));
        let label_selector = [(labels::OWNER.to_owned(), owner.to_owned())].into();
        let filter = ContainerFilter { label_selector, ..ContainerFilter::default() };
        let (waiting, wanted) = (AtomicUsize::new(0), Notify::new());
        Self { inner: Arc::new(Inner { client, filter, waiting, wanted, listing }) }
    }

    /// Lists while somebody waits; never ends.
    pub(crate) async fn keep(self) {
        loop {
            if self.inner.waiting.load(Ordering::Relaxed) == 0 {
                self.inner.wanted.notified().await;
            }
            let request = ListContainersRequest { filter: Some(self.inner.filter.clone()) };
            let rest = match self.inner.client.list_containers(request).await {
                Ok(list) => {
                    let states = list.containers.into_iter().map(|c| (c.id.clone(), c.state())).collect();
                    self.inner.listing.send_modify(|(number, known)| {
                        *number += 1;
                        *known = Arc::new(states);
                    });
                    PERIOD
                }
                // What was known stays known: a runtime that is away has not stopped its containers.
                Err(_) => AWAY,
            };
            tokio::time::sleep(rest).await;
        }
    }

    /// Waits until a container is no longer live.
    pub(crate) async fn ended(&self, id: &str) -> Seen {
        self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiter = Waiter(&self.inner);
        self.inner.wanted.notify_one();
        let mut news = self.inner.listing.subscribe();
        // The listing under way may be older than the container.
        let first = news.borrow().0 + 2;
        loop {
            let (number, known) = news.borrow_and_update().clone();
            match known.get(id) {
                Some(ContainerState::ContainerExited | ContainerState::ContainerUnknown) => {
                    return Seen::Ended;
                }
                None if number >= first => return Seen::Gone,
                _ => {}
            }
            if news.changed().await.is_err() {
                return Seen::Gone;
            }
        }
    }
}

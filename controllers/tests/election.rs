//! Who leads when several processes want to, on one API.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use support::Cluster;
use tokio_util::sync::CancellationToken;
use wasmk_controllers::election::{Election, lead};

/// How many lead now, and who did last.
#[derive(Default)]
struct Watched {
    leading: AtomicUsize,
    last: parking_lot::Mutex<String>,
    terms: AtomicUsize,
}

fn candidate(cluster: &Cluster, client: Client, name: &str, seen: &Arc<Watched>) -> CancellationToken {
    let (stop, seen, clock) = (CancellationToken::new(), seen.clone(), cluster.clock);
    let election = Election::new("test", name.into());
    let (name, until) = (name.to_owned(), stop.clone());
    tokio::spawn(async move {
        let work = |term: CancellationToken| {
            let (seen, name) = (seen.clone(), name.clone());
            async move {
                assert_eq!(seen.leading.fetch_add(1, Ordering::SeqCst), 0, "{name} is not alone");
                seen.terms.fetch_add(1, Ordering::SeqCst);
                *seen.last.lock() = name;
                term.cancelled().await;
                // Ending takes a while: nobody else may begin before.
                tokio::time::sleep(Duration::from_secs(1)).await;
                seen.leading.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        };
        lead(client, &election, clock, until, work).await.unwrap();
    });
    stop
}

async fn until(seen: &Watched, leader: &str) {
    for _ in 0..600 {
        if seen.leading.load(Ordering::SeqCst) == 1 && *seen.last.lock() == leader {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{leader} does not lead, but {}", seen.last.lock());
}

#[tokio::test(start_paused = true)]
async fn one_leads_until_it_ends_or_loses_the_lease() {
    let cluster = Cluster::bare().await;
    let seen = Arc::new(Watched::default());
    let first = candidate(&cluster, cluster.client.clone(), "first", &seen);
    until(&seen, "first").await;
    let second = candidate(&cluster, cluster.client.clone(), "second", &seen);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((&**seen.last.lock(), seen.terms.load(Ordering::SeqCst)), ("first", 1), "it renews");

    // One that ends gives the lease back.
    first.cancel();
    until(&seen, "second").await;

    // Somebody else has it, and does not renew it: after its time it is taken back.
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-system");
    let stolen = Patch::Merge(json!({"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 15}}));
    leases.patch("test", &PatchParams::default(), &stolen).await.unwrap();
    for _ in 0..100 {
        if seen.leading.load(Ordering::SeqCst) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(seen.leading.load(Ordering::SeqCst), 0, "who has lost the lease stops");
    until(&seen, "second").await;
    let lease = leases.get("test").await.unwrap().spec.unwrap();
    assert_eq!(lease.holder_identity.as_deref(), Some("second"));
    assert!(lease.lease_transitions.unwrap() >= 2);
    second.cancel();
}

/// Counts when it is dropped.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_does_not_end_is_cut_off() {
    let cluster = Cluster::bare().await;
    let (dropped, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let (client, clock, until, count) =
        (cluster.client.clone(), cluster.clock, stop.clone(), dropped.clone());
    let leading = tokio::spawn(async move {
        let work = |_| {
            let guard = Dropped(count.clone());
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        };
        lead(client, &Election::new("stuck", "first".into()), clock, until, work).await
    });
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-system");
    for _ in 0..100 {
        if leases.get_opt("stuck").await.unwrap().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(30), leading).await;
    ended.expect("it ends").unwrap().unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

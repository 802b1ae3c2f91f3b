//! Who is inside the cluster: hosts that only the cluster is to reach are answered to nobody else.
//!
//! What comes over this machine's loopback is inside, and so are pods and nodes by their addresses. The API is
//! asked about an address only when somebody else wants such a host, and not again for a while.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, api::ListParams};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use crate::names::CLUSTER_DOMAIN;

/// How long an address is taken for what it was found to be.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// Addresses remembered at a time.
const MAX_KNOWN: usize = 4096;
/// Questions to the API at a time; who comes beyond that waits.
const QUESTIONS: usize = 8;
/// How often a pod is looked for by its address, and the time between two looks.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// Longest wait for the API's answer, and for the turn to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether only the cluster itself is to reach a host, in lower case and without port.
pub(super) fn is_inner(host: &str) -> bool {
    let rest = host.strip_suffix(CLUSTER_DOMAIN).or_else(|| host.strip_suffix("svc"));
    rest.is_some_and(|rest| rest.ends_with('.'))
}

/// The host that a name with its namespace means: `web.shop` is `web.shop.svc`, as the search paths of pods have it.
pub(super) fn in_full(host: &str) -> Option<String> {
    let (name, namespace) = host.split_once('.')?;
    (!name.is_empty() && !namespace.is_empty() && !namespace.contains('.')).then(|| format!("{host}.svc"))
}

/// Whether an address is this machine's own, for sure.
pub(super) fn is_here(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The API did not say.
#[derive(Debug)]
pub(super) struct NoAnswer;

/// Whether an address is a machine's own, where pods are none but those on its network.
fn is_machines(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..2] == [127, 0],
        IpAddr::V6(v6) => v6.is_loopback(),
    }
}

/// Finds out whose an address is.
pub(super) struct Inside {
    client: Client,
    known: Mutex<HashMap<IpAddr, (bool, Instant)>>,
    questions: Semaphore,
}

impl Inside {
    /// By the pods and nodes of this API.
    pub(super) fn new(client: Client) -> Self {
        Self { client, known: Mutex::default(), questions: Semaphore::new(QUESTIONS) }
    }

    /// Whether an address is that of a pod or of a node.
    pub(super) async fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self.known(address) {
            Some(inside) => inside,
            // What could not be found out is not remembered.
            None => timeout(PATIENCE, self.find_out(address)).await.ok().flatten().unwrap_or(false),
        }
    }

    /// What is still known about an address.
    fn known(&self, address: IpAddr) -> Option<bool> {
        let known = self.known.lock().get(&address).copied();
        known.filter(|(_, since)| since.elapsed() < KNOWN_FOR).map(|(inside, _)| inside)
    }

    /// The namespace of the pod that has an address, if exactly one has it. One that has just been started is waited
    /// for: it may speak before the API has heard of its address.
    ///
    /// # Errors
    /// When the API has no answer.
    pub(super) async fn namespace(&self, address: IpAddr) -> Result<Option<String>, NoAnswer> {
        if is_machines(address) {
            return Ok(None);
        }
        for _ in 1..LOOKS {
            if let Some(namespace) = self.look_for(address).await? {
                return Ok(Some(namespace));
            }
            sleep(BETWEEN_LOOKS).await;
        }
        self.look_for(address).await
    }

    async fn look_for(&self, address: IpAddr) -> Result<Option<String>, NoAnswer> {
        let ask = async {
            let _turn = self.questions.acquire().await.map_err(|_| NoAnswer)?;
            let alive = format!("status.podIP={address},status.phase!=Succeeded,status.phase!=Failed");
            let pods = Api::<Pod>::all(self.client.clone());
            let found =
                pods.list(&ListParams::default().fields(&alive).limit(2)).await.map_err(|_| NoAnswer)?;
            match &found.items[..] {
                // On the node's network a pod is known by an address that is not its own.
                [pod] if pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true)) => {
                    Ok(pod.metadata.namespace.clone())
                }
                _ => Ok(None),
            }
        };
        timeout(PATIENCE, ask).await.unwrap_or(Err(NoAnswer))
    }

    async fn find_out(&self, address: IpAddr) -> Option<bool> {
        let _turn = self.questions.acquire().await.ok()?;
        // Somebody may have asked while this one waited.
        if let Some(inside) = self.known(address) {
            return Some(inside);
        }
        let inside = self.ask(address).await.ok()?;
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.retain(|_, (_, since)| since.elapsed() < KNOWN_FOR);
        }
        if known.len() < MAX_KNOWN {
            known.insert(address, (inside, Instant::now()));
        }
        Some(inside)
    }

    async fn ask(&self, address: IpAddr) -> kube::Result<bool> {
        let text = address.to_string();
        let pods = Api::<Pod>::all(self.client.clone());
        let of_pod = ListParams::default().fields(&format!("status.podIP={text}")).limit(1);
        if !pods.list_metadata(&of_pod).await?.items.is_empty() {
            return Ok(true);
        }
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?;
        let mut addresses =
            nodes.iter().flat_map(|n| n.status.iter()).flat_map(|s| s.addresses.iter().flatten());
        Ok(addresses.any(|a| a.address == text))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn hosts_of_the_cluster() {
        for (host, expect) in [
            ("web.shop.svc.cluster.local", true),
            ("web.shop.svc", true),
            ("broker-ingress.knative-eventing.svc.cluster.local", true),
            ("web.shop.example.com", false),
            ("websvc", false),
            ("svc", false),
        ] {
            assert_eq!(is_inner(host), expect, "{host}");
        }
    }

    #[test]
    fn names_with_their_namespace() {
        for (host, expect) in [
            ("web.shop", Some("web.shop.svc")),
            ("web", None),
            ("web.", None),
            (".shop", None),
            ("web.shop.svc", None),
        ] {
            assert_eq!(in_full(host).as_deref(), expect, "{host}");
        }
    }

    /// An API with a pod at 10.1.0.1 and a node at 10.2.0.1 that counts its questions.
    fn api(asked: Arc<AtomicUsize>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            asked.fetch_add(1, SeqCst);
            let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
            let items = match path {
                "/api/v1/pods" if query.contains("10.1.0.1") => json!([{"metadata": {"name": "p"}}]),
                "/api/v1/nodes" => {
                    let addresses = json!([{"type": "InternalIP", "address": "10.2.0.1"}]);
                    json!([{"metadata": {"name": "n"}, "status": {"addresses": addresses}}])
                }
                _ => json!([]),
            };
            let list: Value = json!({"metadata": {}, "items": items});
            std::future::ready(Ok::<_, std::io::Error>(Response::new(Body::from(
                list.to_string().into_bytes(),
            ))))
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn pods_and_nodes_are_inside() {
        let asked = Arc::new(AtomicUsize::new(0));
        let inside = Inside::new(api(asked.clone()));
        for (address, expect) in [("10.1.0.1", true), ("10.2.0.1", true), ("10.3.0.1", false)] {
            for _ in 0..2 {
                assert_eq!(inside.has(address.parse().unwrap()).await, expect, "{address}");
            }
        }
        assert_eq!(asked.load(SeqCst), 5, "once for each");
        tokio::time::advance(KNOWN_FOR).await;
        assert!(inside.has("10.1.0.1".parse().unwrap()).await);
        assert_eq!(asked.load(SeqCst), 6, "pods come and go");
    }

    #[tokio::test]
    async fn many_are_asked_about_at_once() {
        let asked = Arc::new(AtomicUsize::new(0));
        let inside = Inside::new(api(asked.clone()));
        let pod = "10.1.0.1".parse().unwrap();
        let all = futures::future::join_all((0..QUESTIONS * 4).map(|_| inside.has(pod))).await;
        assert!(all.into_iter().all(|inside| inside), "who has to wait is answered like the others");
        assert!(asked.load(SeqCst) <= QUESTIONS, "nor asks again what was found out meanwhile");
    }
}

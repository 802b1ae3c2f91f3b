//! The functions' gateway on a machine that has none: the agent listens where the endpoint of the gateway's service
//! is, and passes connections on through the tunnel that it holds open. On the gateway's own machine that place is
//! taken, and there is nothing to do.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    io::copy_bidirectional,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;
use wasmk_net::{
    bind::{self, Acceptor},
    tunnel::Uplink,
};

use crate::bootstrap::GATEWAY;

/// Connections passed on at a time; more wait in the system's queue.
const CONNECTIONS: usize = 512;
/// A place that is taken is looked at again after that.
const RETRY: Duration = Duration::from_secs(10);

/// Passes connections on until told to stop.
pub(crate) async fn keep(client: Client, uplink: Uplink, stop: CancellationToken) {
    let (tell, place) = watch::channel(None);
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(client, tell) => {}
        () = serve(place, uplink) => {}
    }
}

/// Keeps the place of the gateway's endpoint for ever, as the API says it.
async fn follow(client: Client, tell: watch::Sender<Option<SocketAddr>>) {
    let slices = Api::<EndpointSlice>::namespaced(client, wasmk_functions::NAMESPACE);
    let only = watcher::Config::default().fields(&format!("metadata.name={GATEWAY}"));
    let events = watcher(slices, only).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let place = match event {
            Ok(watcher::Event::Apply(slice) | watcher::Event::InitApply(slice)) => place(&slice),
            Ok(watcher::Event::Delete(_)) => None,
            _ => continue,
        };
        tell.send_if_modified(|known| std::mem::replace(known, place) != place);
    }
}

/// Where the gateway's endpoint is, if that is on every machine's own loopback.
fn place(slice: &EndpointSlice) -> Option<SocketAddr> {
    let address = slice.endpoints.iter().flatten().find_map(|e| e.addresses.first())?;
    let port = slice.ports.iter().flatten().find_map(|port| port.port)?;
    let place = SocketAddr::new(address.parse().ok()?, u16::try_from(port).ok()?);
    place.ip().is_loopback().then_some(place)
}

/// Listens there for ever, while there is a tunnel.
async fn serve(mut place: watch::Receiver<Option<SocketAddr>>, uplink: Uplink) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let at = *place.borrow_and_update();
        let work = async {
            let Some(at) = at else { return std::future::pending().await };
            // Without a tunnel the gateway may be about to come back on this very machine.
            uplink.up().await;
            match bind::tcp(at, false) {
                Ok(listener) => tokio::select! {
                    never = pass_on(Acceptor::new(listener, permits.clone()), &uplink) => match never {},
                    () = uplink.down() => {}
                },
                Err(error) => {
                    if error.kind() != io::ErrorKind::AddrInUse {
                        tracing::warn!(address = %at, %error, "pods cannot reach functions by their names in the cluster");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        tokio::select! {
            () = work => {}
            changed = place.changed() => if changed.is_err() { return },
        }
    }
}

async fn pass_on(acceptor: Acceptor, uplink: &Uplink) -> std::convert::Infallible {
    loop {
        let (mut client, _, permit) = acceptor.next().await;
        let uplink = uplink.clone();
        tokio::spawn(async move {
            let passed = async {
                let mut stream = uplink.open().await?;
                copy_bidirectional(&mut client, &mut stream).await
            };
            if let Err(error) = passed.await {
                tracing::debug!(%error, "a connection to the gateway broke off");
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_on_loopback() {
        for (address, port, expect) in [
            ("127.42.255.254", json!(8080), Some("127.42.255.254:8080")),
            ("10.0.0.7", json!(8080), None),
            ("127.42.255.254", json!(null), None),
        ] {
            let slice = json!({
                "metadata": {}, "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": [{"port": port}],
            });
            let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
            assert_eq!(place(&slice).map(|p| p.to_string()).as_deref(), expect, "{address} {port}");
        }
    }
}

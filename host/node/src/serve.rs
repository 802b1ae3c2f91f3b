//! Listens on a pod's address for an HTTP component and hands each request to it.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{net::TcpListener, sync::Semaphore};
use wasmk_net::bind::Acceptor;
use wasmk_runtime::StopSignal;

use crate::{
    engine::{Failure, Handler},
    netns::Netns,
};

/// Connections of one pod at a time; more wait in the system's queue.
const CONNECTIONS: usize = 1024;
/// A client has this long to send its request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(30);

/// Listens on a pod's address.
///
/// # Errors
/// When the address is taken or the port is not permitted.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    wasmk_net::bind::tcp(address, false).map_err(|e| {
        let hint = match e.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "; ports below 1024 need CAP_NET_BIND_SERVICE, use a higher containerPort without it"
            }
            _ => "",
        };
        Failure::new("CreateContainerError", format!("cannot listen on {address}: {e}{hint}"))
    })
}

/// Listens in a pod's network namespace.
///
/// # Errors
/// When the namespace cannot be entered, or the address is taken.
pub(crate) fn bind_in(namespace: &Netns, address: SocketAddr) -> Result<TcpListener, Failure> {
    let runtime = tokio::runtime::Handle::current();
    let bound = namespace.within(|| {
        let _entered = runtime.enter();
        wasmk_net::bind::tcp(address, false)
    });
    let failed = |e| format!("cannot listen on port {} of the pod: {e}", address.port());
    bound.map_err(|e| Failure::new("CreateContainerError", failed(e)))
}

/// Serves until asked to stop; open requests then have their grace.
pub(crate) async fn run(listener: TcpListener, handler: Arc<dyn Handler>, stop: StopSignal) {
    let acceptor = Acceptor::new(listener, Arc::new(Semaphore::new(CONNECTIONS)));
    let graceful = GracefulShutdown::new();
    let grace = loop {
        let (stream, _, permit) = tokio::select! {
            grace = stop.requested() => break grace,
            accepted = acceptor.next() => accepted,
        };
        let handler = handler.clone();
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let handler = handler.clone();
            async move {
                let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                Ok::<_, Infallible>(handler.handle(request).await)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // How a client leaves is its own affair.
            let _ = connection.await;
            drop(permit);
        });
    };
    drop(acceptor);
    let _ = tokio::time::timeout(grace, graceful.shutdown()).await;
}

//! Listens on a pod's address for an HTTP component and hands each request to it.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use wasmk_net::{bind::Acceptor, policy::Gate};
use wasmk_runtime::StopSignal;

use crate::{
    engine::{Failure, Handler},
    netns::Netns,
};

/// Connections of one pod at a time; more wait in the system's queue.
const CONNECTIONS: usize = 1024;
/// A client has this long to send its request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(30);

/// A pod that is to stop goes on listening until nobody has come for so long: the time a Service takes to
/// hear of it.
const QUIET: Duration = Duration::from_millis(250);

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

/// Serves until asked to stop. Open requests then have their grace, and so have those that come later: a
/// Service goes on sending here until it hears of the stop. Whom the gate does not let pass gets no answer.
pub(crate) async fn run(listener: TcpListener, handler: Arc<dyn Handler>, gate: Gate, stop: StopSignal) {
    let local = listener.local_addr();
    let acceptor = Acceptor::new(listener, Arc::new(Semaphore::new(CONNECTIONS)));
    let graceful = GracefulShutdown::new();
    let serve = |(stream, client, permit): (TcpStream, SocketAddr, OwnedSemaphorePermit)| {
        let Some(stream) = local.as_ref().ok().and_then(|local| gate.pass(stream, client.ip(), *local))
        else {
            return;
        };
        let (handler, stop, watcher) = (handler.clone(), stop.clone(), graceful.watcher());
        tokio::spawn(async move {
            connection(stream, handler, &stop, watcher).await;
            drop(permit);
        });
    };
    let grace = loop {
        tokio::select! {
            grace = stop.requested() => break grace,
            accepted = acceptor.next() => serve(accepted),
        }
    };
    let end = Instant::now() + grace;
    // What waits in the system's queue is taken in any case: it would be cut off.
    while let Ok(accepted) = timeout_at(end.min(Instant::now() + QUIET), acceptor.next()).await {
        serve(accepted);
    }
    drop(acceptor);
    tokio::select! {
        _ = timeout_at(end, graceful.shutdown()) => {}
        () = stop.expired() => {}
    }
}

/// One connection, from its first byte to its end.
async fn connection(stream: TcpStream, handler: Arc<dyn Handler>, stop: &StopSignal, watcher: Watcher) {
    // One that has said nothing is not idle: its request is under way.
    let silent = async {
        stop.requested().await;
        tokio::time::sleep(QUIET).await;
    };
    let mut first = [0];
    tokio::select! {
        biased;
        spoken = timeout(HEAD_LIMIT, stream.peek(&mut first)) => if !matches!(spoken, Ok(Ok(1))) { return },
        () = silent => return,
    }
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
    // How a client leaves is its own affair.
    let _ = watcher.watch(connection).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::engine::Body;

    struct Hello;

    #[async_trait::async_trait]
    impl Handler for Hello {
        async fn handle(&self, _: http::Request<Body>) -> http::Response<Body> {
            http::Response::new(wasmk_runtime::full("hello"))
        }
    }

    /// A request that has left before the server can do anything.
    fn ask(address: SocketAddr) -> std::net::TcpStream {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    #[tokio::test]
    async fn requests_that_come_with_the_stop_are_answered() {
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = StopSignal::new();
        let running = tokio::spawn(run(listener, Arc::new(Hello), Gate::open(), stop.clone()));
        let silent = TcpStream::connect(address).await.unwrap();
        let before = ask(address);
        stop.stop(Duration::from_secs(30));
        let after = ask(address);
        for stream in [before, after] {
            let mut answer = String::new();
            // The server closes after its last answer.
            TcpStream::from_std(stream).unwrap().read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        }
        // One that never says anything does not hold it for all of its grace.
        timeout(Duration::from_secs(20), running).await.unwrap().unwrap();
        drop(silent);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn without_grace_it_ends_at_once() {
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = StopSignal::new();
        let running = tokio::spawn(run(listener, Arc::new(Hello), Gate::open(), stop.clone()));
        let silent = TcpStream::connect(address).await.unwrap();
        stop.kill();
        timeout(Duration::from_secs(20), running).await.unwrap().unwrap();
        drop(silent);
    }
}

//! Connections to pods.

use std::{io, net::SocketAddr, time::Duration};

use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, Error},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{net::TcpStream, time::timeout};

use crate::policy::Policies;

/// Longest wait for a pod to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Connections to one pod that are kept without a request.
const IDLE: usize = 64;
/// How long they are kept.
const KEPT: Duration = Duration::from_secs(30);

/// Asks pods, over connections that are kept.
pub(super) struct Pods {
    http1: Client<Connector, Incoming>,
    http2: Client<Connector, Incoming>,
}

impl Pods {
    pub(super) fn new(policies: Policies) -> Self {
        let connector = Connector(policies);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(IDLE).pool_idle_timeout(KEPT).pool_timer(TokioTimer::new());
        let http1 = builder.build(connector.clone());
        Self { http1, http2: builder.http2_only(true).build(connector) }
    }

    /// Passes a request on to the pod that its URI names.
    pub(super) async fn ask(
        &self,
        request: Request<Incoming>,
        http2: bool,
    ) -> Result<Response<Incoming>, Error> {
        if http2 { self.http2.request(request).await } else { self.http1.request(request).await }
    }
}

/// Connects as the node: whoever asks was judged before.
#[derive(Clone)]
struct Connector(Policies);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let policies = self.0.clone();
        Box::pin(async move {
            let address = uri.authority().and_then(|a| a.as_str().parse::<SocketAddr>().ok());
            let address = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
            let stream = timeout(CONNECT, policies.connect(address)).await??;
            // Small requests must not wait for more.
            let _ = stream.set_nodelay(true);
            Ok(TokioIo::new(stream))
        })
    }
}

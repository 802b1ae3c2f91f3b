//! Outgoing HTTP requests of a guest, sent where its [`Network`] says.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::egress::Egress;
use super::tls;
use crate::body::{self, Body};
use crate::error::CallError;
use crate::network::{HttpService, HttpTarget, Network, NetworkError, host_and_port};
use crate::spec::HttpLimits;

/// Longest wait for a connection if the guest names none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the first byte of a response if the guest names none.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(300);
/// Pieces of an outgoing body that are buffered, and the size of the largest: a short answer is
/// complete before anybody reads it.
const BODY_CHUNKS: usize = 15;
const BODY_CHUNK: usize = 64 << 10;

type Done = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(Response<WasiBody>, Done), Error>;

/// The engine's hooks for a guest's outgoing requests.
pub(crate) struct Outgoing {
    network: Arc<dyn Network>,
    most: u32,
    /// Places for requests under way; most guests send none.
    in_flight: Option<Arc<Semaphore>>,
    egress: Option<Egress>,
}

impl Outgoing {
    pub(crate) fn new(network: Arc<dyn Network>, limits: &HttpLimits) -> Self {
        let egress = limits.max_egress.map(Egress::new);
        Self { network, most: limits.max_outgoing, in_flight: None, egress }
    }

    /// A new request to the guest: what it may send out is counted anew.
    pub(crate) fn begin_request(&mut self) {
        if let Some(egress) = &mut self.egress {
            *egress = Egress::new(egress.most);
        }
    }
}

impl WasiHttpHooks for Outgoing {
    /// Asked for each header of each request and answer; the default makes a closure each time.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        static FORBIDDEN: [HeaderName; 9] = wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS;
        FORBIDDEN.contains(name)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _done: Done,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let network = Arc::clone(&self.network);
        let most = self.most as usize;
        let places = self.in_flight.get_or_insert_with(|| Arc::new(Semaphore::new(most)));
        let permit = Arc::clone(places).try_acquire_owned();
        let request = match &self.egress {
            Some(egress) => egress.counted(request),
            None => Ok(request),
        };
        Box::new(async move {
            let (request, permit) = (request?, permit.map_err(|_| Error::ConnectionLimitReached)?);
            send(network, request, options.unwrap_or_default(), permit).await
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }
}

async fn send(
    network: Arc<dyn Network>,
    request: Request<WasiBody>,
    options: RequestOptions,
    permit: OwnedSemaphorePermit,
) -> Sent {
    let (parts, body) = request.into_parts();
    let target = network.http(&parts).await.map_err(refusal)?;
    let request = Request::from_parts(parts, body);
    match target {
        HttpTarget::Service(service) => call(&*service, request, permit).await,
        HttpTarget::Connect(addresses) => {
            connect_and_send(&addresses, &*network, request, options, permit).await
        }
    }
}

fn refusal(error: NetworkError) -> Error {
    tracing::debug!("guest's network: {error}");
    match error {
        NetworkError::Denied(_) => Error::HttpRequestDenied,
        NetworkError::NotFound(_) => Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None },
        NetworkError::Unreachable(_) => Error::DestinationUnavailable,
    }
}

/// Hands the request to a function of this process.
async fn call(service: &dyn HttpService, request: Request<WasiBody>, permit: OwnedSemaphorePermit) -> Sent {
    let response = service.call(request.map(|body| body::boxed(body.map_err(Box::new)))).await;
    let response = response.map_err(|error| match error {
        CallError::TimedOut(_) => Error::HttpResponseTimeout,
        CallError::Busy(_) | CallError::Stopped => Error::DestinationUnavailable,
        other => Error::InternalError(Some(other.to_string())),
    })?;
    let done = Box::new(async move {
        drop(permit);
        Ok(())
    });
    Ok((response.map(incoming), done))
}

fn incoming(body: Body) -> WasiBody {
    body.map_err(|error| Error::InternalError(Some(error.to_string()))).boxed_unsync()
}

async fn connect_and_send(
    addresses: &[SocketAddr],
    network: &dyn Network,
    request: Request<WasiBody>,
    options: RequestOptions,
    permit: OwnedSemaphorePermit,
) -> Sent {
    let wait = options.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
    let uri = request.uri().clone();
    let connect = async move {
        let stream = connect(addresses, network).await?;
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Ok::<Box<dyn Stream>, Error>(Box::new(stream));
        }
        let (host, _) = host_and_port(&uri).map_err(refusal)?;
        Ok(Box::new(tls::connect(host, stream).await?))
    };
    let stream = tokio::time::timeout(wait, connect).await.map_err(|_| Error::ConnectionTimeout)??;
    exchange(stream, request, options.first_byte_timeout.unwrap_or(FIRST_BYTE_TIMEOUT), permit).await
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One request over one connection.
async fn exchange(
    stream: Box<dyn Stream>,
    mut request: Request<WasiBody>,
    wait: Duration,
    permit: OwnedSemaphorePermit,
) -> Sent {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // The connection works in a task of its own; dropping the response ends it.
    let driver = tokio::spawn(async move {
        let result = connection.await;
        drop(permit);
        result.map_err(Error::from)
    });
    *request.uri_mut() = origin_form(request.uri());
    let response = tokio::time::timeout(wait, sender.send_request(request))
        .await
        .map_err(|_| Error::ConnectionReadTimeout)??;
    let done = async move {
        driver.await.unwrap_or_else(|error| Err(Error::InternalError(Some(error.to_string()))))
    };
    Ok((response.map(|body| body.map_err(Error::from).boxed_unsync()), Box::new(done)))
}

/// Path and query alone, as a request to an origin server has them.
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), |path: PathAndQuery| Uri::from(path))
}

/// The first address that answers, connected to from the guest's own.
async fn connect(addresses: &[SocketAddr], network: &dyn Network) -> Result<TcpStream, Error> {
    let mut failed = Error::DestinationNotFound;
    for address in addresses {
        match connect_from(*address, network).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => failed = Error::Connect(error),
        }
    }
    Err(failed)
}

async fn connect_from(to: SocketAddr, network: &dyn Network) -> std::io::Result<TcpStream> {
    let mut made = None;
    network.enter(Some(to), &mut || {
        made = Some(if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() });
    });
    let socket = made.unwrap_or_else(|| Err(std::io::ErrorKind::NetworkUnreachable.into()))?;
    if let Some(own) = network.source(to).filter(|own| own.is_ipv4() == to.is_ipv4()) {
        socket.bind(SocketAddr::new(own, 0))?;
    }
    socket.connect(to).await
}

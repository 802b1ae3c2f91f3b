use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// Serves the tunnel on a loopback port; every connection is node `n1`'s.
async fn serve(server: &Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = server.service(Arc::new(|_| Some("n1".into())));
    let router = tonic::service::Routes::new(service).into_axum_router();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let builder =
                    hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// An agent that sends back what it reads, stream by stream.
fn agent(address: SocketAddr, node: &str) -> CancellationToken {
    agent_with(address, node, Uplink::default())
}

fn agent_with(address: SocketAddr, node: &str, uplink: Uplink) -> CancellationToken {
    let stop = CancellationToken::new();
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let echo = |stream: TunnelStream| async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    };
    tokio::spawn(run(channel, node.into(), echo, uplink, stop.clone()));
    stop
}

async fn dial(server: &Server) -> TunnelStream {
    let connected = async {
        loop {
            match server.dial("n1").await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(LIMIT, connected).await.unwrap()
}

async fn echo(mut stream: TunnelStream, bytes: Vec<u8>) -> Vec<u8> {
    let mut back = Vec::new();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let write = async {
        writer.write_all(&bytes).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = reader.read_to_end(&mut back);
    let (read, ()) = timeout(LIMIT, futures::future::join(read, write)).await.unwrap();
    read.unwrap();
    back
}

#[tokio::test]
async fn streams_carry_more_than_their_window_both_ways() {
    let server = Server::new();
    let stop = agent(serve(&server).await, "n1");
    let bytes: Vec<u8> = (0..WINDOW * 5).map(|n| (n / 7) as u8).collect();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (stream, bytes) = (dial(&server).await, bytes.clone());
        all.spawn(async move { assert!(echo(stream, bytes.clone()).await == bytes) });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    stop.cancel();
}

#[tokio::test]
async fn agents_open_streams_beside_the_servers() {
    let (server, uplink) = (Server::new(), Uplink::default());
    server.on_stream(|mut stream| {
        tokio::spawn(async move {
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            said.reverse();
            let _ = stream.write_all(&said).await;
            let _ = stream.shutdown().await;
        });
    });
    let unlinked = uplink.open().await.map_err(|error| error.kind());
    assert_eq!(unlinked.err(), Some(std::io::ErrorKind::NotConnected));
    let stop = agent_with(serve(&server).await, "n1", uplink.clone());
    timeout(LIMIT, uplink.up()).await.unwrap();
    for _ in 0..3 {
        let (theirs, ours) = (dial(&server).await, uplink.open().await.unwrap());
        let (theirs, ours) = tokio::join!(echo(theirs, b"abc".to_vec()), echo(ours, b"abc".to_vec()));
        assert_eq!((&theirs[..], &ours[..]), (&b"abc"[..], &b"cba"[..]));
    }
    stop.cancel();
    timeout(LIMIT, uplink.down()).await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_holds_up_only_itself() {
    let server = Server::new();
    let stop = agent(serve(&server).await, "n1");
    let mut slow = dial(&server).await;
    // Both windows and all buffers fill; then writing waits.
    let block = vec![7; FRAME_BYTES];
    let mut written = 0;
    while let Ok(sent) = timeout(Duration::from_millis(300), slow.write_all(&block)).await {
        sent.unwrap();
        written += block.len();
        assert!(written < WINDOW * 8, "nothing bounds what waits for a slow reader");
    }
    assert_eq!(echo(dial(&server).await, b"quick".to_vec()).await, b"quick");
    let mut first = vec![0; WINDOW];
    timeout(LIMIT, slow.read_exact(&mut first)).await.unwrap().unwrap();
    assert!(first.iter().all(|b| *b == 7));
    stop.cancel();
}

/// Passes connections on until cut.
async fn cable(to: SocketAddr) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, cut) = (listener.local_addr().unwrap(), CancellationToken::new());
    let token = cut.clone();
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(to).await.unwrap();
            // Only the first connection is cut.
            let token = if std::mem::take(&mut first) { token.clone() } else { CancellationToken::new() };
            tokio::spawn(async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                }
            });
        }
    });
    (address, cut)
}

#[tokio::test]
async fn a_cut_connection_ends_its_streams_and_is_made_again() {
    let server = Server::new();
    let (address, cut) = cable(serve(&server).await).await;
    let stop = agent(address, "n1");
    let mut stream = dial(&server).await;
    stream.write_all(b"x").await.unwrap();
    let mut one = [0];
    timeout(LIMIT, stream.read_exact(&mut one)).await.unwrap().unwrap();
    cut.cancel();
    let mut rest = Vec::new();
    let ended = timeout(LIMIT, stream.read_to_end(&mut rest)).await.unwrap();
    assert!(ended.is_err() || rest.is_empty());
    let again = async {
        loop {
            if let Ok(mut stream) = server.dial("n1").await
                && stream.write_all(b"y").await.is_ok()
                && stream.read_exact(&mut one).await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, again).await.unwrap();
    assert_eq!(one, *b"y");
    stop.cancel();
}

#[tokio::test]
async fn only_the_node_itself_gets_its_link() {
    let server = Server::new();
    let address = serve(&server).await;
    let (liar, honest) = (agent(address, "n2"), agent(address, "n1"));
    drop(dial(&server).await);
    assert_eq!(server.nodes(), ["n1"]);
    let error = server.dial("n2").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
    liar.cancel();
    honest.cancel();
}

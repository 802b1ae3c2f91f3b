use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

/// A free loopback port; the proxy listens on it right afterwards.
fn free_port() -> SocketAddr {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap()
}

fn table(address: SocketAddr, protocol: Protocol, endpoints: &[SocketAddr]) -> Table {
    let backends = Backends {
        service: "default/web:80".into(),
        endpoints: endpoints.to_vec(),
        affinity: None,
        tells_client: false,
    };
    [(Listener { address, protocol }, backends)].into()
}

/// Reads to the end, then answers with its name and what it read.
async fn endpoint(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            stream.write_all(format!("{name}:{text}").as_bytes()).await.unwrap();
        }
    });
    address
}

async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"hello").await?;
    stream.shutdown().await?;
    let mut text = String::new();
    timeout(LIMIT, stream.read_to_string(&mut text)).await.map_err(io::Error::other)??;
    Ok(text)
}

#[tokio::test]
async fn connections_are_spread_and_half_closed_ones_answered() {
    let (a, b) = (endpoint("a").await, endpoint("b").await);
    let (service, mut proxy) = (free_port(), Proxy::default());
    let mut order = [a, b];
    order.sort_unstable();
    proxy.set(&table(service, Protocol::Tcp, &order));
    let mut answers = [ask(service).await.unwrap(), ask(service).await.unwrap()];
    answers.sort();
    assert_eq!(answers, ["a:hello", "b:hello"]);
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_none_is_a_reset() {
    let (alive, dead) = (endpoint("a").await, free_port());
    let (service, mut proxy) = (free_port(), Proxy::default());
    proxy.set(&table(service, Protocol::Tcp, &[dead, alive]));
    for _ in 0..2 {
        assert_eq!(ask(service).await.unwrap(), "a:hello");
    }
    proxy.set(&table(service, Protocol::Tcp, &[]));
    assert!(ask(service).await.map(|text| text.is_empty()).unwrap_or(true));
    proxy.set(&Table::new());
    assert!(proxy.addresses().is_empty());
    let closed = async {
        while TcpStream::connect(service).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, closed).await.unwrap();
}

#[tokio::test]
async fn two_agents_share_an_address_and_a_stranger_is_tolerated() {
    let backend = endpoint("a").await;
    let (service, mut one, mut two) = (free_port(), Proxy::default(), Proxy::default());
    one.set(&table(service, Protocol::Tcp, &[backend]));
    two.set(&table(service, Protocol::Tcp, &[backend]));
    assert_eq!((one.addresses().len(), two.addresses().len()), (1, 1));
    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let taken = stranger.local_addr().unwrap();
    let mut both = table(service, Protocol::Tcp, &[backend]);
    both.extend(table(taken, Protocol::Tcp, &[backend]));
    two.set(&both);
    assert_eq!(two.addresses(), [service], "what is another program's is left alone");
    assert_eq!(ask(service).await.unwrap(), "a:hello");
}

#[tokio::test]
async fn datagrams_go_there_and_back() {
    let backend = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = backend.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((n, from)) = backend.recv_from(&mut buffer).await {
            buffer[..n].reverse();
            backend.send_to(&buffer[..n], from).await.unwrap();
        }
    });
    let probe = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let service = probe.local_addr().unwrap();
    drop(probe);
    let mut proxy = Proxy::default();
    proxy.set(&table(service, Protocol::Udp, &[target]));
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.connect(service).await.unwrap();
    let mut buffer = [0; 64];
    for text in ["abc", "de"] {
        client.send(text.as_bytes()).await.unwrap();
        let n = timeout(LIMIT, client.recv(&mut buffer)).await.unwrap().unwrap();
        let expect: String = text.chars().rev().collect();
        assert_eq!(&buffer[..n], expect.as_bytes());
    }
}

/// Counts how often it was entered, keeps what it is to redirect, and is this very place.
#[derive(Default)]
struct Here(std::sync::atomic::AtomicUsize, parking_lot::Mutex<Vec<Redirection>>);

impl Place for Here {
    fn enter(&self, work: &mut (dyn FnMut() + Send)) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        work();
    }

    fn redirect(&self, to: &[Redirection]) -> io::Result<()> {
        *self.1.lock() = to.to_vec();
        Ok(())
    }
}

#[tokio::test]
async fn where_a_place_redirects_no_port_of_a_service_is_taken() {
    let (here, address) = (Arc::new(Here::default()), free_port());
    let mut proxy = Proxy { place: Some(here.clone()), redirected: Some(Vec::new()), ..Proxy::default() };
    proxy.set(&table(address, Protocol::Tcp, &[endpoint("a").await]));
    proxy.redirect().await;
    let redirected = here.1.lock().clone();
    assert_eq!((redirected.len(), redirected[0].service), (1, address));
    let own = TcpListener::bind(address).await.expect("the service's port is free for a program there");
    assert_eq!(ask(redirected[0].socket).await.unwrap(), "a:hello");
    drop(own);
    proxy.set(&Table::new());
    proxy.redirect().await;
    assert!(here.1.lock().is_empty());
}

#[tokio::test]
async fn listeners_are_made_in_their_place() {
    let (here, address) = (Arc::new(Here::default()), free_port());
    let mut proxy = Proxy { place: Some(here.clone()), ..Proxy::default() };
    proxy.set(&table(address, Protocol::Tcp, &[endpoint("a").await]));
    assert_eq!((proxy.addresses(), here.0.load(std::sync::atomic::Ordering::Relaxed)), (vec![address], 1));
    for (address, expect) in
        [("127.0.0.1", true), ("0.0.0.0", true), ("10.0.0.1", true), ("127.43.0.1", false)]
    {
        assert_eq!(is_nodes_own(address.parse().unwrap()), expect, "{address}");
    }
}

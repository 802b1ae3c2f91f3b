//! The cluster's DNS server: answers names of Services and pods, and passes all others on.
//!
//! Names are those of the Kubernetes DNS specification below [`DOMAIN`]: A records of Services, of the pods
//! of headless ones, of named pods, CNAMEs of ExternalNames and SRV records of ports; there are no PTR records.
//! One question per message, over UDP and TCP.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket, lookup_host},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bind::Acceptor,
    names::{Answer, DOMAIN, MAX_ALIASES, resolve},
    srv::{self, Srv},
    view::View,
};

/// How long an answer may be kept, in seconds: changes are to be seen soon.
const TTL: u32 = 5;
/// Questions answered at a time. More over UDP are dropped, over TCP they wait.
const QUESTIONS: usize = 256;
/// TCP connections at a time; more wait in the system's queue.
const CONNECTIONS: usize = 256;
/// Longest wait for another server's answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest silence of a TCP client, also while it does not read.
const IDLE: Duration = Duration::from_secs(10);
/// Bytes of an answer over UDP to a client that does not say more.
const SMALL: usize = 512;
/// Most bytes of an answer over UDP.
const LARGE: usize = 1232;

const A: u16 = 1;
const CNAME: u16 = 5;
const SRV: u16 = 33;
const OPT: u16 = 41;
const ANY: u16 = 255;

const NO_ERROR: u16 = 0;
const FORMAT_ERROR: u16 = 1;
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;
const NOT_IMPLEMENTED: u16 = 4;

/// Answers what comes in on both sockets until told to stop. Names outside the cluster are asked of the
/// `upstream` servers, in order.
pub async fn serve(
    view: View,
    udp: UdpSocket,
    tcp: TcpListener,
    upstream: Vec<SocketAddr>,
    stop: CancellationToken,
) {
    let server = Arc::new(Server { view, upstream, questions: Semaphore::new(QUESTIONS) });
    tokio::select! {
        () = stop.cancelled() => {}
        () = datagrams(server.clone(), Arc::new(udp)) => {}
        () = connections(server, tcp) => {}
    }
}

struct Server {
    view: View,
    upstream: Vec<SocketAddr>,
    questions: Semaphore,
}

async fn datagrams(server: Arc<Server>, udp: Arc<UdpSocket>) {
    let mut buffer = [0; LARGE];
    loop {
        let Ok((length, client)) = udp.recv_from(&mut buffer).await else { continue };
        let (server, udp, message) = (server.clone(), udp.clone(), buffer[..length].to_vec());
        tokio::spawn(async move {
            // Beyond the bound a question is dropped, as the network may drop it too; clients ask again.
            let Ok(_permit) = server.questions.try_acquire() else { return };
            if let Some(answer) = server.answer(&message, true).await {
                let _ = udp.send_to(&answer, client).await;
            }
        });
    }
}

async fn connections(server: Arc<Server>, tcp: TcpListener) {
    let acceptor = Acceptor::new(tcp, Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let (client, _, permit) = acceptor.next().await;
        let server = server.clone();
        tokio::spawn(async move {
            let _ = converse(&server, client).await;
            drop(permit);
        });
    }
}

/// Messages over TCP have their length before them.
async fn converse(server: &Server, mut client: TcpStream) -> io::Result<()> {
    while let Ok(length) = timeout(IDLE, client.read_u16()).await?.map(usize::from) {
        let mut message = vec![0; length];
        timeout(IDLE, client.read_exact(&mut message)).await??;
        let answer = {
            let _permit = timeout(IDLE, server.questions.acquire()).await?.map_err(io::Error::other)?;
            server.answer(&message, false).await
        };
        let Some(answer) = answer else { break };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(IDLE, client.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await??;
    }
    Ok(())
}

impl Server {
    /// The answer to a message; `None` for what is no question.
    async fn answer(&self, message: &[u8], small: bool) -> Option<Vec<u8>> {
        let question = match Question::read(message)? {
            Ok(question) => question,
            Err(code) => return Some(header_only(message, code)),
        };
        let limit = if small { question.size } else { usize::from(u16::MAX) };
        if !question.is_ours() {
            return Some(match self.ask_others(message, small).await {
                Some(answer) => answer,
                None => reply(message, &question, SERVER_FAILURE, &[], limit),
            });
        }
        let ports = (question.kind == SRV || question.name.starts_with('_'))
            .then(|| srv::resolve(&self.view, &question.name))
            .flatten();
        let named = lookup(&question.name, |name| resolve(&self.view, "default", name));
        let (code, records) = match (ports, named) {
            (None, None) => (NO_SUCH_NAME, Vec::new()),
            (Some(ports), _) => (NO_ERROR, ports_of(&ports, question.kind)),
            (None, Some(Answer::Addresses(addresses))) => (NO_ERROR, addresses_of(&addresses, question.kind)),
            (None, Some(Answer::Alias(target))) => (NO_ERROR, self.alias(target, question.kind).await),
        };
        Some(reply(message, &question, code, &records, limit))
    }

    /// The other name, those that it stands for in turn, and the addresses of the last.
    async fn alias(&self, mut target: String, kind: u16) -> Vec<Record> {
        let mut records = Vec::new();
        for _ in 0..MAX_ALIASES {
            records.push((CNAME, encoded(&target)));
            let name = target.trim_end_matches('.').to_lowercase();
            if !is_ours(&name) {
                records.extend(addresses_elsewhere(&name, kind).await);
                break;
            }
            match lookup(&name, |name| resolve(&self.view, "default", name)) {
                Some(Answer::Alias(next)) => target = next,
                Some(Answer::Addresses(addresses)) => {
                    records.extend(addresses_of(&addresses, kind));
                    break;
                }
                None => break,
            }
        }
        records
    }

    /// Another server's answer.
    async fn ask_others(&self, message: &[u8], datagram: bool) -> Option<Vec<u8>> {
        for server in &self.upstream {
            let asked = async {
                if datagram {
                    ask_datagram(*server, message).await
                } else {
                    ask_stream(*server, message).await
                }
            };
            if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await {
                return Some(answer);
            }
        }
        None
    }
}

async fn ask_datagram(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // An answer to another question is nobody's.
        if buffer[..length].get(..2) == message.get(..2) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_stream(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The servers of a resolv.conf.
pub fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|rest| Some(SocketAddr::new(rest.trim().parse().ok()?, 53))).collect()
}

/// What a client wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    /// In lower case, without the last dot.
    name: String,
    kind: u16,
    /// Where it ends in the message.
    end: usize,
    /// Bytes the client takes over UDP.
    size: usize,
}

impl Question {
    /// Reads a message: `None` when it is no question at all, an error code when it cannot be answered.
    fn read(message: &[u8]) -> Option<Result<Self, u16>> {
        let header = message.get(..12)?;
        if header[2] & 0x80 != 0 {
            return None;
        }
        if header[2] & 0x78 != 0 {
            return Some(Err(NOT_IMPLEMENTED));
        }
        if header[4..6] != [0, 1] {
            return Some(Err(FORMAT_ERROR));
        }
        Some(Self::read_first(message).ok_or(FORMAT_ERROR))
    }

    fn read_first(message: &[u8]) -> Option<Self> {
        let mut name = String::new();
        let mut at = 12;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            // A question has nothing before it to point at.
            let label = message.get(at..at + length).filter(|_| length < 64 && name.len() + length < 255)?;
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(std::str::from_utf8(label).ok()?);
            at += length;
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        let end = at + 4;
        message.get(..end)?;
        let size = Self::offered_size(&message[end..]).unwrap_or(SMALL).clamp(SMALL, LARGE);
        Some(Self { name: name.to_lowercase(), kind, end, size })
    }

    /// The size in an EDNS record, which stands first behind the question of plain clients.
    fn offered_size(rest: &[u8]) -> Option<usize> {
        let record = rest.get(..5).filter(|r| r[0] == 0 && r[1..3] == OPT.to_be_bytes())?;
        Some(usize::from(u16::from_be_bytes([record[3], record[4]])))
    }

    fn is_ours(&self) -> bool {
        is_ours(&self.name)
    }
}

/// Whether a name is one of the cluster's; in lower case, without the last dot.
fn is_ours(name: &str) -> bool {
    name == DOMAIN || name.strip_suffix(DOMAIN).is_some_and(|rest| rest.ends_with('.'))
}

/// What a name of the cluster stands for.
fn lookup(name: &str, service: impl Fn(&str) -> Option<Answer>) -> Option<Answer> {
    let bare = name.strip_suffix(DOMAIN)?.trim_end_matches('.');
    if bare.is_empty() || bare == "svc" || bare == "pod" {
        return Some(Answer::Addresses(Vec::new()));
    }
    if let Some((pod, rest)) = bare.split_once('.')
        && rest.ends_with(".pod")
    {
        let address: Ipv4Addr = pod.replace('-', ".").parse().ok()?;
        return Some(Answer::Addresses(vec![address.into()]));
    }
    bare.strip_suffix(".svc").and_then(|_| service(name))
}

/// One record: its type and data.
type Record = (u16, Vec<u8>);

fn addresses_of(addresses: &[IpAddr], kind: u16) -> Vec<Record> {
    let wanted = kind == A || kind == ANY;
    let v4 = addresses.iter().filter_map(|a| match a {
        IpAddr::V4(v4) if wanted => Some((A, v4.octets().to_vec())),
        _ => None,
    });
    v4.collect()
}

fn ports_of(ports: &[Srv], kind: u16) -> Vec<Record> {
    const PRIORITY: u16 = 0;
    let record = |port: &Srv| {
        let numbers = [PRIORITY, port.weight, port.port].map(u16::to_be_bytes);
        (SRV, [numbers.as_flattened(), &encoded(&port.target)].concat())
    };
    if kind == SRV || kind == ANY { ports.iter().map(record).collect() } else { Vec::new() }
}

/// The addresses of a name outside the cluster.
async fn addresses_elsewhere(name: &str, kind: u16) -> Vec<Record> {
    if kind != A {
        return Vec::new();
    }
    let found = timeout(PATIENCE, lookup_host((name, 0))).await;
    let addresses: Vec<IpAddr> = found.into_iter().flatten().flatten().map(|a| a.ip()).collect();
    addresses_of(&addresses, A)
}

/// A name as labels with their lengths.
fn encoded(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        let bytes = &label.as_bytes()[..label.len().min(63)];
        out.push(u8::try_from(bytes.len()).unwrap_or(63));
        out.extend_from_slice(bytes);
    }
    out.push(0);
    out
}

/// A message of the question and the records that fit; one that is cut says so.
fn reply(message: &[u8], question: &Question, code: u16, records: &[Record], limit: usize) -> Vec<u8> {
    let mut out = header_only(message, code);
    out[5] = 1;
    // Authoritative: these names are decided here.
    if code != SERVER_FAILURE {
        out[2] |= 0x04;
    }
    out.extend_from_slice(&message[12..question.end]);
    // Records behind an alias belong to the alias's name, which stands where its data begins.
    let mut owner = 12_u16;
    let mut count = 0_u16;
    for (kind, data) in records {
        if out.len() + 12 + data.len() > limit {
            out[2] |= 0x02;
            break;
        }
        out.extend_from_slice(&(0xc000 | owner).to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out.extend_from_slice(&TTL.to_be_bytes());
        out.extend_from_slice(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
        if *kind == CNAME {
            owner = u16::try_from(out.len()).unwrap_or(owner);
        }
        out.extend_from_slice(data);
        count += 1;
    }
    out[6..8].copy_from_slice(&count.to_be_bytes());
    out
}

/// The header of an answer: same number, recursion as wanted and available, no records.
fn header_only(message: &[u8], code: u16) -> Vec<u8> {
    let mut out = vec![0; 12];
    out[..2].copy_from_slice(&message[..2]);
    out[2] = 0x80 | (message[2] & 0x79);
    out[3] = 0x80 | (code as u8 & 0x0f);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &encoded(name), &kind.to_be_bytes(), &[0, 1]]
            .concat()
    }

    fn question(name: &str, kind: u16) -> Question {
        Question::read(&query(name, kind)).unwrap().unwrap()
    }

    #[test]
    fn questions_are_read() {
        let read = question("Web.Shop.svc.cluster.local", A);
        assert_eq!((read.name.as_str(), read.kind, read.size), ("web.shop.svc.cluster.local", A, SMALL));
        assert!(
            read.is_ours()
                && !question("notcluster.local", A).is_ours()
                && !question("example.com", A).is_ours()
        );
        let with_size = [&query("a", A)[..], &[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(Question::read(&with_size).unwrap().unwrap().size, LARGE);
        for (bad, expected) in [
            (&b"short"[..], None),
            (&[0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], None),
            (&[0, 0, 0x10, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], Some(Err(NOT_IMPLEMENTED))),
            (&[0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0][..], Some(Err(FORMAT_ERROR))),
            (&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 9][..], Some(Err(FORMAT_ERROR))),
            (&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1][..], Some(Err(FORMAT_ERROR))),
        ] {
            assert_eq!(Question::read(bad), expected, "{bad:?}");
        }
    }

    #[test]
    fn names_lead_to_services_and_pods() {
        let service = |name: &str| {
            (name == "web.shop.svc.cluster.local").then(|| Answer::Addresses(vec![[127, 43, 0, 9].into()]))
        };
        let check = |name: &str, expect: Option<&[[u8; 4]]>| {
            let addresses =
                |list: &[[u8; 4]]| Answer::Addresses(list.iter().map(|a| IpAddr::from(*a)).collect());
            assert_eq!(lookup(name, service), expect.map(addresses), "{name}");
        };
        check("web.shop.svc.cluster.local", Some(&[[127, 43, 0, 9]]));
        check("127-42-0-7.shop.pod.cluster.local", Some(&[[127, 42, 0, 7]]));
        check("web.shop.cluster.local", None);
        check("none.shop.svc.cluster.local", None);
        check("x.shop.pod.cluster.local", None);
        check("cluster.local", Some(&[]));
    }

    #[test]
    fn answers_fit_or_are_cut() {
        let message = query("web.shop.svc.cluster.local", A);
        let asked = question("web.shop.svc.cluster.local", A);
        let one = reply(&message, &asked, NO_ERROR, &[(A, vec![127, 43, 0, 9])], SMALL);
        assert_eq!(one[..12], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(one[message.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 43, 0, 9]);
        let many = reply(&message, &asked, NO_ERROR, &vec![(A, vec![0; 4]); 100], SMALL);
        assert!(many.len() <= SMALL && many[2] & 0x02 != 0 && many[7] > 20);
        let none = reply(&message, &asked, NO_SUCH_NAME, &[], SMALL);
        assert_eq!((none[3], none[7]), (0x83, 0));
        // The address behind an alias is the alias's.
        let records = [(CNAME, encoded("db.example.com")), (A, vec![1, 2, 3, 4])];
        let other = reply(&message, &asked, NO_ERROR, &records, SMALL);
        let data = message.len() + 12;
        let pointer = &other[data + records[0].1.len()..][..2];
        assert_eq!(usize::from(u16::from_be_bytes([pointer[0] & 0x3f, pointer[1]])), data);
    }

    #[test]
    fn ports_are_told_to_who_asks_for_them() {
        let ports = [Srv { weight: 100, port: 80, target: "web.shop".into() }];
        let record = (SRV, [&[0, 0, 0, 100, 0, 80, 3][..], b"web", &[4], b"shop", &[0]].concat());
        assert_eq!(ports_of(&ports, SRV), [record]);
        assert!(ports_of(&ports, A).is_empty());
    }

    #[tokio::test]
    async fn idle_connections_leave_datagrams_their_answers() {
        let view = View::empty();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, at) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(view, udp, tcp, Vec::new(), stop.clone()));
        // Each has asked once, so that it is certain to have been accepted.
        let (mut idle, question) = (Vec::new(), query("cluster.local", A));
        let length = u16::try_from(question.len()).unwrap();
        for _ in 0..CONNECTIONS {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&[&length.to_be_bytes()[..], &question].concat()).await.unwrap();
            assert!(client.read_u16().await.unwrap() > 0);
            idle.push(client);
        }
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.send_to(&question, at).await.unwrap();
        let mut buffer = [0; SMALL];
        let answer = timeout(Duration::from_secs(10), client.recv(&mut buffer)).await;
        assert!(answer.is_ok(), "nobody answers");
        stop.cancel();
        serving.await.unwrap();
    }

    #[test]
    fn other_servers_are_those_of_the_system() {
        let text = "# note\nsearch x\nnameserver 10.0.0.2\nnameserver ::1\nnameserver nonsense\n";
        assert_eq!(servers(text), [SocketAddr::from(([10, 0, 0, 2], 53)), "[::1]:53".parse().unwrap()]);
    }
}

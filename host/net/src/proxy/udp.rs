//! Passes datagrams on; each client keeps its endpoint while datagrams go either way.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::balance::Balancer;
use crate::{
    plan::Protocol,
    policy::{Gate, Policies},
};

/// Clients of one service port at a time; for one more the one that was silent longest is forgotten.
const SESSIONS: usize = 1024;
/// A client without datagrams for so long is forgotten.
const IDLE: Duration = Duration::from_secs(60);
/// The same for one that asked and has its answer: resolvers ask from a new port each time.
const ANSWERED: Duration = Duration::from_secs(5);
/// Datagrams of a client that are taken for questions, if each has its answer.
const QUESTIONS: u64 = 2;
/// Datagrams that wait for one client's endpoint; more are dropped, as a network would.
const QUEUE: usize = 64;
/// Largest datagram.
const DATAGRAM: usize = 65_535;

/// Receives until told to stop.
pub(super) async fn serve(socket: UdpSocket, balancer: Arc<Balancer>, gate: Gate, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut sessions = Sessions::new(SESSIONS);
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        // An error belongs to an earlier datagram that nobody took.
        let Ok((length, client)) = received else { continue };
        let datagram = buffer[..length].to_vec();
        if !sessions.is_open(client) {
            let Some(endpoint) = balancer.choose(client.ip()).first().copied() else { continue };
            if !gate.allows(client.ip(), endpoint, Protocol::Udp) {
                continue;
            }
            balancer.connected(client.ip(), endpoint);
            let (datagrams, used) = sessions.open(client);
            let policies = gate.policies().clone();
            let ends = (client, endpoint);
            tokio::spawn(session(socket.clone(), ends, policies, (datagrams, used), stop.clone()));
        }
        sessions.pass(client, datagram);
    }
}

/// The clients of one service port.
struct Sessions {
    most: usize,
    all: HashMap<SocketAddr, Session>,
}

struct Session {
    queue: mpsc::Sender<Vec<u8>>,
    used: Arc<Used>,
}

/// When something last went through a session.
struct Used {
    since: Instant,
    millis: AtomicU64,
}

impl Used {
    fn now(&self) {
        self.millis.store(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    fn last(&self) -> Instant {
        self.since + Duration::from_millis(self.millis.load(Relaxed))
    }
}

impl Sessions {
    fn new(most: usize) -> Self {
        Self { most, all: HashMap::new() }
    }

    fn is_open(&self, client: SocketAddr) -> bool {
        self.all.get(&client).is_some_and(|s| !s.queue.is_closed())
    }

    /// Makes a session for a client, and room for it; what the client will send.
    fn open(&mut self, client: SocketAddr) -> (mpsc::Receiver<Vec<u8>>, Arc<Used>) {
        if self.all.len() >= self.most {
            self.all.retain(|_, s| !s.queue.is_closed());
        }
        if self.all.len() >= self.most
            && let Some(oldest) = self.all.iter().min_by_key(|(_, s)| s.used.last()).map(|(c, _)| *c)
        {
            self.all.remove(&oldest);
        }
        let (queue, datagrams) = mpsc::channel(QUEUE);
        let used = Arc::new(Used { since: Instant::now(), millis: AtomicU64::new(0) });
        self.all.insert(client, Session { queue, used: used.clone() });
        (datagrams, used)
    }

    fn pass(&self, client: SocketAddr, datagram: Vec<u8>) {
        if let Some(session) = self.all.get(&client) {
            session.used.now();
            let _ = session.queue.try_send(datagram);
        }
    }
}

async fn session(
    front: Arc<UdpSocket>,
    (client, endpoint): (SocketAddr, SocketAddr),
    policies: Policies,
    (mut datagrams, used): (mpsc::Receiver<Vec<u8>>, Arc<Used>),
    stop: CancellationToken,
) {
    let work = async {
        let back = policies.datagrams(endpoint).await?;
        // Room that nothing is written to costs no memory.
        let mut buffer = Vec::with_capacity(DATAGRAM);
        let (mut asked, mut answered) = (0, 0);
        loop {
            buffer.clear();
            let limit = patience(asked, answered);
            let step = async {
                tokio::select! {
                    datagram = datagrams.recv() => match datagram {
                        Some(datagram) => {
                            asked += 1;
                            back.send(&datagram).await.map(|_| true)
                        }
                        None => Ok(false),
                    },
                    received = back.recv_buf(&mut buffer) => {
                        received?;
                        answered += 1;
                        used.now();
                        front.send_to(&buffer, client).await.map(|_| true)
                    }
                }
            };
            match timeout(limit, step).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        () = stop.cancelled() => return,
        ended = work => ended,
    };
    if let Err(error) = ended {
        tracing::trace!(%error, %client, %endpoint, "datagrams of a client broke off");
    }
}

/// How long a client may be silent that has sent and got so many datagrams.
fn patience(asked: u64, answered: u64) -> Duration {
    if (1..=QUESTIONS).contains(&asked) && asked == answered { ANSWERED } else { IDLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_client_that_was_silent_longest_makes_room() {
        let client = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut sessions = Sessions::new(2);
        let open = |sessions: &mut Sessions, port| {
            let kept = sessions.open(client(port));
            sessions.pass(client(port), vec![0]);
            kept
        };
        let (_one, two) = (open(&mut sessions, 1), open(&mut sessions, 2));
        tokio::time::advance(Duration::from_secs(1)).await;
        sessions.pass(client(1), vec![1]);
        let _three = open(&mut sessions, 3);
        assert_eq!([1, 2, 3].map(|port| sessions.is_open(client(port))), [true, false, true]);
        let (mut datagrams, _) = two;
        assert_eq!((datagrams.recv().await, datagrams.recv().await), (Some(vec![0]), None), "it ends");
        drop(_three);
        let _four = open(&mut sessions, 4);
        assert!(sessions.is_open(client(1)), "one that has ended goes first");
    }

    #[test]
    fn who_has_the_answer_is_forgotten_soon() {
        for (asked, answered, expect) in
            [(0, 0, IDLE), (1, 0, IDLE), (1, 1, ANSWERED), (2, 1, IDLE), (2, 2, ANSWERED), (3, 3, IDLE)]
        {
            assert_eq!(patience(asked, answered), expect, "{asked} {answered}");
        }
    }
}

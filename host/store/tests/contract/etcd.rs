//! A real etcd, for as long as a test lasts.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wasmk_store::{Etcd, EtcdTls, MAX_TXN_KEYS, Store};

/// Longest a server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    dir: tempfile::TempDir,
    client: String,
    peer: String,
    process: Child,
}

impl Server {
    /// Starts one; `None`, with a word why, where etcd is not installed and need not be.
    pub(crate) fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
        {
            wasmk_tests::required::skip("etcd", "there is no etcd in PATH");
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (client, peer) = (free_address(), free_address());
        let process = spawn(&dir, &client, &peer);
        Some(Self { dir, client, peer, process })
    }

    /// Starts one that speaks TLS only, to clients with a certificate of the same authority.
    pub(crate) fn start_with_tls() -> Option<(Self, EtcdTls)> {
        let mut server = Self::start()?;
        server.stop();
        let pki = Pki::new();
        let (certificate, key) = pki.issue();
        let path = |name: &str| server.dir.path().join(name);
        for (name, text) in [("ca.pem", pki.ca.pem()), ("tls.crt", certificate), ("tls.key", key)] {
            std::fs::write(path(name), text).expect("a writable directory");
        }
        server.client = server.client.replace("http:", "https:");
        server.process = command(&server.dir, &server.client, &server.peer)
            .arg("--client-cert-auth")
            .arg("--trusted-ca-file")
            .arg(path("ca.pem"))
            .arg("--cert-file")
            .arg(path("tls.crt"))
            .arg("--key-file")
            .arg(path("tls.key"))
            .spawn()
            .expect("etcd starts");
        let tls = EtcdTls { ca: pki.ca.pem(), identity: Some(pki.issue()) };
        Some((server, tls))
    }

    /// Kills it and starts it again on the same data and address.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.process = spawn(&self.dir, &self.client, &self.peer);
    }

    pub(crate) async fn connect(&self, tls: Option<EtcdTls>) -> Etcd {
        connect(&self.endpoints(), tls).await
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        vec![self.client.clone()]
    }

    fn stop(&mut self) {
        self.process.kill().expect("our own process");
        self.process.wait().expect("our own process");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Three members that elect a leader among them.
pub(crate) struct Cluster {
    members: Vec<Member>,
}

struct Member {
    dir: tempfile::TempDir,
    name: String,
    client: String,
    peer: String,
    process: Child,
}

impl Cluster {
    /// Starts one; `None` where etcd is not installed.
    pub(crate) fn start() -> Option<Self> {
        drop(Server::start()?);
        let addresses: Vec<(String, String)> = (0..3).map(|_| (free_address(), free_address())).collect();
        let named = |(index, (_, peer)): (usize, &(String, String))| format!("m{index}={peer}");
        let peers: Vec<String> = addresses.iter().enumerate().map(named).collect();
        let peers = peers.join(",");
        let members = addresses
            .into_iter()
            .enumerate()
            .map(|(index, (client, peer))| {
                let dir = tempfile::tempdir().expect("a temporary directory");
                let name = format!("m{index}");
                let process = spawn_member(&dir, &name, &client, &peer, &peers);
                Member { dir, name, client, peer, process }
            })
            .collect();
        Some(Self { members })
    }

    pub(crate) async fn connect(&self) -> Etcd {
        let endpoints: Vec<String> = self.members.iter().map(|member| member.client.clone()).collect();
        connect(&endpoints, None).await
    }

    pub(crate) fn kill(&mut self, member: usize) {
        let process = &mut self.members[member].process;
        process.kill().expect("our own process");
        process.wait().expect("our own process");
    }

    /// Starts a killed member on what it left.
    pub(crate) fn start_again(&mut self, member: usize) {
        let named = |member: &Member| format!("{}={}", member.name, member.peer);
        let peers = self.members.iter().map(named).collect::<Vec<_>>().join(",");
        let Member { dir, name, client, peer, process } = &mut self.members[member];
        *process = spawn_member(dir, name, client, peer, &peers);
    }

    /// Waits until a member takes part.
    pub(crate) async fn until_healthy(&self, member: usize) {
        drop(connect(std::slice::from_ref(&self.members[member].client), None).await);
    }

    pub(crate) fn pause(&self, member: usize) {
        self.signal(member, nix::sys::signal::Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self, member: usize) {
        self.signal(member, nix::sys::signal::Signal::SIGCONT);
    }

    fn signal(&self, member: usize, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.members[member].process.id()).expect("a process number");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("our own process");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
    }
}

fn spawn_member(dir: &tempfile::TempDir, name: &str, client: &str, peer: &str, peers: &str) -> Child {
    command(dir, client, peer)
        .args(["--name", name, "--initial-cluster", peers])
        // Elections are quick, but not so quick that a busy machine causes them.
        .args(["--heartbeat-interval", "100", "--election-timeout", "1000"])
        .spawn()
        .expect("etcd starts")
}

async fn connect(endpoints: &[String], tls: Option<EtcdTls>) -> Etcd {
    let limit = Instant::now() + START_LIMIT;
    loop {
        match Etcd::connect(endpoints, tls.clone()).await {
            Ok(store) if store.revision().await.is_ok() => return store,
            Err(error) if Instant::now() > limit => panic!("etcd does not answer: {error}"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

fn spawn(dir: &tempfile::TempDir, client: &str, peer: &str) -> Child {
    command(dir, client, peer).spawn().expect("etcd starts")
}

fn command(dir: &tempfile::TempDir, client: &str, peer: &str) -> Command {
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--listen-client-urls", client, "--advertise-client-urls", client])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--max-txn-ops", &MAX_TXN_KEYS.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The certificate of an authority that nobody here knows.
pub(crate) fn authority() -> String {
    Pki::new().ca.pem()
}

/// An authority for one test.
struct Pki {
    ca: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a certificate");
        Self { ca, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A certificate for servers on this machine and for clients, with its key, in PEM.
    fn issue(&self) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_string()];
        let mut params = rcgen::CertificateParams::new(names).expect("a valid name");
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

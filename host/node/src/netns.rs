//! Sockets in a pod's network namespace. A socket belongs to the namespace of the thread that made
//! it, for good; so a thread of its own enters the namespace, makes the socket and ends.

use std::{
    fs::File,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};
use wasmk_net::{plan::Protocol, proxy::Redirection};

/// A network namespace that stays usable while this is held. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Netns(Arc<File>);

impl Netns {
    /// The namespace that a path stands for.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(path)?)))
    }

    /// Does something short in the namespace.
    ///
    /// # Errors
    /// When it cannot be entered (it needs CAP_SYS_ADMIN).
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let enter = || {
            setns(&*self.0, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        std::thread::scope(|scope| {
            let thread =
                std::thread::Builder::new().name("in-namespace".into()).spawn_scoped(scope, enter)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace broke")))
        })
    }

    /// Does something short in the namespace, with this program's tasks at hand, so that a socket can be
    /// used by them. Says so when the namespace cannot be entered.
    pub(crate) fn make(&self, work: &mut (dyn FnMut() + Send)) {
        let runtime = tokio::runtime::Handle::current();
        let done = self.within(|| {
            let _entered = runtime.enter();
            work();
            Ok(())
        });
        if let Err(error) = done {
            tracing::warn!(%error, "cannot enter a pod's network namespace");
        }
    }

    /// A connection to a port on the namespace's loopback, or else on `address`.
    ///
    /// # Errors
    /// When neither answers within the limit.
    pub(crate) async fn connect(&self, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port());
        match self.connect_to(local, limit).await {
            Ok(stream) => Ok(stream),
            Err(_) => self.connect_to(address, limit).await,
        }
    }

    async fn connect_to(&self, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let socket = self.within(TcpSocket::new_v4)?;
        tokio::time::timeout(limit, socket.connect(address)).await?
    }
}

impl wasmk_net::proxy::Place for Netns {
    fn enter(&self, work: &mut (dyn FnMut() + Send)) {
        self.make(work);
    }

    fn redirect(&self, to: &[Redirection]) -> io::Result<()> {
        let rules = rules(to);
        // A process belongs to the namespace of the thread that starts it.
        self.within(|| nft(&rules))
    }
}

/// All of them in one transaction, which takes the place of earlier ones. The table is the namespace's
/// own, so nothing else is in it.
fn rules(to: &[Redirection]) -> String {
    let elements = |protocol: Protocol| {
        let of = to.iter().filter(|r| r.protocol == protocol && r.service.is_ipv4());
        let one = |r: &Redirection| {
            format!("{} . {} : {} . {}", r.service.ip(), r.service.port(), r.socket.ip(), r.socket.port())
        };
        let list: Vec<String> = of.map(one).collect();
        if list.is_empty() { String::new() } else { format!("elements = {{ {} }}", list.join(", ")) }
    };
    let map = |name: &str, protocol| {
        let kind = "type ipv4_addr . inet_service : ipv4_addr . inet_service";
        format!("map {name} {{\n{kind};\n{}\n}}\n", elements(protocol))
    };
    format!(
        "table ip wasmk {{}}\ndelete table ip wasmk\ntable ip wasmk {{\n{}{}chain services {{\n\
         type nat hook output priority -100; policy accept;\n\
         meta l4proto tcp dnat ip to ip daddr . tcp dport map @streams\n\
         meta l4proto udp dnat ip to ip daddr . udp dport map @datagrams\n}}\n}}\n",
        map("streams", Protocol::Tcp),
        map("datagrams", Protocol::Udp)
    )
}

/// Gives `nft` a script, which it carries out as a whole or not at all.
///
/// # Errors
/// When it is not there, or refuses.
pub(crate) fn nft(rules: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot run nft: {e}")))?;
    let written = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(rules.as_bytes()));
    let out = child.wait_with_output()?;
    if out.status.success() {
        return written;
    }
    Err(io::Error::other(format!("nft: {}", String::from_utf8_lossy(&out.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        assert_eq!(Netns::open(Path::new("/nonexistent/ns")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn redirections_are_one_transaction() {
        let one = |protocol, service: &str, socket: &str| Redirection {
            protocol,
            service: service.parse().unwrap(),
            socket: socket.parse().unwrap(),
        };
        let text = rules(&[
            one(Protocol::Tcp, "127.43.0.1:443", "127.43.0.1:40001"),
            one(Protocol::Tcp, "127.43.0.2:80", "127.43.0.2:40002"),
        ]);
        let elements =
            "elements = { 127.43.0.1 . 443 : 127.43.0.1 . 40001, 127.43.0.2 . 80 : 127.43.0.2 . 40002 }";
        assert_eq!(text.matches("elements").count(), 1, "{text}");
        assert!(text.contains(elements) && text.contains("delete table ip wasmk\n"), "{text}");
    }

    #[tokio::test]
    async fn a_socket_in_ones_own_namespace_reaches_loopback() {
        if !nix::unistd::geteuid().is_root() {
            // Entering a namespace, even one's own, is root's privilege.
            return;
        }
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        own.connect(listener.local_addr().unwrap(), Duration::from_secs(5)).await.unwrap();
    }
}

//! Answers a worker's calls for sockets: it may wish for them, the agent makes, binds and connects them, and takes
//! connections to them, as the networks of its guests say. What a call points to is read once, and what was read is
//! what is done.

use std::fs::File;
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrStorage, getsockopt, sockopt,
};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use wasmk_runtime::{Network, Protocol};

/// Longest datagram, in bytes.
const MAX_DATAGRAM: usize = 65_536;
/// Longest address, in bytes: that of IPv6.
const MAX_ADDRESS: usize = 28;
/// Connections that one call may find refused, one after another: as many as the kernel keeps for a listener.
const MAX_REFUSED: usize = 4096;

nix::ioctl_readwrite!(receive, b'!', 0, libc::seccomp_notif);
nix::ioctl_readwrite!(respond, b'!', 1, libc::seccomp_notif_resp);
nix::ioctl_write_ptr!(is_valid, b'!', 2, u64);
nix::ioctl_write_ptr!(add_file, b'!', 3, libc::seccomp_notif_addfd);

/// The networks of the guests that a worker has now.
pub(crate) trait Networks: Send + 'static {
    /// All of them; a worker is one domain of trust, so what one guest may do all may.
    fn now(&self) -> Vec<Arc<dyn Network>>;
}

/// The worker whose calls are answered.
pub(crate) struct Sockets<N> {
    listener: OwnedFd,
    process: OwnedFd,
    /// Its memory, whatever becomes of its number; none where the agent may not look at it.
    memory: Option<File>,
    networks: N,
}

/// What a call gives back; `Handed` has been given back already.
enum Outcome {
    Value(i64),
    Handed,
}

type Done = Result<Outcome, Errno>;

impl<N: Networks> Sockets<N> {
    /// Of the process with that number, which is a child of this one and not waited for yet.
    ///
    /// # Errors
    /// When the kernel has no handles of processes.
    pub(crate) fn new(listener: OwnedFd, process: u32, networks: N) -> std::io::Result<Self> {
        let memory = File::options().write(true).open(format!("/proc/{process}/mem")).ok();
        Ok(Self { listener, process: open_process(process)?, memory, networks })
    }

    /// Answers until the worker has ended. Blocks: it is the work of a thread of its own, which a worker can keep
    /// busy and nobody else can.
    pub(crate) fn answer(&self) {
        loop {
            let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            if !ready[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
                return;
            }
            // A call that was interrupted meanwhile is no longer there.
            if let Some(call) = self.next() {
                let done = self.carry_out(&call);
                self.give_back(call.id, done);
            }
        }
    }

    fn carry_out(&self, call: &libc::seccomp_notif) -> Done {
        let number = i64::from(call.data.nr);
        let args = call.data.args;
        let file = || RawFd::try_from(args[0]).map_err(|_| Errno::EBADF);
        match number {
            libc::SYS_socket => self.socket(call.id, args[0], args[1]),
            libc::SYS_bind => self.bind(file()?, self.address(call, args[1], args[2])?),
            libc::SYS_connect => self.connect(call.id, file()?, self.address(call, args[1], args[2])?),
            libc::SYS_listen => self.listen(file()?),
            libc::SYS_accept => self.accept(call, file()?, 0),
            libc::SYS_accept4 => self.accept(call, file()?, args[3]),
            libc::SYS_sendto => {
                let to = self.address(call, args[4], args[5])?;
                let length = usize::try_from(args[2]).unwrap_or(usize::MAX);
                if length > MAX_DATAGRAM {
                    return Err(Errno::EMSGSIZE);
                }
                let bytes = self.memory(call, args[1], length)?;
                self.send(file()?, &bytes, to)
            }
            _ => Err(Errno::EPERM),
        }
    }

    fn socket(&self, id: u64, family: u64, kind: u64) -> Done {
        let family = family_of(family).ok_or(Errno::EACCES)?;
        let (kind, _) = kind_of(kind).ok_or(Errno::EACCES)?;
        let networks = self.networks.now();
        let made = make(&**networks.first().ok_or(Errno::EACCES)?, None, family, kind)?;
        self.hand(id, &made, None)
    }

    fn bind(&self, file: RawFd, local: Option<SocketAddr>) -> Done {
        let socket = self.take(file)?;
        let (local, protocol) = (local.ok_or(Errno::EINVAL)?, protocol(&socket)?);
        if !self.networks.now().iter().any(|network| network.bind(protocol, local).is_ok()) {
            return Err(Errno::EACCES);
        }
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
        Ok(Outcome::Value(0))
    }

    fn connect(&self, id: u64, file: RawFd, remote: Option<SocketAddr>) -> Done {
        let socket = self.take(file)?;
        let protocol = protocol(&socket)?;
        let Some(remote) = remote else {
            disconnect(socket.as_fd())?;
            return Ok(Outcome::Value(0));
        };
        let network = self.of(&socket, remote)?;
        let remote = network.connect(protocol, remote).map_err(|_| Errno::EACCES)?;
        if network.is_apart() && protocol == Protocol::Tcp && local(&socket)?.port() == 0 {
            // Where it belongs depends on where it goes, which is known only now.
            let other = make(&*network, Some(remote), family(remote), SockType::Stream)?;
            let done = socket::connect(other.as_raw_fd(), &SockaddrStorage::from(remote));
            self.hand(id, &other, Some(file))?;
            return done.map(|()| Outcome::Value(0));
        }
        socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(remote))?;
        Ok(Outcome::Value(0))
    }

    fn listen(&self, file: RawFd) -> Done {
        let socket = self.take(file)?;
        // The system would choose an address for one that has none.
        if local(&socket)?.port() == 0 {
            return Err(Errno::EACCES);
        }
        socket::listen(&socket, Backlog::MAXCONN)?;
        Ok(Outcome::Value(0))
    }

    /// Takes the next connection that the listener's network lets through; others are closed. Never waits.
    fn accept(&self, call: &libc::seccomp_notif, file: RawFd, flags: u64) -> Done {
        let flags = i32::try_from(flags).map_err(|_| Errno::EINVAL)?;
        if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
            return Err(Errno::EINVAL);
        }
        let [_, at, length_at, ..] = call.data.args;
        let room = if at == 0 { None } else { Some(self.room(call, length_at)?) };
        let listener = self.take(file)?;
        let network = self.bound_to(local(&listener)?)?;
        for _ in 0..MAX_REFUSED {
            let (client, address) = accept(listener.as_fd(), flags)?;
            let remote = parse(&address)?.ok_or(Errno::ECONNABORTED)?;
            let from = SocketAddr::new(remote.ip().to_canonical(), remote.port());
            if !network.accept(Protocol::Tcp, from) {
                continue;
            }
            if let Some(room) = room {
                self.tell(call, (at, &address[..address.len().min(room)]))?;
                let length = u32::try_from(address.len()).unwrap_or(u32::MAX);
                self.tell(call, (length_at, &length.to_ne_bytes()))?;
            }
            return self.hand(call.id, &client, None);
        }
        Err(Errno::ECONNABORTED)
    }

    /// The length that a call has room for an address of.
    fn room(&self, call: &libc::seccomp_notif, length_at: u64) -> Result<usize, Errno> {
        let length = self.memory(call, length_at, size_of::<u32>())?;
        let length = length.first_chunk().map(|four| i32::from_ne_bytes(*four)).ok_or(Errno::EFAULT)?;
        usize::try_from(length).map_err(|_| Errno::EINVAL)
    }

    /// Writes to where a call points.
    fn tell(&self, call: &libc::seccomp_notif, (at, bytes): (u64, &[u8])) -> Result<(), Errno> {
        let memory = self.memory.as_ref().ok_or(Errno::EPERM)?;
        if !self.is_there(call.id) {
            return Err(Errno::EFAULT);
        }
        memory.write_all_at(bytes, at).map_err(|_| Errno::EFAULT)
    }

    fn send(&self, file: RawFd, bytes: &[u8], to: Option<SocketAddr>) -> Done {
        let socket = self.take(file)?;
        let to = to.ok_or(Errno::EINVAL)?;
        if protocol(&socket)? != Protocol::Udp {
            return Err(Errno::EISCONN);
        }
        if self.of(&socket, to)?.connect(Protocol::Udp, to) != Ok(to) {
            return Err(Errno::EACCES);
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = socket::sendto(socket.as_raw_fd(), bytes, &SockaddrStorage::from(to), flags)?;
        Ok(Outcome::Value(i64::try_from(sent).unwrap_or(i64::MAX)))
    }

    /// The network that a socket belongs to, by the address it has; one that has none gets its.
    fn of(&self, socket: &OwnedFd, remote: SocketAddr) -> Result<Arc<dyn Network>, Errno> {
        let bound = local(socket)?;
        if bound.port() != 0 {
            return self.bound_to(bound);
        }
        let networks = self.networks.now();
        let free = networks.iter().find(|network| network.address().is_none());
        let network = free.or(networks.first()).cloned().ok_or(Errno::EACCES)?;
        if let Some(own) = network.source(remote).filter(|own: &IpAddr| own.is_ipv4() == remote.is_ipv4()) {
            socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0)))?;
        }
        Ok(network)
    }

    /// The network that an address belongs to.
    fn bound_to(&self, local: SocketAddr) -> Result<Arc<dyn Network>, Errno> {
        let networks = self.networks.now();
        let its = networks.iter().find(|n| n.address().is_none_or(|own| own == local.ip()));
        its.cloned().ok_or(Errno::EACCES)
    }

    /// The worker's socket of that number, here as well; its calls do not wait.
    fn take(&self, file: RawFd) -> Result<OwnedFd, Errno> {
        let socket = copy_file(self.process.as_fd(), file)?;
        let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&socket, nonblocking)?;
        Ok(socket)
    }

    /// The address that a call points to; `None` is the one that ends an association.
    fn address(&self, call: &libc::seccomp_notif, at: u64, length: u64) -> Result<Option<SocketAddr>, Errno> {
        let length = usize::try_from(length).unwrap_or(0).min(MAX_ADDRESS);
        parse(&self.memory(call, at, length)?)
    }

    fn memory(&self, call: &libc::seccomp_notif, at: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        let thread = Pid::from_raw(call.pid.cast_signed());
        let from = [RemoteIoVec { base: usize::try_from(at).map_err(|_| Errno::EFAULT)?, len: length }];
        let read = process_vm_readv(thread, &mut [IoSliceMut::new(&mut bytes)], &from)?;
        // The number might be another thread's by now, had this one ended.
        if read != length || !self.is_there(call.id) {
            return Err(Errno::EFAULT);
        }
        Ok(bytes)
    }
}

/// The calls to the kernel.
#[allow(unsafe_code)]
impl<N> Sockets<N> {
    fn next(&self) -> Option<libc::seccomp_notif> {
        // SAFETY: all zeros is a value of this plain struct, and what the kernel wants to find there.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes a struct of this kind to the live local it is given.
        unsafe { receive(self.listener.as_raw_fd(), &raw mut call) }.ok().map(|_| call)
    }

    fn is_there(&self, id: u64) -> bool {
        // SAFETY: the kernel reads the number that the pointer is to.
        unsafe { is_valid(self.listener.as_raw_fd(), &raw const id) }.is_ok()
    }

    fn give_back(&self, id: u64, done: Done) {
        let (val, error) = match done {
            Ok(Outcome::Handed) => return,
            Ok(Outcome::Value(value)) => (value, 0),
            Err(error) => (0, -(error as i32)),
        };
        let mut answer = libc::seccomp_notif_resp { id, val, error, flags: 0 };
        // SAFETY: the kernel reads a struct of this kind. A worker that has ended needs no answer.
        let _ = unsafe { respond(self.listener.as_raw_fd(), &raw mut answer) };
    }

    /// Gives the worker a socket: as what its call gives back, or in place of another.
    fn hand(&self, id: u64, socket: &OwnedFd, instead: Option<RawFd>) -> Done {
        let (flags, newfd) = match instead {
            Some(file) => (libc::SECCOMP_ADDFD_FLAG_SETFD, file.cast_unsigned()),
            None => (libc::SECCOMP_ADDFD_FLAG_SEND, 0),
        };
        let flags = u32::try_from(flags).unwrap_or(0);
        let srcfd = socket.as_raw_fd().cast_unsigned();
        let newfd_flags = libc::O_CLOEXEC.cast_unsigned();
        let mut file = libc::seccomp_notif_addfd { id, flags, srcfd, newfd, newfd_flags };
        // SAFETY: the kernel reads a struct of this kind.
        match unsafe { add_file(self.listener.as_raw_fd(), &raw const file) } {
            Ok(_) => Ok(Outcome::Handed),
            // An earlier kernel gives and answers in two steps.
            Err(Errno::EINVAL) if instead.is_none() => {
                file.flags = 0;
                // SAFETY: as above.
                let number = unsafe { add_file(self.listener.as_raw_fd(), &raw const file) }?;
                Ok(Outcome::Value(number.into()))
            }
            Err(error) => Err(error),
        }
    }
}

#[allow(unsafe_code)]
fn open_process(process: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    owned(handle).map_err(Into::into)
}

#[allow(unsafe_code)]
fn copy_file(process: BorrowedFd<'_>, file: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), file, 0) })
}

#[allow(unsafe_code)]
fn owned(file: libc::c_long) -> Result<OwnedFd, Errno> {
    match RawFd::try_from(file) {
        // SAFETY: the kernel has just made the descriptor for this process, and nobody else knows it.
        Ok(file) if file >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(file) }),
        _ => Err(Errno::last()),
    }
}

/// The next connection, and the address it is from as the kernel has it.
#[allow(unsafe_code)]
fn accept(listener: BorrowedFd<'_>, flags: i32) -> Result<(OwnedFd, Vec<u8>), Errno> {
    let mut address = vec![0_u8; MAX_ADDRESS];
    let mut length = libc::socklen_t::try_from(address.len()).unwrap_or(0);
    let to = address.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most that many bytes to the buffer, and how many they were to the live local.
    let taken = unsafe { libc::accept4(listener.as_raw_fd(), to, &raw mut length, flags) };
    let taken = owned(taken.into())?;
    address.truncate(length as usize);
    Ok((taken, address))
}

/// Ends the association of a datagram socket.
#[allow(unsafe_code)]
fn disconnect(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let nowhere = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).unwrap_or(0);
    // SAFETY: the kernel reads an address of that length, which lives until it returns.
    Errno::result(unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) }).map(drop)
}

fn make(
    network: &dyn Network,
    remote: Option<SocketAddr>,
    family: AddressFamily,
    kind: SockType,
) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let mut made = Err(Errno::EACCES);
    network.enter(remote, &mut || made = socket::socket(family, kind, flags, None));
    made
}

fn family(of: SocketAddr) -> AddressFamily {
    if of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn family_of(number: u64) -> Option<AddressFamily> {
    match i32::try_from(number).ok()? {
        libc::AF_INET => Some(AddressFamily::Inet),
        libc::AF_INET6 => Some(AddressFamily::Inet6),
        _ => None,
    }
}

fn kind_of(number: u64) -> Option<(SockType, Protocol)> {
    // Without the flags.
    match i32::try_from(number & 0xf).ok()? {
        libc::SOCK_STREAM => Some((SockType::Stream, Protocol::Tcp)),
        libc::SOCK_DGRAM => Some((SockType::Datagram, Protocol::Udp)),
        _ => None,
    }
}

fn protocol(socket: &OwnedFd) -> Result<Protocol, Errno> {
    match getsockopt(socket, sockopt::SockType)? {
        SockType::Stream => Ok(Protocol::Tcp),
        SockType::Datagram => Ok(Protocol::Udp),
        _ => Err(Errno::EACCES),
    }
}

/// Where a socket is; anything but an Internet address is refused.
fn local(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    let name: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
    let four = name.as_sockaddr_in().map(|a| SocketAddr::V4(SocketAddrV4::from(*a)));
    let six = || name.as_sockaddr_in6().map(|a| SocketAddr::V6(SocketAddrV6::from(*a)));
    four.or_else(six).ok_or(Errno::EACCES)
}

/// An address as the kernel's calls have it.
fn parse(bytes: &[u8]) -> Result<Option<SocketAddr>, Errno> {
    let family = bytes.first_chunk().map(|two| i32::from(u16::from_ne_bytes(*two))).ok_or(Errno::EINVAL)?;
    let part = |from: usize, to: usize| bytes.get(from..to).ok_or(Errno::EINVAL);
    let port = || part(2, 4).map(|p| u16::from_be_bytes([p[0], p[1]]));
    match family {
        libc::AF_UNSPEC => Ok(None),
        libc::AF_INET => {
            let address: [u8; 4] = part(4, 8)?.try_into().map_err(|_| Errno::EINVAL)?;
            Ok(Some(SocketAddr::new(address.into(), port()?)))
        }
        libc::AF_INET6 => {
            let address: [u8; 16] = part(8, 24)?.try_into().map_err(|_| Errno::EINVAL)?;
            let scope = part(24, 28)?.try_into().map(u32::from_ne_bytes).map_err(|_| Errno::EINVAL)?;
            Ok(Some(SocketAddrV6::new(address.into(), port()?, 0, scope).into()))
        }
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::IntoRawFd;
    use std::sync::mpsc;
    use std::time::Duration;

    use parking_lot::Mutex;
    use wasmk_runtime::NetworkError;

    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_has_them() {
        let four = [2, 0, 0x1f, 0x90, 127, 42, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(&four).unwrap(), Some("127.42.0.5:8080".parse().unwrap()));
        let mut six = [0; 28];
        (six[0], six[2], six[3], six[23]) = (10, 0, 80, 1);
        assert_eq!(parse(&six).unwrap(), Some("[::1]:80".parse().unwrap()));
        assert_eq!(parse(&[0, 0]).unwrap(), None);
        for bad in [&four[..1], &four[..7], &six[..27], &[1, 0, b'/', b'x'], &[]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    /// Lets connections in from some ports.
    struct Picky(Arc<Mutex<HashSet<u16>>>);

    #[async_trait::async_trait]
    impl Network for Picky {
        fn bind(&self, _: Protocol, _: SocketAddr) -> Result<(), NetworkError> {
            Ok(())
        }

        fn accept(&self, protocol: Protocol, remote: SocketAddr) -> bool {
            protocol == Protocol::Tcp && self.0.lock().contains(&remote.port())
        }
    }

    impl Networks for Arc<dyn Network> {
        fn now(&self) -> Vec<Arc<dyn Network>> {
            vec![Arc::clone(self)]
        }
    }

    type Step = Box<dyn FnOnce() + Send>;

    /// A thread whose calls for sockets are answered.
    struct Inside(mpsc::Sender<Step>);

    impl Inside {
        fn begin(network: Picky) -> Self {
            let (steps, todo) = mpsc::channel::<Step>();
            let (sender, listener) = mpsc::channel();
            std::thread::spawn(move || {
                nix::sys::prctl::set_no_new_privs().unwrap();
                sender.send(crate::walls::calls::hand_over_sockets().unwrap()).unwrap();
                todo.iter().for_each(|step| step());
            });
            let listener = listener.recv().unwrap().expect("a kernel that hands calls over");
            let networks: Arc<dyn Network> = Arc::new(network);
            let sockets = Sockets::new(listener, std::process::id(), networks).unwrap();
            std::thread::spawn(move || sockets.answer());
            Self(steps)
        }

        fn run<T: Send + 'static>(&self, step: impl FnOnce() -> T + Send + 'static) -> T {
            let (sender, done) = mpsc::channel();
            self.0.send(Box::new(move || sender.send(step()).unwrap())).unwrap();
            done.recv().unwrap()
        }

        /// The call, with numbers for pointers as hostile code might have them.
        #[allow(unsafe_code)]
        fn accept(&self, file: RawFd, at: usize, length_at: usize, flags: i32) -> Result<OwnedFd, Errno> {
            self.run(move || {
                // SAFETY: where the numbers are addresses, what is there lives as long as the test; others the
                // kernel and the agent find out.
                owned(unsafe { libc::syscall(libc::SYS_accept4, file, at, length_at, flags) })
            })
        }
    }

    fn listener(inside: &Inside) -> (RawFd, SocketAddr) {
        let made = inside.run(|| {
            let made = TcpListener::bind("127.0.0.1:0").unwrap();
            (made.local_addr().unwrap(), made.into_raw_fd())
        });
        (made.1, made.0)
    }

    #[test]
    fn connections_are_asked_about_before_they_are_handed_over() {
        let open = Arc::new(Mutex::new(HashSet::new()));
        let inside = Inside::begin(Picky(Arc::clone(&open)));
        let (file, address) = listener(&inside);
        let connect = |allowed: bool| {
            let client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            if allowed {
                open.lock().insert(client.local_addr().unwrap().port());
            }
            client
        };
        let again = inside.accept(file, 0, 0, libc::SOCK_CLOEXEC);
        assert_eq!(again.unwrap_err(), Errno::EAGAIN, "it never waits");

        let (mut refused, mut welcome) = (connect(false), connect(true));
        let mut from = Box::new(([0_u8; 32], 32_u32));
        let (at, length_at) =
            (from.0.as_mut_ptr().expose_provenance(), (&raw mut from.1).expose_provenance());
        let taken = inside.accept(file, at, length_at, libc::SOCK_NONBLOCK).unwrap();
        assert_eq!(from.1, 16);
        assert_eq!(parse(&from.0[..16]).unwrap(), Some(welcome.local_addr().unwrap()));
        TcpStream::from(taken).write_all(b"hello").unwrap();
        let mut text = String::new();
        welcome.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(matches!(refused.read(&mut [0; 8]), Ok(0) | Err(_)), "it is closed");
        assert_eq!(inside.accept(file, 0, 0, 0).unwrap_err(), Errno::EAGAIN);
    }

    #[test]
    fn accepts_point_where_they_like_in_vain() {
        let open = Arc::new(Mutex::new((1..u16::MAX).collect()));
        let inside = Inside::begin(Picky(open));
        let (file, address) = listener(&inside);
        let _client = TcpStream::connect(address).unwrap();
        let mut from = Box::new(([0_u8; 8], 4_u32));
        let (at, length_at) =
            (from.0.as_mut_ptr().expose_provenance(), (&raw mut from.1).expose_provenance());
        for (file, at, length_at, flags, expect) in [
            (file, at, length_at, 1, Errno::EINVAL),
            (file, at, 1, 0, Errno::EFAULT),
            (file, at, usize::MAX, 0, Errno::EFAULT),
            (-1, 0, 0, 0, Errno::EBADF),
            (0, 0, 0, 0, Errno::ENOTSOCK),
        ] {
            assert_eq!(
                inside.accept(file, at, length_at, flags).unwrap_err(),
                expect,
                "{file} {at} {length_at}"
            );
        }
        from.1 = u32::MAX;
        assert_eq!(inside.accept(file, at, length_at, 0).unwrap_err(), Errno::EINVAL);
        // None of that has taken the connection; what does not fit of its address is cut off.
        from.1 = 4;
        drop(inside.accept(file, at, length_at, 0).unwrap());
        assert_eq!((from.1, &from.0[4..]), (16, &[0; 4][..]));
        let _client = TcpStream::connect(address).unwrap();
        from.1 = 16;
        assert_eq!(inside.accept(file, 1, length_at, 0).unwrap_err(), Errno::EFAULT);
    }
}

//! The protocol of Redis, as much as dockercoins says of it, over wasi:sockets.

use std::io;

use wasip2::{
    io::streams::{InputStream, OutputStream, StreamError},
    sockets::{
        instance_network::instance_network,
        ip_name_lookup::resolve_addresses,
        network::{ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress},
        tcp::TcpSocket,
        tcp_create_socket::create_tcp_socket,
    },
};

/// Longest message, in bytes.
const MOST: usize = 1 << 20;

/// A message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `+OK`
    Simple(String),
    /// `-ERR …`
    Error(String),
    /// `:1`
    Number(i64),
    /// `$2\r\nhi`, or `$-1`
    Text(Option<String>),
    /// `*1\r\n…`
    List(Vec<Value>),
}

impl Value {
    /// As a number; 0 if it is none.
    pub fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            Self::Text(Some(text)) | Self::Simple(text) => text.parse().unwrap_or(0),
            _ => 0,
        }
    }

    /// As it is sent.
    pub fn encode(&self) -> String {
        match self {
            Self::Simple(text) => format!("+{text}\r\n"),
            Self::Error(text) => format!("-{text}\r\n"),
            Self::Number(number) => format!(":{number}\r\n"),
            Self::Text(Some(text)) => format!("${}\r\n{text}\r\n", text.len()),
            Self::Text(None) => "$-1\r\n".into(),
            Self::List(all) => {
                let parts: String = all.iter().map(Value::encode).collect();
                format!("*{}\r\n{parts}", all.len())
            }
        }
    }
}

/// The first message in a buffer and its length; `None` while it is not whole.
///
/// # Errors
/// If it is none.
pub fn decode(bytes: &[u8]) -> io::Result<Option<(Value, usize)>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what} was expected"));
    if bytes.len() > MOST {
        return Err(bad("a shorter message"));
    }
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
    let line = str::from_utf8(&bytes[..end]).map_err(|_| bad("text"))?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| bad("a message"))?;
    let head = end + 2;
    let number = || rest.parse::<i64>().map_err(|_| bad("a number"));
    let value = match kind {
        "+" => Value::Simple(rest.into()),
        "-" => Value::Error(rest.into()),
        ":" => Value::Number(number()?),
        "$" => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(Some((Value::Text(None), head))) };
            let Some(text) = bytes.get(head..head.saturating_add(length)) else { return Ok(None) };
            let text = String::from_utf8(text.to_vec()).map_err(|_| bad("text"))?;
            let whole = head + length + 2;
            return Ok((bytes.len() >= whole).then_some((Value::Text(Some(text)), whole)));
        }
        "*" => {
            let (mut all, mut at) = (Vec::new(), head);
            for _ in 0..number()? {
                let Some((value, length)) = decode(&bytes[at..])? else { return Ok(None) };
                all.push(value);
                at += length;
            }
            return Ok(Some((Value::List(all), at)));
        }
        _ => return Err(bad("one of + - : $ *")),
    };
    Ok(Some((value, head)))
}

/// A connection to a server.
pub struct Client {
    // In the order in which they may be dropped.
    input: InputStream,
    output: OutputStream,
    _socket: TcpSocket,
    arrived: Vec<u8>,
}

impl Client {
    /// Connects to a host by its name.
    ///
    /// # Errors
    /// If there is no such host, or nobody answers there.
    pub fn connect(host: &str, port: u16) -> io::Result<Self> {
        let failed = |code: ErrorCode| io::Error::other(format!("{host}:{port}: {code:?}"));
        let remote = IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: address(host).map_err(failed)? });
        let socket = create_tcp_socket(IpAddressFamily::Ipv4).map_err(failed)?;
        socket.start_connect(&instance_network(), remote).map_err(failed)?;
        socket.subscribe().block();
        let (input, output) = socket.finish_connect().map_err(failed)?;
        Ok(Self { input, output, _socket: socket, arrived: Vec::new() })
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// If the connection breaks off, or the server refuses.
    pub fn call(&mut self, words: &[&str]) -> io::Result<Value> {
        let words = words.iter().map(|word| Value::Text(Some((*word).into()))).collect();
        let message = Value::List(words).encode();
        // A stream takes so much at a time.
        for part in message.as_bytes().chunks(4096) {
            self.output.blocking_write_and_flush(part).map_err(broken)?;
        }
        loop {
            if let Some((value, length)) = decode(&self.arrived)? {
                self.arrived.drain(..length);
                return match value {
                    Value::Error(text) => Err(io::Error::other(text)),
                    value => Ok(value),
                };
            }
            self.arrived.extend(self.input.blocking_read(4096).map_err(broken)?);
        }
    }
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, format!("{error:?}"))
}

fn address(host: &str) -> Result<(u8, u8, u8, u8), ErrorCode> {
    let stream = resolve_addresses(&instance_network(), host)?;
    loop {
        match stream.resolve_next_address() {
            Err(ErrorCode::WouldBlock) => stream.subscribe().block(),
            Err(code) => return Err(code),
            Ok(None) => return Err(ErrorCode::NameUnresolvable),
            Ok(Some(IpAddress::Ipv4(address))) => return Ok(address),
            Ok(Some(IpAddress::Ipv6(_))) => {}
        }
    }
}

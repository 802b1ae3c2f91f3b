//! A stand-in for Redis, in memory: PING, GET, SET, INCR, INCRBY, DEL, HSET, HGET and HLEN on port 6379. For
//! dockercoins and demonstrations of the like; nothing is kept when it ends.

use std::collections::{BTreeMap, HashMap};

use resp::{Value, decode};
use wasip2::{
    io::{
        poll::{Pollable, poll},
        streams::{InputStream, OutputStream},
    },
    sockets::{
        instance_network::instance_network,
        network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress},
        tcp::TcpSocket,
        tcp_create_socket::create_tcp_socket,
    },
};

const PORT: u16 = 6379;
/// Connections at a time; others are closed.
const MOST: usize = 200;

fn main() {
    let listener = listen().unwrap_or_else(|code| panic!("cannot listen on port {PORT}: {code:?}"));
    println!("Ready to accept connections on port {PORT}");
    let mut data = Data::default();
    let mut clients: Vec<Client> = Vec::new();
    let arrivals = listener.subscribe();
    loop {
        let mut waits: Vec<&Pollable> = clients.iter().map(|client| &client.ready).collect();
        waits.push(&arrivals);
        let ready = poll(&waits);
        let last = clients.len();
        let mut gone: Vec<usize> = Vec::new();
        for at in ready.into_iter().map(|at| at as usize) {
            if at == last {
                accept(&listener, &mut clients);
            } else if !clients[at].serve(&mut data) {
                gone.push(at);
            }
        }
        gone.sort_unstable();
        gone.into_iter().rev().for_each(|at| drop(clients.swap_remove(at)));
    }
}

fn listen() -> Result<TcpSocket, ErrorCode> {
    let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
    let any = IpSocketAddress::Ipv4(Ipv4SocketAddress { port: PORT, address: (0, 0, 0, 0) });
    socket.start_bind(&instance_network(), any)?;
    socket.finish_bind()?;
    socket.start_listen()?;
    socket.finish_listen()?;
    Ok(socket)
}

fn accept(listener: &TcpSocket, clients: &mut Vec<Client>) {
    while let Ok((socket, input, output)) = listener.accept() {
        if clients.len() < MOST {
            let ready = input.subscribe();
            clients.push(Client { ready, input, output, _socket: socket, arrived: Vec::new() });
        }
    }
}

struct Client {
    // In the order in which they may be dropped.
    ready: Pollable,
    input: InputStream,
    output: OutputStream,
    _socket: TcpSocket,
    arrived: Vec<u8>,
}

impl Client {
    /// Answers what has arrived; false once it is to be closed.
    fn serve(&mut self, data: &mut Data) -> bool {
        match self.input.read(64 << 10) {
            Ok(bytes) => self.arrived.extend(bytes),
            Err(_) => return false,
        }
        loop {
            let answer = match decode(&self.arrived) {
                Ok(None) => return true,
                Ok(Some((message, length))) => {
                    self.arrived.drain(..length);
                    data.answer(&words(message))
                }
                Err(error) => Value::Error(format!("ERR Protocol error: {error}")),
            };
            let broken = matches!(&answer, Value::Error(text) if text.starts_with("ERR Protocol"));
            let text = answer.encode();
            let sent = text.as_bytes().chunks(4096).all(|part| self.output.blocking_write_and_flush(part).is_ok());
            if broken || !sent {
                return false;
            }
        }
    }
}

/// The words of a command.
fn words(message: Value) -> Vec<String> {
    let text = |value| match value {
        Value::Text(Some(text)) => Some(text),
        _ => None,
    };
    match message {
        Value::List(all) => all.into_iter().filter_map(text).collect(),
        Value::Simple(line) => line.split_whitespace().map(String::from).collect(),
        _ => Vec::new(),
    }
}

#[derive(Default)]
struct Data {
    texts: HashMap<String, String>,
    hashes: HashMap<String, BTreeMap<String, String>>,
}

impl Data {
    fn answer(&mut self, words: &[String]) -> Value {
        let all: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((name, args)) = all.split_first() else { return Value::Error("ERR no command".into()) };
        match (name.to_ascii_uppercase().as_str(), args) {
            ("PING", []) => Value::Simple("PONG".into()),
            ("GET", [key]) => Value::Text(self.texts.get(*key).cloned()),
            ("SET", [key, value]) => {
                self.texts.insert((*key).into(), (*value).into());
                Value::Simple("OK".into())
            }
            ("INCR", [key]) => self.add(key, "1"),
            ("INCRBY", [key, by]) => self.add(key, by),
            ("DEL", keys) => {
                let gone = keys.iter().filter(|key| {
                    self.texts.remove(**key).is_some() | self.hashes.remove(**key).is_some()
                });
                Value::Number(gone.count() as i64)
            }
            ("HSET", [key, field, value]) => {
                let hash = self.hashes.entry((*key).into()).or_default();
                Value::Number(i64::from(hash.insert((*field).into(), (*value).into()).is_none()))
            }
            ("HGET", [key, field]) => Value::Text(self.hashes.get(*key).and_then(|h| h.get(*field)).cloned()),
            ("HLEN", [key]) => Value::Number(self.hashes.get(*key).map_or(0, BTreeMap::len) as i64),
            (name, _) => Value::Error(format!("ERR unknown command or wrong number of arguments: {name}")),
        }
    }

    fn add(&mut self, key: &str, by: &str) -> Value {
        let old = self.texts.get(key).map_or(Ok(0), |text| text.parse::<i64>());
        let sum = old.ok().zip(by.parse().ok()).and_then(|(old, by): (i64, i64)| old.checked_add(by));
        match sum {
            Some(sum) => {
                self.texts.insert(key.into(), sum.to_string());
                Value::Number(sum)
            }
            None => Value::Error("ERR value is not an integer or out of range".into()),
        }
    }
}

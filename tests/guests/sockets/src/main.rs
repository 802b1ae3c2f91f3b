//! Uses wasi:sockets as its arguments say, and prints what came of it.

use std::env;

use wasip2::io::streams::StreamError;
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress,
};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp::OutgoingDatagram;
use wasip2::sockets::udp_create_socket::create_udp_socket;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["connect", address] => connect(parse(address)),
        ["listen", address] => listen(parse(address)),
        ["send", address] => send(parse(address)),
        ["resolve", name] => resolve(name),
        ["get", name] => get(name),
        _ => panic!("usage: sockets connect|listen|send ADDRESS | resolve|get NAME"),
    };
    match result {
        Ok(text) => println!("{text}"),
        Err(code) => println!("{code:?}"),
    }
}

fn parse(text: &str) -> IpSocketAddress {
    let address: std::net::SocketAddrV4 = text.parse().expect("an IPv4 address and a port");
    let [a, b, c, d] = address.ip().octets();
    IpSocketAddress::Ipv4(Ipv4SocketAddress { port: address.port(), address: (a, b, c, d) })
}

fn show(address: IpSocketAddress) -> String {
    match address {
        IpSocketAddress::Ipv4(v4) => {
            let (a, b, c, d) = v4.address;
            format!("{a}.{b}.{c}.{d}:{}", v4.port)
        }
        IpSocketAddress::Ipv6(_) => "IPv6".into(),
    }
}

/// Prints its own address and what the other side sends.
fn connect(remote: IpSocketAddress) -> Result<String, ErrorCode> {
    let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
    socket.start_connect(&instance_network(), remote)?;
    socket.subscribe().block();
    let (input, _output) = socket.finish_connect()?;
    let mut text = Vec::new();
    loop {
        match input.blocking_read(1024) {
            Ok(bytes) => text.extend(bytes),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(_)) => return Err(ErrorCode::ConnectionReset),
        }
    }
    let own = show(socket.local_address()?);
    Ok(format!("{own} {}", String::from_utf8_lossy(&text)))
}

/// Prints what is behind the head of the answer that a host gives at port 80.
fn get(name: &str) -> Result<String, ErrorCode> {
    let found = resolve(name)?;
    let remote = parse(&format!("{}:80", found.split(' ').next().unwrap_or("")));
    let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
    socket.start_connect(&instance_network(), remote)?;
    socket.subscribe().block();
    let (input, output) = socket.finish_connect()?;
    let request = format!("GET / HTTP/1.0\r\nHost: {name}\r\n\r\n");
    if output.blocking_write_and_flush(request.as_bytes()).is_err() {
        return Err(ErrorCode::ConnectionReset);
    }
    let mut text = Vec::new();
    while let Ok(bytes) = input.blocking_read(1024) {
        text.extend(bytes);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(text.split_once("\r\n\r\n").map_or(text.clone(), |(_, body)| body.trim().into()))
}

/// Prints the address it listens on, takes one connection, and greets it.
fn listen(local: IpSocketAddress) -> Result<String, ErrorCode> {
    let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
    socket.start_bind(&instance_network(), local)?;
    socket.finish_bind()?;
    socket.start_listen()?;
    socket.finish_listen()?;
    println!("listening {}", show(socket.local_address()?));
    let ready = socket.subscribe();
    loop {
        ready.block();
        match socket.accept() {
            Err(ErrorCode::WouldBlock) => continue,
            Err(code) => return Err(code),
            Ok((_client, _input, output)) => {
                let sent = output.blocking_write_and_flush(b"greetings");
                return Ok(if sent.is_ok() { "served".into() } else { "lost".into() });
            }
        }
    }
}

/// Sends one datagram.
fn send(remote: IpSocketAddress) -> Result<String, ErrorCode> {
    let socket = create_udp_socket(IpAddressFamily::Ipv4)?;
    socket.start_bind(&instance_network(), parse("0.0.0.0:0"))?;
    socket.finish_bind()?;
    let (_incoming, outgoing) = socket.stream(None)?;
    outgoing.subscribe().block();
    outgoing.check_send()?;
    let datagram = OutgoingDatagram { data: b"datagram".to_vec(), remote_address: Some(remote) };
    let sent = outgoing.send(&[datagram])?;
    Ok(format!("{} sent {sent}", show(socket.local_address()?)))
}

fn resolve(name: &str) -> Result<String, ErrorCode> {
    let stream = resolve_addresses(&instance_network(), name)?;
    let mut found = Vec::new();
    loop {
        match stream.resolve_next_address() {
            Err(ErrorCode::WouldBlock) => stream.subscribe().block(),
            Err(code) => return Err(code),
            Ok(None) => return Ok(found.join(" ")),
            Ok(Some(IpAddress::Ipv4((a, b, c, d)))) => found.push(format!("{a}.{b}.{c}.{d}")),
            Ok(Some(IpAddress::Ipv6(_))) => found.push("IPv6".into()),
        }
    }
}

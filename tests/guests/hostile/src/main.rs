//! Takes as much as it gets of what its first argument says, and prints how much that was.

use std::{env, fs::File, time::Duration};

use wasip2::sockets::network::IpAddressFamily;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp_create_socket::create_udp_socket;

/// More than a guest may have of anything.
const MANY: usize = 10_000;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["sockets"] => sockets(),
        ["files", path] => files(path),
        ["random", bytes] => random(bytes.parse().expect("a number")),
        ["clock", calls] => clock(calls.parse().expect("a number")),
        ["recurse"] => println!("{}", recurse(1)),
        _ => panic!("usage: hostile sockets|files PATH|random BYTES|clock CALLS|recurse"),
    }
}

/// Opens sockets of both kinds until it gets no more, and holds them for a while.
fn sockets() {
    let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
    let refusal = loop {
        match create_tcp_socket(IpAddressFamily::Ipv4) {
            Ok(socket) if streams.len() < MANY => streams.push(socket),
            Ok(_) => break "nothing".to_string(),
            Err(code) => break format!("{code:?}"),
        }
        if streams.len() % 2 == 0 {
            match create_udp_socket(IpAddressFamily::Ipv4) {
                Ok(socket) => datagrams.push(socket),
                Err(code) => break format!("{code:?}"),
            }
        }
    };
    println!("{} sockets, then {refusal}", streams.len() + datagrams.len());
    std::thread::sleep(Duration::from_secs(1));
}

fn files(path: &str) {
    let mut open = Vec::new();
    let refusal = loop {
        match File::open(path) {
            Ok(file) if open.len() < MANY => open.push(file),
            Ok(_) => break "nothing".to_string(),
            Err(error) => break error.to_string(),
        }
    };
    println!("{} files, then {refusal}", open.len());
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn random_get(buffer: *mut u8, length: usize) -> u16;
}

/// All in one call.
fn random(bytes: usize) {
    let mut buffer = vec![0; bytes];
    // SAFETY: the buffer has that length.
    let code = unsafe { random_get(buffer.as_mut_ptr(), bytes) };
    println!("{bytes} bytes: {code}");
}

fn clock(calls: u64) {
    let begin = std::time::Instant::now();
    let mut rising = true;
    let mut last = begin;
    for _ in 0..calls {
        let now = std::time::Instant::now();
        rising &= now >= last;
        last = now;
    }
    println!("{calls} calls, rising: {rising}");
}

#[allow(unconditional_recursion, reason = "that is its purpose")]
fn recurse(depth: u64) -> u64 {
    std::hint::black_box([depth; 64]);
    recurse(std::hint::black_box(depth + 1)) + 1
}

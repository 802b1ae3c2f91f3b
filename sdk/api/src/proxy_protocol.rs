//! Who is at the other end of a connection that a proxy passes on: the header of the PROXY protocol, version 2, as far
//! as TCP over IPv4 needs it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// Annotation of a Service: with the value [`V2`] its endpoints are told who their clients are.
pub const ANNOTATION: &str = "wasmk.dev/proxy-protocol";
/// The version that is spoken.
pub const V2: &str = "v2";
/// Bytes of a header.
pub const LENGTH: usize = 28;

/// How every header begins; nothing in HTTP begins like that.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of a client; TCP over IPv4; twelve bytes of addresses.
const KIND: [u8; 4] = [0x21, 0x11, 0, 12];

/// The header of a connection from a client to a server.
pub fn header(client: SocketAddrV4, server: SocketAddrV4) -> [u8; LENGTH] {
    let mut out = [0; LENGTH];
    out[..12].copy_from_slice(&SIGNATURE);
    out[12..16].copy_from_slice(&KIND);
    out[16..20].copy_from_slice(&client.ip().octets());
    out[20..24].copy_from_slice(&server.ip().octets());
    out[24..26].copy_from_slice(&client.port().to_be_bytes());
    out[26..].copy_from_slice(&server.port().to_be_bytes());
    out
}

/// Whether these first bytes of a connection can begin a header.
pub fn begins(bytes: &[u8]) -> bool {
    let most = bytes.len().min(SIGNATURE.len());
    bytes[..most] == SIGNATURE[..most]
}

/// The client that a header names; `None` for one of another kind.
pub fn client(header: &[u8; LENGTH]) -> Option<SocketAddr> {
    let [a, b, c, d] = header[16..20].try_into().ok()?;
    let port = u16::from_be_bytes(header[24..26].try_into().ok()?);
    let known = begins(header) && header[12..16] == KIND;
    known.then(|| SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (from, to) = ("10.22.0.7:40000".parse().unwrap(), "127.42.255.254:8080".parse().unwrap());
        let written = header(from, to);
        assert_eq!(client(&written), Some(from.into()));
        assert!((0..=LENGTH).all(|length| begins(&written[..length])));
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n", b"\r\nGET"] {
            assert!(!begins(other), "{other:?}");
        }
        let mut local = written;
        local[12] = 0x20;
        assert_eq!(client(&local), None);
    }
}

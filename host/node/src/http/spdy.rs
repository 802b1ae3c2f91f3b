//! The part of SPDY/3.1 that port forwarding and commands need: frames and compressed headers. Kubernetes
//! clients still speak it, bare or inside a WebSocket. Flow control is not used by them.

use std::{collections::HashMap, io, sync::OnceLock};

use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT},
};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest frame taken from a client.
const FRAME: usize = 1 << 20;
/// Most bytes of the headers of one stream.
const HEADERS: usize = 64 * 1024;
/// The window of deflate; a power of two.
const RING: usize = 32 * 1024;
/// The last frame of a stream's direction.
const FIN: u8 = 1;

/// What a client sent.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// A new stream with its headers.
    Open(u32, HashMap<String, String>),
    /// Bytes, and whether they are the last.
    Data(u32, Vec<u8>, bool),
    /// The stream is given up.
    Reset(u32),
    /// To be sent back as it is.
    Ping(u32),
    /// The client is leaving.
    Leave,
}

/// Reads frames.
pub(super) struct Reader<R> {
    inner: R,
    headers: Inflate,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, headers: Inflate::new() }
    }

    /// The next event; `None` at the end. Frames without meaning here are skipped.
    pub(super) async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            let mut head = [0; 8];
            if let Err(error) = self.inner.read_exact(&mut head).await {
                let end = error.kind() == io::ErrorKind::UnexpectedEof;
                return if end { Ok(None) } else { Err(error) };
            }
            let (flags, length) = (head[4], u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize);
            if length > FRAME {
                return Err(invalid("a frame is too long"));
            }
            let mut payload = vec![0; length];
            self.inner.read_exact(&mut payload).await?;
            if head[0] & 0x80 == 0 {
                let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
                return Ok(Some(Event::Data(id, payload, flags & FIN != 0)));
            }
            if let Some(event) = self.control(u16::from_be_bytes([head[2], head[3]]), &payload)? {
                return Ok(Some(event));
            }
        }
    }

    fn control(&mut self, kind: u16, payload: &[u8]) -> io::Result<Option<Event>> {
        let number = |at: usize| {
            let bytes = payload.get(at..at + 4).ok_or_else(|| invalid("a frame is too short"))?;
            Ok::<_, io::Error>(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        Ok(match kind {
            1 => {
                let id = number(0)? & 0x7fff_ffff;
                let block = payload.get(10..).ok_or_else(|| invalid("a frame is too short"))?;
                Some(Event::Open(id, pairs(&self.headers.next(block)?)?))
            }
            // Headers of an open stream: they must be read, for they share the compression.
            8 => {
                self.headers.next(payload.get(4..).unwrap_or_default())?;
                None
            }
            3 => Some(Event::Reset(number(0)? & 0x7fff_ffff)),
            6 => Some(Event::Ping(number(0)?)),
            7 => Some(Event::Leave),
            _ => None,
        })
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Names and values of a header block.
fn pairs(block: &[u8]) -> io::Result<HashMap<String, String>> {
    let mut rest = block;
    let count = number(&mut rest)?;
    let mut out = HashMap::new();
    for _ in 0..count {
        let name = text(&mut rest)?.to_lowercase();
        out.insert(name, text(&mut rest)?);
    }
    Ok(out)
}

fn number(rest: &mut &[u8]) -> io::Result<usize> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or_else(|| invalid("headers are cut off"))?;
    *rest = tail;
    Ok(u32::from_be_bytes(*head) as usize)
}

fn text(rest: &mut &[u8]) -> io::Result<String> {
    let length = number(rest)?;
    let (head, tail) = rest.split_at_checked(length).ok_or_else(|| invalid("headers are cut off"))?;
    *rest = tail;
    Ok(String::from_utf8_lossy(head).into_owned())
}

/// One stream of compressed headers over all frames of a connection.
struct Inflate {
    state: Box<DecompressorOxide>,
    ring: Vec<u8>,
    at: usize,
    begun: bool,
}

impl Inflate {
    fn new() -> Self {
        let words = dictionary();
        let mut ring = vec![0; RING];
        ring[..words.len()].copy_from_slice(words);
        Self { state: Box::default(), ring, at: words.len(), begun: false }
    }

    fn next(&mut self, mut input: &[u8]) -> io::Result<Vec<u8>> {
        if !self.begun {
            // The two bytes of zlib, and the dictionary's checksum when it is used.
            let flags = *input.get(1).ok_or_else(|| invalid("headers are cut off"))?;
            let skip = if flags & 0x20 == 0 { 2 } else { 6 };
            input = input.get(skip..).ok_or_else(|| invalid("headers are cut off"))?;
            self.begun = true;
        }
        let mut out = Vec::new();
        loop {
            let flags = TINFL_FLAG_HAS_MORE_INPUT;
            let (status, read, wrote) = decompress(&mut self.state, input, &mut self.ring, self.at, flags);
            out.extend_from_slice(&self.ring[self.at..self.at + wrote]);
            self.at = (self.at + wrote) & (RING - 1);
            input = &input[read..];
            if out.len() > HEADERS {
                return Err(invalid("headers are too long"));
            }
            match status {
                TINFLStatus::NeedsMoreInput if input.is_empty() => return Ok(out),
                TINFLStatus::HasMoreOutput => {}
                _ => return Err(invalid("headers cannot be decompressed")),
            }
        }
    }
}

/// The dictionary that both sides begin with: words with their lengths, then text.
fn dictionary() -> &'static [u8] {
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut out = Vec::new();
        for word in WORDS.split('|') {
            out.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
            out.extend_from_slice(word.as_bytes());
        }
        out.extend_from_slice(TEXT.as_bytes());
        out
    })
}

const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|\
accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|\
content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|\
if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|\
pragma|proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|\
upgrade|user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|\
set-cookie|keep-alive|origin";

const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr \
May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,\
image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// Ends a header block. Readers that decompress ahead take a block as ended only by this empty stored
/// block, as a flush writes it; without it they wait for the next block's first bits, and fail.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// Opens a stream with headers; `first` begins the connection's one stream of compressed headers.
pub(super) fn open(id: u32, headers: &[(&str, &str)], first: bool) -> Vec<u8> {
    let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    let mut block = length(headers.len()).to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend_from_slice(&length(text.len()));
        block.extend_from_slice(text.as_bytes());
    }
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend_from_slice(&[0; 6]);
    payload.extend(stored(&block, first));
    control(1, &payload)
}

/// Accepts a stream, without headers; `first` as in [`open`].
pub(super) fn reply(id: u32, first: bool) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(stored(&[0; 4], first));
    control(2, &payload)
}

/// A header block as a piece of the stream of compressed headers; it is stored, not compressed.
fn stored(block: &[u8], first: bool) -> Vec<u8> {
    let mut out = if first { vec![0x78, 0x01] } else { Vec::new() };
    // Headers are far shorter than the longest stored block.
    let size = u16::try_from(block.len()).unwrap_or(u16::MAX);
    out.push(0);
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(&(!size).to_le_bytes());
    out.extend_from_slice(block);
    out.extend_from_slice(&FLUSH);
    out
}

/// Gives a stream up.
pub(super) fn reset(id: u32) -> Vec<u8> {
    let refused: u32 = 3;
    control(3, &[id.to_be_bytes(), refused.to_be_bytes()].concat())
}

/// Answers a ping.
pub(super) fn pong(id: u32) -> Vec<u8> {
    control(6, &id.to_be_bytes())
}

/// Bytes of a stream.
pub(super) fn data(id: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    frame(&mut out, u8::from(last) * FIN, bytes);
    out
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80, 3];
    out.extend_from_slice(&kind.to_be_bytes());
    frame(&mut out, 0, payload);
    out
}

fn frame(out: &mut Vec<u8>, flags: u8, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&[flags, length[1], length[2], length[3]]);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Header blocks of two streams (streamtype error, then data; port 8080; requestid 0), compressed
    /// by zlib with the dictionary, the second continuing the first.
    const BLOCKS: [&str; 2] = [
        "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff",
        "c2aa19540e2512d60b000000ffff",
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_dictionary_is_the_right_one() {
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in dictionary() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((dictionary().len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[tokio::test]
    async fn streams_are_opened_and_carry_data() {
        let mut wire = Vec::new();
        for (id, block) in [(1_u32, BLOCKS[0]), (3, BLOCKS[1])] {
            let head = [&id.to_be_bytes()[..], &[0; 6]].concat();
            wire.extend(control(1, &[head, bytes(block)].concat()));
        }
        wire.extend(control(4, &[0; 4]));
        wire.extend(data(3, b"hello", true));
        wire.extend(pong(7));
        let mut reader = Reader::new(wire.as_slice());
        for (id, kind) in [(1, "error"), (3, "data")] {
            let headers = [("streamtype", kind), ("port", "8080"), ("requestid", "0")];
            let expect = headers.map(|(k, v)| (k.to_string(), v.to_string())).into();
            assert_eq!(reader.next().await.unwrap(), Some(Event::Open(id, expect)));
        }
        assert_eq!(reader.next().await.unwrap(), Some(Event::Data(3, b"hello".to_vec(), true)));
        assert_eq!(reader.next().await.unwrap(), Some(Event::Ping(7)));
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn streams_opened_here_are_understood() {
        let mut wire = open(1, &[("streamtype", "error")], true);
        wire.extend(open(3, &[("streamtype", "stdin"), ("x", "")], false));
        let mut reader = Reader::new(wire.as_slice());
        for (id, expect) in
            [(1, vec![("streamtype", "error")]), (3, vec![("streamtype", "stdin"), ("x", "")])]
        {
            let expect = expect.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            assert_eq!(reader.next().await.unwrap(), Some(Event::Open(id, expect)));
        }
    }

    proptest! {
        /// Whatever a client sends is read to its end or refused; no frame is made of nothing.
        #[test]
        fn bent_frames_come_to_an_end(
            edits in prop::collection::vec((any::<usize>(), any::<u8>()), 0..12),
            end in any::<usize>(),
        ) {
            let head = [&1_u32.to_be_bytes()[..], &[0; 6]].concat();
            let mut wire = control(1, &[head, bytes(BLOCKS[0])].concat());
            wire.extend([data(1, b"hello", false), pong(7), reset(1), data(1, b"", true)].concat());
            let length = wire.len();
            for (at, byte) in edits {
                wire[at % length] = byte;
            }
            wire.truncate(end % (length + 1));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let events = runtime.block_on(async {
                let mut reader = Reader::new(wire.as_slice());
                let mut events = 0;
                while let Ok(Some(_)) = reader.next().await {
                    events += 1;
                }
                events
            });
            // Each has a head of eight bytes.
            prop_assert!(events * 8 <= wire.len());
        }
    }

    #[test]
    fn every_header_block_is_flushed() {
        for first in [true, false] {
            for frame in [open(1, &[("streamtype", "error")], first), reply(1, first)] {
                assert!(frame.ends_with(&[0, 0, 0, 0xff, 0xff]), "{frame:?}");
            }
        }
    }

    #[tokio::test]
    async fn nonsense_is_an_error() {
        for wire in [
            control(1, &[0; 4]),
            control(1, &[[0; 10].as_slice(), &[0x78, 0xbb, 1, 2, 3, 4, 0xff, 0xff]].concat()),
            vec![0, 0, 0, 1, 0, 0xff, 0xff, 0xff],
        ] {
            assert!(Reader::new(wire.as_slice()).next().await.is_err(), "{wire:?}");
        }
    }
}

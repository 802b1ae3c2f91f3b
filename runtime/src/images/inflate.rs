//! Layers are archives that may be compressed, whatever their media type says.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What is in an archive that may be compressed with gzip or Zstandard, told by how it begins.
///
/// # Errors
/// If it cannot be read.
pub(super) fn inflate<'a>(archive: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut archive = BufReader::new(archive);
    let start = archive.fill_buf()?;
    if start.starts_with(&GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(archive)));
    }
    if start.starts_with(&ZSTD) {
        return Ok(Box::new(Frames { source: archive, decoder: FrameDecoder::new(), inside: false }));
    }
    Ok(Box::new(archive))
}

/// The frames of Zstandard one after the other; those that are to be passed over are. The decoder bounds the
/// window that a frame may ask for.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    /// A frame has begun and is not over.
    inside: bool,
}

impl<R: BufRead> Frames<R> {
    fn begin(&mut self) -> io::Result<()> {
        match self.decoder.init(&mut self.source) {
            Ok(()) => self.inside = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
            }
            Err(error) => return Err(invalid(&error)),
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if !self.inside {
                if self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.begin()?;
                continue;
            }
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let enough = BlockDecodingStrategy::UptoBytes(buffer.len());
                self.decoder.decode_blocks(&mut self.source, enough).map_err(|error| invalid(&error))?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.inside = !self.decoder.is_finished();
        }
        Ok(0)
    }
}

fn invalid(error: &FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    #[test]
    fn compression_is_told_by_the_first_bytes() {
        let zstd = |text: &str| compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
        let check = |bytes: &[u8], expect: &str| {
            let mut text = String::new();
            inflate(bytes).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, expect);
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"content").unwrap();
        check(b"content", "content");
        check(&gzip.finish().unwrap(), "content");
        let long = "many words, ".repeat(100_000);
        check(&zstd(&long), &long);
        let skipped = vec![0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        check(&[zstd("con"), skipped.clone(), zstd("tent"), skipped].concat(), "content");
        let torn = &zstd(&long)[..40];
        assert!(inflate(torn).unwrap().read_to_end(&mut Vec::new()).is_err());
    }
}

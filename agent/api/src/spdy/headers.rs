//! Header blocks: name and value pairs in one zlib stream per direction and session, primed with the dictionary.
//!
//! The pure Rust deflate has no call for preset dictionaries, and needs none: both ends are raw deflate, the
//! dictionary goes through each before the first block (its output thrown away), and zlib's own header is put on and
//! taken off by hand. The streams never end, so their checksum never comes.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;
use super::dictionary::{ADLER32, DICTIONARY};

/// Deflate with a 32 KiB window, a dictionary follows, check bits.
const ZLIB: [u8; 2] = [0x78, 0xbb];
const PRESET_DICTIONARY: u8 = 0x20;
const ZLIB_HEADER: usize = ZLIB.len() + size_of::<u32>();
/// More than any honest block takes: the rest is an attack.
const MAX_BLOCK: usize = 64 << 10;

/// In the order of the wire; names are lower case there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn to_block(&self) -> Vec<u8> {
        let mut block = (self.0.len() as u32).to_be_bytes().to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }

    fn from_block(mut block: &[u8]) -> Option<Self> {
        let pairs = take_u32(&mut block)?;
        (0..pairs).map(|_| Some((take_text(&mut block)?, take_text(&mut block)?))).collect::<Option<_>>().map(Self)
    }
}

impl<'a, const N: usize> From<[(&'a str, &'a str); N]> for Headers {
    fn from(pairs: [(&'a str, &'a str); N]) -> Self {
        Self(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }
}

fn take_u32(block: &mut &[u8]) -> Option<u32> {
    let (head, rest) = block.split_first_chunk()?;
    *block = rest;
    Some(u32::from_be_bytes(*head))
}

fn take_text(block: &mut &[u8]) -> Option<String> {
    let length = take_u32(block)? as usize;
    let (head, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some(String::from_utf8_lossy(head).into_owned())
}

pub(super) struct Deflater {
    stream: Compress,
    begun: bool,
}

impl Deflater {
    pub(super) fn new() -> Self {
        let mut stream = Compress::new(Compression::fast(), false);
        deflate(&mut stream, &DICTIONARY);
        Self { stream, begun: false }
    }

    pub(super) fn pack(&mut self, headers: &Headers) -> Vec<u8> {
        let packed = deflate(&mut self.stream, &headers.to_block());
        if std::mem::replace(&mut self.begun, true) {
            return packed;
        }
        [&ZLIB[..], &ADLER32.to_be_bytes(), &packed].concat()
    }
}

fn deflate(stream: &mut Compress, input: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(input.len() + 128);
    let begin = stream.total_in();
    loop {
        let done = (stream.total_in() - begin) as usize;
        stream
            .compress_vec(&input[done..], &mut output, FlushCompress::Sync)
            .expect("a deflate stream that is never finished takes any input");
        let consumed = (stream.total_in() - begin) as usize == input.len();
        if consumed && output.len() < output.capacity() {
            return output;
        }
        output.reserve(input.len() + 128);
    }
}

pub(super) struct Inflater {
    stream: Decompress,
    begun: bool,
}

impl Inflater {
    pub(super) fn new() -> Self {
        let mut stream = Decompress::new(false);
        let length = (DICTIONARY.len() as u16).to_le_bytes();
        let complement = (!(DICTIONARY.len() as u16)).to_le_bytes();
        // Deflate's "stored" block, not the last one.
        let stored = [&[0][..], &length, &complement, &DICTIONARY].concat();
        inflate(&mut stream, &stored).expect("a stored block inflates");
        Self { stream, begun: false }
    }

    pub(super) fn unpack(&mut self, mut packed: &[u8]) -> Result<Headers, SpdyError> {
        if !self.begun {
            let (zlib, rest) = packed.split_at_checked(ZLIB_HEADER).ok_or(SpdyError::Headers)?;
            if zlib[1] & PRESET_DICTIONARY == 0 || zlib[2..] != ADLER32.to_be_bytes() {
                return Err(SpdyError::Headers);
            }
            (packed, self.begun) = (rest, true);
        }
        let block = inflate(&mut self.stream, packed).ok_or(SpdyError::Headers)?;
        Headers::from_block(&block).ok_or(SpdyError::Headers)
    }
}

fn inflate(stream: &mut Decompress, input: &[u8]) -> Option<Vec<u8>> {
    let mut output = Vec::with_capacity(4096);
    let begin = stream.total_in();
    loop {
        let done = (stream.total_in() - begin) as usize;
        let status = stream.decompress_vec(&input[done..], &mut output, FlushDecompress::Sync).ok()?;
        let consumed = (stream.total_in() - begin) as usize == input.len();
        if consumed && output.len() < output.capacity() {
            return Some(output);
        }
        if output.len() > MAX_BLOCK || (status == Status::BufError && output.len() < output.capacity()) {
            return None;
        }
        output.reserve(4096);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_zlib_streams_name() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((DICTIONARY.len(), b << 16 | a), (1423, ADLER32));
    }

    #[test]
    fn blocks_pass_in_order_through_one_stream() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for turn in 0..50 {
            let id = turn.to_string();
            let headers = Headers::from([("streamtype", "error"), ("port", "8080"), ("requestid", &id)]);
            assert_eq!(inflater.unpack(&deflater.pack(&headers)).unwrap(), headers);
        }
        let long = "x".repeat(20_000);
        let headers = Headers::from([("long", long.as_str())]);
        assert_eq!(inflater.unpack(&deflater.pack(&headers)).unwrap(), headers);
    }

    #[test]
    fn blocks_made_by_zlib_are_understood() {
        // Python: zlib.compressobj(9, zdict=DICTIONARY), two blocks, each flushed with Z_SYNC_FLUSH.
        let mut inflater = Inflater::new();
        for (packed, headers) in crate::spdy::tests::ZLIB_BLOCKS {
            assert_eq!(inflater.unpack(packed).unwrap(), Headers::from(*headers));
        }
    }

    #[test]
    fn garbage_and_bombs_are_refused() {
        assert!(Inflater::new().unpack(b"").is_err());
        assert!(Inflater::new().unpack(&[0x78, 0x9c, 1, 2, 3, 4, 5, 6]).is_err());
        let mut bomb = Deflater::new();
        let zeros = "0".repeat(10 << 20);
        assert!(Inflater::new().unpack(&bomb.pack(&Headers::from([("a", zeros.as_str())]))).is_err());
    }
}

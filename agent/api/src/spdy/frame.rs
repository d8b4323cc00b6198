//! Frames of SPDY/3: eight bytes of head, then a body.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::SpdyError;

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
pub(super) const FIN: u8 = 1;
/// Data comes in pieces of 32 KiB from every known peer; a frame of this size is none of theirs.
const MAX_FRAME: usize = 4 << 20;

/// `streams` are ids; `block` is a packed block of headers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Open {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    Reply {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings and window updates: no peer of ours keeps windows.
    Other,
}

impl Frame {
    pub(super) async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Option<Self>, SpdyError> {
        let mut head = [0; 8];
        match io.read_exact(&mut head).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > MAX_FRAME {
            return Err(SpdyError::Frame);
        }
        let mut body = vec![0; length];
        io.read_exact(&mut body).await?;
        Self::decode(head, body.into()).map(Some)
    }

    fn decode(head: [u8; 8], mut body: Bytes) -> Result<Self, SpdyError> {
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let fin = head[4] & FIN != 0;
        if head[0] & 0x80 == 0 {
            return Ok(Self::Data { stream: first, fin, data: body });
        }
        if (first >> 16) as u16 != CONTROL | VERSION {
            return Err(SpdyError::Frame);
        }
        let word = |at: usize| {
            let bytes = body.get(at..at + 4).ok_or(SpdyError::Frame)?;
            Ok::<_, SpdyError>(u32::from_be_bytes(bytes.try_into().expect("four bytes")) & 0x7fff_ffff)
        };
        Ok(match first as u16 {
            1 if body.len() >= 10 => Self::Open { stream: word(0)?, fin, block: body.split_off(10) },
            2 if body.len() >= 4 => Self::Reply { stream: word(0)?, fin, block: body.split_off(4) },
            3 => Self::Reset { stream: word(0)?, status: word(4)? },
            6 => Self::Ping { id: word(0)? },
            7 => Self::GoAway,
            8 if body.len() >= 4 => Self::Headers { stream: word(0)?, fin, block: body.split_off(4) },
            4 | 9 => Self::Other,
            _ => return Err(SpdyError::Frame),
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let id = |stream: &u32| stream.to_be_bytes();
        match self {
            Self::Open { stream, fin, block } => control(1, *fin, &[&id(stream), &[0; 6], block]),
            Self::Reply { stream, fin, block } => control(2, *fin, &[&id(stream), block]),
            Self::Reset { stream, status } => control(3, false, &[&id(stream), &status.to_be_bytes()]),
            Self::Ping { id: ping } => control(6, false, &[&id(ping)]),
            Self::GoAway => control(7, false, &[&[0; 8]]),
            Self::Headers { stream, fin, block } => control(8, *fin, &[&id(stream), block]),
            Self::Data { stream, fin, data } => frame(*stream, *fin, &[data]),
            Self::Other => Vec::new(),
        }
    }
}

fn control(kind: u16, fin: bool, body: &[&[u8]]) -> Vec<u8> {
    frame(u32::from(CONTROL | VERSION) << 16 | u32::from(kind), fin, body)
}

fn frame(first: u32, fin: bool, body: &[&[u8]]) -> Vec<u8> {
    let length = body.iter().map(|part| part.len()).sum::<usize>() as u32;
    let mut bytes = Vec::with_capacity(8 + length as usize);
    bytes.extend_from_slice(&first.to_be_bytes());
    bytes.extend_from_slice(&(u32::from(if fin { FIN } else { 0 }) << 24 | length).to_be_bytes());
    body.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_frame_has_the_bytes_of_the_specification() {
        let block = || Bytes::from_static(b"hh");
        let rows = [
            (
                Frame::Open { stream: 1, fin: false, block: block() },
                &b"\x80\x03\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00hh"[..],
            ),
            (
                Frame::Reply { stream: 1, fin: false, block: block() },
                b"\x80\x03\x00\x02\x00\x00\x00\x06\x00\x00\x00\x01hh",
            ),
            (Frame::Data { stream: 5, fin: true, data: block() }, b"\x00\x00\x00\x05\x01\x00\x00\x02hh"),
            (
                Frame::Reset { stream: 3, status: 5 },
                b"\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x03\x00\x00\x00\x05",
            ),
            (Frame::Ping { id: 2 }, b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x02"),
            (Frame::GoAway, b"\x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00"),
        ];
        for (frame, bytes) in rows {
            assert_eq!(frame.encode(), bytes, "{frame:?}");
            assert_eq!(Frame::read(&mut &bytes[..]).await.unwrap(), Some(frame));
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_of_this_version_is_an_error_and_a_clean_end_is_not() {
        assert!(Frame::read(&mut &b""[..]).await.unwrap().is_none());
        let version_2 = b"\x80\x02\x00\x06\x00\x00\x00\x04\x00\x00\x00\x02";
        let short_reset = b"\x80\x03\x00\x03\x00\x00\x00\x04\x00\x00\x00\x02";
        let torn = b"\x00\x00\x00\x05\x01\x00\x00\x09hh";
        for bytes in [&version_2[..], short_reset, torn] {
            assert!(Frame::read(&mut &bytes[..]).await.is_err());
        }
    }
}

//! Protobuf's encoding: numbered fields one after the other, and what can be wrong with them.

use crate::definition::Shape;

/// Why bytes are no message. The words are those of upstream's generated readers.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("empty data")]
    EmptyData,
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("empty body")]
    EmptyBody,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: illegal tag")]
    Tag,
    #[error("proto: unexpected end of group")]
    EndOfGroup,
    #[error("proto: illegal wireType {0}")]
    IllegalType(u64),
    #[error("proto: wrong wireType = {found} for field {field}")]
    WrongType { found: u8, field: &'static str },
    #[error("proto: the message nests too deeply")]
    Deep,
    #[error("proto: a timestamp is out of range")]
    Time,
    #[error("{0}")]
    Extension(String),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Wire<'a> {
    pub fn misfit(self, field: &'static str) -> Malformed {
        let found = match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32 => 5,
        };
        Malformed::WrongType { found, field }
    }

    /// The items of a repeated field: one, or many numbers packed into one.
    pub fn unpacked(self, shape: &Shape) -> Result<Vec<Self>, Malformed> {
        let Self::Bytes(mut packed) = self else { return Ok(vec![self]) };
        let mut items = Vec::new();
        match shape {
            Shape::Bool | Shape::Int32 | Shape::Int64 => {
                while !packed.is_empty() {
                    items.push(Self::Varint(varint(&mut packed)?));
                }
            }
            Shape::Float => {
                while !packed.is_empty() {
                    items.push(Self::Fixed64(fixed64(&mut packed)?));
                }
            }
            _ => items.push(self),
        }
        Ok(items)
    }
}

/// A message's fields; nothing follows an error. Groups, which no kind has, are skipped.
pub(super) struct Message<'a>(pub &'a [u8]);

impl<'a> Iterator for Message<'a> {
    type Item = Result<(u32, Wire<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.read().transpose();
        if let Some(Err(_)) = field {
            self.0 = &[];
        }
        field
    }
}

impl<'a> Message<'a> {
    fn read(&mut self) -> Result<Option<(u32, Wire<'a>)>, Malformed> {
        let mut groups = 0_usize;
        while !self.0.is_empty() {
            let tag = varint(&mut self.0)?;
            let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0).ok_or(Malformed::Tag)?;
            let wire = match tag & 7 {
                0 => Wire::Varint(varint(&mut self.0)?),
                1 => Wire::Fixed64(fixed64(&mut self.0)?),
                2 => {
                    let length = usize::try_from(varint(&mut self.0)?).map_err(|_| Malformed::Overflow)?;
                    Wire::Bytes(take(&mut self.0, length)?)
                }
                3 => {
                    groups += 1;
                    continue;
                }
                4 => {
                    groups = groups.checked_sub(1).ok_or(Malformed::EndOfGroup)?;
                    continue;
                }
                5 => array::<4>(&mut self.0).map(|_| Wire::Fixed32)?,
                other => return Err(Malformed::IllegalType(other)),
            };
            if groups == 0 {
                return Ok(Some((number, wire)));
            }
        }
        if groups == 0 { Ok(None) } else { Err(Malformed::Truncated) }
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = array(bytes)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Malformed::Overflow)
}

fn fixed64(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    array(bytes).map(u64::from_le_bytes)
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (head, rest) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
    *bytes = rest;
    Ok(*head)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Malformed::Truncated)?;
    *bytes = rest;
    Ok(taken)
}

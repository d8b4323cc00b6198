//! SCTP's checksum when ports change (RFC 9260, section 6.8 and appendix A).
//!
//! It covers the packet from its ports to its last byte and no addresses. CRC32c is linear: if the first word of a packet
//! changes by `d`, the checksum changes by what `d` alone, followed by zeros up to the end, would give. That is `d`
//! multiplied by a power of x, a few steps however long the packet is.

/// The Castagnoli polynomial, bits reversed: the lowest power is the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const ONE: u32 = 1 << 31;
/// x^8, x^16, x^32 and so on: one byte further, two, four. A packet has less than 2^16 bytes.
const STEPS: [u32; 16] = steps();

const fn steps() -> [u32; 16] {
    let mut steps = [1 << 23; 16];
    let mut i = 1;
    while i < 16 {
        steps[i] = multiply(steps[i - 1], steps[i - 1]);
        i += 1;
    }
    steps
}

/// The product of two polynomials modulo the third. No branch depends on the data: one path for the verifier.
#[inline(always)]
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut i = 0;
    while i < 32 {
        product ^= b & (a >> 31).wrapping_neg();
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        i += 1;
    }
    product
}

/// The checksum after the ports have changed. Words are as they stand in the packet read as little-endian; `length` is
/// that of the whole SCTP packet. A checksum of 0 is left alone: the sender's kernel leaves it to the device, which will
/// compute it over what the packet is by then. (Of true checksums one in 2^32 is 0; such a packet is lost.)
#[inline(always)]
pub fn replace_ports(checksum: u32, old: u32, new: u32, length: u16) -> u32 {
    if checksum == 0 {
        return 0;
    }
    let mut change = old ^ new;
    for (bit, step) in STEPS.iter().enumerate() {
        let set = u32::from(length >> bit & 1).wrapping_neg();
        change = multiply(change, (step & set) | (ONE & !set));
    }
    checksum ^ change
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// One bit at a time, as the appendix has it.
    fn crc32c(bytes: &[u8]) -> u32 {
        let step = |crc: u32| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
        !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
    }

    #[test]
    fn the_polynomial_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn changed_ports_give_the_checksum_of_the_changed_packet() {
        for length in [12usize, 13, 16, 28, 100, 1480, 8999, 65_515] {
            let mut packet: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
            packet[8..12].fill(0);
            let before = crc32c(&packet);
            let old = u32::from_le_bytes(packet[..4].try_into().unwrap());
            packet[..4].copy_from_slice(&[0x75, 0x30, 0x1f, 0x90]);
            let new = u32::from_le_bytes(packet[..4].try_into().unwrap());
            assert_eq!(replace_ports(before, old, new, length as u16), crc32c(&packet), "{length} bytes");
        }
    }

    #[test]
    fn a_checksum_that_is_left_to_the_device_stays_so() {
        assert_eq!(replace_ports(0, 1, 2, 100), 0);
    }
}

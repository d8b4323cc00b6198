//! From the `bandwidth` that a runtime asks for to the rates that the datapath keeps. Pure.

use leme_cni::Bandwidth;
use leme_datapath::{Limits, Rate};

/// containerd's word for "no burst was asked for": as bits it would be half a gigabyte before any limit is felt.
const UNSAID: u64 = u32::MAX as u64;
/// What may come at once where nothing was said: half a second's, and no less than two of the largest packets. TCP that
/// has lost too much at once falls silent for a fifth of a second and more (its least retransmission timeout): what it
/// could have sent meanwhile must not be lost to it, or it would stay far below its rate.
const SHARE: u64 = 2;
const LEAST: u64 = 128 * 1024;

pub fn limits(bandwidth: Option<Bandwidth>) -> Limits {
    let Some(Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst }) = bandwidth else {
        return Limits::default();
    };
    Limits { ingress: rate(ingress_rate, ingress_burst), egress: rate(egress_rate, egress_burst) }
}

/// From bits to bytes.
fn rate(bits: u64, burst: u64) -> Option<Rate> {
    let bytes_per_second = (bits / 8).max(1);
    let burst = match burst {
        0 | UNSAID => (bytes_per_second / SHARE).max(LEAST),
        said => said / 8,
    };
    (bits != 0).then_some(Rate { bytes_per_second, burst })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_bytes_and_an_unsaid_burst_a_small_one() {
        let asked =
            Bandwidth { ingress_rate: 100_000_000, ingress_burst: UNSAID, egress_rate: 800, egress_burst: 8000 };
        let ingress = Some(Rate { bytes_per_second: 12_500_000, burst: 6_250_000 });
        let egress = Some(Rate { bytes_per_second: 100, burst: 1000 });
        assert_eq!(limits(Some(asked)), Limits { ingress, egress });
        let slow = Bandwidth { egress_rate: 1_000_000, ..Bandwidth::default() };
        let egress = Some(Rate { bytes_per_second: 125_000, burst: 131_072 });
        assert_eq!(limits(Some(slow)), Limits { ingress: None, egress });
        assert!(limits(None).is_none());
    }
}

//! How fast a pod may send and receive, in the units that people use; `leme_abi::Rates` is what the kernel keeps.

use leme_abi::{Bucket, Endpoint, Rates};
use serde::{Deserialize, Serialize};

const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// To the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// From it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub bytes_per_second: u64,
    /// How many bytes may come on top after a pause.
    pub burst: u64,
}

impl Limits {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Of the pod's endpoint.
    pub(crate) fn flags(&self) -> u32 {
        let ingress = if self.ingress.is_some() { Endpoint::INGRESS_RATE } else { 0 };
        ingress | if self.egress.is_some() { Endpoint::EGRESS_RATE } else { 0 }
    }

    pub(crate) fn rates(&self) -> Rates {
        Rates { ingress: bucket(self.ingress), egress: bucket(self.egress) }
    }

    pub(crate) fn from_rates(rates: &Rates) -> Self {
        Self { ingress: rate(&rates.ingress), egress: rate(&rates.egress) }
    }
}

/// A rate of nothing at all is one byte per second: zero means no limit to the programs.
fn bucket(rate: Option<Rate>) -> Bucket {
    let Some(Rate { bytes_per_second, burst }) = rate else { return Bucket::default() };
    let rate = bytes_per_second.max(1);
    Bucket { rate, burst: scale(burst, SECOND, rate), ready: 0 }
}

fn rate(bucket: &Bucket) -> Option<Rate> {
    let burst = scale(bucket.burst, bucket.rate, SECOND);
    (bucket.rate != 0).then_some(Rate { bytes_per_second: bucket.rate, burst })
}

/// Rounded to the nearest, so that there and back again is the same for any burst that can be told from another.
fn scale(value: u64, by: u64, per: u64) -> u64 {
    let scaled = (u128::from(value) * u128::from(by) + u128::from(per) / 2) / u128::from(per);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_keeps_is_read_back_as_it_was_written() {
        let rate = |bytes_per_second, burst| Some(Rate { bytes_per_second, burst });
        for limits in [
            Limits::default(),
            Limits { ingress: rate(125_000, 131_072), egress: None },
            Limits { ingress: rate(1, 1), egress: rate(12_500_000_000, 625_000_000) },
        ] {
            assert_eq!(Limits::from_rates(&limits.rates()), limits);
        }
    }
}

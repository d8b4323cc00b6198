//! When a node counts as under pressure, and what it therefore keeps from its pods: the kubelet's `--eviction-hard`.

use std::str::FromStr;

/// Below this much the node is under pressure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Bytes(i64),
    /// Of all there is. A 32-bit fraction, as at upstream: it shows in the last digits of what is allocatable.
    Share(f32),
}

impl Amount {
    const NOTHING: Self = Self::Share(0.0);

    pub fn of(self, all: i64) -> i64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (all as f64 * f64::from(share)) as i64,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    pub memory: Amount,
    /// Of the file system that holds the pods.
    pub disk: Amount,
    pub inodes: Amount,
    pub pids: Amount,
}

impl Default for Thresholds {
    /// The kubelet's.
    fn default() -> Self {
        Self {
            memory: Amount::Bytes(100 << 20),
            disk: Amount::Share(0.10),
            inodes: Amount::Share(0.05),
            pids: Amount::Share(0.05),
        }
    }
}

impl FromStr for Thresholds {
    type Err = String;

    /// `memory.available<100Mi,nodefs.available<10%`. As at upstream, what is not named has no threshold.
    fn from_str(text: &str) -> Result<Self, String> {
        let none = Amount::NOTHING;
        let mut thresholds = Self { memory: none, disk: none, inodes: none, pids: none };
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (signal, amount) = part.split_once('<').ok_or_else(|| format!("{part:?}: expected SIGNAL<AMOUNT"))?;
            let place = match signal {
                "memory.available" => &mut thresholds.memory,
                "nodefs.available" => &mut thresholds.disk,
                "nodefs.inodesFree" => &mut thresholds.inodes,
                "pid.available" => &mut thresholds.pids,
                other => return Err(format!("unknown signal {other:?}")),
            };
            *place = amount.parse()?;
        }
        Ok(thresholds)
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no amount: expected 100Mi or 10%");
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse::<f32>() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Share(percent / 100.0)),
                _ => Err(bad()),
            },
            None => crate::pods::quantity::units(text).filter(|bytes| *bytes >= 0).map(Self::Bytes).ok_or_else(bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_has_a_threshold_and_nothing_else() {
        let found: Thresholds = "memory.available<1Gi,nodefs.available<0%".parse().unwrap();
        assert_eq!(found.memory.of(1 << 40), 1 << 30);
        assert_eq!(found.disk.of(1 << 40), 0);
        assert_eq!(found.pids.of(1000), 0);
        for bad in ["memory.available", "memory.available<x", "nodefs.available<101%", "weather<10%"] {
            assert!(bad.parse::<Thresholds>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_end_in_upstreams_digits() {
        let storage: i64 = 61_255_492 << 10;
        assert_eq!(storage - Thresholds::default().disk.of(storage), 56_453_061_334);
    }
}

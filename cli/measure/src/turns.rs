//! Subjects take turns, round by round, each round beginning with another one and every second one going backwards: what
//! the machine does besides meets all of them alike.

use anyhow::Result;

use crate::Burst;

/// The bursts of each of `count` subjects; the n-th of all belong to the same round. A round that warms up comes first
/// and does not count.
pub fn take(count: usize, rounds: usize, mut burst: impl FnMut(usize) -> Result<Burst>) -> Result<Vec<Vec<Burst>>> {
    let mut bursts: Vec<Vec<Burst>> = vec![Vec::with_capacity(rounds); count];
    for round in 0..=rounds {
        for subject in order(round, count) {
            let taken = burst(subject)?;
            if round > 0 {
                bursts[subject].push(taken);
            }
        }
    }
    Ok(bursts)
}

fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).map(|n| (n + round / 2) % count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_subject_and_neighbours_change_sides() {
        assert_eq!([order(0, 3), order(1, 3), order(2, 3)], [vec![0, 1, 2], vec![2, 1, 0], vec![1, 2, 0]]);
        assert!(order(7, 0).is_empty());
    }

    #[test]
    fn the_first_round_does_not_count() {
        let mut calls = 0.0;
        let taken = take(2, 3, |_| {
            calls += 1.0;
            Ok(Burst { rate: calls, latency: None })
        });
        let taken = taken.unwrap();
        assert_eq!((taken.len(), taken[0].len(), calls), (2, 3, 8.0));
        assert!(taken.iter().flatten().all(|burst| burst.rate > 2.0));
    }
}

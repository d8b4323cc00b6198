//! The kubelet's growing pauses: 10 s, 20 s … 5 min between restarts of a container and pulls of an image, forgotten
//! after ten quiet minutes. Time is an argument, so tests need none.

use jiff::{SignedDuration, Timestamp};

const INITIAL: SignedDuration = SignedDuration::from_secs(10);
const MAX: SignedDuration = SignedDuration::from_secs(300);

#[derive(Clone, Debug, Default)]
pub struct Backoff {
    delay: SignedDuration,
    touched: Option<Timestamp>,
}

impl Backoff {
    /// One more attempt is being made: the next must wait longer.
    pub fn advance(&mut self, now: Timestamp) {
        let quiet = self.touched.is_some_and(|touched| now.duration_since(touched) > MAX * 2);
        self.delay = match self.delay {
            delay if delay.is_zero() || quiet => INITIAL,
            delay => (delay * 2).min(MAX),
        };
        self.touched = Some(now);
    }

    /// Until when to hold back after a failure at `failed`; none if another attempt may be made now.
    pub fn until(&self, failed: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let until = failed + self.delay;
        (now < until).then_some(until)
    }

    pub fn delay(&self) -> SignedDuration {
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_wait_ten_seconds_doubling_to_five_minutes() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.until(at(0), at(0)), None);
        let mut delays = Vec::new();
        for _ in 0..8 {
            backoff.advance(at(0));
            delays.push(backoff.delay().as_secs());
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(backoff.until(at(5), at(6)), Some(at(305)));
        assert_eq!(backoff.until(at(5), at(305)), None);
    }

    #[test]
    fn ten_quiet_minutes_are_forgiven() {
        let mut backoff = Backoff::default();
        (0..5).for_each(|_| backoff.advance(at(0)));
        backoff.advance(at(601));
        assert_eq!(backoff.delay().as_secs(), 10);
    }
}

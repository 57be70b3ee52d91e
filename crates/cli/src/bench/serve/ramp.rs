//! Which rate to try next on the way to a server's limit. Pure: told how the last rate went, names the next.

/// Requests a second that a ramp begins with.
const FIRST_RATE: f64 = 0.25;
/// Doublings until a ramp gives up finding a limit: above 8,000 requests a second.
const MAX_DOUBLINGS: usize = 15;
/// Halvings of the interval between a rate that held and one that did not: the limit within 9 %.
const REFINEMENTS: usize = 3;
/// A rate holds where this share of its requests keeps both targets.
const GOOD_SHARE: f64 = 0.9;
/// How long the arrivals of one rate take, seconds, and how many there are at least and at most.
const STEP_SECONDS: f64 = 20.0;
const STEP_REQUESTS: (f64, f64) = (10.0, 400.0);

/// The state of a ramp: doubling until a rate fails, then halving the interval.
#[derive(Clone, Debug)]
pub(super) struct Ramp {
    rate: f64,
    /// The highest rate that held.
    held: Option<f64>,
    /// The lowest rate that failed.
    failed: Option<f64>,
    doublings: usize,
    refinements: usize,
}

impl Ramp {
    pub(super) fn new() -> Self {
        Self { rate: FIRST_RATE, held: None, failed: None, doublings: 0, refinements: 0 }
    }

    /// The rate to measure now, requests a second.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Requests that make a measurement of it.
    pub(super) fn requests(&self) -> usize {
        (self.rate * STEP_SECONDS).clamp(STEP_REQUESTS.0, STEP_REQUESTS.1) as usize
    }

    /// Takes the share of requests that kept the targets at this rate; true while there is another rate to try.
    pub(super) fn advance(&mut self, good_share: f64) -> bool {
        if good_share >= GOOD_SHARE {
            self.held = Some(self.rate);
        } else {
            self.failed = Some(self.rate);
        }
        match (self.held, self.failed) {
            (Some(held), Some(failed)) if self.refinements < REFINEMENTS => {
                self.refinements += 1;
                // The geometric middle: rates double.
                self.rate = (held * failed).sqrt();
                true
            }
            (Some(_), None) if self.doublings < MAX_DOUBLINGS => {
                self.doublings += 1;
                self.rate *= 2.0;
                true
            }
            _ => false,
        }
    }

    /// The highest rate that held; `None` where not even the first did.
    pub(super) fn limit(&self) -> Option<f64> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::Ramp;

    /// The rates tried against a server that holds up to `capacity` requests a second.
    fn climb(capacity: f64) -> (Vec<f64>, Option<f64>) {
        let (mut ramp, mut tried) = (Ramp::new(), Vec::new());
        loop {
            tried.push(ramp.rate());
            if !ramp.advance(if ramp.rate() <= capacity { 1.0 } else { 0.2 }) {
                return (tried, ramp.limit());
            }
        }
    }

    #[test]
    fn a_ramp_closes_in_on_the_limit() {
        for capacity in [0.3, 1.0, 2.7, 3.0, 100.0, 777.0] {
            let (tried, limit) = climb(capacity);
            let limit = limit.unwrap();
            assert!(
                limit <= capacity && limit * 1.1 > capacity,
                "{capacity}: {limit} of {tried:?}"
            );
        }
        let (tried, limit) = climb(2.7);
        assert_eq!(&tried[..5], &[0.25, 0.5, 1.0, 2.0, 4.0]);
        assert_eq!((tried.len(), limit.map(|l| (l * 100.0).round())), (8, Some(259.0)));
    }

    #[test]
    fn a_ramp_ends_at_both_ends() {
        assert_eq!(climb(0.0), (vec![0.25], None));
        let (tried, limit) = climb(f64::INFINITY);
        assert_eq!((tried.len(), limit), (16, Some(8192.0)));
    }

    #[test]
    fn a_step_has_a_bounded_number_of_requests() {
        let mut ramp = Ramp::new();
        assert_eq!(ramp.requests(), 10);
        while ramp.advance(1.0) {}
        assert_eq!(ramp.requests(), 400);
    }
}

//! How many lines run at once.
//!
//! The engine computes a line only in steps in which nothing else could be computed; what is left to whoever comes then
//! is the step under way. So lines are as many as keep a step short, by the engines' own clocks, and none is added
//! while somebody waits.

use std::time::Duration;

use mintage_model::EngineLoad;

/// As long as a step may take while only lines are computed.
const STEP_TARGET_MS: f64 = 25.0;
/// Steps that a judgement needs.
const MIN_STEPS: u64 = 4;

/// The number of lines in flight.
#[derive(Debug)]
pub(crate) struct Pace {
    window: usize,
    most: usize,
    steps: u64,
    step_time: Duration,
}

impl Pace {
    pub(crate) fn new(most: usize) -> Self {
        Self { window: 1, most: most.max(1), steps: 0, step_time: Duration::ZERO }
    }

    /// Lines that may be in flight while `online` other requests are.
    pub(crate) fn window(&self, online: usize) -> usize {
        if online > 0 { 1 } else { self.window }
    }

    /// Looks at the engines' clocks. `is_alone`: nothing but lines ran since the last look.
    pub(crate) fn observe(&mut self, loads: impl Iterator<Item = EngineLoad>, is_alone: bool) {
        let (mut steps, mut step_time) = (0_u64, Duration::ZERO);
        for load in loads {
            steps += load.steps;
            step_time += load.step_time;
        }
        let new_steps = steps.saturating_sub(self.steps);
        let new_time = step_time.saturating_sub(self.step_time);
        if is_alone && new_steps > 0 && new_steps < MIN_STEPS {
            // Too few to tell: counted with the next.
            return;
        }
        (self.steps, self.step_time) = (steps, step_time);
        if !is_alone {
            return;
        }
        let mean_ms = new_time.as_secs_f64() * 1000.0 / new_steps.max(1) as f64;
        self.window = if mean_ms > STEP_TARGET_MS {
            (self.window * 3 / 4).max(1)
        } else {
            // Engines without steps are elsewhere: nothing here is delayed.
            (self.window + 1).min(self.most)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_steps() {
        let mut pace = Pace::new(6);
        let (mut steps, mut time) = (0, 0.0);
        let mut look = |pace: &mut Pace, new: u64, ms: f64, alone| {
            steps += new;
            time += new as f64 * ms;
            let step_time = Duration::from_secs_f64(time / 1000.0);
            let load = EngineLoad { steps, step_time, ..EngineLoad::default() };
            pace.observe([load].into_iter(), alone);
            pace.window(0)
        };
        assert_eq!(look(&mut pace, 10, 5.0, true), 2);
        assert_eq!(look(&mut pace, 10, 5.0, true), 3);
        // Too few to tell.
        assert_eq!(look(&mut pace, 2, 500.0, true), 3);
        assert_eq!(look(&mut pace, 2, 500.0, true), 2);
        // Others' steps say nothing.
        assert_eq!(look(&mut pace, 100, 500.0, false), 2);
        for _ in 0..10 {
            look(&mut pace, 10, 24.0, true);
        }
        assert_eq!(pace.window(0), 6);
        assert_eq!(pace.window(1), 1);
        for _ in 0..10 {
            look(&mut pace, 10, 26.0, true);
        }
        assert_eq!(pace.window(0), 1);
    }
}

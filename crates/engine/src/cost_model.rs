//! How long a step will take on this machine, learned from the steps before it. It has no clock: durations are told.
//!
//! Two linear models, each fitted by least squares over exponentially weighted past steps: one for steps of decode rows
//! alone, one for steps with prompt tokens, since a wide step is bound by arithmetic and a narrow one by memory.
//! Errors count relative to the step's duration. A weak pull to the latest fit keeps what a run of equal steps cannot
//! tell (a decode that never changes its width says nothing about wider ones).

/// Weight of the past, a step.
const FORGETTING: f64 = 0.97;
/// Weight of the pull to the last fit, in observations.
const RIDGE: f64 = 0.05;
/// How firm the weights of decodes are against it. What steps of one row cannot tell apart is laid on their fixed part
/// first, reading the weights; and a context that grows while the machine slows down must not take the blame: what
/// attending costs is believed only when steps of very different contexts say so.
const DECODE_FIRMNESS: [f64; FEATURES] = [1.0, 8.0, 8.0, 100.0];
/// Durations below this count as this when errors are weighted, ms.
const SHORTEST_STEP_MS: f64 = 1.0;
const FEATURES: usize = 4;
/// The feature that counts pairs attended to.
const ATTENDING: usize = 3;

/// The shape of a step, as far as its duration depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepShape {
    /// Sequences that compute one new token.
    pub decode_rows: usize,
    /// Tokens of prompts.
    pub prompt_tokens: usize,
    /// Pairs of a token and a position it attends to.
    pub attended: usize,
}

impl StepShape {
    /// Adds `tokens` tokens that follow `computed` ones, of a prompt or of a decode.
    #[must_use]
    pub fn with(self, computed: usize, tokens: usize, is_prompt: bool) -> Self {
        Self {
            decode_rows: self.decode_rows + if is_prompt { 0 } else { tokens },
            prompt_tokens: self.prompt_tokens + if is_prompt { tokens } else { 0 },
            attended: self.attended + tokens * computed + tokens * (tokens + 1) / 2,
        }
    }

    fn features(self) -> [f64; FEATURES] {
        // Thousands of pairs, so that all features have about the same size.
        let attended = self.attended as f64 / 1000.0;
        [1.0, self.decode_rows as f64, self.prompt_tokens as f64, attended]
    }
}

/// Duration = weights · features.
#[derive(Clone, Debug)]
struct LinearModel {
    weights: [f64; FEATURES],
    /// How strong the pull is, for each weight.
    firmness: [f64; FEATURES],
    /// Where the weight of attending is pulled to; the others, and this one where it is `None`, to the last fit.
    attending_anchor: Option<f64>,
    /// Weighted sums of features × features, and of features × duration.
    moments: [[f64; FEATURES]; FEATURES],
    products: [f64; FEATURES],
}

impl LinearModel {
    fn new(weights: [f64; FEATURES], firmness: [f64; FEATURES]) -> Self {
        let (moments, products) = ([[0.0; FEATURES]; FEATURES], [0.0; FEATURES]);
        Self { weights, firmness, attending_anchor: None, moments, products }
    }

    /// Pulls the weight of attending to what it is now.
    fn anchored(self) -> Self {
        Self { attending_anchor: Some(self.weights[ATTENDING]), ..self }
    }

    fn predict_ms(&self, features: &[f64; FEATURES]) -> f64 {
        self.weights.iter().zip(features).map(|(w, x)| w * x).sum()
    }

    fn observe(&mut self, features: &[f64; FEATURES], duration_ms: f64) {
        let weight = duration_ms.max(SHORTEST_STEP_MS).powi(-2);
        for (i, &x) in features.iter().enumerate() {
            for (j, &y) in features.iter().enumerate() {
                self.moments[i][j] = self.moments[i][j] * FORGETTING + weight * x * y;
            }
            self.products[i] = self.products[i] * FORGETTING + weight * x * duration_ms;
        }
        let mut matrix = self.moments;
        let mut right = self.products;
        for i in 0..FEATURES {
            // Scaled like the observations: relative to the share of the duration that the weight explains.
            let pull = RIDGE * self.firmness[i] * (weight * features[i] * features[i]).max(1e-9);
            matrix[i][i] += pull;
            let anchor = self.attending_anchor.filter(|_| i == ATTENDING);
            right[i] += pull * anchor.unwrap_or(self.weights[i]);
        }
        if let Some(weights) = solve(matrix, right) {
            // No part of a step takes negative time.
            self.weights = weights.map(|w| w.max(0.0));
        }
    }
}

/// Gaussian elimination with partial pivoting; `None` where the matrix is (nearly) singular.
fn solve(
    mut matrix: [[f64; FEATURES]; FEATURES],
    mut right: [f64; FEATURES],
) -> Option<[f64; FEATURES]> {
    for column in 0..FEATURES {
        let pivot = (column..FEATURES)
            .max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))?;
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        if matrix[column][column].abs() < 1e-18 {
            return None;
        }
        for row in column + 1..FEATURES {
            let factor = matrix[row][column] / matrix[column][column];
            let pivot_row = matrix[column];
            for (x, pivot) in matrix[row].iter_mut().zip(pivot_row) {
                *x -= factor * pivot;
            }
            right[row] -= factor * right[column];
        }
    }
    let mut solution = [0.0; FEATURES];
    for row in (0..FEATURES).rev() {
        let known: f64 = (row + 1..FEATURES).map(|k| matrix[row][k] * solution[k]).sum();
        solution[row] = (right[row] - known) / matrix[row][row];
    }
    solution.iter().all(|x| x.is_finite()).then_some(solution)
}

/// Predicts the duration of steps.
#[derive(Clone, Debug)]
pub struct CostModel {
    decode: LinearModel,
    mixed: LinearModel,
}

impl Default for CostModel {
    /// A guess to start from: a small model on a small machine. A few steps correct it.
    fn default() -> Self {
        Self::guessed(1.0)
    }
}

impl CostModel {
    /// To start from: so many times what [`CostModel::default`] expects.
    #[must_use]
    pub fn guessed(times: f64) -> Self {
        let weights = |weights: [f64; FEATURES]| weights.map(|weight| weight * times);
        Self {
            decode: LinearModel::new(weights([15.0, 3.0, 3.0, 0.002]), DECODE_FIRMNESS).anchored(),
            mixed: LinearModel::new(weights([10.0, 3.0, 3.0, 0.002]), [1.0; FEATURES]),
        }
    }

    /// Predicted duration, ms.
    #[must_use]
    pub fn predict_ms(&self, shape: StepShape) -> f64 {
        let model = if shape.prompt_tokens > 0 { &self.mixed } else { &self.decode };
        model.predict_ms(&shape.features())
    }

    /// Learns from a step that took `duration_ms`.
    pub fn observe(&mut self, shape: StepShape, duration_ms: f64) {
        if !duration_ms.is_finite() || duration_ms < 0.0 {
            return;
        }
        let model = if shape.prompt_tokens > 0 { &mut self.mixed } else { &mut self.decode };
        model.observe(&shape.features(), duration_ms);
    }

    /// The most prompt tokens after `computed` ones, at most `limit`, that fit beside `shape` into `target_ms`.
    #[must_use]
    pub fn prompt_tokens_within(
        &self,
        shape: StepShape,
        computed: usize,
        limit: usize,
        target_ms: f64,
    ) -> usize {
        let (mut fits, mut too_many) = (0, limit + 1);
        while fits + 1 < too_many {
            let middle = fits.midpoint(too_many);
            if self.predict_ms(shape.with(computed, middle, true)) <= target_ms {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose steps take what `true_ms` says.
    fn check(true_ms: impl Fn(StepShape) -> f64) {
        let mut model = CostModel::default();
        for step in 0..200usize {
            let mut shape = StepShape::default();
            for row in 0..step % 5 {
                shape = shape.with(100 * (row + 1), 1, false);
            }
            if step % 3 == 0 || shape.decode_rows == 0 {
                shape = shape.with(step * 7 % 2000, 32 + step * 13 % 200, true);
            }
            // 5 % of noise
            let noise = 0.95 + 0.1 * ((step * 2_654_435_761) % 1000) as f64 / 1000.0;
            model.observe(shape, true_ms(shape) * noise);
        }
        for (decode_rows, prompt_tokens, computed) in
            [(1, 0, 500), (4, 0, 500), (0, 64, 0), (3, 64, 1000), (0, 200, 1500)]
        {
            let mut shape = StepShape::default();
            for _ in 0..decode_rows {
                shape = shape.with(computed, 1, false);
            }
            if prompt_tokens > 0 {
                shape = shape.with(computed, prompt_tokens, true);
            }
            let (predicted, wanted) = (model.predict_ms(shape), true_ms(shape));
            assert!(
                (predicted / wanted - 1.0).abs() < 0.15,
                "{shape:?}: predicted {predicted:.1} ms, takes {wanted:.1} ms"
            );
        }
    }

    #[test]
    fn it_learns_slow_and_fast_machines() {
        for speed in [0.1, 1.0, 20.0] {
            check(|shape| {
                let attended = shape.attended as f64 / 1000.0;
                speed
                    * (12.0
                        + 1.5 * shape.decode_rows as f64
                        + 2.0 * shape.prompt_tokens as f64
                        + 0.02 * attended)
            });
        }
    }

    #[test]
    fn a_machine_that_slows_down_does_not_make_rows_dear() {
        let mut model = CostModel::default();
        let mut noise = 7u64;
        for step in 0..2000 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let shape = StepShape::default().with(1600 + step % 400, 1, false);
            let swing = if step % 200 < 100 { 0.0 } else { 60.0 };
            model.observe(shape, 60.0 + swing + (noise >> 59) as f64);
            let one = model.predict_ms(shape);
            let two = model.predict_ms(shape.with(1600 + step % 400, 1, false));
            assert!(two < 1.4 * one, "step {step}: a row {one:.1} ms, two {two:.1} ms");
        }
    }

    #[test]
    fn the_chunk_fills_the_target() {
        let mut model = CostModel::default();
        for tokens in [64, 128, 256, 64, 128, 256] {
            let shape = StepShape::default().with(0, tokens, true);
            model.observe(shape, 2.0 * tokens as f64);
        }
        let chunk = model.prompt_tokens_within(StepShape::default(), 0, 4096, 100.0);
        assert!((40..=60).contains(&chunk), "{chunk}");
        assert_eq!(model.prompt_tokens_within(StepShape::default(), 0, 16, 100.0), 16);
    }
}

//! The sampler against a naive reference that sorts everything and renormalises at every step.

use super::*;
use proptest::prelude::*;

/// The documented steps one after the other: what is kept, with probabilities, in order.
fn reference(
    logits: &[f32],
    params: &SamplingParams,
    prompt: &[u32],
    output: &[u32],
) -> Vec<(u32, f64)> {
    let mut x: Vec<f32> = logits.to_vec();
    for &(id, bias) in &params.logit_bias {
        x[id as usize] += bias;
    }
    for id in 0..x.len() as u32 {
        let count = output.iter().filter(|&&t| t == id).count();
        let seen = count > 0 || prompt.contains(&id);
        let v = &mut x[id as usize];
        if seen {
            *v = if *v > 0.0 {
                *v / params.repetition_penalty
            } else {
                *v * params.repetition_penalty
            };
        }
        if count > 0 {
            *v -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
    let highest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut kept: Vec<(u32, f64)> = x
        .iter()
        .enumerate()
        .map(|(id, &v)| (id as u32, f64::from((v - highest) / params.temperature).exp()))
        .collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let renormalise = |kept: &mut Vec<(u32, f64)>| {
        let mass: f64 = kept.iter().map(|k| k.1).sum();
        kept.iter_mut().for_each(|k| k.1 /= mass);
    };
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    renormalise(&mut kept);
    let mut sum = 0.0;
    let mut before = Vec::new();
    for k in &kept {
        before.push(sum);
        sum += k.1;
    }
    let nucleus = before.iter().filter(|&&b| b < f64::from(params.top_p)).count().max(1);
    if params.top_p < 1.0 {
        kept.truncate(nucleus);
    }
    renormalise(&mut kept);
    let best = kept[0].1;
    kept.retain(|k| k.1 >= f64::from(params.min_p) * best);
    renormalise(&mut kept);
    keep_typical_naively(&mut kept, params);
    renormalise(&mut kept);
    kept
}

fn keep_typical_naively(kept: &mut Vec<(u32, f64)>, params: &SamplingParams) {
    if params.typical_p < 1.0 {
        let entropy: f64 =
            -kept.iter().map(|k| if k.1 > 0.0 { k.1 * k.1.ln() } else { 0.0 }).sum::<f64>();
        let mut order: Vec<usize> = (0..kept.len()).collect();
        let distance = |i: usize| (-kept[i].1.ln() - entropy).abs();
        order.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(a.cmp(&b)));
        let mut sum = 0.0;
        let mut stay = vec![false; kept.len()];
        for i in order {
            if sum >= f64::from(params.typical_p) {
                break;
            }
            stay[i] = true;
            sum += kept[i].1;
        }
        let mut index = 0;
        kept.retain(|_| {
            index += 1;
            stay[index - 1]
        });
    }
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let off_or = |range: std::ops::Range<f32>, off: f32| prop_oneof![Just(off), range];
    (
        0.1f32..3.0,
        prop_oneof![Just(0u32), 1u32..200],
        off_or(0.01..1.0, 1.0),
        off_or(0.001..0.9, 0.0),
        off_or(0.05..1.0, 1.0),
        off_or(0.5..2.0, 1.0),
        (off_or(-1.0..1.0, 0.0), off_or(-1.0..1.0, 0.0)),
        prop::collection::vec((0u32..150, -5.0f32..5.0), 0..4),
        any::<u64>(),
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, typical_p, rep, (freq, pres), logit_bias, seed)| {
                SamplingParams {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    typical_p,
                    repetition_penalty: rep,
                    frequency_penalty: freq,
                    presence_penalty: pres,
                    logit_bias,
                    seed,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_draw_is_the_references(
        logits in prop::collection::vec(-6.0f32..6.0, 150),
        params in params(),
        prompt in prop::collection::vec(0u32..150, 0..20),
        output in prop::collection::vec(0u32..150, 0..20),
        first in 1usize..80,
        allowed in prop::option::of(prop::collection::vec(0u32..150, 1..150)),
    ) {
        let mask = allowed.map(|tokens| TokenMask::of(&tokens));
        let allows = |id: usize| mask.as_ref().is_none_or(|mask| mask.allows(id as u32));
        let masked: Vec<f32> = logits.iter().enumerate()
            .map(|(id, &x)| if allows(id) { x } else { f32::NEG_INFINITY }).collect();
        let mut sampler = Sampler::new(params.clone(), &prompt);
        output.iter().for_each(|&id| sampler.accept(id));
        let kept = reference(&masked, &params, &prompt, &output);
        let point = uniform(params.seed, 7);
        let chosen = sampler.sample(&logits, 7, mask.as_ref(), &mut Vec::new()).unwrap();
        prop_assert!(allows(chosen as usize));
        // However few candidates are sorted at first, the answer is the same.
        let mut z = masked.clone();
        sampler.adjust(&mut z);
        let highest = max(&z);
        z.iter_mut().for_each(|x| *x = (*x - highest) / params.temperature);
        prop_assert_eq!(draw(&z, &params, point, first), chosen);
        // The reference's token, or a neighbour where the point lies on the border between two.
        let mut sum = 0.0;
        let near: Vec<u32> = kept.iter().filter(|k| {
            let start = sum;
            sum += k.1;
            start - 1e-4 <= point && point <= sum + 1e-4
        }).map(|k| k.0).collect();
        prop_assert!(near.contains(&chosen), "{} is not among {:?} of {:?}", chosen, near, kept);
    }
}

#[test]
fn frequencies_are_the_probabilities() {
    let logits = [1.0f32, 0.0, 2.0, -1.0];
    let params = SamplingParams { seed: 42, ..SamplingParams::default() };
    let sampler = Sampler::new(params, &[]);
    let mut counts = [0u32; 4];
    for position in 0..40_000 {
        counts[sampler.sample(&logits, position, None, &mut Vec::new()).unwrap() as usize] += 1;
    }
    let total = log_sum_exp(&logits);
    for (id, &count) in counts.iter().enumerate() {
        let (wanted, got) = (f64::from((logits[id] - total).exp()), f64::from(count) / 40_000.0);
        assert!((wanted - got).abs() < 0.01, "token {id}: p = {wanted:.3}, drawn {got:.3}");
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let sample = |params: &SamplingParams, logits: &[f32]| {
        Sampler::new(params.clone(), &[]).sample(logits, 0, None, &mut Vec::new())
    };
    assert_eq!(sample(&params, &[0.0, 3.0, 3.0]), Ok(1));
    let biased = SamplingParams { logit_bias: vec![(0, 4.0)], ..params.clone() };
    assert_eq!(sample(&biased, &[0.0, 3.0, 3.0]), Ok(0));
    assert_eq!(sample(&params, &[0.0, f32::NAN]), Err(SampleError::NotANumber));
    assert_eq!(sample(&params, &[f32::INFINITY, 0.0]), Err(SampleError::NotFinite));
    assert_eq!(sample(&params, &[f32::NEG_INFINITY; 2]), Err(SampleError::NotFinite));
    let cold = SamplingParams { temperature: f32::MIN_POSITIVE, ..params };
    assert_eq!(sample(&cold, &[0.0, 3.0, 2.0]), Ok(1));
}

#[test]
fn banned_tokens_are_never_drawn() {
    let mut logits = vec![f32::NEG_INFINITY; 500];
    logits[3] = -1.0;
    logits[400] = 1.0;
    for position in 0..200 {
        let params = SamplingParams { seed: position, ..SamplingParams::default() };
        let id =
            Sampler::new(params, &[]).sample(&logits, position, None, &mut Vec::new()).unwrap();
        assert!(id == 3 || id == 400, "{id}");
    }
}

#[test]
fn logprobs_are_the_models_own() {
    let logits = [0.0f32, 1.0, 2.0];
    let total = log_sum_exp(&logits);
    let token = logprobs(&logits, 0, 2);
    assert_eq!(token.logprob, Some(-total));
    let alternative = |id, x: f32| TokenLogprob { id, logprob: x - total };
    assert_eq!(token.top, [alternative(2, 2.0), alternative(1, 1.0)]);
    assert_eq!(logprobs(&logits, 0, 0).top, []);
}

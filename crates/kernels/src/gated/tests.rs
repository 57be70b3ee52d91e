//! The fused product against its parts: the same bits, whatever the formats, the sizes and the threads.

use super::*;
use crate::{Format, matmul_each, silu_mul, synthetic};

/// The bytes of what is prepared; NaN is unlike itself as a number.
fn bits(a: &Activations) -> (Vec<String>, Vec<u32>, Vec<usize>) {
    let groups = 0..activations::group_count(a.rows());
    let int8 = groups.clone().filter_map(|index| a.int8_group(index));
    let float = groups.filter_map(|index| a.float_group(index));
    (
        int8.flatten().map(|block| format!("{block:?}")).collect(),
        float.flatten().map(|value| value.to_bits()).collect(),
        a.broken_rows(),
    )
}

/// The fused product equals its parts, bit for bit, with any number of threads.
fn check(formats: [Format; 2], rows: usize, outputs: usize, break_row: Option<usize>) {
    let cols = 512;
    let pool = Pool::new(1);
    let [gate, up] = formats.map(|format| {
        let data = synthetic::weights(format, outputs, cols, outputs as u64 + 1);
        PackedMatrix::pack(format, outputs, cols, &data, &pool).expect("whole blocks")
    });
    let mut x = synthetic::activations(rows * cols, 3);
    if let Some(row) = break_row {
        x[row * cols + 5] = f32::INFINITY;
    }
    let mut a = Activations::new();
    a.prepare(&pool, &x, rows, cols, &[ActivationKind::Float, ActivationKind::Int8]);
    let [mut gates, mut ups] = [0, 1].map(|_| vec![f32::NAN; rows * outputs]);
    matmul_each(&pool, &a, [(&gate, &mut gates), (&up, &mut ups)]);
    silu_mul(&pool, &mut gates, &ups);
    for kind in [ActivationKind::Float, ActivationKind::Int8] {
        let mut want = Activations::new();
        want.prepare(&pool, &gates, rows, outputs, &[kind]);
        for threads in [1, 3] {
            let (mut scratch, mut got) = (GatedScratch::default(), Activations::new());
            // What is left of an earlier, larger call must not show.
            for rows in [rows + 7, rows] {
                let mut other = Activations::new();
                other.prepare(
                    &pool,
                    &vec![1e9; rows * cols],
                    rows,
                    cols,
                    &[ActivationKind::Int8, ActivationKind::Float],
                );
                let pool = Pool::new(threads);
                matmul_gated(&pool, &other, [&gate, &up], kind, &mut scratch, &mut got);
            }
            matmul_gated(&Pool::new(threads), &a, [&gate, &up], kind, &mut scratch, &mut got);
            assert_eq!((got.rows(), got.cols()), (rows, outputs));
            assert!(
                bits(&got) == bits(&want),
                "{formats:?} {kind:?}, {rows} rows, {outputs} outputs, {threads} threads"
            );
        }
    }
}

#[test]
fn equal_to_its_parts() {
    for rows in [1, 6, 11, 25] {
        for outputs in [1, 16, 32, 40, 96] {
            check([Format::Q5_0, Format::Q5_0], rows, outputs, None);
            check([Format::Q4_K, Format::Q6_K], rows, outputs, None);
        }
        check([Format::F16, Format::F16], rows, 72, None);
        check([Format::Q8_0, Format::BF16], rows, 72, None);
    }
}

#[test]
fn a_row_that_is_no_number_stays_alone() {
    for formats in [[Format::Q5_0; 2], [Format::F32; 2], [Format::F32, Format::Q8_0]] {
        check(formats, 9, 72, Some(4));
    }
}

//! The equivalences that the engine stands on: packed = file, SIMD = scalar, many rows = one row, any thread count.

use super::*;
use crate::{ActivationKind, Format, KernelError, dequantize_row, synthetic};

const KINDS: [ActivationKind; 2] = [ActivationKind::Float, ActivationKind::Int8];

/// Columns that make an odd number of blocks and more than one chunk of a tile.
fn odd_cols(format: Format) -> [usize; 2] {
    match format.block_len() {
        1 => [67, 640],
        32 => [96, 32 * 37],
        _ => [256, 256 * 5],
    }
}

fn packed(format: Format, rows: usize, cols: usize, pool: &Pool) -> (Vec<u8>, PackedMatrix) {
    let data = synthetic::weights(format, rows, cols, rows as u64 + 1);
    let matrix =
        PackedMatrix::pack(format, rows, cols, &data, pool).expect("a whole number of blocks");
    (data, matrix)
}

/// Bits of (rows, w.rows) outputs of the first `rows` rows of `x`.
fn product(pool: &Pool, w: &PackedMatrix, x: &[f32], rows: usize) -> Vec<f32> {
    let mut prepared = Activations::new();
    prepared.prepare(pool, &x[..rows * w.cols()], rows, w.cols(), &KINDS);
    let mut out = vec![f32::NAN; rows * w.rows()];
    matmul(pool, w, &prepared, &mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The levels to test; those that the processor lacks are named and skipped.
fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|&isa| {
        if !isa.available() {
            eprintln!("skipped: this processor has no {isa:?}");
        }
        isa.available()
    })
}

#[test]
fn packed_rows_dequantise_as_in_the_file() {
    let pool = Pool::new(2);
    for format in Format::ALL {
        for (rows, cols) in [1, 16, 35].into_iter().zip(odd_cols(format).into_iter().cycle()) {
            let (data, matrix) = packed(format, rows, cols, &pool);
            let size = format.row_bytes(cols).expect("whole blocks");
            for row in 0..rows {
                let (mut from_file, mut from_packed) = (vec![0.0; cols], vec![0.0; cols]);
                dequantize_row(format, &data[row * size..][..size], &mut from_file)
                    .expect("sizes fit");
                matrix.dequantize_row(row, &mut from_packed);
                assert_eq!(
                    bits(&from_file),
                    bits(&from_packed),
                    "{format:?} {rows} × {cols}, row {row}"
                );
            }
        }
    }
}

#[test]
fn packing_keeps_the_bits_per_weight() {
    let pool = Pool::new(1);
    for format in Format::ALL {
        let (data, matrix) = packed(format, 64, 1024, &pool);
        assert_eq!(matrix.bytes(), data.len(), "{format:?}");
    }
}

/// Against f64 sums over the dequantised weights and the activations as quantised (or as given, for float weights).
#[test]
fn products_equal_the_sum_over_dequantised_numbers() {
    let pool = Pool::new(2);
    for format in Format::ALL {
        let (rows, cols) = (19, odd_cols(format)[1]);
        let (_, matrix) = packed(format, rows, cols, &pool);
        let x = synthetic::activations(cols, 7);
        let out = product(&pool, &matrix, &x, 1);
        let mut inputs = x.clone();
        if format.is_quantised() {
            for chunk in inputs.chunks_exact_mut(32) {
                let largest = chunk.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                let power = (largest / 127.0).log2().ceil().exp2();
                let is_lower = largest / power <= 89.8;
                let scale = if is_lower { power * 0.5 * std::f32::consts::SQRT_2 } else { power };
                chunk.iter_mut().for_each(|v| *v = (*v / scale).round_ties_even() * scale);
            }
        }
        for (row, &value) in out.iter().enumerate() {
            let mut weights = vec![0.0; cols];
            matrix.dequantize_row(row, &mut weights);
            let terms = weights.iter().zip(&inputs).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
            let error = (f64::from(value) - sum).abs() / size;
            assert!(
                error < 1e-6,
                "{format:?} row {row}: {value} for {sum}, relative error {error:e}"
            );
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let pool = Pool::new(2);
    for format in Format::ALL {
        for (rows, cols) in
            [(1, odd_cols(format)[0]), (50, odd_cols(format)[1]), (67, odd_cols(format)[0])]
        {
            let (_, mut matrix) = packed(format, rows, cols, &pool);
            let x = synthetic::activations(29 * cols, 3);
            for count in [1, 2, 3, 4, 5, 6, 7, 8, 13, 29] {
                let mut expected = None;
                for isa in levels() {
                    matrix = matrix.with_isa(isa);
                    let out = bits(&product(&pool, &matrix, &x, count));
                    let expected = expected.get_or_insert_with(|| out.clone());
                    assert_eq!(
                        &out, expected,
                        "{format:?} {rows} × {cols}, {count} activation rows, {isa:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_first_outputs_are_those_of_the_whole() {
    for format in Format::ALL {
        let (rows, cols) = (83, odd_cols(format)[1]);
        let (_, mut matrix) = packed(format, rows, cols, &Pool::new(1));
        let mut x = synthetic::activations(29 * cols, 5);
        x[cols] = f32::NAN;
        for isa in levels() {
            matrix = matrix.with_isa(isa);
            for (count, first, threads) in [(1, 16, 1), (3, 48, 2), (29, 80, 3), (2, 83, 2)] {
                let pool = Pool::new(threads);
                let mut prepared = Activations::new();
                prepared.prepare(&pool, &x[..count * cols], count, cols, &KINDS);
                let mut out = vec![0.5; count * first];
                matmul_first(&pool, &matrix, first, &prepared, &mut out);
                let whole = product(&pool, &matrix, &x, count);
                let wanted: Vec<f32> =
                    whole.chunks(rows).flat_map(|row| &row[..first]).copied().collect();
                assert_eq!(
                    bits(&out),
                    bits(&wanted),
                    "{format:?} {isa:?}: {first} of {count} rows"
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "15 of 83 rows")]
fn a_part_of_a_strip_is_no_product() {
    let (_, matrix) = packed(Format::F32, 83, 64, &Pool::new(1));
    let mut prepared = Activations::new();
    prepared.prepare(&Pool::new(1), &[0.0; 64], 1, 64, &KINDS);
    matmul_first(&Pool::new(1), &matrix, 15, &prepared, &mut [0.0; 15]);
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_or_the_threads() {
    for format in Format::ALL {
        let (rows, cols) = (83, odd_cols(format)[1]);
        let (_, mut matrix) = packed(format, rows, cols, &Pool::new(1));
        let x = synthetic::activations(40 * cols, 5);
        for isa in levels().filter(|&isa| isa != Isa::Scalar) {
            matrix = matrix.with_isa(isa);
            let pool = Pool::new(1);
            let alone: Vec<u32> = x
                .chunks_exact(cols)
                .flat_map(|row| bits(&product(&pool, &matrix, row, 1)))
                .collect();
            for threads in 1..=4 {
                let pool = Pool::new(threads);
                for count in 1..=40 {
                    let together = bits(&product(&pool, &matrix, &x, count));
                    assert!(
                        together == alone[..count * rows],
                        "{format:?}, {count} rows, {threads} threads, {isa:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_show_in_the_result() {
    let pool = Pool::new(1);
    for isa in levels() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (_, matrix) = packed(Format::Q4_0, 16, 64, &pool);
            let mut x = synthetic::activations(128, 1);
            x[70] = bad;
            let out = product(&pool, &matrix.with_isa(isa), &x, 2);
            assert!(
                out[..16].iter().all(|v| v.is_finite()) && out[16..].iter().all(|v| v.is_nan()),
                "{bad} {isa:?}"
            );
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let pool = Pool::new(1);
    let refused = PackedMatrix::pack(Format::Q5_0, 2, 33, &[0; 44], &pool).expect_err("33 columns");
    assert_eq!(refused, KernelError::PartialBlock { format: Format::Q5_0, cols: 33, block: 32 });
    let refused = PackedMatrix::pack(Format::Q5_0, 2, 32, &[0; 43], &pool).expect_err("43 bytes");
    assert_eq!(refused, KernelError::Size { what: "data", expected: 44, got: 43 });
    let (rows, cols) = (usize::MAX / 2, 1 << 20);
    let refused = PackedMatrix::pack(Format::F32, rows, cols, &[], &pool).expect_err("too large");
    assert_eq!(refused, KernelError::TooLarge { format: Format::F32, rows, cols });
    for (rows, cols) in [(0, 32), (16, 0), (0, 0)] {
        let empty =
            PackedMatrix::pack(Format::Q8_0, rows, cols, &[], &pool).expect("an empty matrix");
        assert_eq!(product(&pool, &empty, &vec![1.0; 3 * cols], 3), vec![0.0; 3 * rows]);
    }
}

//! Prints format × shape × activation rows: GOP/s and GB/s, beside the limits that the machine sets.
//!
//! `cargo run --release -p mintage-kernels --example products [-- [tN] [FORMAT…] [scalar|avx2|avx512] [ROWS…]]`, where
//! `tN` sets the threads and `best` prints the fastest instead of the median.

use mintage_kernels::{Format, Isa, Pool, available_threads, bench};

/// (format, outputs, inputs) that real files contain.
const SHAPES: [(Format, usize, usize); 22] = [
    (Format::Q5_0, 4864, 896),
    (Format::Q5_0, 896, 896),
    (Format::Q5_0, 128, 896),
    (Format::Q8_0, 151_936, 896),
    (Format::Q8_0, 128, 896),
    (Format::Q4_K, 896, 4864),
    (Format::Q6_K, 896, 4864),
    (Format::Q4_K, 8960, 1536),
    (Format::Q4_K, 1536, 8960),
    (Format::Q6_K, 1536, 8960),
    (Format::Q4_1, 1536, 576),
    (Format::Q4_0, 4864, 896),
    (Format::Q5_1, 4864, 896),
    (Format::Q5_K, 8960, 1536),
    (Format::Q8_0, 4864, 896),
    (Format::IQ4_NL, 4864, 896),
    (Format::IQ4_XS, 8960, 1536),
    (Format::Q2_K, 8960, 1536),
    (Format::Q3_K, 8960, 1536),
    (Format::F16, 4864, 896),
    (Format::BF16, 4864, 896),
    (Format::F32, 4864, 896),
];
const ROWS: [usize; 9] = [1, 2, 3, 4, 6, 8, 16, 64, 512];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments
        .iter()
        .find_map(|a| a.strip_prefix('t')?.parse().ok())
        .unwrap_or_else(available_threads);
    let isa =
        Isa::ALL.into_iter().find(|isa| arguments.contains(&format!("{isa:?}").to_lowercase()));
    let isa = isa.unwrap_or_else(Isa::best);
    let formats: Vec<Format> = Format::ALL
        .into_iter()
        .filter(|format| arguments.contains(&format!("{format:?}")))
        .collect();
    let best = arguments.iter().any(|a| a == "best");
    let mut rows: Vec<usize> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    if rows.is_empty() {
        rows = ROWS.to_vec();
    }
    let pool = Pool::new(threads);
    let limits = bench::limits(&pool, isa)?;
    println!(
        "{threads} threads, {isa:?}: read {:.1} GB/s, f32 {:.0} GFLOP/s, int8 {:.0} GOP/s",
        limits.read_gb_per_s, limits.f32_gflop_per_s, limits.int8_gop_per_s
    );
    println!("prepare 512 × 896: {:.0} µs", bench::preparation(&pool, 512, 896) * 1e6);
    print!("{:7} {:>13}", "format", "shape");
    rows.iter().for_each(|rows| print!(" | {:>7}", format!("M{rows}")));
    println!(" | GB/s at the first | packing GB/s");
    for (format, outputs, inputs) in SHAPES {
        if !formats.is_empty() && !formats.contains(&format) {
            continue;
        }
        print!("{:7} {:>13}", format!("{format:?}"), format!("{outputs}×{inputs}"));
        let mut rate = f64::NAN;
        let rows: Vec<usize> =
            rows.iter().copied().filter(|&rows| rows * outputs * inputs < 1 << 33).collect();
        bench::products(&pool, isa, format, (outputs, inputs), &rows, &mut |measured| {
            let scale = if best { measured.seconds / measured.least_seconds } else { 1.0 };
            print!(" | {:7.1}", measured.gop_per_s() * scale);
            if rate.is_nan() {
                rate = measured.gb_per_s() * scale;
            }
        })?;
        let packing = bench::packing(&pool, format, (outputs.min(16_384), inputs))?;
        println!(" | {rate:17.1} | {packing:.1}");
    }
    Ok(())
}

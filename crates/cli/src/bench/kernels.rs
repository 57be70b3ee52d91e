//! `mintage bench kernels`: each weight format's product beside what this machine can do at most, measured in the same
//! run. Not a model: weights are made up, so that any format can be measured on any machine.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mintage_kernels::bench::{self, Limits, Measured, ReadLimit};
use mintage_kernels::{Format, Isa, Pool, available_threads};
use serde::Serialize;

use crate::output;

/// Most activation rows of one product: as many as a step may have tokens.
const MAX_ROWS: usize = 8192;
/// Most elements of one matrix: 4 GiB as f32.
const MAX_ELEMENTS: usize = 1 << 30;

/// Measure the products of every weight format beside this machine's own limits
///
/// A share says how near a product comes to the limit that binds it: reading each weight once from memory where the
/// rows are few, multiplying in registers where they are many.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mintage bench kernels
  mintage bench kernels --format Q4_K,Q6_K --rows 1,2,3,4,5,6,7,8 --shape 8960x1536
  mintage bench kernels --isa avx2 --threads 1 --json kernels.json")]
pub(crate) struct Options {
    /// Formats, as model files name them; all by default.
    #[arg(long, value_delimiter = ',', value_parser = format_named, value_name = "FORMAT")]
    format: Vec<Format>,
    /// Activation rows (M): 1 is one user who decodes, 512 a chunk of a prompt.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,64,512")]
    rows: Vec<usize>,
    /// Outputs × inputs of the matrix; inputs in whole blocks of 256.
    #[arg(long, default_value = "4096x4096", value_name = "OUTPUTSxINPUTS")]
    shape: Shape,
    /// Instruction set; the best that the processor has by default.
    #[arg(long, value_enum)]
    isa: Option<Level>,
    /// Threads; all that the machine grants by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Write the results as JSON; `-` for standard output instead of the table.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// (outputs, inputs) of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape(usize, usize);

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(['x', '×']).and_then(|(outputs, inputs)| {
            Some((outputs.trim().parse::<usize>().ok()?, inputs.trim().parse::<usize>().ok()?))
        });
        let Some((outputs, inputs)) = parsed else {
            return Err("expected OUTPUTSxINPUTS, as in 4096x4096".to_owned());
        };
        if outputs == 0 || inputs == 0 || !inputs.is_multiple_of(256) {
            return Err(format!(
                "outputs must be at least 1 and inputs a multiple of 256, not {outputs} and {inputs}"
            ));
        }
        match outputs.checked_mul(inputs) {
            Some(elements) if elements <= MAX_ELEMENTS => Ok(Self(outputs, inputs)),
            _ => Err(format!("at most {MAX_ELEMENTS} elements")),
        }
    }
}

fn format_named(text: &str) -> Result<Format, String> {
    let named = |format: &Format| format!("{format:?}").eq_ignore_ascii_case(text);
    Format::ALL.into_iter().find(named).ok_or_else(|| {
        let names: Vec<String> = Format::ALL.iter().map(|format| format!("{format:?}")).collect();
        format!("the formats are {}", names.join(", "))
    })
}

/// [`Isa`] as the command line names it.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Level {
    Scalar,
    Avx2,
    Avx512,
}

impl Level {
    fn isa(self) -> Isa {
        match self {
            Self::Scalar => Isa::Scalar,
            Self::Avx2 => Isa::Avx2,
            Self::Avx512 => Isa::Avx512,
        }
    }
}

/// Everything measured. Rates in 10⁹ a second, a multiply-add as two operations.
#[derive(Serialize)]
struct Report {
    machine: String,
    threads: usize,
    isa: String,
    outputs: usize,
    inputs: usize,
    /// `null` where there is no loop that measures it.
    read_gb_per_s: Option<f64>,
    f32_gflop_per_s: Option<f64>,
    int8_gop_per_s: Option<f64>,
    /// Preparing 512 rows of activations as int8.
    prepare_512_rows_us: f64,
    formats: Vec<FormatReport>,
}

#[derive(Serialize)]
struct FormatReport {
    format: String,
    bits_per_weight: f64,
    /// File bytes repacked a second.
    packing_gb_per_s: f64,
    /// The reading limit at the time.
    read_gb_per_s: f64,
    products: Vec<Product>,
}

#[derive(Serialize)]
struct Product {
    rows: usize,
    gop_per_s: f64,
    gb_per_s: f64,
    share_of_limit: Option<f64>,
    #[serde(skip)]
    measured: Measured,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(rows) = options.rows.iter().find(|rows| !(1..=MAX_ROWS).contains(*rows)) {
        return Err(anyhow!("`--rows` takes 1 to {MAX_ROWS}, not {rows}"));
    }
    let isa = options.isa.map_or_else(Isa::best, Level::isa);
    if !isa.available() {
        let levels = Level::value_variants().iter().filter(|level| level.isa().available());
        let names: Vec<String> = levels.map(|level| format!("{level:?}").to_lowercase()).collect();
        return Err(anyhow!("this processor lacks {isa:?}; it has {}", names.join(", ")));
    }
    let pool = Pool::new(options.threads.unwrap_or_else(available_threads).clamp(1, 1024));
    let report = measure(options, &pool, isa)?;
    let json = serde_json::to_string_pretty(&report)?;
    match &options.json {
        Some(path) if path.as_os_str() == "-" => {
            return Ok(output::print(&format!("{json}\n"))?);
        }
        Some(path) => std::fs::write(path, json).with_context(|| path.display().to_string())?,
        None => {}
    }
    Ok(output::print(&report.table(&options.rows))?)
}

fn measure(options: &Options, pool: &Pool, isa: Isa) -> Result<Report> {
    let formats =
        if options.format.is_empty() { Format::ALL.to_vec() } else { options.format.clone() };
    let bar = progress_bar(formats.len() as u64 + 2);
    let Shape(outputs, inputs) = options.shape;
    bar.set_message("limits");
    let mut limits = bench::limits(pool, isa)?;
    let reading = ReadLimit::new(pool)?;
    bar.inc(1);
    let prepare_512_rows_us = bench::preparation(pool, 512, inputs) * 1e6;
    let mut measured = Vec::new();
    for format in formats {
        bar.set_message(format!("{format:?}"));
        let read_before = reading.gb_per_s(pool, isa);
        let mut products = Vec::new();
        let mut each = |product: Measured| products.push(product);
        bench::products(pool, isa, format, (outputs, inputs), &options.rows, &mut each)?;
        let packing_gb_per_s = bench::packing(pool, format, (outputs, inputs))?;
        // A machine that shares its memory with others, or is granted bursts, gives twice as much at one moment as at
        // the next: a format is held against the limit of its own moment.
        let read_gb_per_s = read_before.max(reading.gb_per_s(pool, isa));
        limits.read_gb_per_s = limits.read_gb_per_s.max(read_gb_per_s);
        measured.push(MeasuredFormat { format, packing_gb_per_s, read_gb_per_s, products });
        bar.inc(1);
    }
    bar.set_message("limits");
    let limits = bench::limits(pool, isa)?.or_better(limits);
    bar.finish_and_clear();
    let finite = |value: f64| value.is_finite().then_some(value);
    Ok(Report {
        machine: machine(),
        threads: pool.threads(),
        isa: format!("{isa:?}"),
        outputs,
        inputs,
        read_gb_per_s: finite(limits.read_gb_per_s),
        f32_gflop_per_s: finite(limits.f32_gflop_per_s),
        int8_gop_per_s: finite(limits.int8_gop_per_s),
        prepare_512_rows_us,
        formats: measured.iter().map(|measured| measured.report(&limits)).collect(),
    })
}

/// What was measured of one format.
struct MeasuredFormat {
    format: Format,
    packing_gb_per_s: f64,
    /// The reading limit just before and after.
    read_gb_per_s: f64,
    products: Vec<Measured>,
}

impl MeasuredFormat {
    /// Its shares of the limits: reading of its own moment, arithmetic of the whole run.
    fn report(&self, limits: &Limits) -> FormatReport {
        let limits = Limits { read_gb_per_s: self.read_gb_per_s, ..*limits };
        let product = |measured: &Measured| Product {
            rows: measured.rows,
            gop_per_s: measured.gop_per_s(),
            gb_per_s: measured.gb_per_s(),
            share_of_limit: Some(measured.share_of_limit(self.format, &limits))
                .filter(|share| share.is_finite()),
            measured: *measured,
        };
        FormatReport {
            format: format!("{:?}", self.format),
            bits_per_weight: 8.0 * self.format.block_bytes() as f64
                / self.format.block_len() as f64,
            packing_gb_per_s: self.packing_gb_per_s,
            read_gb_per_s: self.read_gb_per_s,
            products: self.products.iter().map(product).collect(),
        }
    }
}

impl Report {
    /// Markdown, which a terminal shows just as well: GOP/s and, in brackets, the share of the limit that binds.
    fn table(&self, rows: &[usize]) -> String {
        let or_dash = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.1}"));
        let mut header = vec!["| format".to_owned(), "| bits".to_owned()];
        header.extend(rows.iter().map(|rows| format!("| M = {rows}")));
        header.push("| GB/s at the fewest rows, limit then".to_owned());
        header.push("| packed, GB/s |".to_owned());
        let rule = header.iter().map(|_| "|---".to_owned());
        let mut lines: Vec<Vec<String>> = vec![rule.collect()];
        if let Some(last) = lines[0].last_mut() {
            last.push('|');
        }
        lines.extend(self.formats.iter().map(FormatReport::cells));
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        format!(
            "{}, {} threads, {}: reads at most {} GB/s, f32 {} GFLOP/s, int8 {} GOP/s; \
             512 rows of {} activations prepared in {:.0} µs\n\
             GOP/s (share of the limit that binds: reading or multiplying), {} × {}\n\n{}",
            self.machine,
            self.threads,
            self.isa,
            or_dash(self.read_gb_per_s),
            or_dash(self.f32_gflop_per_s),
            or_dash(self.int8_gop_per_s),
            self.inputs,
            self.prepare_512_rows_us,
            self.outputs,
            self.inputs,
            output::table(&header, &lines)
        )
    }
}

impl FormatReport {
    fn cells(&self) -> Vec<String> {
        let mut cells =
            vec![format!("| {}", self.format), format!("| {:.2}", self.bits_per_weight)];
        cells.extend(self.products.iter().map(|product| {
            let share = product.share_of_limit.map_or("–".to_owned(), percent);
            format!("| {:.0} ({share})", product.gop_per_s)
        }));
        let fewest = self.products.iter().min_by_key(|product| product.measured.rows);
        let read = fewest.map_or(0.0, |product| product.gb_per_s);
        cells.push(format!("| {read:.1} of {:.1}", self.read_gb_per_s));
        cells.push(format!("| {:.2} |", self.packing_gb_per_s));
        cells
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// The processor's name, where the system tells it.
pub(crate) fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn progress_bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("measuring {msg:7} {bar:28} {pos}/{len}") {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_formats_are_read_or_refused() {
        assert_eq!("4864x1024".parse(), Ok(Shape(4864, 1024)));
        for (bad, expected) in [
            ("4864", "OUTPUTSxINPUTS"),
            ("0x256", "at least 1"),
            ("16x100", "multiple of 256"),
            ("99999999999x256", "at most"),
            ("-1x256", "OUTPUTSxINPUTS"),
        ] {
            let error = bad.parse::<Shape>().unwrap_err();
            assert!(error.contains(expected), "{bad}: {error}");
        }
        assert_eq!(format_named("q4_k"), Ok(Format::Q4_K));
        assert!(format_named("Q9").unwrap_err().contains("Q8_0"));
    }

    #[test]
    fn the_binding_limit_sets_the_share() {
        let limits = Limits { read_gb_per_s: 10.0, f32_gflop_per_s: 100.0, int8_gop_per_s: 400.0 };
        let product = |operations, weight_bytes| Measured {
            rows: 1,
            seconds: 2.0,
            least_seconds: 2.0,
            operations,
            weight_bytes,
        };
        for (format, operations, bytes, expected) in [
            (Format::Q8_0, 1e9, 10e9, 0.5),
            (Format::Q8_0, 600e9, 10e9, 0.75),
            (Format::F32, 100e9, 1e9, 0.5),
        ] {
            let share = product(operations, bytes).share_of_limit(format, &limits);
            assert!((share - expected).abs() < 1e-9, "{format:?}: {share}");
        }
        let unknown = Limits { int8_gop_per_s: f64::NAN, ..limits };
        assert!(product(1.0, 1.0).share_of_limit(Format::Q8_0, &unknown).is_nan());
    }

    #[test]
    fn the_table_is_markdown() {
        let limits =
            Limits { read_gb_per_s: 10.0, f32_gflop_per_s: f64::NAN, int8_gop_per_s: 400.0 };
        let measured = |rows| Measured {
            rows,
            seconds: 1.0,
            least_seconds: 1.0,
            operations: 100e9 * rows as f64,
            weight_bytes: 5e9,
        };
        let of = |format| {
            let products = vec![measured(1), measured(2)];
            let measured =
                MeasuredFormat { format, packing_gb_per_s: 2.0, read_gb_per_s: 8.0, products };
            measured.report(&limits)
        };
        let report = Report {
            machine: "M".to_owned(),
            threads: 2,
            isa: "Avx2".to_owned(),
            outputs: 16,
            inputs: 256,
            read_gb_per_s: Some(10.0),
            f32_gflop_per_s: None,
            int8_gop_per_s: Some(400.0),
            prepare_512_rows_us: 12.0,
            formats: vec![of(Format::Q4_K), of(Format::F16)],
        };
        insta::assert_snapshot!(report.table(&[1, 2]));
    }
}

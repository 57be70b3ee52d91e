//! How results look in a terminal: sizes, tables, errors. No decisions.

use std::fmt::Write as _;
use std::io::{self, Write};

use mintage_ledger::Amount;

/// Bytes in the unit people read: `468.6 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Numbers of parameters as papers write them: `494M`, `1.54B`.
pub(crate) fn parameters(count: u64) -> String {
    match count {
        0..1_000_000 => count.to_string(),
        1_000_000..1_000_000_000 => format!("{}M", (count + 500_000) / 1_000_000),
        _ => format!("{:.2}B", count as f64 / 1e9),
    }
}

/// A share in thousandths as people read it: `-80.0 %`.
pub(crate) fn permille(permille: i128) -> String {
    let sign = if permille < 0 { '-' } else { '+' };
    let permille = permille.unsigned_abs();
    format!("{sign}{}.{} %", permille / 10, permille % 10)
}

/// A price in pico for a token, for a million tokens: exact.
pub(crate) fn per_million(pico_per_token: u64) -> String {
    Amount::from_pico(i128::from(pico_per_token) * 1_000_000).to_string()
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Writes a result.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// `error: …`, with the chain of causes below it.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut text = format!("error: {error}\n");
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Errors that show their cause themselves would say it twice.
        if !said.contains(&cause) {
            let _ = writeln!(text, "  because: {cause}");
            said = cause;
        }
    }
    // Where even standard error is closed there is nobody left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether somebody stopped reading, as in `mintage list | head`.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(491_400_064), "468.6 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(parameters(494_032_768), "494M");
        assert_eq!(parameters(1_543_714_304), "1.54B");
    }

    #[test]
    fn money_reads_well() {
        assert_eq!(permille(-800), "-80.0 %");
        assert_eq!(permille(5), "+0.5 %");
        assert_eq!(per_million(187_500), "0.1875");
    }

    #[test]
    fn tables_align() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong\n");
    }
}

//! The three forms of a result: a table for the terminal, JSON for programs, one self-contained HTML page for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::load::Stall;
use super::statistics::{Summary, Target};

/// Everything one call of `bench serve` measured.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) server: String,
    pub(super) model: String,
    pub(super) workload: String,
    pub(super) target: Target,
    pub(super) runs: Vec<Summary>,
    pub(super) stalls: Vec<Stall>,
}

impl Report {
    /// Columns aligned for a terminal.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{} · {} · {}\n", self.server, self.model, self.workload);
        if !self.runs.is_empty() {
            let _ = writeln!(
                text,
                "{:>18} {:>8} {:>6} {:>9} {:>9} {:>9}  {:>22}  {:>22}",
                "load",
                "requests",
                "failed",
                "tokens/s",
                "req/s",
                "goodput",
                "TTFT p50/p95/p99 ms",
                "gap p50/p95/p99 ms"
            );
        }
        for run in &self.runs {
            let (first, gap) = (&run.first_token, &run.gap);
            let _ = writeln!(
                text,
                "{:>18} {:>8} {:>6} {:>9.1} {:>9.2} {:>9.2}  {:>22}  {:>22}",
                run.load,
                run.requests,
                run.failed,
                run.output_tokens_per_s,
                run.requests_per_s,
                run.goodput_per_s,
                format!("{:.0}/{:.0}/{:.0}", first.p50_ms, first.p95_ms, first.p99_ms),
                format!("{:.0}/{:.0}/{:.0}", gap.p50_ms, gap.p95_ms, gap.p99_ms),
            );
        }
        for stall in &self.stalls {
            let _ = writeln!(
                text,
                "{} users read, a long prompt arrives: largest gap {:.0} ms (before: {:.0} ms); its TTFT {:.0} ms, alone {:.0} ms ({:.2}×)",
                stall.users,
                stall.largest_gap_ms,
                stall.largest_gap_before_ms,
                stall.newcomer_ms,
                stall.newcomer_alone_ms,
                stall.newcomer_ms / stall.newcomer_alone_ms.max(1e-9),
            );
        }
        text
    }

    /// One page, no script, nothing loaded from elsewhere.
    pub(super) fn html(&self) -> String {
        let mut page = String::from(HEAD);
        let _ = write!(
            page,
            "<h1>{}</h1><p>{} · {}</p>",
            escape(&self.model),
            escape(&self.server),
            escape(&self.workload)
        );
        page.push_str("<table><tr><th>load<th>requests<th>failed<th>tokens/s<th>req/s<th>goodput/s<th>TTFT p50<th>p95<th>p99<th>gap p50<th>p95<th>p99 ms</tr>");
        for run in &self.runs {
            let _ = write!(
                page,
                "<tr><td>{}<td>{}<td>{}<td>{:.1}<td>{:.2}<td>{:.2}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.0}</tr>",
                escape(&run.load),
                run.requests,
                run.failed,
                run.output_tokens_per_s,
                run.requests_per_s,
                run.goodput_per_s,
                run.first_token.p50_ms,
                run.first_token.p95_ms,
                run.first_token.p99_ms,
                run.gap.p50_ms,
                run.gap.p95_ms,
                run.gap.p99_ms,
            );
        }
        page.push_str("</table>");
        self.plot(&mut page, "Output tokens per second", |run| run.output_tokens_per_s);
        self.plot(&mut page, "Goodput, requests per second", |run| run.goodput_per_s);
        self.plot(&mut page, "Time to first token, p95, ms", |run| run.first_token.p95_ms);
        self.plot(&mut page, "Gap between tokens, p95, ms", |run| run.gap.p95_ms);
        for line in self.table().lines().filter(|line| line.contains("a long prompt arrives")) {
            let _ = write!(page, "<p>{}</p>", escape(line));
        }
        page.push_str("</body></html>\n");
        page
    }

    /// A bar per run, as inline SVG.
    fn plot(&self, page: &mut String, title: &str, value: fn(&Summary) -> f64) {
        if self.runs.is_empty() {
            return;
        }
        let largest = self.runs.iter().map(value).fold(1e-9, f64::max);
        let height = 24 * self.runs.len();
        let _ = write!(
            page,
            "<h2>{title}</h2><svg viewBox=\"0 0 640 {height}\" width=\"640\" height=\"{height}\" role=\"img\">"
        );
        for (index, run) in self.runs.iter().enumerate() {
            let (top, width) = (24 * index, 380.0 * value(run) / largest);
            let _ = write!(
                page,
                "<text x=\"150\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"160\" y=\"{}\" width=\"{width:.1}\" height=\"16\"/><text x=\"{:.1}\" y=\"{}\">{:.1}</text>",
                top + 16,
                escape(&run.load),
                top + 4,
                166.0 + width,
                top + 16,
                value(run),
            );
        }
        page.push_str("</svg>");
    }
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>mintage bench serve</title>\
<style>body{font:15px system-ui,sans-serif;max-width:960px;margin:2em auto;color:#222}\
table{border-collapse:collapse}td,th{padding:.2em .6em;text-align:right;border-bottom:1px solid #ddd}\
svg{font:13px system-ui,sans-serif}rect{fill:#2a6f97}h2{font-size:1em;margin:1.6em 0 .4em}</style></head><body>";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::statistics::{Summary, Target};
    use super::Report;

    #[test]
    fn the_page_escapes_what_a_server_says() {
        let target =
            Target { first_token: Duration::from_secs(1), per_token: Duration::from_secs(1) };
        let runs = vec![Summary::of("1 user".to_owned(), &[], &target)];
        let report = Report {
            server: "http://x".to_owned(),
            model: "<script>alert(1)</script>".to_owned(),
            workload: "w".to_owned(),
            target,
            runs,
            stalls: Vec::new(),
        };
        let page = report.html();
        assert!(!page.contains("<script>"));
        assert!(page.contains("&lt;script&gt;"));
        assert!(report.table().contains("1 user"));
        assert!(serde_json::to_string(&report).unwrap().contains("\"failed\":0"));
    }
}

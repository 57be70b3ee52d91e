//! A report as one page for people: no script, nothing loaded from elsewhere, plots as inline SVG.

use std::fmt::Write as _;
use std::time::Duration;

use super::load::Stall;
use super::plot::{Plot, Series, Spacing, escape};
use super::report::{COLUMNS, Load, Report, Run};
use super::statistics::{Percentiles, Sample, Summary};

/// Points of a curve over a distribution or over time.
const CURVE_POINTS: usize = 100;

const HEAD: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>mintage bench serve</title><style>\
:root{color-scheme:light dark;--ink:#222;--paper:#fff;--rule:#ddd;--span:#f3d9c9}\
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#181818;--rule:#444;--span:#4a3226}}\
body{font:15px system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:var(--ink);background:var(--paper)}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
td,th{padding:.2em .6em;text-align:right;border-bottom:1px solid var(--rule)}td:first-child,th:first-child{text-align:left}\
.plots{display:flex;flex-wrap:wrap;gap:1em}figure{margin:1em 0;flex:1 1 26em;max-width:44em}figcaption{font-weight:600}\
svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:var(--ink)}\
.grid{stroke:var(--rule)}.span{fill:var(--span)}polyline{stroke-width:2}</style></head><body>\n";

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let mut page = String::from(HEAD);
    let _ = write!(
        page,
        "<h1>{}</h1><p>{} · {}<br>goodput: first token within {} ms, further ones within {} ms on average</p>",
        escape(&report.model),
        escape(&report.server),
        escape(&report.workload),
        report.target.first_token.as_millis(),
        report.target.per_token.as_millis()
    );
    if !report.runs.is_empty() {
        page.push_str("<table><thead><tr>");
        for column in COLUMNS {
            let _ = write!(page, "<th>{}</th>", escape(column));
        }
        page.push_str("</tr></thead><tbody>");
        for row in report.rows() {
            page.push_str("<tr>");
            for cell in row {
                let _ = write!(page, "<td>{}</td>", escape(&cell));
            }
            page.push_str("</tr>");
        }
        page.push_str("</tbody></table>\n");
    }
    for remark in report.remarks() {
        let _ = write!(page, "<p>{}</p>", escape(&remark));
    }
    page.push_str("<div class=\"plots\">\n");
    for plot in plots(report) {
        plot.draw(&mut page);
    }
    page.push_str("</div></body></html>\n");
    page
}

fn plots(report: &Report) -> Vec<Plot> {
    let mut plots = over_load(report, "users", |load| match load {
        Load::Users(users) => Some(users as f64),
        _ => None,
    });
    plots.extend(over_load(report, "requests a second", |load| match load {
        Load::Rate(rate) => Some(rate),
        _ => None,
    }));
    let all = |values: fn(&Sample) -> Vec<Duration>| {
        let curve = |run: &Run| Series {
            name: run.summary.load.clone(),
            points: distribution(run.samples.iter().flat_map(values)),
            dots_only: false,
        };
        report.runs.iter().map(curve).collect::<Vec<_>>()
    };
    let shares = |title: &str, series| Plot {
        title: title.to_owned(),
        x_label: "milliseconds",
        y_label: "share of them within, %",
        x_spacing: Spacing::Log,
        y_spacing: Spacing::Linear,
        series,
        shaded: None,
    };
    plots.push(shares(
        "Time to first token",
        all(|sample| sample.time_to_first_token().into_iter().collect()),
    ));
    plots.push(shares("Gaps between tokens", all(|sample| sample.gaps().collect())));
    plots.extend(report.runs.iter().filter(|run| run.load == Load::Other).map(over_time));
    plots.extend(report.stalls.iter().map(stall));
    plots
}

/// Throughput, first tokens and gaps over the runs that `place` finds a place for.
fn over_load(
    report: &Report,
    x_label: &'static str,
    place: impl Fn(Load) -> Option<f64>,
) -> Vec<Plot> {
    let mut runs: Vec<(f64, &Summary)> =
        report.runs.iter().filter_map(|run| Some((place(run.load)?, &run.summary))).collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    if runs.len() < 2 {
        return Vec::new();
    }
    let line = |name: &str, value: &dyn Fn(&Summary) -> f64| Series {
        name: name.to_owned(),
        points: runs.iter().map(|(x, run)| (*x, value(run))).collect(),
        dots_only: false,
    };
    let percentiles = |of: fn(&Summary) -> &Percentiles| {
        vec![
            line("p50", &|run| of(run).p50_ms),
            line("p95", &|run| of(run).p95_ms),
            line("p99", &|run| of(run).p99_ms),
        ]
    };
    let plot = |title: &str, y_label, y_spacing, series| Plot {
        title: format!("{title} over {x_label}"),
        x_label,
        y_label,
        x_spacing: Spacing::Log,
        y_spacing,
        series,
        shaded: None,
    };
    let tokens = vec![line("in all", &|run| run.output_tokens_per_s)];
    let requests = vec![
        line("answered", &|run| run.requests_per_s),
        line("kept both targets", &|run| run.goodput_per_s),
    ];
    vec![
        plot("Output tokens", "tokens/s", Spacing::Linear, tokens),
        plot("Goodput", "requests/s", Spacing::Linear, requests),
        plot(
            "Time to first token",
            "milliseconds",
            Spacing::Log,
            percentiles(|run| &run.first_token),
        ),
        plot("Gap between tokens", "milliseconds", Spacing::Log, percentiles(|run| &run.gap)),
    ]
}

/// (milliseconds, share of the values up to it in percent).
fn distribution(values: impl Iterator<Item = Duration>) -> Vec<(f64, f64)> {
    let mut sorted: Vec<f64> = values.map(|value| value.as_secs_f64() * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    let points = sorted.len().min(CURVE_POINTS);
    let point = |index: usize| {
        let rank = (index + 1) * sorted.len() / points;
        (sorted[rank - 1], 100.0 * rank as f64 / sorted.len() as f64)
    };
    (0..points).map(point).collect()
}

/// How many requests were under way, and how many of them had no token yet.
fn over_time(run: &Run) -> Plot {
    let ended = run.samples.iter().map(|sample| sample.ended).max().unwrap_or_default();
    let count = |at: f64, until: fn(&Sample) -> Duration| {
        let under_way =
            |sample: &&Sample| sample.sent.as_secs_f64() <= at && at < until(sample).as_secs_f64();
        run.samples.iter().filter(under_way).count() as f64
    };
    let curve = |name: &str, until: fn(&Sample) -> Duration| Series {
        name: name.to_owned(),
        points: (0..=CURVE_POINTS)
            .map(|index| {
                let at = ended.as_secs_f64() * index as f64 / CURVE_POINTS as f64;
                (at, count(at, until))
            })
            .collect(),
        dots_only: false,
    };
    Plot {
        title: format!("Requests under way: {}", run.summary.load),
        x_label: "seconds",
        y_label: "requests",
        x_spacing: Spacing::Linear,
        y_spacing: Spacing::Linear,
        series: vec![
            curve("all", |sample| sample.ended),
            curve("without a token yet", |sample| {
                sample.pieces.first().copied().unwrap_or(sample.ended)
            }),
        ],
        shaded: None,
    }
}

/// Each gap in the readers' streams at its end; shaded: from the newcomer's arrival to its first token.
fn stall(stall: &Stall) -> Plot {
    let dots = |(user, stream): (usize, &Vec<Duration>)| Series {
        name: format!("user {}", user + 1),
        points: stream
            .windows(2)
            .map(|pair| (pair[1].as_secs_f64(), (pair[1] - pair[0]).as_secs_f64() * 1e3))
            .collect(),
        dots_only: true,
    };
    Plot {
        title: format!(
            "{} users read while a stranger's long prompt is computed (shaded)",
            stall.users
        ),
        x_label: "seconds",
        y_label: "gap before a token, ms",
        x_spacing: Spacing::Linear,
        y_spacing: Spacing::Linear,
        series: stall.streams.iter().enumerate().map(dots).collect(),
        shaded: Some((stall.arrival.as_secs_f64(), stall.first.as_secs_f64())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::report::tests::report;
    use super::{distribution, page};

    #[test]
    fn the_page_stands_alone_and_escapes_what_a_server_says() {
        let page = page(&report());
        for never in ["<script", "<b>", "<i>", "src=", "url(", "href", "NaN", "@import"] {
            assert!(!page.contains(never), "{never}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        // Users: four plots over load; one rate alone has none; two distributions; one stall.
        assert_eq!(page.matches("<svg").count(), 7);
        for (open, close) in [("<svg", "</svg>"), ("<figure>", "</figure>"), ("<text", "</text>")] {
            assert_eq!(page.matches(open).count(), page.matches(close).count(), "{open}");
        }
    }

    #[test]
    fn a_distribution_ends_at_the_largest() {
        let of = |count: u64| distribution((1..=count).rev().map(Duration::from_millis));
        assert_eq!(of(2), [(1.0, 50.0), (2.0, 100.0)]);
        assert_eq!(of(0), []);
        let many = of(1234);
        assert_eq!((many.len(), many[99], many[49]), (100, (1234.0, 100.0), (617.0, 50.0)));
    }
}

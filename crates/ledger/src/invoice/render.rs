//! Invoices and credit notes as others read them: CSV for spreadsheets, a printable page in Chinese or English. (JSON
//! is what they are kept as.) No decisions and no arithmetic.
//!
//! Invariant: text from outside stays text: escaped in HTML, never a formula in a spreadsheet.

use std::fmt::Write as _;

use super::{CreditNote, Invoice, InvoiceLine};
use crate::price::utc_text;
use crate::{Amount, Currency};

/// Of the printable page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Simplified Chinese.
    Chinese,
    /// English.
    English,
}

impl Language {
    fn pick(self, chinese: &'static str, english: &'static str) -> &'static str {
        match self {
            Self::Chinese => chinese,
            Self::English => english,
        }
    }

    fn tag(self) -> &'static str {
        self.pick("zh-CN", "en")
    }

    fn class(self, key: &str) -> &str {
        match key {
            "input" => self.pick("输入", "Input"),
            "cached_input" => self.pick("输入（隐式缓存命中）", "Input, implicit cache hit"),
            "explicit_cached" => self.pick("输入（显式缓存命中）", "Input, explicit cache hit"),
            "cache_created" => self.pick("输入（创建缓存）", "Input, cache creation"),
            "output" => self.pick("输出", "Output"),
            "thinking" => self.pick("输出（思考）", "Output, thinking"),
            "minimum_charge" => self.pick("最低收费补差", "Minimum charge"),
            "beyond_hold" => self.pick("超出预留部分（免收）", "Beyond the hold, not charged"),
            "training" => self.pick("训练（Token × 轮次）", "Training, tokens × epochs"),
            "deployment" => self.pick("部署时长", "Deployment time"),
            other => other,
        }
    }

    fn rounding(self) -> &'static str {
        self.pick(
            "明细金额精确到货币单位的 10⁻¹²，不作舍入。应付金额 = 精确合计 + 上期结转，向下舍入到最小货币单位；余数结转至下期账单。",
            "Lines are exact to 10⁻¹² of the currency unit and not rounded. Payable is the exact total plus what was \
             carried in, rounded down to the smallest coin; the remainder is carried to the next invoice.",
        )
    }
}

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%}th,td{padding:.3rem .5rem;border-bottom:1px solid #ccc;text-align:left}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tfoot td{border:0}.p td{font-weight:bold;font-size:1.2em}\
small{color:#555;word-break:break-all}@media print{body{margin:0;max-width:none}thead{display:table-header-group}\
tr{break-inside:avoid}}";

impl Invoice {
    /// One row a line, with a header; RFC 4180.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let mut csv = String::from(
            "invoice,month,project,key,model,batch,class,quantity,free,unit_price,amount,currency\r\n",
        );
        for line in &self.lines {
            let cells = [
                cell(&self.number),
                self.month.to_string(),
                cell(&line.project),
                cell(&line.key),
                cell(&line.model),
                line.batch.to_string(),
                cell(&line.class),
                line.quantity.to_string(),
                line.free.to_string(),
                unit_price(line),
                line.amount.to_string(),
                self.currency.to_string(),
            ];
            csv += &cells.join(",");
            csv += "\r\n";
        }
        csv
    }

    /// A page that prints well and needs nothing else.
    #[must_use]
    pub fn to_html(&self, language: Language, notes: &[CreditNote]) -> String {
        let pick = |chinese, english| language.pick(chinese, english);
        // The tax document called 发票 comes from the tax office; ours is a statement.
        let title = format!("{} {}", pick("账单", "Invoice"), escaped(&self.number));
        let mut html = head(language, &title);
        let facts = [
            (pick("组织", "Organisation"), escaped(&self.organisation)),
            (pick("账期", "Period"), format!("{} ({})", self.month, self.month.time_zone())),
            (pick("出账时间", "Issued"), utc_text(self.issued_ms)),
            (pick("计费请求数", "Requests"), self.records.to_string()),
        ];
        html += "<p>";
        for (name, value) in facts {
            let _ = write!(html, "{name}: {value}<br>");
        }
        html += "</p>\n<table><thead><tr>";
        let columns = [
            (pick("项目", "Project"), ""),
            (pick("密钥", "Key"), ""),
            (pick("模型", "Model"), ""),
            (pick("类别", "Class"), ""),
            (pick("数量", "Quantity"), " class=n"),
            (pick("其中免费", "Of these free"), " class=n"),
            (pick("单价", "Unit price"), " class=n"),
            (pick("金额", "Amount"), " class=n"),
        ];
        for (name, class) in columns {
            let _ = write!(html, "<th{class}>{name}</th>");
        }
        html += "</tr></thead><tbody>\n";
        for line in &self.lines {
            html += &self.row(line, language);
        }
        html += "</tbody><tfoot>\n";
        let sums = [
            ("", pick("精确合计", "Exact total"), self.total.to_string()),
            ("", pick("上期结转", "Carried in"), self.carried_in.to_string()),
            (
                "",
                pick("舍入余数（结转下期）", "Rounding remainder, carried out"),
                self.carried_out.to_string(),
            ),
            (
                " class=p",
                pick("应付金额", "Payable"),
                format!("{} {}", coins(self.payable, self.currency), self.currency),
            ),
        ];
        for (class, name, value) in sums {
            let _ =
                writeln!(html, "<tr{class}><td colspan=7>{name}</td><td class=n>{value}</td></tr>");
        }
        for note in notes {
            let name = pick("更正（贷记单）", "Credit note");
            let (number, reason) = (escaped(&note.number), escaped(&note.reason));
            let _ = writeln!(
                html,
                "<tr><td colspan=7>{name} {number}: {reason}</td><td class=n>-{}</td></tr>",
                coins(note.amount, note.currency)
            );
        }
        let _ = writeln!(html, "</tfoot></table>\n<p><small>{}</small></p>", language.rounding());
        html + &foot(&self.digest)
    }

    fn row(&self, line: &InvoiceLine, language: Language) -> String {
        let batch = if line.batch { language.pick("（批量）", " (batch)") } else { "" };
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}{batch}</td><td class=n>{}</td><td class=n>{}</td>\
             <td class=n>{}</td><td class=n>{}</td></tr>\n",
            escaped(&line.project),
            escaped(&line.key),
            escaped(&line.model),
            escaped(language.class(&line.class)),
            line.quantity,
            line.free,
            unit_price(line),
            line.amount,
        )
    }
}

impl CreditNote {
    /// A page that prints well and needs nothing else.
    #[must_use]
    pub fn to_html(&self, language: Language) -> String {
        let pick = |chinese, english| language.pick(chinese, english);
        let title = format!("{} {}", pick("贷记单", "Credit note"), escaped(&self.number));
        let mut html = head(language, &title);
        let facts = [
            (pick("更正账单", "Corrects invoice"), escaped(&self.invoice)),
            (pick("组织", "Organisation"), escaped(&self.organisation)),
            (pick("出具时间", "Issued"), utc_text(self.issued_ms)),
            (
                pick("退还金额", "Credited"),
                format!("{} {}", coins(self.amount, self.currency), self.currency),
            ),
            (pick("原因", "Reason"), escaped(&self.reason)),
        ];
        for (name, value) in facts {
            let _ = writeln!(html, "<p>{name}: {value}</p>");
        }
        html + &foot(&self.digest)
    }
}

fn head(language: Language, title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang={}><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n<h1>{title}</h1>\n",
        language.tag()
    )
}

fn foot(digest: &str) -> String {
    format!("<p><small>SHA-256 {}</small></p></html>\n", escaped(digest))
}

fn unit_price(line: &InvoiceLine) -> String {
    line.unit_price.map(|price| price.to_string()).unwrap_or_default()
}

/// Whole coins with all their digits: `12.5` of a currency with two decimals → `12.50`.
fn coins(amount: Amount, currency: Currency) -> String {
    let decimals = currency.decimals();
    let text = amount.to_string();
    let (units, parts) = text.split_once('.').unwrap_or((&text, ""));
    match decimals {
        // Never cut: what is finer than a coin shows as it is.
        0 if parts.is_empty() => units.to_owned(),
        _ => format!("{units}.{parts:0<decimals$}"),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Quoted where needed; what a spreadsheet would compute gets an apostrophe before it.
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

//! From the text of a price list to a checked document: what keys there are, what values they take, what contradicts.
//!
//! Reads on after a mistake, so that one run shows several, each with its line. Invariant: a document that comes out
//! can be rated without rounding, overflow or an undefined case.

use std::collections::BTreeMap;

use super::document::{
    Batch, Deployment, FreeQuota, ModelPrices, PerClass, PriceDocument, Promotion, Stackable,
    ThinkingRule, Tier, TokenClass, Window,
};
use super::exact::{PICO_DIGITS, Ratio, scaled_decimal, shown};
use super::time::{DAY_S, parse_instant, parse_offset, parse_time_of_day};
use super::tree::{Kind, Node, Problem, Problems, Table};
use crate::Currency;

/// Models of one list.
const MAX_MODELS: usize = 2_000;
/// Tiers of a model.
const MAX_TIERS: usize = 64;
/// Windows of a day.
const MAX_WINDOWS: usize = 24;
/// Promotions of a model.
const MAX_PROMOTIONS: usize = 32;
/// Other names of a model.
const MAX_ALIASES: usize = 16;
/// Length of a name.
const MAX_NAME_CHARS: usize = 128;
/// Dearest token: one unit of the currency.
const MAX_PICO_PER_TOKEN: u128 = 1_000_000_000_000;
/// Dearest unit of anything else: a million units of the currency, which still is a postable amount.
const MAX_PICO_PER_UNIT: u128 = 1_000_000_000_000_000_000;
/// Longest prompt that a tier can name, tokens.
const MAX_TOKENS: u64 = 1 << 40;
/// Days that a free quota may last.
const MAX_DAYS: u64 = 36_500;
/// Units of time that deployments are charged by, and their length in ms.
pub(super) const TIME_UNITS: [(&str, u64); 3] =
    [("hour", 3_600_000), ("minute", 60_000), ("second", 1_000)];

const DOCUMENT_KEYS: [&str; 7] =
    ["format", "name", "currency", "per_tokens", "time_zone", "in_force_from", "model"];
const PRICE_KEYS: [&str; 6] =
    ["input", "cached_input", "explicit_cached", "cache_created", "output", "thinking"];
const TIER_KEYS: [&str; 8] = [
    "over_tokens",
    "up_to_tokens",
    "input",
    "cached_input",
    "explicit_cached",
    "cache_created",
    "output",
    "thinking",
];
const MODEL_KEYS: [&str; 17] = [
    "name",
    "aliases",
    "thinking_price",
    "minimum_charge",
    "input",
    "cached_input",
    "explicit_cached",
    "cache_created",
    "output",
    "thinking",
    "tier",
    "batch",
    "window",
    "promotion",
    "free_quota",
    "training",
    "deployment",
];

impl PriceDocument {
    /// Reads and checks a price list in TOML; the repository's `prices.toml` shows all forms.
    ///
    /// # Errors
    /// Up to 20 problems, each with its line.
    pub fn from_toml(text: &str) -> Result<Self, Vec<Problem>> {
        document(&Node::from_toml(text)?)
    }

    /// Reads and checks what [`PriceDocument::to_json`] writes.
    ///
    /// # Errors
    /// The problems; lines are known only for what is not JSON at all.
    pub fn from_json(text: &str) -> Result<Self, Vec<Problem>> {
        document(&Node::from_json(text)?)
    }
}

/// What values are read with: the table, where it stands, who collects problems.
struct Reader<'a> {
    table: &'a Table,
    line: usize,
    problems: &'a Problems,
}

impl<'a> Reader<'a> {
    fn of(node: &'a Node, problems: &'a Problems, what: &str) -> Option<Self> {
        let Kind::Table(table) = &node.kind else {
            problems.add(node.line, format!("{what} is {}, not a table", node.kind_name()));
            return None;
        };
        Some(Self { table, line: node.line, problems })
    }

    fn refuse(&self, line: usize, message: impl Into<String>) {
        self.problems.add(line, message);
    }

    /// The value of a key, parsed; a failure names the key.
    fn parsed<T>(&self, key: &str, parse: impl FnOnce(&Node) -> Result<T, String>) -> Option<T> {
        let node = self.table.get(key)?;
        parse(node).map_err(|why| self.refuse(node.line, format!("`{key}`: {why}"))).ok()
    }

    fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    fn line_of(&self, key: &str) -> usize {
        self.table.get(key).map_or(self.line, |node| node.line)
    }

    fn parsed_text<T>(&self, key: &str, parse: fn(&str) -> Result<T, String>) -> Option<T> {
        self.parsed(key, |node| parse(text(node)?))
    }

    fn count(&self, key: &str, max: u64) -> Option<u64> {
        self.parsed(key, |node| count(node, max))
    }

    /// Pico for one unit, of a price with so many digits to shift.
    fn price(&self, key: &str, digits: u32, max: u128) -> Option<u64> {
        self.parsed(key, |node| price(node, digits, max))
    }

    /// The elements of an array, at most `max`.
    fn elements(&self, key: &str, max: usize) -> &'a [Node] {
        let Some(node) = self.table.get(key) else { return &[] };
        let Kind::Array(items) = &node.kind else {
            let kind = node.kind_name();
            self.refuse(node.line, format!("`{key}` is {kind}, not a list"));
            return &[];
        };
        if items.len() > max {
            let line = items.get(max).map_or(node.line, |item| item.line);
            self.refuse(line, format!("{} of `{key}`; at most {max} are taken", items.len()));
            return &[];
        }
        items
    }

    fn nested(&self, key: &str) -> Option<Self> {
        Self::of(self.table.get(key)?, self.problems, &format!("`{key}`"))
    }
}

fn text(node: &Node) -> Result<&str, String> {
    match &node.kind {
        Kind::Text(text) => Ok(text),
        _ => Err(format!("{}, not a text in quotes", node.kind_name())),
    }
}

fn count(node: &Node, max: u64) -> Result<u64, String> {
    let Kind::Number(digits) = &node.kind else {
        return Err(format!("{}, not a whole number", node.kind_name()));
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("`{}` is not a whole number from 1", shown(digits)))?;
    if (1..=max).contains(&number) {
        return Ok(number);
    }
    Err(format!("{number} is not between 1 and {max}"))
}

fn price(node: &Node, digits: u32, max: u128) -> Result<u64, String> {
    let text = node.number_text().ok_or_else(|| format!("{}, not a price", node.kind_name()))?;
    let pico = scaled_decimal(text, digits)?;
    let dearest = || format!("`{}` is beyond the dearest price that is taken", shown(text));
    if pico > max {
        return Err(dearest());
    }
    u64::try_from(pico).map_err(|_| dearest())
}

fn name(node: &Node) -> Result<String, String> {
    let name = text(node)?;
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS {
        return Err(format!("a name has 1 to {MAX_NAME_CHARS} characters"));
    }
    if name.chars().any(|c| c.is_control()) {
        return Err("a name has no control characters".to_owned());
    }
    Ok(name.to_owned())
}

fn ratio(node: &Node) -> Result<Ratio, String> {
    let text = node.number_text().ok_or_else(|| format!("{}, not a factor", node.kind_name()))?;
    Ratio::parse(text).map_err(|why| format!("{why}; factors are written 1/2, 0.5 or 50%"))
}

fn document(root: &Node) -> Result<PriceDocument, Vec<Problem>> {
    let problems = Problems::default();
    let document = Reader::of(root, &problems, "the price list").map(|root| read_document(&root));
    let found = problems.into_sorted();
    match document {
        Some(document) if found.is_empty() => Ok(document),
        _ => Err(found),
    }
}

fn read_document(root: &Reader<'_>) -> PriceDocument {
    if root.count("format", u64::MAX).is_some_and(|format| format != 1) {
        root.refuse(root.line_of("format"), "this version of Mintage reads format 1");
    }
    let per_tokens = root.parsed("per_tokens", |node| match count(node, u64::MAX)? {
        1 => Ok(PICO_DIGITS),
        1_000 => Ok(PICO_DIGITS - 3),
        1_000_000 => Ok(PICO_DIGITS - 6),
        other => Err(format!("{other}; prices are for 1, 1000 or 1000000 tokens")),
    });
    let digits = per_tokens.unwrap_or(PICO_DIGITS - 6);
    let currency = |text: &str| text.parse::<Currency>().map_err(|error| error.to_string());
    let mut models = Vec::new();
    for node in root.elements("model", MAX_MODELS) {
        if root.problems.is_full() {
            break;
        }
        if let Some(reader) = Reader::of(node, root.problems, "`model`") {
            models.push((read_model(&reader, digits), node.line));
        }
    }
    if !root.has("model") {
        root.refuse(root.line, "no model has a price; write [[model]] and its prices");
    }
    models.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let mut by_name = BTreeMap::new();
    for (index, (model, line)) in models.iter().enumerate() {
        for name in std::iter::once(&model.name).chain(&model.aliases) {
            if !name.is_empty() && by_name.insert(name.clone(), index).is_some() {
                root.refuse(*line, format!("`{}` has prices twice in this list", shown(name)));
            }
        }
    }
    root.table.refuse_unknown(&DOCUMENT_KEYS, root.problems);
    PriceDocument {
        name: root.parsed("name", name).unwrap_or_else(|| "prices".to_owned()),
        currency: root.parsed_text("currency", currency).unwrap_or_default(),
        time_zone_minutes: root.parsed_text("time_zone", parse_offset).unwrap_or(8 * 60),
        in_force_from_s: root.parsed_text("in_force_from", parse_instant),
        models: models.into_iter().map(|(model, _)| model).collect(),
        by_name,
    }
}

fn read_model(model: &Reader<'_>, digits: u32) -> ModelPrices {
    let model_name = model.parsed("name", name);
    if !model.has("name") {
        model.refuse(model.line, "a model without `name`");
    }
    let alias_nodes = model.elements("aliases", MAX_ALIASES);
    let alias = |node: &Node| {
        name(node).map_err(|why| model.refuse(node.line, format!("`aliases`: {why}"))).ok()
    };
    let tiers = read_tiers(model, digits);
    let prices = ModelPrices {
        name: model_name.unwrap_or_default(),
        aliases: alias_nodes.iter().filter_map(alias).collect(),
        thinking: read_thinking(model),
        minimum_pico: model.price("minimum_charge", PICO_DIGITS, MAX_PICO_PER_UNIT).unwrap_or(0),
        batch: model.nested("batch").map(|batch| read_batch(&batch)),
        windows: read_windows(model),
        promotions: read_promotions(model),
        free_quota: model.nested("free_quota").map(|quota| read_free_quota(&quota)),
        training_pico_per_token: model.nested("training").and_then(|training| {
            let price = required_price(&training, "price", digits, MAX_PICO_PER_TOKEN);
            training.table.refuse_unknown(&["price"], training.problems);
            price
        }),
        deployment: model.nested("deployment").and_then(|deployment| read_deployment(&deployment)),
        tiers: tiers.iter().map(|(tier, _)| tier.clone()).collect(),
    };
    model.table.refuse_unknown(&MODEL_KEYS, model.problems);
    for (tier, line) in &tiers {
        refuse_fractions(model, &prices, tier, *line);
    }
    prices
}

fn read_thinking(model: &Reader<'_>) -> ThinkingRule {
    let rule = model.parsed("thinking_price", |node| match text(node)? {
        "whole_output" => Ok(ThinkingRule::WholeOutput),
        "thinking_tokens" => Ok(ThinkingRule::ThinkingTokens),
        other => Err(format!("`{}`; write whole_output or thinking_tokens", shown(other))),
    });
    rule.unwrap_or(ThinkingRule::WholeOutput)
}

fn required_price(reader: &Reader<'_>, key: &str, digits: u32, max: u128) -> Option<u64> {
    if !reader.has(key) {
        reader.refuse(reader.line, format!("`{key}` is missing"));
    }
    reader.price(key, digits, max)
}

/// Tiers with their lines.
fn read_tiers(model: &Reader<'_>, digits: u32) -> Vec<(Tier, usize)> {
    let flat = PRICE_KEYS.into_iter().find(|key| model.has(key));
    if !model.has("tier") {
        if flat.is_none() {
            if !model.has("training") && !model.has("deployment") {
                model.refuse(model.line, "the model has no prices: `input` and `output`, or tiers");
            }
            return Vec::new();
        }
        let pico_per_token = read_classes(model, digits);
        return vec![(Tier { up_to_tokens: None, pico_per_token }, model.line)];
    }
    if let Some(key) = flat {
        let message = format!("`{key}` stands beside tiers; write it into each [[model.tier]]");
        model.refuse(model.line_of(key), message);
    }
    let nodes = model.elements("tier", MAX_TIERS);
    let mut tiers: Vec<(Tier, usize)> = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let Some(reader) = Reader::of(node, model.problems, "`tier`") else { continue };
        let previous = tiers.last().map(|(tier, _)| tier.up_to_tokens);
        let up_to_tokens = read_bounds(&reader, previous, index + 1 == nodes.len());
        let pico_per_token = read_classes(&reader, digits);
        reader.table.refuse_unknown(&TIER_KEYS, model.problems);
        tiers.push((Tier { up_to_tokens, pico_per_token }, node.line));
    }
    if nodes.is_empty()
        && matches!(model.table.get("tier").map(|node| &node.kind), Some(Kind::Array(items)) if items.is_empty())
    {
        // Canonical JSON of a model that has only training or deployment prices.
        if !model.has("training") && !model.has("deployment") {
            model.refuse(model.line_of("tier"), "`tier` is empty");
        }
    }
    tiers
}

/// The upper end of a tier; `previous` is that of the tier before.
fn read_bounds(tier: &Reader<'_>, previous: Option<Option<u64>>, last: bool) -> Option<u64> {
    let up_to = tier.count("up_to_tokens", MAX_TOKENS);
    if !last && !tier.has("up_to_tokens") {
        tier.refuse(tier.line, "`up_to_tokens` is missing; only the last tier may have no end");
    }
    let lower = previous.flatten().unwrap_or(0);
    if let Some(up_to) = up_to.filter(|&up_to| up_to <= lower) {
        let line = tier.line_of("up_to_tokens");
        tier.refuse(
            line,
            format!("overlap: this tier ends at {up_to}, the one before at {lower}; tiers ascend"),
        );
    }
    let over = tier.parsed("over_tokens", |node| match &node.kind {
        Kind::Number(digits) if digits == "0" => Ok(0),
        _ => count(node, MAX_TOKENS),
    });
    if let Some(over) = over.filter(|&over| over != lower) {
        let what = if over > lower { "gap" } else { "overlap" };
        let message =
            format!("{what}: this tier begins over {over}, the one before ends at {lower}");
        tier.refuse(tier.line_of("over_tokens"), message);
    }
    up_to
}

/// Prices of all classes; cached ones may be a percentage of `input`.
fn read_classes(reader: &Reader<'_>, digits: u32) -> PerClass<u64> {
    let input = required_price(reader, "input", digits, MAX_PICO_PER_TOKEN).unwrap_or(0);
    let output = required_price(reader, "output", digits, MAX_PICO_PER_TOKEN).unwrap_or(0);
    let of_input = |key: &str| {
        let price = reader.parsed(key, |node| {
            let share = node.number_text().filter(|text| text.ends_with('%'));
            let Some(share) = share else { return price(node, digits, MAX_PICO_PER_TOKEN) };
            let pico = Ratio::parse(share)?.of(u128::from(input)).ok_or_else(|| {
                format!(
                    "{share} of the input price is no whole 10⁻¹² of the currency unit for a token"
                )
            })?;
            // As dear as a price that is written out may be: the list must read again as it is kept.
            let too_large =
                || format!("{share} of the input price is beyond the dearest price that is taken");
            if pico > MAX_PICO_PER_TOKEN {
                return Err(too_large());
            }
            u64::try_from(pico).map_err(|_| too_large())
        });
        price.unwrap_or(input)
    };
    PerClass([
        input,
        of_input("cached_input"),
        of_input("explicit_cached"),
        of_input("cache_created"),
        output,
        reader.price("thinking", digits, MAX_PICO_PER_TOKEN).unwrap_or(output),
    ])
}

/// One factor for all classes, or a table by class in which what is left out is 1.
fn read_factor(reader: &Reader<'_>) -> PerClass<Ratio> {
    let one = PerClass([Ratio::ONE; TokenClass::ALL.len()]);
    let Some(node) = reader.table.get("factor") else {
        reader.refuse(reader.line, "`factor` is missing; write what the price is multiplied with");
        return one;
    };
    if !matches!(node.kind, Kind::Table(_)) {
        let factor = reader.parsed("factor", ratio).unwrap_or(Ratio::ONE);
        return PerClass([factor; TokenClass::ALL.len()]);
    }
    let Some(classes) = reader.nested("factor") else { return one };
    let factors = TokenClass::ALL.map(|class| classes.parsed(class.key(), ratio));
    classes.table.refuse_unknown(&PRICE_KEYS, reader.problems);
    PerClass(factors.map(|factor| factor.unwrap_or(Ratio::ONE)))
}

fn read_batch(batch: &Reader<'_>) -> Batch {
    let mut stacks_with = Vec::new();
    for node in batch.elements("stacks_with", Stackable::ALL.len()) {
        let given = node.number_text().unwrap_or_default();
        match Stackable::ALL.into_iter().find(|with| with.key() == given) {
            Some(with) => stacks_with.push(with),
            None => batch.refuse(
                node.line,
                format!(
                    "`stacks_with`: `{}`; known are cache, free_quota, window, promotion",
                    shown(given)
                ),
            ),
        }
    }
    stacks_with.sort_unstable();
    stacks_with.dedup();
    let factor = read_factor(batch);
    batch.table.refuse_unknown(&["factor", "stacks_with"], batch.problems);
    Batch { factor, stacks_with }
}

fn read_windows(model: &Reader<'_>) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for node in model.elements("window", MAX_WINDOWS) {
        let Some(reader) = Reader::of(node, model.problems, "`window`") else { continue };
        let time = |key| {
            if !reader.has(key) {
                reader.refuse(node.line, format!("`{key}` is missing"));
            }
            // `24:00` is the next day's first second, which windows wrap to.
            reader.parsed_text(key, parse_time_of_day)
        };
        let (from, to) = (time("from"), time("to"));
        let factor = read_factor(&reader);
        reader.table.refuse_unknown(&["from", "to", "factor"], model.problems);
        let (Some(from_s), Some(to_s)) = (from, to) else { continue };
        if from_s % DAY_S == to_s % DAY_S && (from_s, to_s) != (0, DAY_S) {
            reader.refuse(node.line, "the window is empty; a whole day is 00:00 to 24:00");
            continue;
        }
        let window = Window { from_s: from_s % DAY_S, to_s, factor };
        if let Some(other) = windows.iter().find(|other| windows_overlap(other, &window)) {
            let of = super::time::time_of_day_text(other.from_s);
            reader.refuse(node.line, format!("the window overlaps the one from {of}"));
        }
        windows.push(window);
    }
    windows.sort_by_key(|window| window.from_s);
    windows
}

/// Two windows overlap where one begins inside the other.
fn windows_overlap(a: &Window, b: &Window) -> bool {
    a.contains(b.from_s) || b.contains(a.from_s)
}

fn read_promotions(model: &Reader<'_>) -> Vec<Promotion> {
    let mut promotions: Vec<Promotion> = Vec::new();
    for node in model.elements("promotion", MAX_PROMOTIONS) {
        let Some(reader) = Reader::of(node, model.problems, "`promotion`") else { continue };
        let instant = |key| {
            if !reader.has(key) {
                reader.refuse(node.line, format!("`{key}` is missing"));
            }
            reader.parsed_text(key, parse_instant)
        };
        let (start, end) = (instant("start"), instant("end"));
        let factor = read_factor(&reader);
        let promotion_name = reader.parsed("name", name).unwrap_or_else(|| "promotion".to_owned());
        reader.table.refuse_unknown(&["name", "start", "end", "factor"], model.problems);
        let (Some(start_s), Some(end_s)) = (start, end) else { continue };
        if start_s >= end_s {
            reader.refuse(reader.line_of("end"), "the promotion ends before it starts");
        }
        if let Some(other) = promotions.iter().find(|p| p.start_s < end_s && start_s < p.end_s) {
            let message = format!("the promotion overlaps `{}`; one holds at a time", other.name);
            reader.refuse(node.line, message);
        }
        promotions.push(Promotion { name: promotion_name, start_s, end_s, factor });
    }
    promotions.sort_by_key(|promotion| promotion.start_s);
    promotions
}

fn read_free_quota(quota: &Reader<'_>) -> FreeQuota {
    if !quota.has("tokens") {
        quota.refuse(quota.line, "`tokens` is missing: how many are free");
    }
    let read = FreeQuota {
        tokens: quota.count("tokens", MAX_TOKENS).unwrap_or(0),
        lasts_s: quota
            .count("days", MAX_DAYS)
            .and_then(|days| i64::try_from(days).ok())
            .map(|d| d * DAY_S),
        expires_s: quota.parsed_text("expires", parse_instant),
    };
    if !quota.has("days") && !quota.has("expires") {
        quota.refuse(quota.line, "the free quota never ends; give it `days` or `expires`");
    }
    quota.table.refuse_unknown(&["tokens", "days", "expires"], quota.problems);
    read
}

fn read_deployment(deployment: &Reader<'_>) -> Option<Deployment> {
    let pico_per_unit = required_price(deployment, "price", PICO_DIGITS, MAX_PICO_PER_UNIT);
    let unit_ms = deployment.parsed("per", |node| {
        let given = text(node)?;
        let unit = TIME_UNITS.iter().find(|(name, _)| *name == given);
        unit.map(|(_, ms)| *ms)
            .ok_or_else(|| format!("`{}`; write hour, minute or second", shown(given)))
    });
    if !deployment.has("per") {
        deployment.refuse(deployment.line, "`per` is missing: hour, minute or second");
    }
    deployment.table.refuse_unknown(&["price", "per"], deployment.problems);
    Some(Deployment { pico_per_unit: pico_per_unit?, unit_ms: unit_ms? })
}

/// Every price under every combination of factors that can meet must be whole pico.
fn refuse_fractions(model: &Reader<'_>, prices: &ModelPrices, tier: &Tier, line: usize) {
    for class in TokenClass::ALL {
        for factor in prices.possible_factors(class) {
            let Some(factor) = factor else {
                model.refuse(line, "the factors of batch, window and promotion multiply to a ratio too long to keep");
                return;
            };
            let pico = tier.pico_per_token.of(class);
            if prices.priced(pico, factor).is_none() {
                let price = super::document::per_million(pico);
                model.refuse(line, format!(
                    "`{}`: {price} a million tokens × {factor} is no whole 10⁻¹² of the currency unit for a token; \
                     choose a price or factor that divides evenly",
                    class.key()
                ));
                return;
            }
        }
    }
}

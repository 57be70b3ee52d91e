//! A price list as data: what every model costs, in every form. Immutable once made; made only by `read.rs`, which has
//! checked it.
//!
//! Not here: what a request costs (`rate.rs`) and from when a list holds (`book.rs`). Invariant: all prices are whole
//! pico (10⁻¹² of the currency unit) for one token, also after every combination of the list's factors, so rating never
//! rounds.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::exact::{PICO_DIGITS, Ratio, decimal_text};
use super::time::{instant_text, offset_text, time_of_day_text};
use crate::Currency;

/// Digits after the point of a price for a million tokens.
const PER_MILLION_DIGITS: u32 = 6;
/// Tokens that prices are stated for in JSON.
const PER_TOKENS: u64 = 1_000_000;

/// What a token can be, as far as its price goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenClass {
    /// Prompt token, computed.
    Input,
    /// Prompt token found in the shared prefix cache without being asked for.
    CachedInput,
    /// Prompt token read from a cache that the client created.
    ExplicitCached,
    /// Prompt token written to a cache at the client's wish.
    CacheCreated,
    /// Sampled token of an answer.
    Output,
    /// Sampled token of thinking.
    Thinking,
}

impl TokenClass {
    /// In the order in which free quota is used up.
    pub const ALL: [Self; 6] = [
        Self::Input,
        Self::CachedInput,
        Self::ExplicitCached,
        Self::CacheCreated,
        Self::Output,
        Self::Thinking,
    ];

    /// Its key in price lists, invoices and JSON.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::CachedInput => "cached_input",
            Self::ExplicitCached => "explicit_cached",
            Self::CacheCreated => "cache_created",
            Self::Output => "output",
            Self::Thinking => "thinking",
        }
    }
}

/// One value for each class of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerClass<T>(pub(super) [T; TokenClass::ALL.len()]);

impl<T: Copy> PerClass<T> {
    /// Of one class.
    #[must_use]
    pub fn of(&self, class: TokenClass) -> T {
        self.0[class as usize]
    }
}

/// Prices of prompts up to a length; the whole request has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Longest prompt in tokens, itself included; `None` has no end.
    pub up_to_tokens: Option<u64>,
    /// Pico for one token.
    pub pico_per_token: PerClass<u64>,
}

/// Which tokens the price of thinking is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThinkingRule {
    /// All sampled tokens of a request that thought, the answer too; a request that did not think has the plain price.
    WholeOutput,
    /// Tokens of thinking only.
    ThinkingTokens,
}

/// What a discount can be combined with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stackable {
    /// Prices of cached tokens; otherwise they cost what computed ones do.
    Cache,
    /// Free quota.
    FreeQuota,
    /// Time-of-day windows.
    Window,
    /// Promotions.
    Promotion,
}

impl Stackable {
    pub(super) const ALL: [Self; 4] = [Self::Cache, Self::FreeQuota, Self::Window, Self::Promotion];

    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::FreeQuota => "free_quota",
            Self::Window => "window",
            Self::Promotion => "promotion",
        }
    }
}

/// Price of requests in batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Times the price.
    pub factor: PerClass<Ratio>,
    /// What else applies to batches.
    pub stacks_with: Vec<Stackable>,
}

/// A time of day with prices of its own, every day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// First second, from midnight in the list's offset.
    pub from_s: i64,
    /// The second after the last; at or before `from_s` it is the next day's.
    pub to_s: i64,
    /// Times the price.
    pub factor: PerClass<Ratio>,
}

/// A time with prices of its own, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// Its name on invoices.
    pub name: String,
    /// First second, since 1970.
    pub start_s: i64,
    /// The second after the last.
    pub end_s: i64,
    /// Times the price.
    pub factor: PerClass<Ratio>,
}

/// Tokens that an organisation has for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeQuota {
    /// How many, prompt and sampled together.
    pub tokens: u64,
    /// Seconds from the organisation's beginning for which they last.
    pub lasts_s: Option<i64>,
    /// The second from which they are gone, since 1970.
    pub expires_s: Option<i64>,
}

/// Price of a deployment that stands ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Pico for each unit of time begun.
    pub pico_per_unit: u64,
    /// Length of a unit, ms: an hour, a minute or a second.
    pub unit_ms: u64,
}

/// All prices of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPrices {
    /// As served; `*` is for all models that the list does not name.
    pub name: String,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// By prompt length, ascending; at least one unless only training or deployment has a price.
    pub tiers: Vec<Tier>,
    /// Which tokens the price of thinking is for.
    pub thinking: ThinkingRule,
    /// A request that costs anything costs at least so many pico.
    pub minimum_pico: u64,
    /// Batches.
    pub batch: Option<Batch>,
    /// Never two at once.
    pub windows: Vec<Window>,
    /// Never two at once.
    pub promotions: Vec<Promotion>,
    /// Free tokens.
    pub free_quota: Option<FreeQuota>,
    /// Pico for one token of one epoch of training.
    pub training_pico_per_token: Option<u64>,
    /// Standing ready.
    pub deployment: Option<Deployment>,
}

/// A checked price list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceDocument {
    /// What people call it.
    pub name: String,
    /// Of all its prices.
    pub currency: Currency,
    /// Offset from UTC of times of day, minutes.
    pub time_zone_minutes: i64,
    /// From when it wants to hold, seconds since 1970; `None` is from its import on.
    pub in_force_from_s: Option<i64>,
    /// By name.
    pub models: Vec<ModelPrices>,
    /// Name or alias → index in `models`.
    pub(super) by_name: BTreeMap<String, usize>,
}

impl PriceDocument {
    /// The prices of a model: under its name, an alias, or those for all.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&ModelPrices> {
        let index = self.by_name.get(name).or_else(|| self.by_name.get("*"))?;
        self.models.get(*index)
    }

    /// Canonical JSON: all keys of a document at their resolved values, prices for a million tokens. What it reads back
    /// as equals this document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let models: Vec<Value> = self.models.iter().map(model_json).collect();
        json!({
            "format": 1,
            "name": self.name,
            "currency": self.currency.code(),
            "per_tokens": PER_TOKENS,
            "time_zone": offset_text(self.time_zone_minutes),
            "in_force_from": self.in_force_from_s.map(instant_text),
            "model": models,
        })
    }

    /// SHA-256 of the canonical JSON's compact form, in hexadecimal. Layout, comments and notation of the TOML do not
    /// change it.
    #[must_use]
    pub fn digest(&self) -> String {
        let digest = Sha256::digest(self.to_json().to_string().as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A price for a million tokens.
pub(super) fn per_million(pico_per_token: u64) -> String {
    decimal_text(u128::from(pico_per_token), PER_MILLION_DIGITS)
}

fn factor_json(factor: &PerClass<Ratio>) -> Value {
    let first = factor.of(TokenClass::Input);
    if factor.0.iter().all(|ratio| *ratio == first) {
        return Value::String(first.to_string());
    }
    let entry = |class: TokenClass| (class.key().to_owned(), factor.of(class).to_string().into());
    Value::Object(TokenClass::ALL.into_iter().map(entry).collect())
}

fn tier_json(tier: &Tier) -> Value {
    let mut json = Map::new();
    if let Some(tokens) = tier.up_to_tokens {
        json.insert("up_to_tokens".to_owned(), tokens.into());
    }
    for class in TokenClass::ALL {
        let price = per_million(tier.pico_per_token.of(class));
        json.insert(class.key().to_owned(), price.into());
    }
    Value::Object(json)
}

fn model_json(model: &ModelPrices) -> Value {
    let mut json = json!({
        "name": model.name,
        "aliases": model.aliases,
        "thinking_price": match model.thinking {
            ThinkingRule::WholeOutput => "whole_output",
            ThinkingRule::ThinkingTokens => "thinking_tokens",
        },
        "minimum_charge": decimal_text(u128::from(model.minimum_pico), PICO_DIGITS),
        "tier": model.tiers.iter().map(tier_json).collect::<Vec<_>>(),
        "window": model.windows.iter().map(|window| json!({
            "from": time_of_day_text(window.from_s),
            "to": time_of_day_text(window.to_s),
            "factor": factor_json(&window.factor),
        })).collect::<Vec<_>>(),
        "promotion": model.promotions.iter().map(|promotion| json!({
            "name": promotion.name,
            "start": instant_text(promotion.start_s),
            "end": instant_text(promotion.end_s),
            "factor": factor_json(&promotion.factor),
        })).collect::<Vec<_>>(),
    });
    let mut put = |key: &str, value: Option<Value>| {
        if let (Some(value), Value::Object(json)) = (value, &mut json) {
            json.insert(key.to_owned(), value);
        }
    };
    put(
        "batch",
        model.batch.as_ref().map(|batch| {
            let keys: Vec<_> = batch.stacks_with.iter().map(|with| with.key()).collect();
            json!({ "factor": factor_json(&batch.factor), "stacks_with": keys })
        }),
    );
    put("free_quota", model.free_quota.as_ref().map(free_quota_json));
    put(
        "training",
        model.training_pico_per_token.map(|pico| json!({ "price": per_million(pico) })),
    );
    put(
        "deployment",
        model.deployment.as_ref().map(|deployment| {
            let per = super::read::TIME_UNITS.iter().find(|(_, ms)| *ms == deployment.unit_ms);
            let price = decimal_text(u128::from(deployment.pico_per_unit), PICO_DIGITS);
            json!({ "price": price, "per": per.map_or("hour", |(name, _)| name) })
        }),
    );
    json
}

fn free_quota_json(quota: &FreeQuota) -> Value {
    let mut json = Map::new();
    json.insert("tokens".to_owned(), quota.tokens.into());
    if let Some(lasts_s) = quota.lasts_s {
        json.insert("days".to_owned(), (lasts_s / super::time::DAY_S).into());
    }
    if let Some(expires_s) = quota.expires_s {
        json.insert("expires".to_owned(), instant_text(expires_s).into());
    }
    Value::Object(json)
}

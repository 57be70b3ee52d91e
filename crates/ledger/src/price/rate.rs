//! What usage costs under a price list, and the most that it can cost before it is known.
//!
//! Pure: the time is that of admission, an argument. No rounding happens here: the document guarantees whole pico.
//!
//! The rules, in order: the tier by the prompt's length (all classes counted, the bound itself included) prices the
//! whole request; the window and the promotion of the second of admission multiply; a batch multiplies, with what its
//! list says it stacks with; free tokens are used up class by class, prompt before answer; a minimum charge lifts
//! what costs more than nothing.
//! Invariant: `rate` ≤ `ceiling` for all usage within the bounds, and usage of nothing costs nothing.

use super::book::PriceVersion;
use super::document::{
    Batch, ModelPrices, PerClass, PriceDocument, Stackable, ThinkingRule, Tier, TokenClass, Window,
};
use super::exact::Ratio;
use super::time::DAY_S;
use crate::{Amount, Quantity, TokenUsage, UsageRecord};

/// Why something cannot be priced. Nothing here is worth a retry before the list changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// The list does not know the model.
    #[error(
        "the price list `{list}` has no prices for the model `{model}`; add it, or a model `*` for all others"
    )]
    NoModel {
        /// Name of the list.
        list: String,
        /// As asked for.
        model: String,
    },
    /// The list prices the model, but not this.
    #[error("the price list `{list}` has no price for {what} of the model `{model}`")]
    NoPrice {
        /// Name of the list.
        list: String,
        /// As asked for.
        model: String,
        /// `tokens`, `training` or `deployment`.
        what: &'static str,
    },
    /// The last tier ends before the prompt does.
    #[error(
        "a prompt of {tokens} tokens is longer than the {up_to_tokens} that the price list covers for `{model}`"
    )]
    PromptBeyondTiers {
        /// As asked for.
        model: String,
        /// Of the prompt.
        tokens: u64,
        /// Of the last tier.
        up_to_tokens: u64,
    },
    /// More than one posting holds.
    #[error("the price of this request is beyond what one posting can hold")]
    TooLarge,
}

/// What is to be priced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// Tokens of one request.
    Tokens {
        /// By class.
        usage: TokenUsage,
        /// Whether it came in a batch.
        batch: bool,
    },
    /// Tokens × epochs of a training run; see [`training_tokens`].
    TrainingTokens(u64),
    /// Instances × milliseconds that a deployment stood ready.
    DeploymentMs(u64),
}

/// (Tokens of the training set + tokens mixed in) × epochs, unless that overflows.
#[must_use]
pub fn training_tokens(own: u64, mixed_in: u64, epochs: u64) -> Option<u64> {
    own.checked_add(mixed_in)?.checked_mul(epochs)
}

/// What a line of a rated request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LineClass {
    /// Tokens of a class.
    Tokens(TokenClass),
    /// What a minimum charge adds.
    Minimum,
    /// What was not posted because the hold did not cover it; never in a rated request, only on invoices.
    BeyondHold,
    /// Tokens × epochs.
    Training,
    /// Units of time.
    Deployment,
}

impl LineClass {
    /// Its name in invoices and JSON.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Tokens(class) => class.key(),
            Self::Minimum => "minimum_charge",
            Self::BeyondHold => "beyond_hold",
            Self::Training => "training",
            Self::Deployment => "deployment",
        }
    }
}

/// One class of a rated request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RatedLine {
    /// What it is for.
    pub class: LineClass,
    /// Units: tokens, or hours (minutes, seconds) begun.
    pub quantity: u64,
    /// Of these, free ones.
    pub free: u64,
    /// Pico for each of the others, with all factors.
    pub pico_per_unit: u64,
    /// (quantity − free) × price.
    pub amount: Amount,
}

/// A priced request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rated {
    /// Classes that occurred, in the order of [`TokenClass::ALL`]; a minimum charge last.
    pub lines: Vec<RatedLine>,
    /// Sum of the lines.
    pub total: Amount,
    /// Free tokens used.
    pub free_tokens: u64,
}

/// What is known of a request before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Exact length of the prompt, tokens; counted once however many choices there are.
    pub prompt_tokens: u64,
    /// Most tokens that can be sampled, over all choices.
    pub output_tokens: u64,
    /// Whether the client asked for a cache: creating one can cost more than plain input.
    pub explicit_cache: bool,
    /// Whether the model may think.
    pub thinking: bool,
    /// Whether it came in a batch.
    pub batch: bool,
}

/// What to hold for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ceiling {
    /// Money.
    pub amount: Amount,
    /// Free tokens, to be passed to [`PriceVersion::rate`] when the request is settled.
    pub free_tokens: u64,
}

/// Free tokens of an organisation for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeGrant {
    /// How many in all.
    pub tokens: u64,
    /// From this ms since 1970 on there are none.
    pub expires_ms: u64,
}

/// The state of the clock and the kind of request that prices depend on.
#[derive(Clone, Copy)]
struct Circumstances {
    /// Seconds since 1970, at admission.
    at_s: i64,
    /// Seconds from midnight where the list says so.
    of_day_s: i64,
    batch: bool,
}

impl Circumstances {
    fn new(document: &PriceDocument, admitted_ms: u64, batch: bool) -> Self {
        // Years beyond i64 do not occur; saturating keeps hostile stamps harmless.
        let at_s = i64::try_from(admitted_ms / 1000).unwrap_or(i64::MAX / 2);
        let of_day_s = (at_s + document.time_zone_minutes * 60).rem_euclid(DAY_S);
        Self { at_s, of_day_s, batch }
    }
}

impl PriceVersion {
    /// The most that a request within `bounds` can cost, and the free tokens to hold of the `free_tokens_left`.
    ///
    /// # Errors
    /// Where [`PriceVersion::rate`] could not price the request either.
    pub fn ceiling(
        &self,
        model: &str,
        admitted_ms: u64,
        bounds: &Bounds,
        free_tokens_left: u64,
    ) -> Result<Ceiling, PriceError> {
        let prices = self.prices(model)?;
        let now = Circumstances::new(self.document(), admitted_ms, bounds.batch);
        let (prompt, output) = (bounds.prompt_tokens, bounds.output_tokens);
        let last = self.tier_index(prices, model, prompt)?;
        let dearest = |classes: &[TokenClass]| {
            // Tiers below are in reach where less of the prompt was computed than admitted.
            let tiers = prices.tiers.iter().take(last + 1);
            let unit = |tier, class| prices.pico_per_token(tier, class, now);
            tiers
                .flat_map(|tier| classes.iter().map(move |&class| unit(tier, class)))
                .try_fold(0, |dearest: u64, price| price.map(|price| dearest.max(price)))
        };
        use TokenClass::{CacheCreated, CachedInput, ExplicitCached, Input, Output, Thinking};
        let input_classes: &[TokenClass] = if bounds.explicit_cache {
            &[Input, CachedInput, ExplicitCached, CacheCreated]
        } else {
            &[Input, CachedInput]
        };
        let output_classes: &[TokenClass] =
            if bounds.thinking { &[Output, Thinking] } else { &[Output] };
        let free_left = if prices.grants_free(bounds.batch) { free_tokens_left } else { 0 };
        let free_tokens = free_left.min(prompt.saturating_add(output));
        let free_prompt = free_tokens.min(prompt);
        let mut total = times(dearest(input_classes)?, prompt - free_prompt);
        total += times(dearest(output_classes)?, output - (free_tokens - free_prompt));
        if total > 0 {
            total = total.max(i128::from(prices.minimum_pico));
        }
        Ok(Ceiling { amount: postable(total)?, free_tokens })
    }

    /// What usage costs; `free_tokens` is what was held for it.
    ///
    /// # Errors
    /// No such price, a prompt beyond all tiers, an amount beyond what can be posted.
    pub fn rate(
        &self,
        model: &str,
        admitted_ms: u64,
        charge: &Charge,
        free_tokens: u64,
    ) -> Result<Rated, PriceError> {
        let prices = self.prices(model)?;
        match *charge {
            Charge::Tokens { usage, batch } => {
                let now = Circumstances::new(self.document(), admitted_ms, batch);
                let tier = self.tier_index(prices, model, usage.prompt())?;
                let tier = prices.tiers.get(tier).ok_or_else(|| self.no_price(model, "tokens"))?;
                prices.rate_tokens(tier, &usage, now, free_tokens)
            }
            Charge::TrainingTokens(tokens) => {
                let price = prices.training_pico_per_token;
                let price = price.ok_or_else(|| self.no_price(model, "training"))?;
                one_line(LineClass::Training, tokens, price)
            }
            Charge::DeploymentMs(ms) => {
                let deployment = prices.deployment.as_ref();
                let deployment = deployment.ok_or_else(|| self.no_price(model, "deployment"))?;
                let units = ms.div_ceil(deployment.unit_ms);
                one_line(LineClass::Deployment, units, deployment.pico_per_unit)
            }
        }
    }

    /// What a kept record costs under this list, at the time and with the free tokens it had.
    ///
    /// # Errors
    /// As [`PriceVersion::rate`].
    pub fn rate_record(&self, record: &UsageRecord) -> Result<Rated, PriceError> {
        let charge = match record.quantity {
            Quantity::Tokens => Charge::Tokens { usage: record.usage, batch: record.facts.batch },
            Quantity::TrainingTokens => Charge::TrainingTokens(record.units),
            Quantity::DeploymentMs => Charge::DeploymentMs(record.units),
        };
        self.rate(&record.facts.model, record.facts.arrival_ms, &charge, record.free_tokens)
    }

    /// Free tokens for a model of an organisation that began at `opened_ms`.
    #[must_use]
    pub fn free_grant(&self, model: &str, opened_ms: u64) -> Option<FreeGrant> {
        let quota = self.document().model(model)?.free_quota.as_ref()?;
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        let lasts = quota.lasts_s.map_or(u64::MAX, |lasts| opened_ms.saturating_add(ms(lasts)));
        let expires_ms = quota.expires_s.map_or(u64::MAX, ms).min(lasts);
        Some(FreeGrant { tokens: quota.tokens, expires_ms })
    }

    fn prices(&self, model: &str) -> Result<&ModelPrices, PriceError> {
        self.document().model(model).ok_or_else(|| PriceError::NoModel {
            list: self.document().name.clone(),
            model: model.to_owned(),
        })
    }

    fn no_price(&self, model: &str, what: &'static str) -> PriceError {
        PriceError::NoPrice { list: self.document().name.clone(), model: model.to_owned(), what }
    }

    /// The tier of a prompt: the first that reaches its length.
    fn tier_index(
        &self,
        prices: &ModelPrices,
        model: &str,
        prompt: u64,
    ) -> Result<usize, PriceError> {
        let reaches = |tier: &Tier| tier.up_to_tokens.is_none_or(|up_to| prompt <= up_to);
        prices.tiers.iter().position(reaches).ok_or_else(|| match prices.tiers.last() {
            Some(Tier { up_to_tokens: Some(up_to_tokens), .. }) => PriceError::PromptBeyondTiers {
                model: model.to_owned(),
                tokens: prompt,
                up_to_tokens: *up_to_tokens,
            },
            _ => self.no_price(model, "tokens"),
        })
    }
}

impl FreeGrant {
    /// How many are left at a time after so many were used or held.
    #[must_use]
    pub fn left(&self, at_ms: u64, used: u64) -> u64 {
        if at_ms < self.expires_ms { self.tokens.saturating_sub(used) } else { 0 }
    }
}

impl Window {
    /// Whether a second of the day is inside.
    pub(super) fn contains(&self, of_day_s: i64) -> bool {
        if self.from_s < self.to_s {
            (self.from_s..self.to_s).contains(&of_day_s)
        } else {
            of_day_s >= self.from_s || of_day_s < self.to_s
        }
    }
}

impl Batch {
    fn stacks(&self, with: Stackable) -> bool {
        self.stacks_with.contains(&with)
    }
}

impl ModelPrices {
    fn grants_free(&self, batch: bool) -> bool {
        self.applies(Stackable::FreeQuota, batch)
    }

    /// Whether a form of price holds for a request: always, except for batches that do not stack with it.
    fn applies(&self, form: Stackable, batch: bool) -> bool {
        match &self.batch {
            Some(prices) if batch => prices.stacks(form),
            _ => true,
        }
    }

    /// The product of all factors for a class, now. `None` cannot be: the document was checked.
    fn factor(&self, class: TokenClass, now: Circumstances) -> Option<Ratio> {
        let window = self.windows.iter().find(|window| window.contains(now.of_day_s));
        let promotion = self
            .promotions
            .iter()
            .find(|promotion| (promotion.start_s..promotion.end_s).contains(&now.at_s));
        let pick = |form, factor: Option<&PerClass<Ratio>>| {
            factor.filter(|_| self.applies(form, now.batch)).map_or(Ratio::ONE, |f| f.of(class))
        };
        let batch = self.batch.as_ref().filter(|_| now.batch).map(|batch| &batch.factor);
        batch
            .map_or(Ratio::ONE, |factor| factor.of(class))
            .times(pick(Stackable::Window, window.map(|window| &window.factor)))?
            .times(pick(Stackable::Promotion, promotion.map(|promotion| &promotion.factor)))
    }

    /// Every product that `factor` can give for a class at some time; `None` where it is too long to keep.
    pub(super) fn possible_factors(&self, class: TokenClass) -> Vec<Option<Ratio>> {
        let one_and = |factors: Vec<Ratio>| {
            let mut all = vec![Ratio::ONE];
            for factor in factors {
                if !all.contains(&factor) {
                    all.push(factor);
                }
            }
            all
        };
        let windows = one_and(self.windows.iter().map(|window| window.factor.of(class)).collect());
        let promotions =
            one_and(self.promotions.iter().map(|promotion| promotion.factor.of(class)).collect());
        let only_one = vec![Ratio::ONE];
        let mut products = Vec::new();
        let mut multiply = |first: Ratio, windows: &[Ratio], promotions: &[Ratio]| {
            for &window in windows {
                let both = first.times(window);
                products.extend(promotions.iter().map(|&p| both.and_then(|both| both.times(p))));
            }
        };
        multiply(Ratio::ONE, &windows, &promotions);
        if let Some(batch) = &self.batch {
            let those = |form, all| if batch.stacks(form) { all } else { &only_one };
            multiply(
                batch.factor.of(class),
                those(Stackable::Window, &windows),
                those(Stackable::Promotion, &promotions),
            );
        }
        products
    }

    /// A price under a factor, if it is whole pico that fit.
    pub(super) fn priced(&self, pico_per_token: u64, factor: Ratio) -> Option<u64> {
        u64::try_from(factor.of(u128::from(pico_per_token))?).ok()
    }

    /// Pico for a token of a class, all factors included.
    fn pico_per_token(
        &self,
        tier: &Tier,
        class: TokenClass,
        now: Circumstances,
    ) -> Result<u64, PriceError> {
        use TokenClass::{CacheCreated, CachedInput, ExplicitCached, Input};
        let cached = matches!(class, CachedInput | ExplicitCached | CacheCreated);
        let class =
            if cached && !self.applies(Stackable::Cache, now.batch) { Input } else { class };
        let factor = self.factor(class, now).ok_or(PriceError::TooLarge)?;
        self.priced(tier.pico_per_token.of(class), factor).ok_or(PriceError::TooLarge)
    }

    fn rate_tokens(
        &self,
        tier: &Tier,
        usage: &TokenUsage,
        now: Circumstances,
        free_tokens: u64,
    ) -> Result<Rated, PriceError> {
        let free_tokens = if self.grants_free(now.batch) { free_tokens } else { 0 };
        let thought = usage.thinking > 0 && self.thinking == ThinkingRule::WholeOutput;
        let mut rated = Rated::default();
        let (mut total, mut free_left) = (0_i128, free_tokens);
        for class in TokenClass::ALL {
            let quantity = tokens_of(usage, class);
            if quantity == 0 {
                continue;
            }
            let priced_as =
                if thought && class == TokenClass::Output { TokenClass::Thinking } else { class };
            let pico_per_unit = self.pico_per_token(tier, priced_as, now)?;
            let free = free_left.min(quantity);
            free_left -= free;
            let amount = times(pico_per_unit, quantity - free);
            total += amount;
            rated.lines.push(RatedLine {
                class: LineClass::Tokens(class),
                quantity,
                free,
                pico_per_unit,
                amount: Amount::from_pico(amount),
            });
        }
        let missing = i128::from(self.minimum_pico) - total;
        if total > 0 && missing > 0 {
            rated.lines.push(RatedLine {
                class: LineClass::Minimum,
                quantity: 1,
                free: 0,
                // At most the minimum, which fits.
                pico_per_unit: u64::try_from(missing).unwrap_or(0),
                amount: Amount::from_pico(missing),
            });
            total += missing;
        }
        rated.total = postable(total)?;
        rated.free_tokens = free_tokens - free_left;
        Ok(rated)
    }
}

/// Tokens of a class.
pub(crate) fn tokens_of(usage: &TokenUsage, class: TokenClass) -> u64 {
    match class {
        TokenClass::Input => usage.input,
        TokenClass::CachedInput => usage.cached_input,
        TokenClass::ExplicitCached => usage.explicit_cached,
        TokenClass::CacheCreated => usage.cache_created,
        TokenClass::Output => usage.output,
        TokenClass::Thinking => usage.thinking,
    }
}

/// Below 2^128: both are 64 bits, and a product's sign bit stays free because prices are below 10¹⁹.
fn times(pico: u64, units: u64) -> i128 {
    i128::try_from(u128::from(pico) * u128::from(units)).unwrap_or(i128::MAX / 8)
}

fn postable(pico: i128) -> Result<Amount, PriceError> {
    let amount = Amount::from_pico(pico);
    amount.posted_pico().map(|_| amount).ok_or(PriceError::TooLarge)
}

fn one_line(class: LineClass, quantity: u64, pico_per_unit: u64) -> Result<Rated, PriceError> {
    if quantity == 0 {
        return Ok(Rated::default());
    }
    let total = postable(times(pico_per_unit, quantity))?;
    let line = RatedLine { class, quantity, free: 0, pico_per_unit, amount: total };
    Ok(Rated { lines: vec![line], total, free_tokens: 0 })
}

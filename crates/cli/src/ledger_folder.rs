//! The ledger of a data folder, as the server uses it. What is in it is the ledger's.

use std::sync::Arc;

use anyhow::{Context, Result};
use mintage_ledger::limits::Calendar;
use mintage_ledger::price::{KeptPrices, RequestKind};
use mintage_ledger::{Amount, Currency, Ledger, Rating, UNLIMITED, Unpriced};
use mintage_server::Billing;

use crate::config::Settings;

/// The organisation of keys that nobody assigned.
const DEFAULT_ORGANISATION: &str = "org-default";

/// Opens the ledger and gives the default organisation its credit; `None` where nothing is to be accounted for.
pub(crate) fn billing(settings: &Settings) -> Result<Option<Billing>> {
    if !settings.ledger.enabled {
        return Ok(None);
    }
    let folder = settings.data_dir.join("ledger");
    let ledger = Ledger::open(&folder)
        .with_context(|| format!("the ledger in {} cannot be opened", folder.display()))?;
    let text = settings.ledger.default_credit.trim();
    let limit = if text == "unlimited" {
        UNLIMITED
    } else {
        text.parse::<Amount>().context("`ledger.default_credit` is an amount or \"unlimited\"")?
    };
    // Applied once for each value of the setting: what the operator changes later stays.
    let id = format!("default-credit/{limit}");
    ledger.credit_line(&id, DEFAULT_ORGANISATION, Currency::CNY, limit)?.wait()?;
    let calendar = Calendar { utc_offset_minutes: settings.ledger.utc_offset_minutes };
    let lists = KeptPrices::open(&ledger)
        .map(Arc::new)
        .context("the price lists in the ledger cannot be read")?;
    let unpriced: Arc<dyn Rating> = Arc::new(Unpriced);
    let request = RequestKind { explicit_cache: false, thinking: false };
    // Before the first list comes into force, nothing costs anything.
    let kept = Arc::clone(&lists);
    let prices = Arc::new(move |model: &str, at_ms: u64| {
        Some(kept.rating(model, at_ms, request).unwrap_or_else(|| Arc::clone(&unpriced)))
    });
    Ok(Some(Billing { ledger: Arc::new(ledger), prices, lists: Some(lists), calendar }))
}

//! The ledger of a data folder, as the server uses it. What is in it is the ledger's.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use mintage_ledger::limits::Calendar;
use mintage_ledger::price::{KeptPrices, RequestKind};
use mintage_ledger::{Amount, Currency, Ledger, MIN_RETENTION_DAYS, Rating, UNLIMITED, Unpriced};
use mintage_server::Billing;

use crate::config::Settings;

/// The organisation of keys that nobody assigned.
const DEFAULT_ORGANISATION: &str = "org-default";

/// Opens the ledger and gives the default organisation its credit; `None` where nothing is to be accounted for.
pub(crate) fn billing(settings: &Settings) -> Result<Option<Billing>> {
    if !settings.ledger.enabled {
        return Ok(None);
    }
    let days = settings.ledger.retention_days;
    if days > 0 && days < MIN_RETENTION_DAYS {
        bail!(
            "`ledger.retention_days` is {days}; usage records are kept for at least {MIN_RETENTION_DAYS} days, 0 keeps them"
        );
    }
    let ledger = match settings.ledger.shared()? {
        Some(url) => Ledger::open_shared(&url, &gateway_name(settings))
            .with_context(|| format!("the ledger in {url} cannot be opened"))?,
        None => {
            let folder = settings.data_dir.join("ledger");
            Ledger::open(&folder)
                .with_context(|| format!("the ledger in {} cannot be opened", folder.display()))?
        }
    };
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
    // Any model may think: a hold covers that.
    let request = RequestKind { explicit_cache: false, thinking: true };
    // Before the first list comes into force, nothing costs anything.
    let kept = Arc::clone(&lists);
    let prices = Arc::new(move |model: &str, at_ms: u64| {
        Some(kept.rating(model, at_ms, request).unwrap_or_else(|| Arc::clone(&unpriced)))
    });
    let ledger = Arc::new(ledger);
    follow_prices(&ledger, &lists);
    let retention_days = Some(settings.ledger.retention_days).filter(|days| *days > 0);
    Ok(Some(Billing { ledger, prices, lists: Some(lists), calendar, retention_days }))
}

/// Lists that come in at another gateway count here too.
fn follow_prices(ledger: &Arc<Ledger>, lists: &Arc<KeptPrices>) {
    let (weak, lists) = (Arc::downgrade(ledger), Arc::clone(lists));
    ledger.on_document(move |kind| {
        let (weak, lists) = (weak.clone(), Arc::clone(&lists));
        if kind != "price" {
            return;
        }
        // Not on the ledger's own thread, which would have to end itself if this were the last to hold the ledger.
        std::thread::spawn(move || {
            let Some(ledger) = weak.upgrade() else { return };
            if let Err(error) = lists.reload(&ledger) {
                tracing::warn!(%error, "price lists of another gateway cannot be read");
            }
        });
    });
}

/// Gateways on one host differ by their ports.
fn gateway_name(settings: &Settings) -> String {
    let given = settings.ledger.gateway.trim();
    if !given.is_empty() {
        return given.to_owned();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", host.trim(), settings.server.listen.port())
}

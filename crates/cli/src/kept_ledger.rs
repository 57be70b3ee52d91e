//! The ledger that the settings name, for commands that work on it directly: the data folder's, which a running server
//! has for itself, or the database that gateways share, beside them.

use anyhow::{Context, Result};
use mintage_ledger::price::KeptPrices;
use mintage_ledger::{Ledger, UsageFilter, UsageRecord};

use crate::config::Settings;

/// Below the data folder.
const FOLDER: &str = "ledger";
/// As what commands join the gateways of a shared ledger, for a moment and one after the other.
const COMMAND_LINE: &str = "command line";

/// Whether there is a ledger.
pub(crate) fn exists(settings: &Settings) -> Result<bool> {
    Ok(settings.ledger.shared()?.is_some() || settings.data_dir.join(FOLDER).is_dir())
}

/// Opens the ledger, made where there is none, and its prices.
pub(crate) fn open(settings: &Settings) -> Result<(Ledger, KeptPrices)> {
    let ledger = match settings.ledger.shared()? {
        Some(url) => Ledger::open_shared(&url, COMMAND_LINE)
            .with_context(|| format!("the ledger in {url} cannot be opened"))?,
        None => {
            let folder = settings.data_dir.join(FOLDER);
            Ledger::open(&folder)
                .with_context(|| format!("the ledger in {} cannot be opened", folder.display()))?
        }
    };
    let prices = KeptPrices::open(&ledger).context("the price lists cannot be read")?;
    Ok((ledger, prices))
}

/// Shows every record that the filter finds to `see`, page by page.
pub(crate) fn each_record(
    ledger: &Ledger,
    mut filter: UsageFilter,
    mut see: impl FnMut(&UsageRecord),
) -> Result<()> {
    loop {
        let page = ledger.usage(&filter)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        filter.after = *last;
        page.iter().for_each(|(_, record)| see(record));
    }
}

//! The ledger of a data folder, for commands that work on it directly; a running server has it for itself.

use std::path::Path;

use anyhow::{Context, Result};
use mintage_ledger::price::KeptPrices;
use mintage_ledger::{Ledger, UsageFilter, UsageRecord};

/// Below the data folder.
const FOLDER: &str = "ledger";

/// Whether there is a ledger.
pub(crate) fn exists(data_dir: &Path) -> bool {
    data_dir.join(FOLDER).is_dir()
}

/// Opens the ledger of a data folder, made where there is none, and its prices.
pub(crate) fn open(data_dir: &Path) -> Result<(Ledger, KeptPrices)> {
    let folder = data_dir.join(FOLDER);
    let ledger = Ledger::open(&folder)
        .with_context(|| format!("the ledger in {} cannot be opened", folder.display()))?;
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

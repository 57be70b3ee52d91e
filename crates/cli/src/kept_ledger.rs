//! The ledger that the settings name, for commands that work on it directly: the data folder's, which a running server
//! has for itself, or the database that gateways share, beside them. A running server is asked instead where one is
//! named.

use anyhow::{Context, Result, anyhow};
use mintage_ledger::price::KeptPrices;
use mintage_ledger::{Ledger, LedgerError, UsageFilter, UsageRecord};
use serde_json::Value;

use crate::admin_client::{AdminClient, KEY_VARIABLE, ServerArgs, escaped};
use crate::config::Settings;

/// Below the data folder.
const FOLDER: &str = "ledger";
/// Records that a server gives at once.
const RECORDS_A_PAGE: usize = 1000;
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

/// Who knows what was used: the ledger itself, or the server that has it.
pub(crate) enum Books {
    Here(Box<(Ledger, KeptPrices)>),
    There(AdminClient),
}

impl Books {
    pub(crate) fn open(settings: &Settings, args: &ServerArgs) -> Result<Self> {
        Ok(match AdminClient::of_server(args)? {
            Some(client) => Self::There(client),
            None => Self::Here(Box::new(open(settings).map_err(in_use(settings))?)),
        })
    }

    /// Shows every record that the filter finds to `see`, page by page.
    pub(crate) fn each_record(
        &self,
        mut filter: UsageFilter,
        mut see: impl FnMut(&UsageRecord),
    ) -> Result<()> {
        match self {
            Self::Here(kept) => loop {
                let page = kept.0.usage(&filter)?;
                let Some((last, _)) = page.last() else { return Ok(()) };
                filter.after = *last;
                page.iter().for_each(|(_, record)| see(record));
            },
            Self::There(client) => loop {
                let mut page = client.get(&records_path(client, &filter)?)?;
                let Value::Array(records) = page["data"].take() else { return Ok(()) };
                for record in records {
                    see(&serde_json::from_value(record).context("that is no usage record")?);
                }
                match page["next"].as_u64() {
                    Some(next) => filter.after = next,
                    None => return Ok(()),
                }
            },
        }
    }
}

/// What to do where a running server has the ledger.
pub(crate) fn in_use(settings: &Settings) -> impl FnOnce(anyhow::Error) -> anyhow::Error {
    move |error| match error.downcast_ref::<LedgerError>() {
        Some(LedgerError::InUse(_)) => anyhow!(
            "a running server has the ledger in {}: ask it with `--server http://127.0.0.1:8080` and a key of \
             `mintage key create NAME --operator` in {KEY_VARIABLE}, or stop it first",
            settings.data_dir.join(FOLDER).display()
        ),
        _ => error,
    }
}

fn records_path(client: &AdminClient, filter: &UsageFilter) -> Result<String> {
    let mut path = format!("/admin/v1/usage?limit={RECORDS_A_PAGE}&after={}", filter.after);
    if let Some(org) = &filter.org {
        path += &format!("&organization={}", escaped(&client.organisation(org)?));
    }
    for (name, value) in
        [("project", &filter.project), ("key", &filter.key), ("model", &filter.model)]
    {
        if let Some(value) = value {
            path += &format!("&{name}={}", escaped(value));
        }
    }
    for (name, ms) in [("from", filter.from_ms), ("until", filter.until_ms)] {
        if ms > 0 {
            path += &format!("&{name}={}", ms / 1000);
        }
    }
    Ok(path)
}

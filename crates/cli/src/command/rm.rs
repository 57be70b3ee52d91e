//! `mintage rm`: remove models from the disk.

use anyhow::{Result, bail};
use clap::Args;
use mintage_hub::Hub;

use crate::config::Settings;
use crate::output;

/// Remove models from this machine
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names, as `mintage list` shows them
    #[arg(required = true, value_name = "NAME")]
    models: Vec<String>,
}

pub(crate) fn run(settings: &Settings, args: &RmArgs) -> Result<()> {
    let hub = Hub::open(settings.hub_config())?;
    for given in &args.models {
        let name = hub.canonical_name(given)?;
        match hub.store().remove(&name)? {
            Some(freed) => {
                let freed = output::bytes(freed);
                output::print(&format!("{name} is removed ({freed} freed)\n"))?;
            }
            None => bail!("no model called `{name}` is here; `mintage list` shows those that are"),
        }
    }
    Ok(())
}

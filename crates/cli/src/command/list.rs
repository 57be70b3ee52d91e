//! `mintage list`: which models are here, and which could be.

use anyhow::Result;
use clap::Args;
use mintage_hub::{CatalogueModel, Hub, Manifest};

use crate::config::Settings;
use crate::output;

/// List the models on this machine
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Also those of the catalogue that can be pulled
    #[arg(long, short)]
    all: bool,
    /// For programs: one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(settings: &Settings, args: &ListArgs) -> Result<()> {
    let hub = Hub::open(settings.hub_config())?;
    let stored = hub.store().list()?;
    let known = hub.catalogue().models();
    let missing = known.iter().filter(|known| stored.iter().all(|there| there.name != known.name));
    let missing: Vec<&CatalogueModel> = if args.all { missing.collect() } else { Vec::new() };
    if args.json {
        return print_json(&stored, &missing);
    }
    if stored.is_empty() && !args.all {
        eprintln!(
            "no models yet; `mintage list --all` shows which can be pulled, `mintage up` takes the default one"
        );
        return Ok(());
    }
    let mut rows = Vec::new();
    for manifest in &stored {
        let entry = known.iter().find(|known| known.name == manifest.name);
        let aliases = entry.map_or(String::new(), |known| known.aliases.join(", "));
        let licence = manifest.licence.clone().unwrap_or_default();
        let size = output::bytes(manifest.bytes());
        rows.push(vec![manifest.name.to_string(), size, licence, "here".to_owned(), aliases]);
    }
    for known in missing {
        let (size, aliases) = (output::bytes(known.total_bytes()), known.aliases.join(", "));
        let state = "can be pulled".to_owned();
        rows.push(vec![known.name.to_string(), size, known.licence.clone(), state, aliases]);
    }
    let header = ["NAME", "SIZE", "LICENCE", "STATE", "ALSO CALLED"];
    Ok(output::print(&output::table(&header, &rows))?)
}

fn print_json(stored: &[Manifest], missing: &[&CatalogueModel]) -> Result<()> {
    let mut text = String::new();
    for manifest in stored {
        let line = serde_json::json!({
            "name": manifest.name, "bytes": manifest.bytes(), "licence": manifest.licence,
            "origin": manifest.origin, "stored": true,
        });
        text.push_str(&format!("{line}\n"));
    }
    for known in missing {
        let line = serde_json::json!({
            "name": known.name, "bytes": known.total_bytes(), "licence": known.licence,
            "origin": format!("catalogue:{}", known.name), "stored": false,
        });
        text.push_str(&format!("{line}\n"));
    }
    Ok(output::print(&text)?)
}

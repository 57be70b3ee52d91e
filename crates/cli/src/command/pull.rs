//! `mintage pull`: fetch a model and verify it, without running it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use mintage_hub::{Hub, ModelName, ModelRef};

use crate::config::Settings;
use crate::output;
use crate::pull_progress::PullProgress;

const EXAMPLES: &str = "\
Examples:
  mintage pull qwen2.5-coder:1.5b
  mintage pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q8_0.gguf
  mintage pull hf:Qwen/Qwen3-0.6B --as qwen3        a safetensors repository
  mintage pull default --from /mnt/usb              from a folder, for machines without a network

An interrupted download goes on where it stopped. A model that is already here is verified again, and fetched anew
if it is damaged.";

/// Fetch a model and verify it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PullArgs {
    #[arg(
        help = "A name (see `mintage list --all`) or a repository: hf:OWNER/REPO[:FILE][@REVISION]"
    )]
    model: ModelRef,
    /// Call it by this name
    #[arg(long = "as", value_name = "NAME")]
    name: Option<ModelName>,
    /// Look in this folder before any other source
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
}

pub(crate) fn run(settings: &Settings, args: &PullArgs) -> Result<()> {
    let mut config = settings.hub_config();
    config.folder.clone_from(&args.from);
    let hub = Hub::open(config)?;
    let manifest = hub.pull(&args.model, args.name.clone(), &PullProgress::new())?;
    let (name, size) = (&manifest.name, output::bytes(manifest.bytes()));
    Ok(output::print(&format!("{name} is ready ({size})\n"))?)
}

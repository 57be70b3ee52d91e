//! `mintage bench`: what this machine and this server can do. The measurements are in [`crate::bench`].

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::bench::serve;

/// Measure what a server's users see
#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    Serve(Box<serve::Options>),
}

pub(crate) fn run(args: BenchArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match args.command {
        BenchCommand::Serve(options) => runtime.block_on(serve::run(*options)),
    }
}

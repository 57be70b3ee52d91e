//! `mintage bench`: what this machine, this model and this server can do.

mod engine;
mod serve;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::config::Settings;
use crate::models;

/// Measure this machine, this model or a server
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Engine(engine::Options),
    Serve(serve::Options),
}

/// Runs the measurement that was asked for.
pub(crate) fn run(settings: &Settings, args: &BenchArgs) -> Result<()> {
    match &args.command {
        BenchCommand::Engine(options) => {
            let model = models::resolve(settings, &options.model)?;
            engine::run(options, &model.name.to_string(), &models::open(&model)?)
        }
        BenchCommand::Serve(options) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve::run(options))
        }
    }
}

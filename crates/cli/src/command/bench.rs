//! `mintage bench`: what this machine, this model and a server can do. The measurements are in [`crate::bench`].

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::bench::{engine, kernels, robustness, serve, speculation};
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
    Kernels(Box<kernels::Options>),
    Engine(Box<engine::Options>),
    Serve(Box<serve::Options>),
    Speculation(Box<speculation::Options>),
    Robustness(Box<robustness::Options>),
}

pub(crate) fn run(settings: &Settings, args: &BenchArgs) -> Result<()> {
    match &args.command {
        BenchCommand::Kernels(options) => kernels::run(options),
        BenchCommand::Engine(options) => {
            let model = models::resolve(settings, &options.model)?;
            engine::run(options, model.name.as_str(), &models::open(&model)?)
        }
        BenchCommand::Serve(options) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(serve::run(options))
        }
        BenchCommand::Robustness(options) => robustness::run(settings.clone(), options),
        BenchCommand::Speculation(options) => speculation::run(settings.clone(), options),
    }
}

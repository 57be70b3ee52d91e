//! The `mintage` command: parse, resolve the settings once, run one subcommand, say what went wrong.

mod admin_client;
mod arguments;
mod bench;
mod command;
mod config;
mod kept_ledger;
mod keys_folder;
mod ledger_folder;
mod load;
mod load_vectors;
mod logging;
mod models;
mod output;
mod pull_progress;
mod upstreams;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match arguments::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

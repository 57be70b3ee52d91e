//! `cargo xtask`: what a developer runs. Development only; nothing here ships.

mod ci;
mod command;
mod setup;
mod tidy;

use clap::{Parser, Subcommand};

/// Development commands of Mintage.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up what the tests need, then run every check and every test.
    Ci(ci::Options),
    /// Set up what the tests need (system packages, Python packages, models) and stop.
    Setup,
    /// Check the house rules that a program can keep.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    let root = command::workspace_root()?;
    match Arguments::parse().command {
        Command::Ci(options) => ci::run(&root, &options),
        Command::Setup => setup::run(&root).map(|_| ()),
        Command::Tidy => tidy::run(&root),
    }
}

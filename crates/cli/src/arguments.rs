//! What can be written after `mintage`. Not what it means: each subcommand's module says that.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::command::{
    admin, bench, chat, completions, cost, invoice, keys, ledger, list, perplexity, price, pull,
    rm, serve, show, tokenize, up, usage,
};
use crate::config::{LogFormat, LogLevel, SecretUrl, Settings};
use crate::logging;

const EXAMPLES: &str = "\
Examples:
  mintage up                                    everything with defaults: model, key, server
  mintage up --model qwen2.5-coder:1.5b         another model of the catalogue
  mintage up --model ./my.gguf --listen 127.0.0.1:9000
  mintage chat                                  talk to a model in the terminal
  mintage list --all                            what is here, and what can be pulled
  mintage pull hf:OWNER/REPO:FILE.gguf          any GGUF or safetensors repository
  mintage serve --config mintage.toml           for servers and containers

Settings come from flags, then the environment, then the file given with --config, then defaults.
`mintage help COMMAND` says more about each command.";

/// An open, self-hosted full-stack AI cloud in one program.
///
/// Serves language models through the OpenAI API from this machine: nothing leaves it.
#[derive(Parser)]
#[command(name = "mintage", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct GlobalArgs {
    /// Read settings from this file; see the commented mintage.toml of the source tree
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MINTAGE_CONFIG",
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,
    /// Keep models and keys here [default: mintage in the XDG data folder, usually ~/.local/share/mintage]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "MINTAGE_DATA_DIR",
        help_heading = "Global options"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// Log messages of this level and above, to standard error
    #[arg(
        long = "log",
        global = true,
        value_name = "LEVEL",
        env = "MINTAGE_LOG",
        help_heading = "Global options"
    )]
    pub(crate) log_level: Option<LogLevel>,
    /// How log messages are written
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "MINTAGE_LOG_FORMAT",
        help_heading = "Global options"
    )]
    pub(crate) log_format: Option<LogFormat>,
    /// Base URL of the model hub (Hugging Face protocol)
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "HF_ENDPOINT",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) hub_endpoint: Option<String>,
    /// Token for that hub; sent nowhere else
    #[arg(skip = hub_token())]
    pub(crate) hub_token: Option<String>,
    /// Database of a shared ledger
    #[arg(skip = ledger_url())]
    pub(crate) ledger_url: Option<SecretUrl>,
}

/// From the environment only, like the token: it may hold a password.
fn ledger_url() -> Option<SecretUrl> {
    std::env::var("MINTAGE_LEDGER_URL").ok().filter(|url| !url.is_empty()).map(SecretUrl)
}

/// From the environment only: an argument would be readable by every process of the machine.
fn hub_token() -> Option<String> {
    std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty())
}

#[derive(Subcommand)]
enum Command {
    Up(up::UpArgs),
    Chat(chat::ChatArgs),
    Serve(serve::ServeArgs),
    Pull(pull::PullArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Rm(rm::RmArgs),
    Keys(keys::KeysArgs),
    Org(admin::org::OrgArgs),
    Project(admin::project::ProjectArgs),
    Member(admin::member::MemberArgs),
    Key(admin::key::KeyArgs),
    Topup(admin::money::TopupArgs),
    Balance(admin::money::BalanceArgs),
    Limit(admin::limit::LimitArgs),
    Budget(admin::limit::BudgetArgs),
    Webhook(admin::webhook::WebhookArgs),
    Ledger(ledger::LedgerArgs),
    Price(price::PriceArgs),
    Cost(cost::CostArgs),
    Usage(usage::UsageArgs),
    Invoice(invoice::InvoiceArgs),
    Perplexity(perplexity::PerplexityArgs),
    Tokenize(tokenize::TokenizeArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
}

impl Cli {
    /// Runs the subcommand.
    pub(crate) fn run(self) -> Result<()> {
        if let Command::Completions(args) = &self.command {
            return completions::run(args);
        }
        let settings = Settings::resolve(&self.global)?;
        logging::start(&settings.log)?;
        match self.command {
            Command::Up(args) => up::run(settings, &args),
            Command::Chat(args) => chat::run(settings, &args),
            Command::Serve(args) => serve::run(settings, &args),
            Command::Pull(args) => pull::run(&settings, &args),
            Command::List(args) => list::run(&settings, &args),
            Command::Show(args) => show::run(&settings, &args),
            Command::Rm(args) => rm::run(&settings, &args),
            Command::Keys(args) => keys::run(&settings, &args),
            Command::Org(args) => admin::org::run(&settings, &args),
            Command::Project(args) => admin::project::run(&settings, &args),
            Command::Member(args) => admin::member::run(&settings, &args),
            Command::Key(args) => admin::key::run(&settings, &args),
            Command::Topup(args) => admin::money::run_topup(&settings, &args),
            Command::Balance(args) => admin::money::run_balance(&settings, &args),
            Command::Limit(args) => admin::limit::run_limit(&settings, &args),
            Command::Budget(args) => admin::limit::run_budget(&settings, &args),
            Command::Webhook(args) => admin::webhook::run(&settings, &args),
            Command::Ledger(args) => ledger::run(&settings, &args),
            Command::Price(args) => price::run(&settings, &args),
            Command::Cost(args) => cost::run(&settings, &args),
            Command::Usage(args) => usage::run(&settings, &args),
            Command::Invoice(args) => invoice::run(&settings, &args),
            Command::Perplexity(args) => perplexity::run(settings, &args),
            Command::Tokenize(args) => tokenize::run(&settings, &args),
            Command::Bench(args) => bench::run(&settings, &args),
            Command::Completions(args) => completions::run(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}

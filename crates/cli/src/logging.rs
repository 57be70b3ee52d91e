//! Log messages to standard error. Standard output belongs to results.

use std::io::IsTerminal as _;

use anyhow::{Result, anyhow};
use tracing_subscriber::filter::LevelFilter;

use crate::config::{LogFormat, LogLevel, LogSettings};

/// Starts logging; once a process.
pub(crate) fn start(settings: &LogSettings) -> Result<()> {
    let level = match settings.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match settings.format {
        LogFormat::Text => subscriber.with_target(false).try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    started.map_err(|error| anyhow!("logging cannot start: {error}"))
}

//! Settings: flags over environment over file over defaults, resolved once into plain structs that are passed by value.
//!
//! The repository's `mintage.toml` documents every setting at its default; a test parses it and compares. Unknown keys
//! are refused, with the line and the nearest known key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use mintage_hub::HubConfig;
use mintage_ledger::PostgresUrl;
use mintage_server::{AnswerLimits, StorageConfig, WebhookPolicy};
use serde::Deserialize;

use crate::arguments::GlobalArgs;
use crate::upstreams::{RouteSettings, UpstreamSettings};

/// Bytes of the largest settings file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Folder of models and keys; empty means the XDG data folder.
    pub(crate) data_dir: PathBuf,
    pub(crate) log: LogSettings,
    pub(crate) hub: HubSettings,
    pub(crate) server: ServerSettings,
    pub(crate) ledger: LedgerSettings,
    pub(crate) webhooks: WebhookSettings,
    pub(crate) files: FileSettings,
    pub(crate) batch: BatchSettings,
    pub(crate) answers: AnswerSettings,
    pub(crate) engine: EngineSettings,
    /// Models to serve; none means the default one.
    #[serde(rename = "model")]
    pub(crate) models: Vec<ModelSettings>,
    /// Other services that answer under a model's name.
    #[serde(rename = "upstream")]
    pub(crate) upstreams: Vec<UpstreamSettings>,
    /// Names that lead to several models or services.
    #[serde(rename = "route")]
    pub(crate) routes: Vec<RouteSettings>,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogSettings {
    pub(crate) level: LogLevel,
    pub(crate) format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: LogLevel::Warn, format: LogFormat::Text }
    }
}

/// Least important messages that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the usual names")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How log messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where models come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HubSettings {
    pub(crate) endpoint: String,
    pub(crate) pip_args: Vec<String>,
    /// Never from a file that may be shared.
    #[serde(skip)]
    pub(crate) token: Option<String>,
}

impl Default for HubSettings {
    fn default() -> Self {
        Self { endpoint: "https://huggingface.co".to_owned(), pip_args: Vec::new(), token: None }
    }
}

/// How the server listens and what it bounds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServerSettings {
    pub(crate) listen: SocketAddr,
    pub(crate) require_key: bool,
    pub(crate) drain_timeout_s: u64,
    pub(crate) share_prefix_cache: bool,
    pub(crate) max_concurrent_requests: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_choices: usize,
    /// 0 leaves it to the context.
    pub(crate) max_output_tokens: u32,
    pub(crate) request_timeout_s: u64,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            require_key: true,
            drain_timeout_s: 30,
            share_prefix_cache: false,
            max_concurrent_requests: 256,
            max_connections: 1024,
            max_body_bytes: 4 << 20,
            max_choices: 16,
            max_output_tokens: 0,
            request_timeout_s: 600,
        }
    }
}

/// How requests are accounted for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LedgerSettings {
    pub(crate) enabled: bool,
    /// Of the organisation `default`: an amount such as "100", or "unlimited".
    pub(crate) default_credit: String,
    /// Where the days and months of budgets begin.
    pub(crate) utc_offset_minutes: i32,
    /// Usage records go away after so many days; 0 keeps them.
    pub(crate) retention_days: u64,
    pub(crate) store: LedgerStore,
    /// Of the database, where the store is one.
    pub(crate) url: SecretUrl,
    /// This gateway's name among those that share the database; empty makes one of the host and the port.
    pub(crate) gateway: String,
}

/// Where the ledger is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LedgerStore {
    /// In a file, for one gateway.
    #[default]
    Sqlite,
    /// In a database that gateways share.
    Postgres,
}

/// A URL that may hold a password: shown to nobody.
#[derive(Clone, Default, PartialEq, Deserialize)]
pub(crate) struct SecretUrl(pub(crate) String);

impl std::fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretUrl")
    }
}

impl LedgerSettings {
    /// The database, where gateways share one.
    pub(crate) fn shared(&self) -> Result<Option<PostgresUrl>> {
        match self.store {
            LedgerStore::Sqlite => Ok(None),
            LedgerStore::Postgres => {
                Ok(Some(self.url.0.parse().context("`ledger.url` or MINTAGE_LEDGER_URL")?))
            }
        }
    }
}

impl Default for LedgerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            default_credit: "unlimited".to_owned(),
            utc_offset_minutes: 480,
            retention_days: 0,
            store: LedgerStore::Sqlite,
            url: SecretUrl::default(),
            gateway: String::new(),
        }
    }
}

/// Where webhooks may go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WebhookSettings {
    /// Empty: every public host.
    pub(crate) allow_hosts: Vec<String>,
    pub(crate) allow_private_addresses: bool,
    pub(crate) timeout_s: u64,
    pub(crate) max_attempts: u32,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        Self {
            allow_hosts: Vec::new(),
            allow_private_addresses: false,
            timeout_s: 10,
            max_attempts: 12,
        }
    }
}

impl WebhookSettings {
    /// As the server takes it.
    pub(crate) fn policy(&self) -> WebhookPolicy {
        WebhookPolicy {
            allow_hosts: self.allow_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            allow_private_addresses: self.allow_private_addresses,
            timeout: Duration::from_secs(self.timeout_s.max(1)),
            max_attempts: self.max_attempts.max(1),
            ..WebhookPolicy::default()
        }
    }
}

/// What projects may leave here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FileSettings {
    pub(crate) enabled: bool,
    pub(crate) max_file_bytes: u64,
    pub(crate) max_project_bytes: u64,
    pub(crate) max_project_files: u64,
}

impl Default for FileSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            max_file_bytes: 512 << 20,
            max_project_bytes: 20 << 30,
            max_project_files: 10_000,
        }
    }
}

/// How batches are run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BatchSettings {
    pub(crate) max_lines: u32,
    pub(crate) max_project_batches: u64,
    pub(crate) max_lines_in_flight: usize,
}

impl Default for BatchSettings {
    fn default() -> Self {
        Self { max_lines: 50_000, max_project_batches: 100, max_lines_in_flight: 8 }
    }
}

/// Responses, chats and tasks that projects have the server keep.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AnswerSettings {
    pub(crate) keep_days: u64,
    pub(crate) max_project: u64,
    pub(crate) max_project_bytes: u64,
    pub(crate) max_project_tasks: u64,
    pub(crate) max_running_tasks: usize,
}

impl Default for AnswerSettings {
    fn default() -> Self {
        let AnswerLimits {
            keep_days,
            max_project,
            max_project_bytes,
            max_project_tasks,
            max_running_tasks,
        } = AnswerLimits::default();
        Self { keep_days, max_project, max_project_bytes, max_project_tasks, max_running_tasks }
    }
}

/// How a model is computed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EngineSettings {
    /// 0 takes the machine's cores.
    pub(crate) threads: usize,
    /// 0 takes what the model promises.
    pub(crate) context_tokens: u32,
    /// Size of the KV cache of each model.
    pub(crate) kv_cache_mib: usize,
    pub(crate) max_running: usize,
    pub(crate) max_waiting: usize,
    pub(crate) step_tokens: usize,
    /// Whether tokens are guessed ahead and verified together. Changes no answer.
    pub(crate) speculation: bool,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            threads: 0,
            context_tokens: 0,
            kv_cache_mib: 1024,
            max_running: 64,
            max_waiting: 256,
            step_tokens: 512,
            speculation: false,
        }
    }
}

/// One model to serve.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSettings {
    /// Name, file or repository, as after `--model`.
    pub(crate) source: String,
    /// What clients call it.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// A smaller model of the same vocabulary that guesses tokens for it.
    #[serde(default)]
    pub(crate) draft: Option<String>,
    /// What it does, where its files do not say or say otherwise.
    #[serde(default)]
    pub(crate) task: Option<ModelTask>,
}

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ModelTask {
    /// Says tokens.
    Generate,
    /// Makes embeddings.
    Embed,
    /// Scores documents for a query.
    Rerank,
}

impl ModelSettings {
    /// A model under its own name.
    pub(crate) fn of(source: impl AsRef<str>) -> Self {
        Self { source: source.as_ref().to_owned(), name: None, draft: None, task: None }
    }
}

impl Settings {
    /// The file, if one is given, then what the arguments (and through them the environment) say.
    pub(crate) fn resolve(arguments: &GlobalArgs) -> Result<Self> {
        let mut settings = match &arguments.config {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        if let Some(data_dir) = &arguments.data_dir {
            settings.data_dir.clone_from(data_dir);
        }
        if settings.data_dir.as_os_str().is_empty() {
            settings.data_dir = default_data_dir()?;
        }
        settings.log.level = arguments.log_level.unwrap_or(settings.log.level);
        settings.log.format = arguments.log_format.unwrap_or(settings.log.format);
        if let Some(endpoint) = arguments.hub_endpoint.as_ref().filter(|url| !url.is_empty()) {
            settings.hub.endpoint.clone_from(endpoint);
        }
        settings.hub.token.clone_from(&arguments.hub_token);
        if let Some(url) = &arguments.ledger_url {
            settings.ledger.url.clone_from(url);
        }
        Ok(settings)
    }

    fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let bytes = std::fs::metadata(path)
            .with_context(|| format!("the settings file {shown} cannot be read"))?
            .len();
        if bytes > FILE_BYTES_MAX {
            bail!("{shown} has {bytes} bytes; a settings file has at most {FILE_BYTES_MAX}");
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the settings file {shown} cannot be read"))?;
        Self::parse(&text).map_err(|message| anyhow!("{shown}:{message}"))
    }

    /// Parses a settings file; the error begins with the line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| explain(text, &error))
    }

    /// Where files and batches are kept; `None`: there are none.
    pub(crate) fn storage(&self) -> Option<StorageConfig> {
        let (files, batch, answers) = (&self.files, &self.batch, &self.answers);
        files.enabled.then(|| StorageConfig {
            folder: self.data_dir.join("files"),
            max_file_bytes: files.max_file_bytes,
            max_project_bytes: files.max_project_bytes,
            max_project_files: files.max_project_files,
            max_batch_lines: batch.max_lines,
            max_project_batches: batch.max_project_batches,
            max_lines_in_flight: batch.max_lines_in_flight.max(1),
            answers: AnswerLimits {
                keep_days: answers.keep_days,
                max_project: answers.max_project.max(1),
                max_project_bytes: answers.max_project_bytes,
                max_project_tasks: answers.max_project_tasks,
                max_running_tasks: answers.max_running_tasks.max(1),
            },
        })
    }

    /// What the hub needs to know.
    pub(crate) fn hub_config(&self) -> HubConfig {
        HubConfig {
            data_dir: self.data_dir.clone(),
            endpoint: self.hub.endpoint.clone(),
            token: self.hub.token.clone(),
            pip_args: self.hub.pip_args.clone(),
            folder: None,
        }
    }
}

/// `12: unknown field `lisen` …; did you mean `listen`?`
fn explain(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| {
        text.get(..span.start).unwrap_or(text).bytes().filter(|&c| c == b'\n').count() + 1
    });
    let message = error.message();
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return format!("{line}: {message}");
    };
    let mut quoted = rest.split('`').step_by(2);
    let given = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.take_while(|word| !word.is_empty()).collect();
    let nearest = known.iter().max_by(|a, b| likeness(given, a).total_cmp(&likeness(given, b)));
    match nearest.filter(|known| likeness(given, known) > 0.5) {
        Some(known) => format!("{line}: unknown key `{given}`; did you mean `{known}`?"),
        None => format!("{line}: unknown key `{given}`; known here: {}", known.join(", ")),
    }
}

/// Share of common letter pairs, 0 to 1 (Dice).
fn likeness(a: &str, b: &str) -> f64 {
    let pairs = |text: &str| -> Vec<[u8; 2]> {
        text.as_bytes().windows(2).map(|pair| [pair[0], pair[1]]).collect()
    };
    let (a, mut b) = (pairs(a), pairs(b));
    let total = a.len() + b.len();
    let mut common = 0;
    for pair in &a {
        if let Some(index) = b.iter().position(|other| other == pair) {
            b.swap_remove(index);
            common += 1;
        }
    }
    if total == 0 { 0.0 } else { 2.0 * f64::from(common) / total as f64 }
}

/// `$XDG_DATA_HOME/mintage`, or `~/.local/share/mintage`; on Windows the local application data.
fn default_data_dir() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    if cfg!(windows)
        && let Some(local) = variable("LOCALAPPDATA")
    {
        return Ok(local.join("mintage"));
    }
    let base = variable("XDG_DATA_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local").join("share")));
    base.map(|base| base.join("mintage")).context(
        "neither XDG_DATA_HOME nor HOME is set; say where to keep models and keys with `--data-dir DIR`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = include_str!("../../../mintage.toml");

    #[test]
    fn the_reference_file_states_the_defaults() {
        assert_eq!(Settings::parse(REFERENCE), Ok(Settings::default()));
    }

    /// What is commented out as `#key = value` must parse too.
    #[test]
    fn the_reference_files_examples_parse() {
        let uncomment = |line: &str| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let text: Vec<String> = REFERENCE.lines().map(uncomment).collect();
        let settings = Settings::parse(&text.join("\n")).unwrap();
        assert_eq!(settings.models.len(), 4);
        assert_eq!((settings.upstreams.len(), settings.routes.len()), (1, 1));
    }

    /// Every setting is in the file: what is left out there cannot be found by its readers.
    #[test]
    fn the_reference_file_is_complete() {
        let expected = [
            (
                "[x]\n",
                "data_dir, log, hub, server, ledger, webhooks, files, batch, answers, engine, model, \
                 upstream, route",
            ),
            ("[log]\nx = 1", "level, format"),
            ("[hub]\nx = 1", "endpoint, pip_args"),
            (
                "[server]\nx = 1",
                "listen, require_key, drain_timeout_s, share_prefix_cache, max_concurrent_requests, max_connections, \
                 max_body_bytes, max_choices, max_output_tokens, request_timeout_s",
            ),
            (
                "[ledger]\nx = 1",
                "enabled, default_credit, utc_offset_minutes, retention_days, store, url, gateway",
            ),
            ("[webhooks]\nx = 1", "allow_hosts, allow_private_addresses, timeout_s, max_attempts"),
            ("[files]\nx = 1", "enabled, max_file_bytes, max_project_bytes, max_project_files"),
            ("[batch]\nx = 1", "max_lines, max_project_batches, max_lines_in_flight"),
            (
                "[answers]\nx = 1",
                "keep_days, max_project, max_project_bytes, max_project_tasks, max_running_tasks",
            ),
            (
                "[engine]\nx = 1",
                "threads, context_tokens, kv_cache_mib, max_running, max_waiting, step_tokens, \
                 speculation",
            ),
            ("[[model]]\nx = 1", "source, name, draft, task"),
            (
                "[[upstream]]\nx = 1",
                "name, base_url, model, task, context_tokens, max_output_tokens, api_key_env, api_key_file, flavour, \
                 max_completion_tokens, tokenizer, allow_private_address, ca_file, connect_timeout_s, \
                 first_event_timeout_s, idle_timeout_s, max_retries, breaker_failures, breaker_pause_s, \
                 max_in_flight, max_idle_connections, drain_timeout_s",
            ),
            ("[[route]]\nx = 1", "name, targets"),
        ];
        for (text, keys) in expected {
            let error = Settings::parse(text).unwrap_err();
            assert!(error.ends_with(&format!("known here: {keys}")), "{error}");
            for key in keys.split(", ") {
                let stated = REFERENCE.lines().any(|line| {
                    let line = line.trim_start_matches('#');
                    line.starts_with(&format!("{key} = "))
                        || line == format!("[{key}]")
                        || line == format!("[[{key}]]")
                });
                assert!(stated, "`{key}` is not in mintage.toml");
            }
        }
    }

    #[test]
    fn mistakes_are_explained() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Settings::parse(text).unwrap_err(), expected, "{text}");
        };
        check("\n[server]\nlisen = \"x\"", "3: unknown key `lisen`; did you mean `listen`?");
        check("[servre]", "1: unknown key `servre`; did you mean `server`?");
        check(
            "[log]\nlevel = \"loud\"",
            "2: unknown variant `loud`, expected one of `error`, `warn`, `info`, `debug`, `trace`",
        );
        check("[server]\nlisten = \"8080\"", "2: invalid socket address syntax");
        check("[engine]\nthreads = -1", "2: invalid value: integer `-1`, expected usize");
        check("[hub]\ntoken = \"x\"", "2: unknown key `token`; known here: endpoint, pip_args");
    }
}

//! Other services behind a model's name, and names that lead to several: from settings to what the server takes.
//!
//! Keys come from environment variables or files, never from the settings file, which may be shared.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mintage_hub::Hub;
use mintage_server::{
    ApiKey, CaCertificates, Flavour, OnDisconnect, RouteConfig, RouteTarget, UpstreamConfig,
    UpstreamTask,
};
use serde::Deserialize;

use crate::config::ModelTask;
use crate::keys_folder::now_unix;
use crate::load;
use crate::pull_progress::PullProgress;

/// Bytes of the longest file of a key.
const KEY_BYTES_MAX: u64 = 16 << 10;
/// ... and of certificates.
const CA_BYTES_MAX: u64 = 1 << 20;

/// One service.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamSettings {
    /// What clients call it.
    pub(crate) name: String,
    /// Up to what stands before `/chat/completions`, `/embeddings` or `/rerank`.
    pub(crate) base_url: String,
    /// What the service calls the model; `name` where it is left out.
    pub(crate) model: Option<String>,
    /// What it does.
    #[serde(default = "task")]
    pub(crate) task: ModelTask,
    /// Tokens of prompt and answer together, or of an input.
    pub(crate) context_tokens: u32,
    /// Of an answer without a limit, and the most that can be asked for; 0 leaves it to the context.
    #[serde(default)]
    pub(crate) max_output_tokens: u32,
    /// The environment variable that holds the service's key.
    pub(crate) api_key_env: Option<String>,
    /// The file that holds it.
    pub(crate) api_key_file: Option<PathBuf>,
    /// What the service takes beyond OpenAI's own parameters.
    #[serde(default)]
    pub(crate) flavour: FlavourSetting,
    /// The service knows the limit of an answer as `max_completion_tokens`.
    #[serde(default)]
    pub(crate) max_completion_tokens: bool,
    /// A model whose tokenizer counts where the service does not.
    pub(crate) tokenizer: Option<String>,
    /// It may stand at an address of this machine or of a network inside, and be reached without TLS.
    #[serde(default)]
    pub(crate) allow_private_address: bool,
    /// Certificates of authorities that are trusted beside those that this machine trusts.
    pub(crate) ca_file: Option<PathBuf>,
    #[serde(default = "connect_timeout_s")]
    pub(crate) connect_timeout_s: u64,
    #[serde(default = "first_event_timeout_s")]
    pub(crate) first_event_timeout_s: u64,
    #[serde(default = "idle_timeout_s")]
    pub(crate) idle_timeout_s: u64,
    #[serde(default = "max_retries")]
    pub(crate) max_retries: u32,
    #[serde(default = "breaker_failures")]
    pub(crate) breaker_failures: u32,
    #[serde(default = "breaker_pause_s")]
    pub(crate) breaker_pause_s: u64,
    #[serde(default = "max_in_flight")]
    pub(crate) max_in_flight: usize,
    /// Connections kept open for the next request.
    #[serde(default = "max_idle_connections")]
    pub(crate) max_idle_connections: usize,
    /// How long an answer is read on that nobody waits for; 0 cancels it.
    #[serde(default = "drain_timeout_s")]
    pub(crate) drain_timeout_s: u64,
}

fn task() -> ModelTask {
    ModelTask::Generate
}

fn connect_timeout_s() -> u64 {
    5
}

fn first_event_timeout_s() -> u64 {
    60
}

fn idle_timeout_s() -> u64 {
    30
}

fn max_retries() -> u32 {
    2
}

fn breaker_failures() -> u32 {
    5
}

fn breaker_pause_s() -> u64 {
    10
}

fn max_in_flight() -> usize {
    256
}

fn max_idle_connections() -> usize {
    32
}

fn drain_timeout_s() -> u64 {
    60
}

/// What a service takes beyond OpenAI's own parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FlavourSetting {
    #[default]
    Openai,
    Dashscope,
    Vllm,
    Mintage,
}

/// A name that leads to several models or services.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteSettings {
    pub(crate) name: String,
    /// In the order in which they stand in for each other.
    pub(crate) targets: Vec<TargetSettings>,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetSettings {
    pub(crate) model: String,
    /// Its share; 0: only where the others cannot answer.
    #[serde(default = "weight")]
    pub(crate) weight: u32,
}

fn weight() -> u32 {
    1
}

impl UpstreamSettings {
    fn config(&self, hub: &Hub) -> Result<UpstreamConfig> {
        let model = self.model.as_deref().unwrap_or(&self.name);
        let drain = Duration::from_secs(self.drain_timeout_s);
        Ok(UpstreamConfig {
            task: match self.task {
                ModelTask::Generate => UpstreamTask::Generate,
                ModelTask::Embed => UpstreamTask::Embed,
                ModelTask::Rerank => UpstreamTask::Rerank,
            },
            api_key: self.api_key()?,
            flavour: match self.flavour {
                FlavourSetting::Openai => Flavour::Openai,
                FlavourSetting::Dashscope => Flavour::Dashscope,
                FlavourSetting::Vllm => Flavour::Vllm,
                FlavourSetting::Mintage => Flavour::Mintage,
            },
            max_output_tokens: (self.max_output_tokens > 0).then_some(self.max_output_tokens),
            max_completion_tokens: self.max_completion_tokens,
            tokenizer: match &self.tokenizer {
                Some(source) => {
                    let found = hub.resolve(&source.parse()?, &PullProgress::new())?;
                    Some(Arc::new(load::text(&found)?))
                }
                None => None,
            },
            allow_private_address: self.allow_private_address,
            ca: self.ca()?,
            connect_timeout: Duration::from_secs(self.connect_timeout_s.max(1)),
            first_event_timeout: Duration::from_secs(self.first_event_timeout_s.max(1)),
            idle_timeout: Duration::from_secs(self.idle_timeout_s.max(1)),
            max_retries: self.max_retries,
            breaker_failures: self.breaker_failures,
            breaker_pause: Duration::from_secs(self.breaker_pause_s.max(1)),
            max_in_flight: self.max_in_flight,
            max_idle_connections: self.max_idle_connections,
            on_disconnect: match self.drain_timeout_s {
                0 => OnDisconnect::Cancel,
                _ => OnDisconnect::Drain(drain),
            },
            created_unix: now_unix(),
            ..UpstreamConfig::new(&self.name, &self.base_url, model, self.context_tokens)
        })
    }

    /// No error of it repeats the key.
    fn api_key(&self) -> Result<Option<ApiKey>> {
        let name = &self.name;
        let (key, place) = match (&self.api_key_env, &self.api_key_file) {
            (Some(_), Some(_)) => {
                bail!("the upstream `{name}`: give `api_key_env` or `api_key_file`, not both")
            }
            (Some(variable), None) => {
                let key = std::env::var(variable).map_err(|_| {
                    anyhow::anyhow!(
                        "the upstream `{name}`: the environment variable `{variable}` holds no key"
                    )
                })?;
                (key, format!("`{variable}`"))
            }
            (None, Some(path)) => {
                let key = read_bounded(path, "a key", KEY_BYTES_MAX)?;
                let key = String::from_utf8(key)
                    .with_context(|| format!("{} is no text", path.display()))?;
                (key, path.display().to_string())
            }
            (None, None) => return Ok(None),
        };
        let key = ApiKey::new(&key)
            .map_err(|why| anyhow::anyhow!("the upstream `{name}`: {place}: {why}"))?;
        Ok(Some(key))
    }

    fn ca(&self) -> Result<CaCertificates> {
        let Some(path) = &self.ca_file else { return Ok(CaCertificates::default()) };
        let pem = read_bounded(path, "a file of certificates", CA_BYTES_MAX)?;
        CaCertificates::from_pem(&pem).map_err(|why| {
            anyhow::anyhow!("the upstream `{}`: `ca_file` {}: {why}", self.name, path.display())
        })
    }
}

/// `what` it is, which has at most so many bytes.
fn read_bounded(path: &Path, what: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let shown = path.display();
    let bytes = std::fs::metadata(path).with_context(|| format!("{shown} cannot be read"))?.len();
    if bytes > max_bytes {
        bail!("{shown} has {bytes} bytes; {what} has at most {max_bytes}");
    }
    std::fs::read(path).with_context(|| format!("{shown} cannot be read"))
}

/// The services as the server takes them; fetches the tokenizers they need.
pub(crate) fn configs(settings: &[UpstreamSettings], hub: &Hub) -> Result<Vec<UpstreamConfig>> {
    settings.iter().map(|upstream| upstream.config(hub)).collect()
}

/// The routes as the server takes them.
pub(crate) fn routes(settings: &[RouteSettings]) -> Vec<RouteConfig> {
    let target = |target: &TargetSettings| RouteTarget {
        model: target.model.clone(),
        weight: target.weight,
    };
    let route = |route: &RouteSettings| RouteConfig {
        name: route.name.clone(),
        targets: route.targets.iter().map(target).collect(),
    };
    settings.iter().map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(more: &str) -> UpstreamSettings {
        let text = format!(
            "name = \"a\"\nbase_url = \"https://example.com/v1\"\ncontext_tokens = 10\n{more}"
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn what_is_left_out_is_as_the_server_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let hub = Hub::open(mintage_hub::HubConfig {
            data_dir: folder.path().to_owned(),
            ..crate::config::Settings::default().hub_config()
        })
        .unwrap();
        let ours = upstream("").config(&hub).unwrap();
        let servers = UpstreamConfig::new("a", "https://example.com/v1", "a", 10);
        let shown = |config: &UpstreamConfig| {
            (
                (config.model.clone(), config.max_output_tokens, config.max_completion_tokens),
                (config.connect_timeout, config.first_event_timeout, config.idle_timeout),
                (config.max_retries, config.breaker_failures, config.breaker_pause),
                (config.max_in_flight, config.max_idle_connections),
                (config.on_disconnect, config.flavour, format!("{:?}", config.ca)),
                (config.allow_private_address, config.api_key.is_some(), config.task),
            )
        };
        assert_eq!(shown(&ours), shown(&servers));
        let cancelled = upstream("drain_timeout_s = 0").config(&hub).unwrap();
        assert_eq!(cancelled.on_disconnect, OnDisconnect::Cancel);
        let embeds = upstream("task = \"embed\"").config(&hub).unwrap();
        assert_eq!(embeds.task, UpstreamTask::Embed);
    }

    #[test]
    fn a_file_of_certificates_that_is_none_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let check = |content: &[u8], says: &str| {
            std::fs::write(&path, content).unwrap();
            let error = upstream(&format!("ca_file = {path:?}")).ca().unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("ca.pem"), "{error}");
        };
        check(b"", "it holds no certificate");
        check(b"sk-1\xff", "it holds no certificate");
        let wrong = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        check(wrong.as_bytes(), "`ca_file`");
        check(&vec![b' '; (CA_BYTES_MAX + 1) as usize], "at most 1048576");
    }

    #[test]
    fn keys_come_from_one_place_and_are_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let of_file = format!("api_key_file = {:?}", path.display().to_string());
        let check = |content: &str, more: &str, expected: Result<(), &str>| {
            std::fs::write(&path, content).unwrap();
            let found = upstream(more).api_key();
            match (found, expected) {
                (Ok(Some(key)), Ok(())) => assert_eq!(format!("{key:?}"), "ApiKey"),
                (Err(error), Err(says)) => {
                    let error = error.to_string();
                    assert!(error.contains(says) && !error.contains("sk-"), "{error}");
                }
                (found, _) => panic!("{content:?} {more}: {found:?}"),
            }
        };
        check("sk-1\n", &of_file, Ok(()));
        check(" \n", &of_file, Err("empty"));
        check("sk-1\nsk-2", &of_file, Err("no header"));
        check("", "api_key_env = \"MINTAGE_TEST_NO_SUCH_KEY\"", Err("holds no key"));
        check("", &format!("{of_file}\napi_key_env = \"X\""), Err("not both"));
        assert!(upstream("").api_key().unwrap().is_none());
    }
}

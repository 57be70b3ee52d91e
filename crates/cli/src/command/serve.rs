//! `mintage serve`: the composition. Models → engines → one server behind keys, until a signal.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use mintage_engine::{CpuEngine, EncoderEngine};
use mintage_hub::{Hub, ModelRef, ResolvedModel};
use mintage_ledger::DirectoryStore;
use mintage_model::{Engine, EngineInfo, GrammarCompiler, GrammarLimits};
use mintage_server::{
    Access, Billing, Limits, Models, ServedModel, Server, ServerConfig, UpstreamConfig,
    UpstreamTask, VectorModel,
};

use crate::command::up::ServingArgs;
use crate::config::{EngineSettings, ModelSettings, ModelTask, Settings};
use crate::keys_folder::{self, BOOTSTRAP_VARIABLE, FirstKey, now_unix};
use crate::ledger_folder;
use crate::load;
use crate::load_vectors;
use crate::models::DEFAULT_MODEL;
use crate::output;
use crate::pull_progress::PullProgress;
use crate::upstreams;

/// What engines get to end after the server has drained.
const ENGINE_DRAIN: Duration = Duration::from_secs(2);
/// Exit status after a second Ctrl-C, as shells have it for SIGINT.
const INTERRUPTED_STATUS: i32 = 130;

const EXAMPLES: &str = "\
Examples:
  mintage serve --config mintage.toml
  MINTAGE_BOOTSTRAP_KEY=$SECRET mintage serve --listen 0.0.0.0:8080 --model /models/my.gguf --log info --log-format json

SIGTERM or Ctrl-C drains: no new requests, running answers finish within `drain_timeout_s`. Once more stops at once.";

/// Serve models through the OpenAI API
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    serving: ServingArgs,
}

/// What is printed when the server is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// Address, key and a line to try.
    Welcome,
    /// Address, and the key if it is new.
    Brief,
}

/// Models that are served, and the engines behind them.
#[derive(Default)]
struct Fleet {
    served: Models,
    /// In the order of the settings.
    names: Vec<String>,
    engines: Vec<Arc<CpuEngine>>,
    encoders: Vec<Arc<EncoderEngine>>,
    /// Other services.
    upstreams: Vec<UpstreamConfig>,
}

impl Fleet {
    /// What clients can ask for.
    fn all_names(&self, settings: &Settings) -> Vec<String> {
        let models = self.names.iter().cloned();
        let upstreams = self.upstreams.iter().map(|upstream| upstream.name.clone());
        let routes = settings.routes.iter().map(|route| route.name.clone());
        models.chain(upstreams).chain(routes).collect()
    }
}

pub(crate) fn run(mut settings: Settings, args: &ServeArgs) -> Result<()> {
    args.serving.apply(&mut settings);
    start(&settings, Greeting::Brief)
}

/// Everything from settings to the last answer. Whatever can be refused is refused before a model is fetched.
pub(crate) fn start(settings: &Settings, greeting: Greeting) -> Result<()> {
    let listen = settings.server.listen;
    let keys = Arc::new(keys_folder::open_by(settings)?);
    let access =
        if settings.server.require_key { Access::Keys(Arc::clone(&keys)) } else { Access::Open };
    if matches!(access, Access::Open) {
        mintage_server::check_exposure(listen, &access)?;
    }
    let bootstrapped = keys_folder::import_bootstrap(&keys)?;
    ensure_free(listen)?;
    let fleet = load_models(settings)?;
    let names = fleet.all_names(settings);
    let first = match access {
        Access::Open => FirstKey::NotNeeded,
        Access::Keys(_) if bootstrapped => FirstKey::Bootstrap,
        Access::Keys(_) => keys_folder::ensure_first(&keys)?,
    };
    let billing = ledger_folder::billing(settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let Fleet { served, engines, encoders, upstreams, .. } = fleet;
    let example = Example::of(&served, &upstreams, &names);
    let config = ServerConfig { upstreams, ..server_config(settings) };
    let outcome = runtime.block_on(async {
        let server = bind(config, served, access, billing.clone(), &keys, &first)?;
        output::print(&greet(greeting, server.local_addr(), &names, &example, &first))?;
        tracing::info!(address = %server.local_addr(), models = ?names, "serving");
        server.run(shutdown_signal()).await;
        Ok(())
    });
    for engine in &engines {
        engine.shutdown(ENGINE_DRAIN);
    }
    for encoder in &encoders {
        encoder.shutdown(ENGINE_DRAIN);
    }
    // No task holds the ledger any more, so that dropping it writes what has queued up.
    drop(runtime);
    drop(billing);
    outcome
}

/// A key that nobody has seen must not stay: if the server does not start, it is revoked.
fn bind(
    config: ServerConfig,
    served: Models,
    access: Access,
    billing: Option<Billing>,
    keys: &DirectoryStore,
    first: &FirstKey,
) -> Result<Server> {
    let bound = Server::bind(config, served, access, billing);
    if let (Err(_), FirstKey::Created(key)) = (&bound, first) {
        keys.revoke_key(&key.info.id, now_unix())?;
    }
    Ok(bound?)
}

fn server_config(settings: &Settings) -> ServerConfig {
    let (webhooks, storage) = (settings.webhooks.policy(), settings.storage());
    let routes = upstreams::routes(&settings.routes);
    let settings = &settings.server;
    ServerConfig {
        listen: settings.listen,
        limits: Limits {
            max_connections: settings.max_connections,
            max_concurrent_requests: settings.max_concurrent_requests,
            max_body_bytes: settings.max_body_bytes,
            max_choices: settings.max_choices,
            max_output_tokens: (settings.max_output_tokens > 0)
                .then_some(settings.max_output_tokens),
            request_timeout: Duration::from_secs(settings.request_timeout_s),
            ..Limits::default()
        },
        drain_timeout: Duration::from_secs(settings.drain_timeout_s),
        share_prefix_cache: settings.share_prefix_cache,
        webhooks,
        storage,
        upstreams: Vec::new(),
        routes,
    }
}

/// Tells early, before a model is fetched and loaded, that the port is taken.
fn ensure_free(listen: SocketAddr) -> Result<()> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let mut next = listen;
            next.set_port(listen.port().checked_add(1).unwrap_or(0));
            let mut any = listen;
            any.set_port(0);
            Err(anyhow!(
                "{listen} is in use by another program, perhaps another `mintage`; `--listen {next}` takes another \
                 port, `--listen {any}` any free one"
            ))
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {listen}")),
    }
}

fn load_models(settings: &Settings) -> Result<Fleet> {
    let hub = Hub::open(settings.hub_config())?;
    let default = [ModelSettings::of(DEFAULT_MODEL)];
    let needs_default = settings.models.is_empty() && settings.upstreams.is_empty();
    let wanted = if needs_default { &default[..] } else { &settings.models[..] };
    let upstreams = upstreams::configs(&settings.upstreams, &hub)?;
    // All of them are fetched before the first is loaded: loading takes memory, fetching may fail.
    let mut resolved = Vec::new();
    for wanted in wanted {
        let reference: ModelRef = wanted.source.parse()?;
        let draft = match &wanted.draft {
            Some(draft) => Some(hub.resolve(&draft.parse()?, &PullProgress::new())?),
            None => None,
        };
        resolved.push((wanted, hub.resolve(&reference, &PullProgress::new())?, draft));
    }
    let mut fleet = Fleet { upstreams, ..Fleet::default() };
    for (wanted, model, draft) in resolved {
        let name = wanted.name.clone().unwrap_or_else(|| model.name.to_string());
        fleet.add(&hub, &settings.engine, name, wanted.task, model, draft)?;
    }
    Ok(fleet)
}

impl Fleet {
    /// Loads a model. What its files say decides what it can do.
    fn add(
        &mut self,
        hub: &Hub,
        settings: &EngineSettings,
        name: String,
        task: Option<ModelTask>,
        model: ResolvedModel,
        draft: Option<ResolvedModel>,
    ) -> Result<()> {
        let known = hub.catalogue().find(model.name.as_str()).filter(|_| model.manifest.is_some());
        let aliases = known.map(|known| known.aliases.clone()).unwrap_or_default();
        // Files outside of the store were not hashed, which would take longer than loading them.
        let digest = model.manifest.as_ref().map(|m| format!("sha256:{}", m.digest()));
        let digest: Arc<str> = digest.unwrap_or_default().into();
        let created_unix = now_unix();
        self.names.push(name.clone());
        if let Some(loaded) = load_vectors::engine(settings, &model, &name, task)? {
            if let Some(draft) = draft {
                bail!(
                    "`{}` cannot be a draft model of `{name}`, which makes vectors and guesses nothing",
                    draft.name
                );
            }
            tell_loaded(&name, loaded.took, loaded.engine.info());
            self.encoders.push(Arc::clone(&loaded.engine));
            self.served.vectors.push(VectorModel {
                name,
                aliases,
                engine: loaded.engine,
                text: loaded.text,
                width: loaded.width,
                created_unix,
                digest,
            });
            return Ok(());
        }
        let loaded = load::engine(settings, &model, draft.as_ref(), &name)?;
        tell_loaded(&name, loaded.took, loaded.engine.info());
        self.engines.push(Arc::clone(&loaded.engine));
        self.served.text.push(ServedModel {
            name,
            aliases,
            engine: loaded.engine,
            grammars: GrammarCompiler::new(Arc::clone(&loaded.text), GrammarLimits::default()),
            text: loaded.text,
            created_unix,
            digest,
            defaults: loaded.defaults,
        });
        Ok(())
    }
}

fn tell_loaded(name: &str, took: Duration, info: &EngineInfo) {
    let (seconds, tokens) = (took.as_secs_f64(), info.context_length);
    eprintln!("{name} loaded in {seconds:.1} s, context {tokens} tokens");
}

/// The first signal resolves; the second ends the process.
async fn shutdown_signal() {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be watched; the server runs until it is killed");
            return std::future::pending().await;
        }
    };
    signals.next().await;
    eprintln!("stopping: running answers may finish; once more stops at once");
    tokio::spawn(async move {
        signals.next().await;
        std::process::exit(INTERRUPTED_STATUS);
    });
}

/// SIGINT and SIGTERM; Ctrl-C where there are no signals.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        // Without a handler nothing ever arrives, and the process ends as the system ends processes.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What can be tried at once, and of which model.
enum Example {
    Chat(String),
    Embedding(String),
}

impl Example {
    fn of(models: &Models, upstreams: &[UpstreamConfig], names: &[String]) -> Self {
        let name = |first: Option<&String>| first.cloned().unwrap_or_default();
        match (models.text.first(), models.vectors.first()) {
            (Some(model), _) => Self::Chat(model.name.clone()),
            (None, Some(model)) => Self::Embedding(model.name.clone()),
            // Another service answers.
            (None, None) => match upstreams.first() {
                Some(first) if first.task == UpstreamTask::Embed => {
                    Self::Embedding(first.name.clone())
                }
                _ => Self::Chat(name(names.first())),
            },
        }
    }
}

/// What is printed when requests are welcome.
fn greet(
    greeting: Greeting,
    address: SocketAddr,
    models: &[String],
    example: &Example,
    first: &FirstKey,
) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let url = format!("http://{}/v1", SocketAddr::new(host, address.port()));
    let (key, key_in_curl) = match first {
        FirstKey::Created(key) => {
            let key = key.secret.expose();
            (format!("{key}   (shown this once)"), key.to_owned())
        }
        FirstKey::Bootstrap => {
            (format!("the one in {BOOTSTRAP_VARIABLE}"), format!("${BOOTSTRAP_VARIABLE}"))
        }
        FirstKey::Existing => (
            "one made earlier; `mintage keys create` makes another".to_owned(),
            "$MINTAGE_API_KEY".to_owned(),
        ),
        FirstKey::NotNeeded => ("none needed (require_key = false)".to_owned(), "none".to_owned()),
    };
    let lines = format!("  address  {url}\n  models   {}\n  API key  {key}\n", models.join(", "));
    if greeting == Greeting::Brief {
        return lines;
    }
    let (path, body) = match example {
        Example::Chat(model) => (
            "chat/completions",
            format!(
                "{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Write a Python one-liner that reverses a string.\"}}]}}"
            ),
        ),
        Example::Embedding(model) => (
            "embeddings",
            format!("{{\"model\": \"{model}\", \"input\": [\"A text.\", \"Another one.\"]}}"),
        ),
    };
    format!(
        "\nMintage is ready.\n\n{lines}\nTry it:\n\n  \
         curl {url}/{path} -H \"Authorization: Bearer {key_in_curl}\" -H \"Content-Type: application/json\" \
         -d '{body}'\n\nCtrl-C stops the server.\n"
    )
}

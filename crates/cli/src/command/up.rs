//! `mintage up`: everything with defaults. The same as `serve`, with a welcome for people.

use std::net::SocketAddr;

use anyhow::Result;
use clap::Args;

use crate::command::serve;
use crate::config::{ModelSettings, Settings};

const EXAMPLES: &str = "\
Examples:
  mintage up
  mintage up --model qwen2.5-coder:1.5b --model ./my.gguf
  mintage up --embedding-model all-minilm                            chats and embeddings
  mintage up --listen 0.0.0.0:8080 --data-dir /var/lib/mintage       in a container

The first start fetches the model (about 470 MiB for the default one), verifies its SHA-256 and makes an API key,
which is shown once. Further starts take seconds and fetch nothing. MINTAGE_BOOTSTRAP_KEY, if it is set, becomes the
first API key instead.";

/// Start everything with defaults: fetch the model, load it, serve it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    serving: ServingArgs,
}

/// What both `up` and `serve` can be told.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServingArgs {
    /// Listen here [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT", env = "MINTAGE_LISTEN")]
    listen: Option<SocketAddr>,
    #[arg(
        long = "model",
        value_name = "NAME|FILE",
        env = "MINTAGE_MODELS",
        value_delimiter = ',',
        help = "Serve this model: a name, a file or folder, or hf:OWNER/REPO[:FILE][@REV]; repeatable"
    )]
    models: Vec<String>,
    /// Serve this model beside them, for embeddings or reranking; repeatable
    #[arg(
        long = "embedding-model",
        value_name = "NAME|FILE",
        env = "MINTAGE_EMBEDDING_MODELS",
        value_delimiter = ','
    )]
    embedding_models: Vec<String>,
    /// Let this smaller model of the same vocabulary guess tokens for the first model
    #[arg(long, value_name = "NAME|FILE", env = "MINTAGE_DRAFT")]
    draft: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// How a model is computed, for every command that computes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct EngineArgs {
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N", env = "MINTAGE_THREADS")]
    threads: Option<usize>,
    /// Tokens of prompt and answer together [default: what the model promises]
    #[arg(long, value_name = "TOKENS", env = "MINTAGE_CONTEXT")]
    context: Option<u32>,
    /// Memory for the KV cache of each model, MiB [default: 1024]
    #[arg(long, value_name = "MIB", env = "MINTAGE_KV_CACHE_MIB")]
    kv_cache_mib: Option<usize>,
    /// Guess tokens ahead where that is faster; no answer changes [default: true]
    #[arg(long, value_name = "BOOL", env = "MINTAGE_SPECULATION")]
    speculation: Option<bool>,
}

impl ServingArgs {
    /// Lays the arguments over the settings.
    pub(crate) fn apply(&self, settings: &mut Settings) {
        if let Some(listen) = self.listen {
            settings.server.listen = listen;
        }
        if !self.models.is_empty() {
            settings.models = self.models.iter().map(ModelSettings::of).collect();
        }
        if !self.embedding_models.is_empty() {
            if settings.models.is_empty() {
                settings.models.push(ModelSettings::of(crate::models::DEFAULT_MODEL));
            }
            settings.models.extend(self.embedding_models.iter().map(ModelSettings::of));
        }
        if let Some(draft) = &self.draft {
            if settings.models.is_empty() {
                settings.models.push(ModelSettings::of(crate::models::DEFAULT_MODEL));
            }
            // One draft model serves the model it fits; with several models the settings file says whose it is.
            if let Some(first) = settings.models.first_mut() {
                first.draft = Some(draft.clone());
            }
        }
        self.engine.apply(settings);
    }
}

impl EngineArgs {
    /// Lays the arguments over the settings.
    pub(crate) fn apply(&self, settings: &mut Settings) {
        let engine = &mut settings.engine;
        engine.threads = self.threads.unwrap_or(engine.threads);
        engine.context_tokens = self.context.unwrap_or(engine.context_tokens);
        engine.kv_cache_mib = self.kv_cache_mib.unwrap_or(engine.kv_cache_mib);
        engine.speculation = self.speculation.unwrap_or(engine.speculation);
    }
}

pub(crate) fn run(mut settings: Settings, args: &UpArgs) -> Result<()> {
    args.serving.apply(&mut settings);
    serve::start(&settings, serve::Greeting::Welcome)
}

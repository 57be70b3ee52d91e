//! From a resolved model to a running engine: the text side and the packed weights are made side by side.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mintage_engine::{
    CpuEngine, CpuEngineConfig, Decoder, DecoderOptions, KvSize, LoadProgress, SchedulerConfig,
    WeightStorage,
};
use mintage_hub::ResolvedModel;
use mintage_kernels::{KvFormat, available_threads};
use mintage_model::{GenerationDefaults, ModelFile, TextModel};

use crate::config::EngineSettings;
use crate::models;

/// Events that may wait for a slow reader before its request pauses.
const EVENT_CAPACITY: usize = 64;
/// Guesses verified for one request in a step, at most.
const MAX_DRAFTS: usize = 8;

/// A model ready to compute.
pub(crate) struct LoadedModel {
    pub(crate) engine: Arc<CpuEngine>,
    pub(crate) text: Arc<TextModel>,
    pub(crate) defaults: GenerationDefaults,
    pub(crate) took: Duration,
}

/// Opens a model, packs its weights and starts its engine under the name `name`.
pub(crate) fn engine(
    settings: &EngineSettings,
    model: &ResolvedModel,
    name: &str,
) -> Result<LoadedModel> {
    let started = Instant::now();
    let file = models::open(model)?;
    let kv_size = KvSize::Bytes(settings.kv_cache_mib.saturating_mul(1 << 20));
    let (decoder, text) = decoder_and_text(&file, &options(settings, kv_size), model)?;
    let scheduler = SchedulerConfig {
        max_drafts: if settings.speculation { MAX_DRAFTS } else { 0 },
        max_running: settings.max_running,
        max_waiting: settings.max_waiting,
        max_step_tokens: settings.step_tokens,
        ..SchedulerConfig::default()
    };
    let config = CpuEngineConfig {
        scheduler,
        context_length: (settings.context_tokens > 0).then_some(settings.context_tokens),
        event_capacity: EVENT_CAPACITY,
    };
    let engine = CpuEngine::start(name.to_owned(), Box::new(decoder), config)?;
    Ok(LoadedModel {
        engine: Arc::new(engine),
        text: Arc::new(text),
        defaults: file.generation().clone(),
        took: started.elapsed(),
    })
}

/// The forward pass alone, for measurements: no scheduler, a cache of `kv_size`.
pub(crate) fn decoder(
    settings: &EngineSettings,
    model: &ResolvedModel,
    kv_size: KvSize,
) -> Result<(Decoder, TextModel)> {
    let file = models::open(model)?;
    decoder_and_text(&file, &options(settings, kv_size), model)
}

/// The text side alone; reads no weights.
pub(crate) fn text(model: &ResolvedModel) -> Result<TextModel> {
    let file = models::open(model)?;
    TextModel::from_model_file(&file)
        .with_context(|| format!("the tokenizer of `{}` cannot be used", model.name))
}

/// Threads that compute: what is set, or what the system grants this process.
pub(crate) fn threads(settings: &EngineSettings) -> usize {
    if settings.threads == 0 { available_threads() } else { settings.threads }
}

fn options(settings: &EngineSettings, kv_size: KvSize) -> DecoderOptions {
    DecoderOptions {
        threads: threads(settings),
        kv_format: KvFormat::default(),
        kv_size,
        weights: WeightStorage::default(),
    }
}

fn decoder_and_text(
    file: &ModelFile,
    options: &DecoderOptions,
    model: &ResolvedModel,
) -> Result<(Decoder, TextModel)> {
    let bar = progress_bar(model);
    let mut advance = |progress: LoadProgress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    };
    std::thread::scope(|scope| {
        let text = scope.spawn(|| TextModel::from_model_file(file));
        let decoder = Decoder::load(file, options, &mut advance)
            .with_context(|| format!("the weights of `{}` cannot be loaded", model.name));
        bar.finish_and_clear();
        let text = text.join().map_err(|_| anyhow!("the tokenizer's thread panicked"))?;
        let text =
            text.with_context(|| format!("the tokenizer of `{}` cannot be used", model.name))?;
        Ok((decoder?, text))
    })
}

fn progress_bar(model: &ResolvedModel) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(
        "loading {msg}  {bar:28}  {binary_bytes} / {binary_total_bytes}",
    ) {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar.set_message(model.name.to_string());
    bar
}

//! From a resolved model to a running engine: the text side and the packed weights are made side by side.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mintage_engine::{
    CpuEngine, CpuEngineConfig, Decoder, DecoderOptions, Forward, KvSize, LoadProgress, MAX_DRAFTS,
    SchedulerConfig, WeightStorage,
};
use mintage_hub::ResolvedModel;
use mintage_kernels::{KvFormat, PAGE_TOKENS, available_threads};
use mintage_model::{DecoderConfig, GenerationDefaults, ModelFile, TextModel, TokenId};

use crate::config::EngineSettings;
use crate::models;

/// Events that may wait for a slow reader before its request pauses.
const EVENT_CAPACITY: usize = 128;

/// A model ready to compute.
pub(crate) struct LoadedModel {
    pub(crate) engine: Arc<CpuEngine>,
    pub(crate) text: Arc<TextModel>,
    pub(crate) defaults: GenerationDefaults,
    pub(crate) took: Duration,
}

/// Opens a model, packs its weights and starts its engine under the name `name`; with `draft` a smaller model guesses
/// for it, and shares its memory for keys and values.
pub(crate) fn engine(
    settings: &EngineSettings,
    model: &ResolvedModel,
    draft: Option<&ResolvedModel>,
    name: &str,
) -> Result<LoadedModel> {
    let started = Instant::now();
    let draft = draft.filter(|_| settings.speculation);
    let file = models::open(model)?;
    let draft_file = draft.map(models::open).transpose()?;
    let page_bytes = |file: &ModelFile| kv_page_bytes(file.config());
    let pages_bytes = page_bytes(&file) + draft_file.as_ref().map_or(0, page_bytes);
    let pages = settings.kv_cache_mib.saturating_mul(1 << 20) / pages_bytes.max(1);
    let options = options(settings, KvSize::Pages(pages.max(1)));
    let (decoder, text) = decoder_and_text(&file, &options, model)?;
    let mut draft_forward: Option<Box<dyn Forward>> = None;
    if let (Some(draft), Some(file)) = (draft, &draft_file) {
        let (decoder, draft_text) = decoder_and_text(file, &options, draft)?;
        same_vocabulary(&text, &draft_text).with_context(|| {
            format!("`{}` cannot be the draft model of `{}`", draft.name, model.name)
        })?;
        draft_forward = Some(Box::new(decoder));
    }
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
    let name = name.to_owned();
    let engine = CpuEngine::start_with_draft(name, Box::new(decoder), draft_forward, config)?;
    Ok(LoadedModel {
        engine: Arc::new(engine),
        text: Arc::new(text),
        defaults: file.generation().clone(),
        took: started.elapsed(),
    })
}

/// Bytes of a page of the KV cache: keys and values of all layers, two bytes each. The sizes are a file's claims.
pub(crate) fn kv_page_bytes(config: &DecoderConfig) -> usize {
    [config.num_layers, config.num_kv_heads, config.head_dim, PAGE_TOKENS, 2 * 2]
        .into_iter()
        .fold(1, usize::saturating_mul)
}

/// A draft model speaks in token ids: every id must mean the same to both.
fn same_vocabulary(model: &TextModel, draft: &TextModel) -> Result<()> {
    let (model, draft) = (model.tokenizer(), draft.tokenizer());
    let common = model.vocab_size().min(draft.vocab_size());
    let shown = |bytes: Option<&[u8]>| {
        bytes.map_or("nothing".to_owned(), |bytes| format!("`{}`", bytes.escape_ascii()))
    };
    for id in 0..common as TokenId {
        let (ours, theirs) = (model.token_bytes(id), draft.token_bytes(id));
        if ours != theirs || model.token_kind(id) != draft.token_kind(id) {
            bail!(
                "their vocabularies differ: token {id} is {} here and {} there; take a smaller model of the same family",
                shown(ours),
                shown(theirs)
            );
        }
    }
    Ok(())
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

/// The same model with weights, activations and cache in f32: what quantised arithmetic is compared with.
pub(crate) fn reference_decoder(
    settings: &EngineSettings,
    model: &ResolvedModel,
    kv_size: KvSize,
) -> Result<Decoder> {
    let file = models::open(model)?;
    let options = DecoderOptions {
        kv_format: KvFormat::F32,
        weights: WeightStorage::Float,
        ..options(settings, kv_size)
    };
    Decoder::load(&file, &options, &mut |_| {})
        .with_context(|| format!("the weights of `{}` cannot be loaded", model.name))
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

pub(crate) fn options(settings: &EngineSettings, kv_size: KvSize) -> DecoderOptions {
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

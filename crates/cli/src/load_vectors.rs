//! From a resolved model to a running engine that makes vectors: encoders, and decoders whose files say that they embed or
//! score. What the files say decides; nobody has to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mintage_engine::{
    Decoder, DecoderVectors, Encode, Encoder, EncoderEngine, EncoderEngineConfig, KvSize,
    VectorHead,
};
use mintage_hub::ResolvedModel;
use mintage_kernels::PAGE_TOKENS;
use mintage_model::{ModelFile, VectorTask, VectorText};

use crate::config::{EngineSettings, ModelTask};
use crate::load;
use crate::models;

/// Tokens of sequences beside the longest one, for which there are pages.
const BESIDE_TOKENS: usize = 512;

/// A model ready to make vectors.
pub(crate) struct LoadedVectors {
    pub(crate) engine: Arc<EncoderEngine>,
    pub(crate) text: Arc<VectorText>,
    /// Elements of a vector.
    pub(crate) width: usize,
    pub(crate) took: Duration,
}

/// Loads a model that makes vectors and starts its engine under the name `name`; `None` for one that says tokens. `task`
/// stands over what the files say.
pub(crate) fn engine(
    settings: &EngineSettings,
    model: &ResolvedModel,
    name: &str,
    task: Option<ModelTask>,
) -> Result<Option<LoadedVectors>> {
    let started = Instant::now();
    let Some((encode, text, longest)) = encoder(settings, model, task)? else { return Ok(None) };
    let width = encode.shape().width;
    let asked = if settings.context_tokens > 0 { settings.context_tokens } else { u32::MAX };
    let longest = u32::try_from(longest).unwrap_or(u32::MAX);
    let config = EncoderEngineConfig {
        max_tokens: Some(longest.min(asked)),
        ..EncoderEngineConfig::default()
    };
    let engine = EncoderEngine::start(name.to_owned(), encode, &config)?;
    Ok(Some(LoadedVectors {
        engine: Arc::new(engine),
        text: Arc::new(text),
        width,
        took: started.elapsed(),
    }))
}

/// The forward pass, its text side, and the tokens of the longest text that the model was made for: it may have places for
/// more.
type LoadedEncoder = (Box<dyn Encode>, VectorText, usize);

/// `None` where the model makes no vectors.
fn encoder(
    settings: &EngineSettings,
    model: &ResolvedModel,
    task: Option<ModelTask>,
) -> Result<Option<LoadedEncoder>> {
    let fails = || format!("`{}` ({}) cannot be loaded", model.name, model.path.display());
    if let Some(file) = models::open_encoder(model)? {
        if task.is_some_and(|task| task != ModelTask::Embed) {
            bail!("`{}` is an encoder: its `task` can only be \"embed\"", model.name);
        }
        let text = VectorText::of_encoder(&file).with_context(fails)?;
        let encoder = Encoder::load(&file, load::threads(settings)).with_context(fails)?;
        return Ok(Some((Box::new(encoder), text, file.config().max_tokens)));
    }
    let file = models::open(model)?;
    let task = match task {
        None => VectorTask::of_decoder(&file).with_context(fails)?,
        Some(ModelTask::Generate) => None,
        Some(ModelTask::Embed) => Some(VectorTask::Embed),
        Some(ModelTask::Rerank) => Some(VectorTask::Rerank),
    };
    let Some(task) = task else { return Ok(None) };
    let text = VectorText::of_decoder(&file, task).with_context(fails)?;
    let head = match text.yes_no() {
        None => VectorHead::Hidden,
        Some((yes, no)) => VectorHead::YesNo { yes, no },
    };
    let options = load::options(settings, KvSize::Pages(pages(settings, &file)));
    let decoder = Decoder::load(&file, &options, &mut |_| {}).with_context(fails)?;
    let vectors = DecoderVectors::new(decoder, head, usize::MAX).with_context(fails)?;
    Ok(Some((Box::new(vectors), text, usize::MAX)))
}

/// Pages for the longest sequence and some beside it, as far as the memory that is set goes: nothing is kept in them.
fn pages(settings: &EngineSettings, file: &ModelFile) -> usize {
    let config = file.config();
    let asked = match settings.context_tokens {
        0 => usize::MAX,
        tokens => tokens as usize,
    };
    let longest = config.context_length.min(asked);
    let useful = longest.saturating_add(BESIDE_TOKENS).div_ceil(PAGE_TOKENS);
    let affordable =
        settings.kv_cache_mib.saturating_mul(1 << 20) / load::kv_page_bytes(config).max(1);
    useful.min(affordable).max(1)
}

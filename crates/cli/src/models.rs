//! From a model reference to an opened model: what every command that computes needs. Not the engine.

use anyhow::{Context, Result};
use mintage_hub::{Hub, ModelRef, ResolvedModel};
use mintage_model::{EncoderFile, ModelError, ModelFile};

use crate::config::Settings;
use crate::pull_progress::PullProgress;

/// The model that is meant where none is named.
pub(crate) const DEFAULT_MODEL: &str = "default";

/// Finds a model, pulling it first if it is not here.
pub(crate) fn resolve(settings: &Settings, reference: &ModelRef) -> Result<ResolvedModel> {
    let hub = Hub::open(settings.hub_config())?;
    Ok(hub.resolve(reference, &PullProgress::new())?)
}

/// Opens the container and checks its headers; computes nothing.
pub(crate) fn open(model: &ResolvedModel) -> Result<ModelFile> {
    ModelFile::open(&model.path)
        .with_context(|| format!("`{}` ({}) cannot be opened", model.name, model.path.display()))
}

/// Opens the folder of an encoder and checks its headers; `None` where it is none.
pub(crate) fn open_encoder(model: &ResolvedModel) -> Result<Option<EncoderFile>> {
    let open = || -> Result<Option<EncoderFile>, ModelError> {
        if !EncoderFile::is_at(&model.path)? {
            return Ok(None);
        }
        EncoderFile::open(&model.path).map(Some)
    };
    open().with_context(|| format!("`{}` ({}) cannot be opened", model.name, model.path.display()))
}

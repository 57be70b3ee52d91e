//! The models that are served and the names under which clients find them.

use std::collections::HashMap;
use std::sync::Arc;

use mintage_model::{Engine, GenerationDefaults, GrammarCompiler, TextModel};

/// A model ready to answer.
pub struct ServedModel {
    /// As `GET /v1/models` lists it.
    pub name: String,
    /// Other names under which it answers.
    pub aliases: Vec<String>,
    /// Tokens in, tokens out.
    pub engine: Arc<dyn Engine>,
    /// Text to tokens and back.
    pub text: Arc<TextModel>,
    /// What answers must look like, compiled for its vocabulary.
    pub grammars: GrammarCompiler,
    /// When it was loaded or made, in seconds since 1970.
    pub created_unix: u64,
    /// Digest of its file or files, like `sha256:…`, for the records of its usage; empty where none is known.
    pub digest: Arc<str>,
    /// What holds where a request says nothing, and the tokens that end a turn.
    pub defaults: GenerationDefaults,
}

/// Why models cannot be served together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelSetError {
    /// No model, no service.
    #[error("there is no model to serve")]
    Empty,
    /// Two models answer to one name.
    #[error("two models answer to the name `{0}`")]
    DuplicateName(String),
}

/// Models by name.
pub(crate) struct ModelSet {
    models: Vec<Arc<ServedModel>>,
    by_name: HashMap<String, Arc<ServedModel>>,
}

impl ModelSet {
    pub(crate) fn new(models: Vec<ServedModel>) -> Result<Self, ModelSetError> {
        if models.is_empty() {
            return Err(ModelSetError::Empty);
        }
        let models: Vec<Arc<ServedModel>> = models.into_iter().map(Arc::new).collect();
        let mut by_name = HashMap::new();
        for model in &models {
            let aliases = model.aliases.iter().filter(|alias| **alias != model.name);
            for name in std::iter::once(&model.name).chain(aliases) {
                if by_name.insert(name.clone(), Arc::clone(model)).is_some() {
                    return Err(ModelSetError::DuplicateName(name.clone()));
                }
            }
        }
        Ok(Self { models, by_name })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<ServedModel>> {
        self.by_name.get(name)
    }

    /// In the order given.
    pub(crate) fn all(&self) -> &[Arc<ServedModel>] {
        &self.models
    }
}

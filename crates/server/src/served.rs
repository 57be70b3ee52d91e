//! What answers, and the names under which clients find it: models of ours, services behind a name, routes over both.
//!
//! Models of ours are of two kinds: those that say tokens, and those that make vectors. Who looks for one kind never gets
//! the other.

use std::collections::HashMap;
use std::sync::Arc;

use mintage_model::{
    CallFormat, Engine, GenerationDefaults, GrammarCompiler, TextModel, VectorTask, VectorText,
};

use crate::routes::{self, RouteConfig};
use crate::upstream::{BY_OURSELVES, RemoteModel, UpstreamConfig, UpstreamError};

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

impl ServedModel {
    /// How the model writes calls, as far as its template shows it.
    pub(crate) fn call_format(&self) -> Option<CallFormat> {
        CallFormat::of_template(self.text.template()?.source())
    }
}

/// A model ready to make vectors: embeddings of texts, or scores of documents.
pub struct VectorModel {
    /// As `GET /v1/models` lists it.
    pub name: String,
    /// Other names under which it answers.
    pub aliases: Vec<String>,
    /// Tokens in, a vector out.
    pub engine: Arc<dyn Engine>,
    /// Vocabulary and prompts.
    pub text: Arc<VectorText>,
    /// Elements of a vector.
    pub width: usize,
    /// As of a [`ServedModel`].
    pub created_unix: u64,
    /// As of a [`ServedModel`].
    pub digest: Arc<str>,
}

impl VectorModel {
    pub(crate) fn ability(&self) -> Ability {
        match self.text.task() {
            VectorTask::Embed => Ability::Embed,
            VectorTask::Rerank => Ability::Rerank,
        }
    }

    fn listed(&self, name: &str) -> Listed {
        Listed {
            name: name.to_owned(),
            created_unix: self.created_unix,
            context_length: self.engine.info().context_length,
            ability: self.ability(),
        }
    }
}

/// Models of ours.
#[derive(Default)]
pub struct Models {
    /// Those that say tokens.
    pub text: Vec<ServedModel>,
    /// Those that make vectors.
    pub vectors: Vec<VectorModel>,
}

impl From<Vec<ServedModel>> for Models {
    fn from(text: Vec<ServedModel>) -> Self {
        Self { text, vectors: Vec::new() }
    }
}

/// What a model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ability {
    /// Say tokens.
    Text,
    /// Make embeddings.
    Embed,
    /// Score documents.
    Rerank,
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
    /// A service cannot be set up.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// A route leads nowhere.
    #[error("the route `{0}` has no targets")]
    NoTargets(String),
    /// A route leads to what is not there.
    #[error("the route `{route}` leads to `{target}`, which is neither a model nor an upstream")]
    UnknownTarget {
        /// Its name.
        route: String,
        /// What it names.
        target: String,
    },
}

/// Who answers a request.
#[derive(Clone)]
pub(crate) enum Target {
    /// An engine here.
    Own(Arc<ServedModel>),
    /// Another service.
    Remote(Arc<RemoteModel>),
}

impl Target {
    /// As prices, records and answers call it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Own(model) => &model.name,
            Self::Remote(remote) => &remote.config.name,
        }
    }

    /// For records: of whose answer it is.
    pub(crate) fn digest(&self) -> &Arc<str> {
        match self {
            Self::Own(model) => &model.digest,
            Self::Remote(remote) => &remote.digest,
        }
    }

    /// For records: who counts the tokens, should nobody say so at the end.
    pub(crate) fn metered_by(&self) -> &'static str {
        match self {
            Self::Own(_) => "",
            // What a crash leaves was counted here.
            Self::Remote(_) => BY_OURSELVES,
        }
    }

    /// What turns its text into tokens, where that is here.
    pub(crate) fn text(&self) -> Option<&Arc<TextModel>> {
        match self {
            Self::Own(model) => Some(&model.text),
            Self::Remote(remote) => remote.config.tokenizer.as_ref(),
        }
    }

    fn is_healthy(&self) -> bool {
        match self {
            // What it cannot take it refuses at once.
            Self::Own(_) => true,
            Self::Remote(remote) => remote.is_healthy(),
        }
    }

    fn listed(&self, name: &str) -> Listed {
        let (created_unix, context_length) = match self {
            Self::Own(model) => (model.created_unix, model.engine.info().context_length),
            Self::Remote(remote) => (remote.config.created_unix, remote.config.context_length),
        };
        Listed { name: name.to_owned(), created_unix, context_length, ability: Ability::Text }
    }
}

/// A name as lists of models show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) created_unix: u64,
    /// Of a route, what all its targets take.
    pub(crate) context_length: u32,
    pub(crate) ability: Ability,
}

struct Route {
    name: String,
    targets: Vec<(u32, Target)>,
}

/// What answers, by name.
pub(crate) struct ModelSet {
    models: Vec<Arc<ServedModel>>,
    vectors: Vec<Arc<VectorModel>>,
    remotes: Vec<Arc<RemoteModel>>,
    routes: Vec<Route>,
    by_name: HashMap<String, Target>,
    vectors_by_name: HashMap<String, Arc<VectorModel>>,
}

impl ModelSet {
    pub(crate) fn new(
        models: Models,
        upstreams: Vec<UpstreamConfig>,
        routes: Vec<RouteConfig>,
    ) -> Result<Self, ModelSetError> {
        let Models { text: models, vectors } = models;
        if models.is_empty() && vectors.is_empty() && upstreams.is_empty() {
            return Err(ModelSetError::Empty);
        }
        let models: Vec<Arc<ServedModel>> = models.into_iter().map(Arc::new).collect();
        let remotes = upstreams.into_iter().map(|config| RemoteModel::new(config).map(Arc::new));
        let remotes: Vec<Arc<RemoteModel>> = remotes.collect::<Result<_, _>>()?;
        let mut by_name = HashMap::new();
        let mut add =
            |name: &str, target: &Target| match by_name.insert(name.to_owned(), target.clone()) {
                None => Ok(()),
                Some(_) => Err(ModelSetError::DuplicateName(name.to_owned())),
            };
        for model in &models {
            let target = Target::Own(Arc::clone(model));
            let aliases = model.aliases.iter().filter(|alias| **alias != model.name);
            for name in std::iter::once(&model.name).chain(aliases) {
                add(name, &target)?;
            }
        }
        for remote in &remotes {
            add(&remote.config.name, &Target::Remote(Arc::clone(remote)))?;
        }
        let vectors: Vec<Arc<VectorModel>> = vectors.into_iter().map(Arc::new).collect();
        let mut vectors_by_name = HashMap::new();
        for model in &vectors {
            let aliases = model.aliases.iter().filter(|alias| **alias != model.name);
            for name in std::iter::once(&model.name).chain(aliases) {
                let earlier = vectors_by_name.insert(name.clone(), Arc::clone(model));
                if earlier.is_some() || by_name.contains_key(name) {
                    return Err(ModelSetError::DuplicateName(name.clone()));
                }
            }
        }
        let routes_to = Vec::new();
        let mut set =
            Self { models, vectors, remotes, routes: routes_to, by_name, vectors_by_name };
        for route in routes {
            set.add_route(route)?;
        }
        Ok(set)
    }

    fn add_route(&mut self, config: RouteConfig) -> Result<(), ModelSetError> {
        let RouteConfig { name, targets } = config;
        if targets.is_empty() {
            return Err(ModelSetError::NoTargets(name));
        }
        if self.knows(&name) {
            return Err(ModelSetError::DuplicateName(name));
        }
        let find = |target: &routes::RouteTarget| match self.by_name.get(&target.model) {
            Some(found) => Ok((target.weight, found.clone())),
            None => Err(ModelSetError::UnknownTarget {
                route: name.clone(),
                target: target.model.clone(),
            }),
        };
        let targets = targets.iter().map(find).collect::<Result<_, _>>()?;
        self.routes.push(Route { name, targets });
        Ok(())
    }

    fn route(&self, name: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.name == name)
    }

    /// The model of ours that answers to a name; of a route, the first of its targets that is one.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<ServedModel>> {
        let own = |target: &'_ Target| matches!(target, Target::Own(_));
        let found = match self.by_name.get(name) {
            Some(target) => Some(target),
            None => {
                let mut targets = self.route(name)?.targets.iter().map(|(_, target)| target);
                targets.find(|target| own(target))
            }
        };
        match found? {
            Target::Own(model) => Some(model),
            Target::Remote(_) => None,
        }
    }

    /// Who answers to a name, for the request with this id: the first, and in order those that stand in for it.
    pub(crate) fn targets(&self, name: &str, id: &str) -> Vec<Target> {
        if let Some(target) = self.by_name.get(name) {
            return vec![target.clone()];
        }
        let Some(route) = self.route(name) else { return Vec::new() };
        let standing: Vec<(u32, bool)> =
            route.targets.iter().map(|(weight, target)| (*weight, target.is_healthy())).collect();
        let order = routes::order(&standing, id);
        order.iter().filter_map(|&at| route.targets.get(at)).map(|(_, t)| t.clone()).collect()
    }

    /// Whether anything answers to this name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
            || self.vectors_by_name.contains_key(name)
            || self.route(name).is_some()
    }

    /// A model that makes vectors.
    pub(crate) fn vectors(&self, name: &str) -> Option<&Arc<VectorModel>> {
        self.vectors_by_name.get(name)
    }

    /// All models of ours that make vectors, in the order given.
    pub(crate) fn all_vectors(&self) -> &[Arc<VectorModel>] {
        &self.vectors
    }

    /// Engines of models of ours: of those that say tokens, then of those that make vectors.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &Arc<dyn Engine>> {
        let text = self.models.iter().map(|model| &model.engine);
        text.chain(self.vectors.iter().map(|model| &model.engine))
    }

    /// Models of ours that say tokens, in the order given.
    pub(crate) fn all(&self) -> &[Arc<ServedModel>] {
        &self.models
    }

    /// Services, in the order given.
    pub(crate) fn remotes(&self) -> &[Arc<RemoteModel>] {
        &self.remotes
    }

    /// Every name but aliases: models, services, routes.
    pub(crate) fn listed(&self) -> Vec<Listed> {
        let own = self.models.iter().map(|model| Target::Own(Arc::clone(model)));
        let remote = self.remotes.iter().map(|remote| Target::Remote(Arc::clone(remote)));
        let own = own.map(|target| target.listed(target.name()));
        let vectors = self.vectors.iter().map(|model| model.listed(&model.name));
        let targets = own.chain(vectors).chain(remote.map(|target| target.listed(target.name())));
        targets.chain(self.routes.iter().map(Route::listed)).collect()
    }

    /// One name, aliases among them.
    pub(crate) fn listing(&self, name: &str) -> Option<Listed> {
        let target = self.by_name.get(name).map(|target| target.listed(name));
        let target = target.or_else(|| self.vectors(name).map(|model| model.listed(name)));
        target.or_else(|| self.route(name).map(Route::listed))
    }
}

impl Route {
    fn listed(&self) -> Listed {
        let all = self.targets.iter().map(|(_, target)| target.listed(&self.name));
        all.reduce(|a, b| Listed {
            context_length: a.context_length.min(b.context_length),
            created_unix: a.created_unix.max(b.created_unix),
            ..a
        })
        .unwrap_or(Listed {
            name: self.name.clone(),
            created_unix: 0,
            context_length: 0,
            ability: Ability::Text,
        })
    }
}

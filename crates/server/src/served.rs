//! What answers, and the names under which clients find it: models of ours, services behind a name, routes over both.
//!
//! All of them are of two kinds: those that say tokens, and those that make vectors. Who looks for one kind never gets the
//! other, and a route leads to one kind only.

use std::collections::HashMap;
use std::sync::Arc;

use mintage_model::{
    CallFormat, Engine, GenerationDefaults, GrammarCompiler, TextModel, VectorTask, VectorText,
};

use crate::routes::{self, RouteConfig};
use crate::upstream::{BY_OURSELVES, RemoteModel, UpstreamConfig, UpstreamError, UpstreamTask};

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
        self.text.task().into()
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

impl From<VectorTask> for Ability {
    fn from(task: VectorTask) -> Self {
        match task {
            VectorTask::Embed => Self::Embed,
            VectorTask::Rerank => Self::Rerank,
        }
    }
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
    /// A route leads to what cannot stand in for each other.
    #[error("the route `{route}`: `{target}` does something else than its first target")]
    MixedRoute {
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
}

/// Who makes vectors for a request.
#[derive(Clone)]
pub(crate) enum VectorTarget {
    /// An engine here.
    Own(Arc<VectorModel>),
    /// Another service.
    Remote(Arc<RemoteModel>),
}

impl VectorTarget {
    /// As prices, records and answers call it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Own(model) => &model.name,
            Self::Remote(remote) => &remote.config.name,
        }
    }

    /// What its vectors are.
    pub(crate) fn task(&self) -> VectorTask {
        match self {
            Self::Own(model) => model.text.task(),
            Self::Remote(remote) if remote.config.task == UpstreamTask::Rerank => {
                VectorTask::Rerank
            }
            Self::Remote(_) => VectorTask::Embed,
        }
    }
}

/// What a name or a route may lead to.
trait Answers: Clone {
    /// Whether it would answer now.
    fn is_healthy(&self) -> bool;
    fn ability(&self) -> Ability;
    fn created_unix(&self) -> u64;
    fn context_length(&self) -> u32;

    fn listed(&self, name: &str) -> Listed {
        Listed {
            name: name.to_owned(),
            created_unix: self.created_unix(),
            context_length: self.context_length(),
            ability: self.ability(),
        }
    }
}

impl Answers for Target {
    fn is_healthy(&self) -> bool {
        match self {
            // What it cannot take it refuses at once.
            Self::Own(_) => true,
            Self::Remote(remote) => remote.is_healthy(),
        }
    }

    fn ability(&self) -> Ability {
        Ability::Text
    }

    fn created_unix(&self) -> u64 {
        match self {
            Self::Own(model) => model.created_unix,
            Self::Remote(remote) => remote.config.created_unix,
        }
    }

    fn context_length(&self) -> u32 {
        match self {
            Self::Own(model) => model.engine.info().context_length,
            Self::Remote(remote) => remote.config.context_length,
        }
    }
}

impl Answers for VectorTarget {
    fn is_healthy(&self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Remote(remote) => remote.is_healthy(),
        }
    }

    fn ability(&self) -> Ability {
        self.task().into()
    }

    fn created_unix(&self) -> u64 {
        match self {
            Self::Own(model) => model.created_unix,
            Self::Remote(remote) => remote.config.created_unix,
        }
    }

    fn context_length(&self) -> u32 {
        match self {
            Self::Own(model) => model.engine.info().context_length,
            Self::Remote(remote) => remote.config.context_length,
        }
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

struct Route<T> {
    name: String,
    targets: Vec<(u32, T)>,
}

/// What answers, by name.
pub(crate) struct ModelSet {
    models: Vec<Arc<ServedModel>>,
    vectors: Vec<Arc<VectorModel>>,
    remotes: Vec<Arc<RemoteModel>>,
    routes: Vec<Route<Target>>,
    vector_routes: Vec<Route<VectorTarget>>,
    by_name: HashMap<String, Target>,
    vectors_by_name: HashMap<String, VectorTarget>,
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
        let vectors: Vec<Arc<VectorModel>> = vectors.into_iter().map(Arc::new).collect();
        let mut set = Self {
            models,
            vectors,
            remotes,
            routes: Vec::new(),
            vector_routes: Vec::new(),
            by_name: HashMap::new(),
            vectors_by_name: HashMap::new(),
        };
        set.add_names()?;
        for route in routes {
            set.add_route(route)?;
        }
        Ok(set)
    }

    /// Of models with their aliases, and of services.
    fn add_names(&mut self) -> Result<(), ModelSetError> {
        for model in self.models.clone() {
            let aliases = model.aliases.iter().filter(|alias| **alias != model.name);
            for name in std::iter::once(&model.name).chain(aliases) {
                self.free(name)?.by_name.insert(name.clone(), Target::Own(Arc::clone(&model)));
            }
        }
        for model in self.vectors.clone() {
            let aliases = model.aliases.iter().filter(|alias| **alias != model.name);
            for name in std::iter::once(&model.name).chain(aliases) {
                let target = VectorTarget::Own(Arc::clone(&model));
                self.free(name)?.vectors_by_name.insert(name.clone(), target);
            }
        }
        for remote in self.remotes.clone() {
            let name = remote.config.name.clone();
            let set = self.free(&name)?;
            if remote.config.task == UpstreamTask::Generate {
                set.by_name.insert(name, Target::Remote(remote));
            } else {
                set.vectors_by_name.insert(name, VectorTarget::Remote(remote));
            }
        }
        Ok(())
    }

    /// Itself, where the name is free.
    fn free(&mut self, name: &str) -> Result<&mut Self, ModelSetError> {
        if self.knows(name) { Err(ModelSetError::DuplicateName(name.to_owned())) } else { Ok(self) }
    }

    fn add_route(&mut self, config: RouteConfig) -> Result<(), ModelSetError> {
        let RouteConfig { name, targets } = config;
        let Some(first) = targets.first() else { return Err(ModelSetError::NoTargets(name)) };
        if self.knows(&name) {
            return Err(ModelSetError::DuplicateName(name));
        }
        if self.vectors_by_name.contains_key(&first.model) {
            let targets = self.route_targets(&name, &targets, &self.vectors_by_name)?;
            self.vector_routes.push(Route { name, targets });
        } else {
            let targets = self.route_targets(&name, &targets, &self.by_name)?;
            self.routes.push(Route { name, targets });
        }
        Ok(())
    }

    /// The targets of a route, which all do the same.
    fn route_targets<T: Answers>(
        &self,
        route: &str,
        targets: &[routes::RouteTarget],
        among: &HashMap<String, T>,
    ) -> Result<Vec<(u32, T)>, ModelSetError> {
        let mut ability = None;
        let find = |target: &routes::RouteTarget| {
            let (route, name) = (route.to_owned(), target.model.clone());
            let is_there =
                self.by_name.contains_key(&name) || self.vectors_by_name.contains_key(&name);
            match among.get(&name) {
                Some(found) if *ability.get_or_insert(found.ability()) == found.ability() => {
                    Ok((target.weight, found.clone()))
                }
                _ if is_there => Err(ModelSetError::MixedRoute { route, target: name }),
                _ => Err(ModelSetError::UnknownTarget { route, target: name }),
            }
        };
        targets.iter().map(find).collect()
    }

    fn route(&self, name: &str) -> Option<&Route<Target>> {
        self.routes.iter().find(|route| route.name == name)
    }

    fn vector_route(&self, name: &str) -> Option<&Route<VectorTarget>> {
        self.vector_routes.iter().find(|route| route.name == name)
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
        self.route(name).map(|route| route.ordered(id)).unwrap_or_default()
    }

    /// Who makes vectors under a name: as [`ModelSet::targets`].
    pub(crate) fn vector_targets(&self, name: &str, id: &str) -> Vec<VectorTarget> {
        if let Some(target) = self.vectors_by_name.get(name) {
            return vec![target.clone()];
        }
        self.vector_route(name).map(|route| route.ordered(id)).unwrap_or_default()
    }

    /// Whether anything answers to this name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
            || self.vectors_by_name.contains_key(name)
            || self.route(name).is_some()
            || self.vector_route(name).is_some()
    }

    /// A model of ours that makes vectors.
    pub(crate) fn vectors(&self, name: &str) -> Option<&Arc<VectorModel>> {
        match self.vectors_by_name.get(name)? {
            VectorTarget::Own(model) => Some(model),
            VectorTarget::Remote(_) => None,
        }
    }

    /// What the vectors are that are made under a name.
    pub(crate) fn vector_task(&self, name: &str) -> Option<VectorTask> {
        self.vector_targets(name, "").first().map(VectorTarget::task)
    }

    /// Names under which vectors are made, but aliases.
    pub(crate) fn vector_names(&self) -> impl Iterator<Item = &str> {
        let own = self.vectors.iter().map(|model| &*model.name);
        let remotes = self.remotes.iter().map(|remote| &remote.config);
        let remotes = remotes.filter(|config| config.task != UpstreamTask::Generate);
        let routes = self.vector_routes.iter().map(|route| &*route.name);
        own.chain(remotes.map(|config| &*config.name)).chain(routes)
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
        let models = self.models.iter().map(|model| &model.name);
        let vectors = self.vectors.iter().map(|model| &model.name);
        let remotes = self.remotes.iter().map(|remote| &remote.config.name);
        let routes = self.routes.iter().map(|route| &route.name);
        let routes = routes.chain(self.vector_routes.iter().map(|route| &route.name));
        let names = models.chain(vectors).chain(remotes).chain(routes);
        names.filter_map(|name| self.listing(name)).collect()
    }

    /// One name, aliases among them.
    pub(crate) fn listing(&self, name: &str) -> Option<Listed> {
        let target = self.by_name.get(name).map(|target| target.listed(name));
        target
            .or_else(|| self.vectors_by_name.get(name).map(|target| target.listed(name)))
            .or_else(|| self.route(name).map(Route::listed))
            .or_else(|| self.vector_route(name).map(Route::listed))
    }
}

impl<T: Answers> Route<T> {
    /// For the request with this id: the first, and in order those that stand in for it.
    fn ordered(&self, id: &str) -> Vec<T> {
        let standing: Vec<(u32, bool)> =
            self.targets.iter().map(|(weight, target)| (*weight, target.is_healthy())).collect();
        let order = routes::order(&standing, id);
        order.iter().filter_map(|&at| self.targets.get(at)).map(|(_, t)| t.clone()).collect()
    }

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

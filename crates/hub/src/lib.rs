//! Where models come from and go: catalogue, sources, content-addressed store. No arithmetic, no parsing of models.
//!
//! [`Hub`] joins the parts: a [`ModelRef`] (what the user wrote) → the catalogue or a repository → the first source
//! that delivers the right bytes → the store. Blocking by design: a download is a foreground act with a progress bar.
//!
//! Invariant: no path that came from outside is joined unchecked. Blobs are named by a [`Digest`], which parses as
//! `^[a-f0-9]{64}$` or not at all; models and files by [`ModelName`] and [`FileName`], which cannot hold a separator.

mod catalogue;
mod digest;
mod error;
mod http;
mod hub;
mod names;
mod partial;
mod progress;
mod source;
mod store;

pub use catalogue::{Catalogue, CatalogueModel, FileBeside};
pub use digest::Digest;
pub use error::{HubError, SourceError};
pub use hub::{Hub, HubConfig, ResolvedModel};
pub use names::{FileName, HuggingFaceRef, ModelName, ModelRef};
pub use progress::{NoProgress, Progress, PullEvent};
pub use store::{Manifest, ManifestFile, Store, StoredState};

//! On whose behalf a request runs: everything that admission needs to know of its sender, resolved once a change.

use std::sync::Arc;

use super::{Action, KeyScopes, Role};
use crate::limits::{Level, Party};

/// The holder of a key that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The organisation that pays; empty for the operator of the installation.
    pub organisation: Arc<str>,
    /// The project that owns what comes to be; `None` for keys that administer.
    pub project: Option<Arc<str>>,
    /// The key's id; safe to log.
    pub key: Arc<str>,
    /// The name of the key, for people.
    pub key_name: Arc<str>,
    /// What an administrating key may do.
    pub role: Option<Role>,
    /// The key administers the whole installation.
    pub is_operator: bool,
    /// What the key may be used for.
    pub scopes: KeyScopes,
    /// Organisation, project and key, with their rules: what a request counts towards.
    pub parties: Vec<Party>,
    /// The organisation's share of the engine among others.
    pub weight: u32,
}

impl Principal {
    /// Someone who needs no key, within these parties' names and without limits.
    #[must_use]
    pub fn unlimited(organisation: &str, project: &str, key: &str) -> Self {
        let party = |level, id: &str| Party { level, id: id.into(), policy: Default::default() };
        Self {
            organisation: organisation.into(),
            project: Some(project.into()),
            key: key.into(),
            key_name: key.into(),
            role: None,
            is_operator: false,
            scopes: KeyScopes::default(),
            parties: vec![
                party(Level::Organisation, organisation),
                party(Level::Project, project),
                party(Level::Key, key),
            ],
            weight: 1,
        }
    }

    /// Whether it may do this in its organisation. Keys of projects call models and see their own usage.
    #[must_use]
    pub fn may(&self, action: Action) -> bool {
        if self.is_operator {
            return action != Action::CallModels;
        }
        match (self.role, &self.project) {
            (Some(role), _) => role.may(action),
            (None, Some(_)) => matches!(action, Action::CallModels),
            (None, None) => false,
        }
    }
}

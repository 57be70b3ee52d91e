//! What the directory holds: organisations, their projects, the projects' keys, and people with roles. Plain data.
//!
//! Invariant: a record holds no secret; a key's hash lies beside its record, not in it.

use serde::{Deserialize, Serialize};

use super::DirectoryError;
use crate::limits::Policy;

/// Length of any name.
pub const MAX_NAME_CHARS: usize = 64;
/// Models or endpoints that one key names.
pub const MAX_SCOPE_ENTRIES: usize = 64;
/// Length of a model's or an endpoint's name in a scope.
const MAX_SCOPE_CHARS: usize = 256;
/// A tenant's share of the engine is at most this many times another's.
pub const MAX_WEIGHT: u32 = 1000;

/// Who pays: the owner of projects and of one account in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organisation {
    /// `org-…`.
    pub id: String,
    /// For people; unique.
    pub name: String,
    /// Seconds since 1970.
    pub created_unix: u64,
    /// Its share of the engine among organisations that want it at the same time, 1 to [`MAX_WEIGHT`].
    #[serde(default = "one")]
    pub weight: u32,
    /// Limits and budgets of all its projects together.
    #[serde(default)]
    pub policy: Policy,
    /// Its keys are refused while it is suspended.
    #[serde(default)]
    pub suspended: bool,
}

fn one() -> u32 {
    1
}

/// A workspace: everything that has an id belongs to one, and is invisible to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// `proj_…`.
    pub id: String,
    /// Whose.
    pub organisation: String,
    /// For people; unique within the organisation.
    pub name: String,
    /// Seconds since 1970.
    pub created_unix: u64,
    /// Limits and budgets of all its keys together.
    #[serde(default)]
    pub policy: Policy,
    /// When it was archived, in seconds since 1970; its keys are refused from then on.
    #[serde(default)]
    pub archived_unix: Option<u64>,
}

/// A person in an organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `user-…`.
    pub id: String,
    /// In which organisation.
    pub organisation: String,
    /// Address or name; unique within the organisation.
    pub name: String,
    /// What the person may do.
    pub role: Role,
    /// Seconds since 1970.
    pub created_unix: u64,
}

/// What a member may do in its organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything, including other owners.
    Owner,
    /// Everything but owners and money.
    Admin,
    /// Keys of projects and calls to models.
    Developer,
    /// Money, usage and invoices.
    Billing,
    /// Looks only.
    Viewer,
}

/// What can be asked of an organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Call a model.
    CallModels,
    /// See projects, members and the outlines of keys.
    ReadDirectory,
    /// See usage and its cost.
    ReadUsage,
    /// See balances and invoices.
    ReadBilling,
    /// Make, rotate, disable keys.
    ManageKeys,
    /// Make and archive projects; set limits and budgets.
    ManageProjects,
    /// Invite, change and remove members that are not owners.
    ManageMembers,
    /// Invite, change and remove owners.
    ManageOwners,
    /// Change how the organisation pays.
    ManageBilling,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::CallModels,
        Self::ReadDirectory,
        Self::ReadUsage,
        Self::ReadBilling,
        Self::ManageKeys,
        Self::ManageProjects,
        Self::ManageMembers,
        Self::ManageOwners,
        Self::ManageBilling,
    ];
}

impl Role {
    /// All of them, the mightiest first.
    pub const ALL: [Self; 5] =
        [Self::Owner, Self::Admin, Self::Developer, Self::Billing, Self::Viewer];

    /// Whether the role may do this.
    #[must_use]
    pub fn may(self, action: Action) -> bool {
        use Action::{
            CallModels, ManageBilling, ManageKeys, ManageOwners, ReadBilling, ReadDirectory,
            ReadUsage,
        };
        match self {
            Self::Owner => true,
            Self::Admin => !matches!(action, ManageOwners | ManageBilling),
            Self::Developer => {
                matches!(action, CallModels | ReadDirectory | ReadUsage | ManageKeys)
            }
            Self::Billing => {
                matches!(action, ReadDirectory | ReadUsage | ReadBilling | ManageBilling)
            }
            Self::Viewer => matches!(action, ReadDirectory | ReadUsage),
        }
    }
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "of")]
pub enum KeyOwner {
    /// Calls models on behalf of the project with this id.
    Project(String),
    /// Administers on behalf of the member with this id, as far as the member's role goes.
    Member(String),
    /// Administers the whole installation. Calls no models.
    Operator,
}

/// What a key may be used for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyScopes {
    /// Names of models, a final `*` standing for any ending; empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Routes such as `/v1/chat/completions`, a final `*` standing for any ending; empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
}

impl KeyScopes {
    /// Whether the key may use a model of this name.
    #[must_use]
    pub fn allows_model(&self, name: &str) -> bool {
        allows(&self.models, name)
    }

    /// Whether the key may use this route.
    #[must_use]
    pub fn allows_endpoint(&self, route: &str) -> bool {
        allows(&self.endpoints, route)
    }
}

fn allows(list: &[String], name: &str) -> bool {
    list.is_empty()
        || list.iter().any(|entry| match entry.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => entry == name,
        })
}

/// What may be shown of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Finds the record; public.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it stands for.
    pub owner: KeyOwner,
    /// The first characters, so that its owner recognises it. Never part of the secret of a key made here.
    pub display: String,
    /// Seconds since 1970.
    pub created_unix: u64,
    /// Refused from then on, in seconds since 1970.
    #[serde(default)]
    pub expires_unix: Option<u64>,
    /// Since when it is refused until it is enabled again, in seconds since 1970.
    #[serde(default)]
    pub disabled_unix: Option<u64>,
    /// When it was revoked for good, in seconds since 1970.
    #[serde(default)]
    pub revoked_unix: Option<u64>,
    /// What it may be used for.
    #[serde(default)]
    pub scopes: KeyScopes,
    /// Its own limits and budgets.
    #[serde(default)]
    pub policy: Policy,
    /// The id of the first key in a line of rotations: all of the line share one set of counters, so that the overlap
    /// of a rotation does not double what is allowed.
    pub lineage: String,
}

impl ApiKey {
    /// Whether it opens at `now_unix`, its owner aside.
    ///
    /// # Errors
    /// Why not.
    pub fn validity(&self, now_unix: u64) -> Result<(), super::KeyRefusal> {
        if self.revoked_unix.is_some() {
            return Err(super::KeyRefusal::Revoked);
        }
        if self.disabled_unix.is_some() {
            return Err(super::KeyRefusal::Disabled);
        }
        match self.expires_unix {
            Some(end) if now_unix >= end => Err(super::KeyRefusal::Expired),
            _ => Ok(()),
        }
    }
}

/// What a new key is to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// 1 to [`MAX_NAME_CHARS`] characters.
    pub name: String,
    /// What it stands for.
    pub owner: KeyOwner,
    /// Refused from then on, in seconds since 1970.
    pub expires_unix: Option<u64>,
    /// What it may be used for.
    pub scopes: KeyScopes,
    /// Its own limits and budgets.
    pub policy: Policy,
}

impl NewKey {
    /// A key for all of a project's models, without an end or limits of its own.
    #[must_use]
    pub fn of_project(name: &str, project: &str) -> Self {
        Self {
            name: name.to_owned(),
            owner: KeyOwner::Project(project.to_owned()),
            expires_unix: None,
            scopes: KeyScopes::default(),
            policy: Policy::default(),
        }
    }
}

pub(super) fn check_name(what: &str, name: &str) -> Result<(), DirectoryError> {
    let chars = name.chars().count();
    if (1..=MAX_NAME_CHARS).contains(&chars) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(DirectoryError::Invalid(format!(
        "the name of {what} has 1 to {MAX_NAME_CHARS} characters and no control characters; this one has {chars}"
    )))
}

pub(super) fn check_scopes(scopes: &KeyScopes) -> Result<(), DirectoryError> {
    for (what, list) in [("models", &scopes.models), ("endpoints", &scopes.endpoints)] {
        if list.len() > MAX_SCOPE_ENTRIES {
            return Err(DirectoryError::Invalid(format!(
                "a key names at most {MAX_SCOPE_ENTRIES} {what}, this one {}",
                list.len()
            )));
        }
        for entry in list {
            let chars = entry.chars().count();
            let star = entry.find('*').is_some_and(|at| at + 1 < entry.len());
            if !(1..=MAX_SCOPE_CHARS).contains(&chars) || star {
                return Err(DirectoryError::Invalid(format!(
                    "an entry of a key's {what} has 1 to {MAX_SCOPE_CHARS} characters and a `*` only at its end"
                )));
            }
        }
    }
    Ok(())
}

//! The directory as a value: what is known, and what may be changed. Pure: ids, secrets and the time come from outside.
//!
//! Invariants ([`Directory::check`]): every reference leads to something that exists; names are unique where people
//! choose by them; an organisation that ever had an owner keeps one.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::records::{check_name, check_scopes};
use super::{
    ApiKey, DirectoryError, KeyOwner, KeyRefusal, MAX_WEIGHT, Member, Organisation, Principal,
    Project, Role,
};
use crate::limits::{Level, Party};

/// Organisations of one installation.
pub const MAX_ORGANISATIONS: usize = 10_000;
/// Projects of one installation.
pub const MAX_PROJECTS: usize = 20_000;
/// Members of one installation.
pub const MAX_MEMBERS: usize = 50_000;
/// Keys of one installation, revoked ones too.
pub const MAX_KEYS: usize = 50_000;

/// A key with what is kept of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyRecord {
    #[serde(flatten)]
    pub(super) key: ApiKey,
    /// HMAC-SHA256(pepper, "key" ‖ whole key), hexadecimal.
    pub(super) hash: String,
}

/// Everything by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    organisations: BTreeMap<String, Organisation>,
    projects: BTreeMap<String, Project>,
    members: BTreeMap<String, Member>,
    pub(super) keys: BTreeMap<String, KeyRecord>,
}

/// The directory as it is written down.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) version: u32,
    organisations: Vec<Organisation>,
    projects: Vec<Project>,
    members: Vec<Member>,
    keys: Vec<KeyRecord>,
}

fn no_such(kind: &'static str, id: &str) -> DirectoryError {
    DirectoryError::NoSuch { kind, id: id.to_owned() }
}

fn full(what: &str, limit: usize) -> DirectoryError {
    DirectoryError::Invalid(format!("there are {limit} {what} already, the limit"))
}

fn taken(what: &str, name: &str) -> DirectoryError {
    DirectoryError::Invalid(format!("there is already {what} named `{name}`"))
}

impl Directory {
    /// Organisations by id.
    pub fn organisations(&self) -> impl Iterator<Item = &Organisation> {
        self.organisations.values()
    }

    /// Projects by id.
    pub fn projects(&self) -> impl Iterator<Item = &Project> {
        self.projects.values()
    }

    /// Members by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Keys by id, revoked and expired ones too.
    pub fn keys(&self) -> impl Iterator<Item = &ApiKey> {
        self.keys.values().map(|record| &record.key)
    }

    /// The organisation with this id.
    ///
    /// # Errors
    /// [`DirectoryError::NoSuch`].
    pub fn organisation(&self, id: &str) -> Result<&Organisation, DirectoryError> {
        self.organisations.get(id).ok_or_else(|| no_such("organisation", id))
    }

    /// The project with this id.
    ///
    /// # Errors
    /// [`DirectoryError::NoSuch`].
    pub fn project(&self, id: &str) -> Result<&Project, DirectoryError> {
        self.projects.get(id).ok_or_else(|| no_such("project", id))
    }

    /// The member with this id.
    ///
    /// # Errors
    /// [`DirectoryError::NoSuch`].
    pub fn member(&self, id: &str) -> Result<&Member, DirectoryError> {
        self.members.get(id).ok_or_else(|| no_such("member", id))
    }

    /// The key with this id.
    ///
    /// # Errors
    /// [`DirectoryError::NoSuch`].
    pub fn key(&self, id: &str) -> Result<&ApiKey, DirectoryError> {
        self.keys.get(id).map(|record| &record.key).ok_or_else(|| no_such("key", id))
    }

    /// Adds an organisation, or replaces the one with its id.
    ///
    /// # Errors
    /// A name, weight or policy that cannot be used; a name that is taken; too many.
    pub fn put_organisation(&mut self, organisation: Organisation) -> Result<(), DirectoryError> {
        check_name("an organisation", &organisation.name)?;
        organisation.policy.check()?;
        if !(1..=MAX_WEIGHT).contains(&organisation.weight) {
            return Err(DirectoryError::Invalid(format!(
                "an organisation's weight is 1 to {MAX_WEIGHT}, not {}",
                organisation.weight
            )));
        }
        let other = |o: &&Organisation| o.id != organisation.id && o.name == organisation.name;
        if self.organisations.values().find(other).is_some() {
            return Err(taken("an organisation", &organisation.name));
        }
        let known = self.organisations.contains_key(&organisation.id);
        if !known && self.organisations.len() >= MAX_ORGANISATIONS {
            return Err(full("organisations", MAX_ORGANISATIONS));
        }
        self.organisations.insert(organisation.id.clone(), organisation);
        Ok(())
    }

    /// Adds a project, or replaces the one with its id; a project stays in its organisation.
    ///
    /// # Errors
    /// As [`Directory::put_organisation`], or its organisation does not exist.
    pub fn put_project(&mut self, project: Project) -> Result<(), DirectoryError> {
        check_name("a project", &project.name)?;
        project.policy.check()?;
        self.organisation(&project.organisation)?;
        let known = self.projects.get(&project.id);
        if known.is_some_and(|known| known.organisation != project.organisation) {
            return Err(DirectoryError::Invalid("a project stays in its organisation".to_owned()));
        }
        let other = |p: &&Project| {
            p.id != project.id && p.organisation == project.organisation && p.name == project.name
        };
        if self.projects.values().find(other).is_some() {
            return Err(taken("a project", &project.name));
        }
        if known.is_none() && self.projects.len() >= MAX_PROJECTS {
            return Err(full("projects", MAX_PROJECTS));
        }
        self.projects.insert(project.id.clone(), project);
        Ok(())
    }

    /// Adds a member, or replaces the one with its id; a member stays in its organisation.
    ///
    /// # Errors
    /// As [`Directory::put_project`], or the organisation's last owner would be lost.
    pub fn put_member(&mut self, member: Member) -> Result<(), DirectoryError> {
        check_name("a member", &member.name)?;
        self.organisation(&member.organisation)?;
        let known = self.members.get(&member.id);
        if known.is_some_and(|known| known.organisation != member.organisation) {
            return Err(DirectoryError::Invalid("a member stays in its organisation".to_owned()));
        }
        if known.is_some_and(|known| known.role == Role::Owner) && member.role != Role::Owner {
            self.keep_an_owner(&member.organisation, &member.id)?;
        }
        let other = |m: &&Member| {
            m.id != member.id && m.organisation == member.organisation && m.name == member.name
        };
        if self.members.values().find(other).is_some() {
            return Err(taken("a member", &member.name));
        }
        if known.is_none() && self.members.len() >= MAX_MEMBERS {
            return Err(full("members", MAX_MEMBERS));
        }
        self.members.insert(member.id.clone(), member);
        Ok(())
    }

    /// Removes a member; its keys open nothing any more.
    ///
    /// # Errors
    /// There is none, or it is the organisation's last owner.
    pub fn remove_member(&mut self, id: &str) -> Result<Member, DirectoryError> {
        let member = self.member(id)?;
        if member.role == Role::Owner {
            self.keep_an_owner(&member.organisation, id)?;
        }
        self.members.remove(id).ok_or_else(|| no_such("member", id))
    }

    fn keep_an_owner(&self, organisation: &str, leaving: &str) -> Result<(), DirectoryError> {
        let stays = self
            .members
            .values()
            .any(|m| m.organisation == organisation && m.role == Role::Owner && m.id != leaving);
        if stays {
            return Ok(());
        }
        Err(DirectoryError::Invalid(
            "an organisation keeps at least one owner; name another one first".to_owned(),
        ))
    }

    /// Adds a key.
    pub(super) fn add_key(&mut self, record: KeyRecord) -> Result<(), DirectoryError> {
        self.check_key(&record.key)?;
        if self.keys.contains_key(&record.key.id) {
            let message = format!("another key has the id `{}` already", record.key.id);
            return Err(DirectoryError::Invalid(message));
        }
        if self.keys.len() >= MAX_KEYS {
            return Err(full("keys", MAX_KEYS));
        }
        self.keys.insert(record.key.id.clone(), record);
        Ok(())
    }

    /// Changes a key's name, expiry, scopes, policy, or whether it is disabled. Its owner and lineage stay; a revoked
    /// key stays revoked.
    ///
    /// # Errors
    /// There is none, or the change cannot be.
    pub fn change_key(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut ApiKey),
    ) -> Result<ApiKey, DirectoryError> {
        let mut key = self.key(id)?.clone();
        let before = key.clone();
        change(&mut key);
        key.id.clone_from(&before.id);
        key.owner = before.owner;
        key.lineage = before.lineage;
        key.display = before.display;
        key.created_unix = before.created_unix;
        key.revoked_unix = before.revoked_unix.or(key.revoked_unix);
        self.check_key(&key)?;
        if let Some(record) = self.keys.get_mut(id) {
            record.key = key.clone();
        }
        Ok(key)
    }

    fn check_key(&self, key: &ApiKey) -> Result<(), DirectoryError> {
        check_name("a key", &key.name)?;
        check_scopes(&key.scopes)?;
        key.policy.check()?;
        match &key.owner {
            KeyOwner::Project(id) => self.project(id).map(|_| ()),
            // A member that left has keys that open nothing.
            KeyOwner::Member(_) | KeyOwner::Operator => Ok(()),
        }
    }

    /// Whom a key stands for.
    pub(super) fn principal(&self, key: &ApiKey) -> Result<Principal, KeyRefusal> {
        let gone = KeyRefusal::OwnerInactive;
        let (organisation, project, role) = match &key.owner {
            KeyOwner::Project(id) => {
                let project = self.projects.get(id).ok_or(gone)?;
                if project.archived_unix.is_some() {
                    return Err(gone);
                }
                let organisation = self.organisations.get(&project.organisation).ok_or(gone)?;
                (Some(organisation), Some(project), None)
            }
            KeyOwner::Member(id) => {
                let member = self.members.get(id).ok_or(gone)?;
                let organisation = self.organisations.get(&member.organisation).ok_or(gone)?;
                (Some(organisation), None, Some(member.role))
            }
            KeyOwner::Operator => (None, None, None),
        };
        if organisation.is_some_and(|organisation| organisation.suspended) {
            return Err(gone);
        }
        let mut parties = Vec::new();
        let mut add = |level, id: &str, policy: &crate::limits::Policy| -> Arc<str> {
            let id: Arc<str> = id.into();
            parties.push(Party { level, id: Arc::clone(&id), policy: policy.clone() });
            id
        };
        let organisation_id = organisation.map(|o| add(Level::Organisation, &o.id, &o.policy));
        let project_id = project.map(|p| add(Level::Project, &p.id, &p.policy));
        add(Level::Key, &key.lineage, &key.policy);
        Ok(Principal {
            organisation: organisation_id.unwrap_or_else(|| "".into()),
            project: project_id,
            key: key.id.as_str().into(),
            key_name: key.name.as_str().into(),
            role,
            is_operator: key.owner == KeyOwner::Operator,
            scopes: key.scopes.clone(),
            parties,
            weight: organisation.map_or(1, |o| o.weight),
        })
    }

    /// Verifies what files of unknown origin may break.
    ///
    /// # Errors
    /// The first breach found.
    pub fn check(&self) -> Result<(), DirectoryError> {
        for organisation in self.organisations.values() {
            organisation.policy.check()?;
        }
        for project in self.projects.values() {
            project.policy.check()?;
            self.organisation(&project.organisation)?;
        }
        for member in self.members.values() {
            self.organisation(&member.organisation)?;
        }
        for record in self.keys.values() {
            self.check_key(&record.key)?;
        }
        Ok(())
    }

    pub(super) fn write(&self, version: u32) -> Written {
        Written {
            version,
            organisations: self.organisations.values().cloned().collect(),
            projects: self.projects.values().cloned().collect(),
            members: self.members.values().cloned().collect(),
            keys: self.keys.values().cloned().collect(),
        }
    }

    /// Takes over what was written down; the text says what is wrong with it.
    pub(super) fn read(written: Written) -> Result<Self, String> {
        let mut directory = Self::default();
        let twice = |kind: &str| format!("two {kind} have the same id");
        for organisation in written.organisations {
            let id = organisation.id.clone();
            if directory.organisations.insert(id, organisation).is_some() {
                return Err(twice("organisations"));
            }
        }
        for project in written.projects {
            if directory.projects.insert(project.id.clone(), project).is_some() {
                return Err(twice("projects"));
            }
        }
        for member in written.members {
            if directory.members.insert(member.id.clone(), member).is_some() {
                return Err(twice("members"));
            }
        }
        for record in written.keys {
            if directory.keys.insert(record.key.id.clone(), record).is_some() {
                return Err(twice("keys"));
            }
        }
        directory.check().map_err(|error| error.to_string())?;
        Ok(directory)
    }
}

//! Who administers, what they may do and what they can see.
//!
//! Invariant: the look-ups here answer "there is no such thing" for everything outside of the caller's organisation, in
//! the same words as for what never existed.

use std::sync::Arc;

use mintage_ledger::Principal;
use mintage_ledger::directory::{
    Action, ApiKey, Directory, KeyOwner, KeyScopes, Member, Organisation, Project, Role,
};

use super::call::{Call, no_such};
use crate::error::{ApiError, Fault};

/// The holder of an administrating key.
#[derive(Clone, Debug)]
pub(crate) struct Who(Arc<Principal>);

impl Who {
    /// Keys of projects call models and administer nothing.
    pub(crate) fn of(principal: Arc<Principal>) -> Result<Self, ApiError> {
        if principal.is_operator || principal.role.is_some() {
            return Ok(Self(principal));
        }
        Err(ApiError::new(
            Fault::Forbidden,
            "not_an_admin_key",
            "This key calls models; administration needs a key of a member (`mintage key create --member`) or of the \
             operator (`mintage key create --operator`).",
        ))
    }

    /// Who has the data folder at hand.
    pub(crate) fn operator() -> Self {
        let mut principal = Principal::unlimited("", "", "operator");
        principal.project = None;
        principal.is_operator = true;
        Self(Arc::new(principal))
    }

    pub(crate) fn is_operator(&self) -> bool {
        self.0.is_operator
    }

    pub(crate) fn may(&self, action: Action) -> bool {
        self.0.may(action)
    }

    pub(crate) fn role_name(&self) -> &'static str {
        match self.0.role {
            Some(role) => role_name(role),
            None if self.0.is_operator => "operator",
            None => "none",
        }
    }

    pub(crate) fn within_scope(&self, route: &str) -> Result<(), ApiError> {
        if self.0.scopes.allows_endpoint(route) {
            return Ok(());
        }
        let message = format!("This key is not made for `{route}`.");
        Err(ApiError::new(Fault::Forbidden, "insufficient_scope", message))
    }

    /// The only organisation it sees; `None` for the operator, who sees all.
    pub(crate) fn confined_to(&self) -> Option<&Arc<str>> {
        (!self.0.is_operator).then_some(&self.0.organisation)
    }

    pub(crate) fn sees(&self, organisation: &str) -> bool {
        self.confined_to().is_none_or(|own| **own == *organisation)
    }

    /// Whose the calling key is, for another one like it.
    pub(crate) fn own_key_owner(&self, directory: &Directory) -> Option<KeyOwner> {
        let owner = &directory.key(&self.0.key).ok()?.owner;
        matches!(owner, KeyOwner::Member(_)).then(|| owner.clone())
    }

    /// Making or renewing a key that administers hands out what it may do, so the caller must be able to do all of it.
    pub(crate) fn may_hand_out(
        &self,
        owner: &KeyOwner,
        directory: &Directory,
    ) -> Result<(), ApiError> {
        let mighty = match owner {
            KeyOwner::Project(_) => return Ok(()),
            KeyOwner::Operator => self.is_operator(),
            KeyOwner::Member(id) => directory.member(id).is_ok_and(|member| {
                Action::ALL.iter().all(|action| {
                    // Who administers everything may hand out keys that call models, too.
                    !member.role.may(*action) || self.is_operator() || self.may(*action)
                })
            }),
        };
        if mighty && self.0.scopes == KeyScopes::default() {
            return Ok(());
        }
        let message = "This key may not hand out a key that can do more than itself.";
        Err(ApiError::new(Fault::Forbidden, "insufficient_role", message))
    }
}

pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Owner => "owner",
        Role::Admin => "admin",
        Role::Developer => "developer",
        Role::Billing => "billing",
        Role::Viewer => "viewer",
    }
}

/// The organisation a key belongs to: `None` for the operator's and for those of members that left.
pub(crate) fn organisation_of<'a>(directory: &'a Directory, key: &ApiKey) -> Option<&'a str> {
    match &key.owner {
        KeyOwner::Project(id) => directory.project(id).ok().map(|p| p.organisation.as_str()),
        KeyOwner::Member(id) => directory.member(id).ok().map(|m| m.organisation.as_str()),
        KeyOwner::Operator => None,
    }
}

impl Call<'_> {
    /// The organisation named `{organization}` in the path.
    pub(crate) fn organisation(&self) -> Result<&Organisation, ApiError> {
        self.organisation_with(self.name("organization"))
    }

    pub(crate) fn organisation_with(&self, id: &str) -> Result<&Organisation, ApiError> {
        let found = self.directory.organisation(id).ok().filter(|o| self.who.sees(&o.id));
        found.ok_or_else(|| no_such("organization", id))
    }

    /// The organisation that OpenAI's routes speak of without naming it.
    pub(crate) fn implied_organisation(&self) -> Result<&Organisation, ApiError> {
        match (self.organisation, self.who.confined_to()) {
            (Some(id), _) => self.organisation_with(id),
            (None, Some(own)) => self.organisation_with(own),
            (None, None) => Err(ApiError::new(
                Fault::Invalid,
                "organization_needed",
                "The operator's key belongs to no organization: name one in the header `OpenAI-Organization: org-…`.",
            )),
        }
    }

    pub(crate) fn project(&self) -> Result<&Project, ApiError> {
        self.project_with(self.name("project"))
    }

    pub(crate) fn project_with(&self, id: &str) -> Result<&Project, ApiError> {
        let found = self.directory.project(id).ok().filter(|p| self.who.sees(&p.organisation));
        found.ok_or_else(|| no_such("project", id))
    }

    pub(crate) fn member(&self) -> Result<&Member, ApiError> {
        let id = self.name("member");
        let found = self.directory.member(id).ok().filter(|m| self.who.sees(&m.organisation));
        found.ok_or_else(|| no_such("member", id))
    }

    pub(crate) fn key(&self) -> Result<&ApiKey, ApiError> {
        let id = self.name("key");
        let found = self.directory.key(id).ok().filter(|key| {
            self.who.is_operator()
                || organisation_of(&self.directory, key).is_some_and(|org| self.who.sees(org))
        });
        found.ok_or_else(|| no_such("key", id))
    }
}

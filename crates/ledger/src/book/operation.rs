//! The book's words: what can be asked of it, what it answers, why it refuses.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::money::{Amount, Currency};

/// Names a hold within one run of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldNumber(pub(crate) u64);

impl fmt::Display for HoldNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What to reserve, and for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HoldRequest {
    /// The request's id.
    pub id: Arc<str>,
    /// Who pays.
    pub org: Arc<str>,
    /// In which currency.
    pub currency: Currency,
    /// The most it can cost.
    pub money: Amount,
    /// Free tokens to reserve.
    pub free_tokens: u64,
    /// Which model's free quota.
    pub model: Arc<str>,
    /// Now, ms since 1970: grants that have expired are not used.
    pub now_ms: u64,
}

/// A grant of free quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantTerms {
    /// To whom.
    pub org: Arc<str>,
    /// For which served models; empty for all.
    #[serde(default)]
    pub models: Vec<Arc<str>>,
    /// How many tokens.
    pub tokens: u64,
    /// Until when new requests may use it, ms since 1970.
    pub expires_ms: u64,
}

/// An operation that is not part of a request. Each is applied with an idempotency id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "operation")]
pub enum Operation {
    /// Money came in.
    TopUp {
        /// Whose.
        org: Arc<str>,
        /// In which currency.
        currency: Currency,
        /// Above zero.
        amount: Amount,
    },
    /// Money given away: a promotion, goodwill.
    Credit {
        /// To whom.
        org: Arc<str>,
        /// In which currency.
        currency: Currency,
        /// Above zero.
        amount: Amount,
    },
    /// A correction by hand, either way; may leave the balance below zero.
    Adjustment {
        /// Whose.
        org: Arc<str>,
        /// In which currency.
        currency: Currency,
        /// Positive gives, negative takes.
        amount: Amount,
    },
    /// Gives back (part of) a posted charge; all refunds of a posting together never exceed it.
    Refund {
        /// To whom: the posting's organisation.
        org: Arc<str>,
        /// In which currency: the posting's.
        currency: Currency,
        /// Above zero.
        amount: Amount,
        /// The posting's number in the log.
        posting: u64,
        /// What was posted then.
        posted: Amount,
    },
    /// Sets how far below zero a balance may go.
    CreditLine {
        /// Whose.
        org: Arc<str>,
        /// In which currency.
        currency: Currency,
        /// Not negative.
        limit: Amount,
    },
    /// Gives free quota.
    Grant {
        /// The grant's id.
        grant: Arc<str>,
        /// What, to whom, until when.
        terms: GrantTerms,
    },
}

impl Operation {
    /// Digest of all it says: tells a repeated operation from another one under the same id.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        // Strings, integers and enums always serialise.
        let text = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(&text).into()
    }
}

/// What kind of line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// Cash → organisation.
    TopUp,
    /// Organisation → revenue, for a usage record.
    Post,
    /// Grant → free use, for a usage record.
    FreeUse,
    /// Revenue → organisation.
    Refund,
    /// Promotion → organisation.
    Credit,
    /// Adjustment ↔ organisation.
    Adjustment,
    /// Promotion → grant, in tokens.
    Grant,
    /// Moves nothing.
    CreditLine,
    /// Moves nothing: a document was written, its digest is in the line.
    Document,
    /// A gateway's slice of a shared account grows.
    Lease,
    /// A gateway gives back of its slice.
    Return,
}

impl EntryKind {
    /// All of them, with the names they have in the log.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::TopUp, "top_up"),
        (Self::Post, "post"),
        (Self::FreeUse, "free_use"),
        (Self::Refund, "refund"),
        (Self::Credit, "credit"),
        (Self::Adjustment, "adjustment"),
        (Self::Grant, "grant"),
        (Self::CreditLine, "credit_line"),
        (Self::Document, "document"),
        (Self::Lease, "lease"),
        (Self::Return, "return"),
    ];

    /// Its name in the log.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// One line of the log: a transfer between two accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Id of the operation or request; lines of one operation share it.
    pub id: Arc<str>,
    /// The account debited; empty where nothing moves.
    pub debit: Arc<str>,
    /// The account credited; empty where nothing moves.
    pub credit: Arc<str>,
    /// A currency's code, or [`super::TOKENS`].
    pub asset: Arc<str>,
    /// In pico or tokens; not negative.
    pub amount: i64,
    /// The line that this one corrects.
    pub refers: Option<u64>,
    /// Digest of what belongs to the line: usage record, operation, document.
    pub detail: [u8; 32],
}

/// Why the book refuses; nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not enough money for the most that the request can cost.
    #[error(
        "the balance does not cover the request: it can cost up to {needed} {currency}, {available} {currency} are \
         available; top up, or lower `max_tokens`"
    )]
    InsufficientBalance {
        /// What a hold could take.
        available: Amount,
        /// What this one needs.
        needed: Amount,
        /// In which currency.
        currency: Currency,
    },
    /// Other requests took the free quota in between.
    #[error("not enough free quota is left")]
    InsufficientQuota,
    /// The id names another operation.
    #[error("the id `{0}` was used for another operation")]
    IdReused(Arc<str>),
    /// Empty, or too long.
    #[error("an id has 1 to {} bytes", super::MAX_ID_BYTES)]
    BadId,
    /// A transfer moves something.
    #[error("the amount must be above zero and below 9223372 units, not {0}")]
    NotPositive(Amount),
    /// Does not fit a posting.
    #[error("the amount does not fit a single posting; split it")]
    TooLarge,
    /// More than was reserved.
    #[error("{posted} cannot be posted on a hold of {held}")]
    ExceedsHold {
        /// What is held.
        held: Amount,
        /// What was to be posted.
        posted: Amount,
    },
    /// Posted or voided before.
    #[error("the hold {0} has been resolved before")]
    AlreadyResolved(HoldNumber),
    /// Never made.
    #[error("there is no hold {0}")]
    UnknownHold(HoldNumber),
    /// Never made.
    #[error("there is no grant `{0}`")]
    UnknownGrant(Arc<str>),
    /// The grant's name is taken.
    #[error("there is a grant `{0}` already")]
    GrantExists(Arc<str>),
    /// Too many grants of one organisation.
    #[error("the organisation has {} grants, which is the most", super::MAX_GRANTS_PER_ORG)]
    TooManyGrants,
    /// Refunds of a posting would exceed it.
    #[error("refunds of posting {posting} would exceed what was posted")]
    RefundExceedsPosting {
        /// Its number in the log.
        posting: u64,
    },
}

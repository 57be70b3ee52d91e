//! The shared side of every balance: top-ups, leases, claims. Not here: requests, which never come this far.
//!
//! Invariants: an account's row changes only together with an entry in its hash chain; a lease is granted whole or not
//! at all; who claimed first is served first, so that two gateways cannot each keep half of the last yuan.

use std::collections::HashMap;
use std::sync::Arc;

use postgres::Transaction;
use postgres::types::ToSql;

use super::allowance::{self, Allowed};
use super::connect::Session;
use super::dividing::SharedLimits;
use super::rows::{column, damaged, digest, get, numeric, text, unsigned};
use super::slice::spare;
use super::store::{LEASE_TTL, Tenure, Written, sums_of, write};
use super::{PostgresError, PostgresUrl, budgets};
use crate::book::{Book, Entry, EntryKind, Operation, TOKENS};
use crate::limits::{Missing, ShareId, Watch};
use crate::money::{Amount, Currency};
use crate::store::{Batch, Document, Work, chain};

/// How long a claim stands unless renewed.
const CLAIM_S: f64 = 3.0;
/// The channel on which gateways tell each other.
pub(super) const CHANNEL: &str = "mintage";

/// What became of a claim for a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// So much more.
    Granted(Amount),
    /// Others have been asked to give back; ask again.
    Waiting,
    /// Even with what others could give back it is not enough.
    Insufficient {
        /// What the pool and the others' slices hold together, credit included.
        available: Amount,
    },
}

/// An account as the pool knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolAccount {
    /// In no gateway's slice; below zero where a credit line is drawn on.
    pub unleased: Amount,
    /// In slices, held for requests or unused.
    pub leased: Amount,
    /// How far below zero it may go.
    pub credit: Amount,
}

/// The shared balances, over a connection of its own.
pub struct Pool {
    session: Session,
    tenure: Tenure,
    lease: Arc<str>,
}

/// An account's row, locked, with the end of its log.
struct Locked {
    account: Arc<str>,
    asset: Arc<str>,
    stream: i64,
    seq: u64,
    link: [u8; 32],
    balance: i128,
    credit: i128,
    now_ms: u64,
}

/// Names an account in one asset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Purse {
    /// As the log has it: `org/…`, `grant/…`.
    pub account: Arc<str>,
    /// A currency's code, or `tokens`.
    pub asset: Arc<str>,
}

impl Pool {
    /// Connects, for the gateway of this tenure.
    ///
    /// # Errors
    /// The database cannot be reached or is not fit.
    pub fn open(url: &PostgresUrl, tenure: Tenure) -> Result<Self, PostgresError> {
        let session = Session::open(url, "pool")?;
        Ok(Self { session, tenure, lease: lease_account(tenure.stream) })
    }

    /// Prolongs the lease.
    ///
    /// # Errors
    /// [`PostgresError::Fenced`]: it expired and was taken over.
    pub fn renew(&mut self) -> Result<(), PostgresError> {
        let renew = self.session.prepare(
            "UPDATE mintage.stream SET expires = now() + $3 * interval '1 second'
             WHERE id = $1 AND epoch = $2 AND live",
        )?;
        let Tenure { stream, epoch } = self.tenure;
        let values: [&(dyn ToSql + Sync); 3] = [&stream, &epoch, &LEASE_TTL.as_secs_f64()];
        let renewed = self.session.client().execute(&renew, &values)?;
        if renewed == 1 { Ok(()) } else { Err(PostgresError::Fenced) }
    }

    /// Applies what is not usage to the shared accounts, all or none: operations, versions of documents, messages. The
    /// same operation under the same id once more changes nothing.
    ///
    /// # Errors
    /// [`PostgresError::Book`], [`PostgresError::Conflict`].
    pub fn write(&mut self, work: &Work) -> Result<(), PostgresError> {
        let mut transaction = self.session.client().transaction()?;
        if let Some((id, operation)) = &work.operation {
            operate(&mut transaction, id, operation)?;
        }
        let beside = Work {
            at_ms: work.at_ms,
            documents: work.documents.clone(),
            messages: work.messages.clone(),
            deliveries: work.deliveries.clone(),
            answers: work.answers.clone(),
            prune: work.prune.clone(),
            ..Work::default()
        };
        write_documents(&mut transaction, beside)?;
        transaction.commit()?;
        Ok(())
    }

    /// The account as a whole; zeros where there is none.
    ///
    /// # Errors
    /// The database's.
    pub fn account(&mut self, purse: &Purse) -> Result<PoolAccount, PostgresError> {
        account(&mut self.session, purse)
    }

    /// Grants of free quota that are in the pool, with their operations' ids.
    ///
    /// # Errors
    /// The database's.
    pub fn grants(&mut self) -> Result<Vec<Operation>, PostgresError> {
        let rows = self.session.client().query(
            "SELECT o.body FROM mintage.operation o JOIN mintage.log l USING (stream, seq)
             WHERE l.kind = 'grant'",
            &[],
        )?;
        rows.iter().map(|row| serde_json::from_str(get(row, 0)?).map_err(damaged)).collect()
    }

    /// Asks for `need` and, where there is plenty, up to `want`. With a need of zero nothing is claimed: the pool gives
    /// what it can spare or nothing.
    ///
    /// # Errors
    /// [`PostgresError::Fenced`].
    pub fn lease(
        &mut self,
        purse: &Purse,
        need: Amount,
        want: Amount,
    ) -> Result<Claimed, PostgresError> {
        let (tenure, lease) = (self.tenure, self.lease.clone());
        let outcome = self.with_purse(purse, |transaction, locked| {
            live(transaction, tenure)?;
            let ahead = claims_ahead(transaction, locked, tenure)?;
            let free = locked.balance.saturating_add(locked.credit).saturating_sub(ahead.needs);
            if free < need.pico() {
                return claim(transaction, tenure, locked, need, &ahead);
            }
            let extra = match ahead.claims {
                0 => spare(Amount::from_pico(free.max(0)), need, want, gateways(transaction)?),
                _ => Amount::ZERO,
            };
            let granted = need.checked_add(extra).unwrap_or(need);
            if !granted.is_zero() {
                grant(transaction, tenure, &lease, locked, granted)?;
            }
            if !need.is_zero() {
                drop_claim(transaction, locked, tenure)?;
            }
            Ok(Claimed::Granted(granted))
        })?;
        // Nobody ever put anything in.
        Ok(outcome.unwrap_or(Claimed::Insufficient { available: Amount::ZERO }))
    }

    /// Hands out a share of a limit; see [`allowance::allow`].
    pub(super) fn allow(
        &mut self,
        missing: &Missing,
        want: i128,
        limits: &SharedLimits,
    ) -> Result<Allowed, PostgresError> {
        let mut transaction = self.session.client().transaction()?;
        let allowed = allowance::allow(&mut transaction, self.tenure, missing, want, limits)?;
        transaction.commit()?;
        Ok(allowed)
    }

    /// Takes shares of limits back, all at once; the return of a number that came before changes nothing.
    pub(super) fn restore(
        &mut self,
        number: u32,
        shares: &[(ShareId, i128)],
    ) -> Result<(), PostgresError> {
        // Numbers begin anew with each process, and with it the epoch grows.
        let number = (self.tenure.epoch << u32::BITS) | i64::from(number);
        let mut transaction = self.session.client().transaction()?;
        if allowance::is_first(&mut transaction, self.tenure, number)? {
            for (share, amount) in shares {
                allowance::give_back(&mut transaction, self.tenure, share, *amount)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Counts in budgets what gateways have written since; whether there may be more.
    pub(super) fn count_budgets(&mut self, limits: &SharedLimits) -> Result<bool, PostgresError> {
        let mut transaction = self.session.client().transaction()?;
        let more = budgets::count_new(&mut transaction, limits)?;
        transaction.commit()?;
        Ok(more)
    }

    /// Says who is to hear when a budget is used up.
    pub(super) fn watch_budget(
        &mut self,
        watch: &Watch,
        limits: &SharedLimits,
    ) -> Result<(), PostgresError> {
        let mut transaction = self.session.client().transaction()?;
        budgets::watch(&mut transaction, watch, limits)?;
        transaction.commit()?;
        Ok(())
    }

    /// Takes back what an earlier process of this gateway had of totals.
    pub(super) fn free_own_shares(&mut self, limits: &SharedLimits) -> Result<(), PostgresError> {
        let tenure = self.tenure;
        let mut transaction = self.session.client().transaction()?;
        budgets::free_own(&mut transaction, tenure, limits)?;
        transaction.commit()?;
        Ok(())
    }

    /// Forgets what nothing refers to any more: limits of long ago, keys of this gateway's earlier processes.
    pub(super) fn tidy(&mut self) -> Result<(), PostgresError> {
        let Tenure { stream, epoch } = self.tenure;
        let mut transaction = self.session.client().transaction()?;
        allowance::forget(&mut transaction)?;
        transaction.execute(
            "DELETE FROM mintage.answering WHERE stream = $1 AND epoch < $2",
            &[&stream, &epoch],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// The request with this idempotency key has ended.
    pub(super) fn release_key(&mut self, scope: &str, key: &str) -> Result<(), PostgresError> {
        let Tenure { stream, epoch } = self.tenure;
        self.session.client().execute(
            "DELETE FROM mintage.answering
             WHERE scope = $1 AND key = $2 AND stream = $3 AND epoch = $4",
            &[&scope, &key, &stream, &epoch],
        )?;
        Ok(())
    }

    /// Stops waiting.
    ///
    /// # Errors
    /// The database's.
    pub fn cancel_claim(&mut self, purse: &Purse) -> Result<(), PostgresError> {
        let stream = self.tenure.stream;
        self.with_purse(purse, |transaction, locked| {
            transaction.execute(
                "DELETE FROM mintage.claim WHERE account = $1 AND asset = $2 AND stream = $3",
                &[&&*locked.account, &&*locked.asset, &stream],
            )?;
            notify(transaction, &Notice::Freed(&locked.account))
        })?;
        Ok(())
    }

    /// Gives back what has left the gateway's own log; `ticket` is the latest claim that this answers, or 0.
    ///
    /// # Errors
    /// [`PostgresError::Fenced`]: it was given back already.
    pub fn give_back(
        &mut self,
        purse: &Purse,
        amount: Amount,
        ticket: i64,
    ) -> Result<(), PostgresError> {
        let (tenure, lease) = (self.tenure, self.lease.clone());
        self.with_purse(purse, |transaction, locked| {
            live(transaction, tenure)?;
            take_back(transaction, tenure, &lease, locked, amount)?;
            transaction.execute(
                "UPDATE mintage.slice SET answered = greatest(answered, $4)
                 WHERE account = $1 AND asset = $2 AND stream = $3",
                &[&&*locked.account, &&*locked.asset, &tenure.stream, &ticket],
            )?;
            notify(transaction, &Notice::Freed(&locked.account))
        })?;
        Ok(())
    }

    /// Purses that others claim and of which this gateway has a slice, with the latest claim's ticket.
    ///
    /// # Errors
    /// The database's.
    pub fn recalls(&mut self) -> Result<Vec<(Purse, i64)>, PostgresError> {
        let read = self.session.prepare(
            "SELECT c.account, c.asset, max(c.ticket) FROM mintage.claim c
             JOIN mintage.slice s ON (s.account, s.asset, s.stream) = (c.account, c.asset, $1)
             WHERE c.stream <> $1 AND c.until > now() AND c.ticket > s.answered
             GROUP BY c.account, c.asset",
        )?;
        let rows = self.session.client().query(&read, &[&self.tenure.stream])?;
        let recall =
            |row| Ok((Purse { account: text(row, 0)?, asset: text(row, 1)? }, get(row, 2)?));
        rows.iter().map(recall).collect()
    }

    /// What the database says this gateway has leased and not given back, by purse, with what of it its log has.
    ///
    /// # Errors
    /// The database's.
    pub fn leased(&mut self) -> Result<Vec<(Purse, Amount, Amount)>, PostgresError> {
        let read = self.session.prepare(
            "SELECT account, asset, leased::text, received::text FROM mintage.slice
             WHERE stream = $1",
        )?;
        let rows = self.session.client().query(&read, &[&self.tenure.stream])?;
        let leased = |row| {
            let purse = Purse { account: text(row, 0)?, asset: text(row, 1)? };
            let amount = |column| Ok::<_, PostgresError>(Amount::from_pico(numeric(row, column)?));
            Ok((purse, amount(2)?, amount(3)?))
        };
        rows.iter().map(leased).collect()
    }

    /// Ends the stream in good order, once nothing is left of its slices.
    ///
    /// # Errors
    /// [`PostgresError::Fenced`].
    pub fn close(&mut self) -> Result<(), PostgresError> {
        let Tenure { stream, epoch } = self.tenure;
        let client = self.session.client();
        client.execute("DELETE FROM mintage.claim WHERE stream = $1", &[&stream])?;
        let ended = client.execute(
            "UPDATE mintage.stream SET live = false, expires = now()
             WHERE id = $1 AND epoch = $2 AND live",
            &[&stream, &epoch],
        )?;
        if ended == 1 { Ok(()) } else { Err(PostgresError::Fenced) }
    }

    /// Streams whose gateways have not been heard of in time.
    ///
    /// # Errors
    /// The database's.
    pub fn expired(&mut self) -> Result<Vec<i64>, PostgresError> {
        let read = self.session.prepare(
            "SELECT id FROM mintage.stream
             WHERE live AND expires < now() AND id <> $1 AND kind = 'gateway'",
        )?;
        let rows = self.session.client().query(&read, &[&self.tenure.stream])?;
        rows.iter().map(|row| get(row, 0)).collect()
    }

    /// Runs `work` with the account's row locked; `None` where there is no such account.
    fn with_purse<T>(
        &mut self,
        purse: &Purse,
        work: impl FnOnce(&mut Transaction<'_>, &mut Locked) -> Result<T, PostgresError>,
    ) -> Result<Option<T>, PostgresError> {
        let mut transaction = self.session.client().transaction()?;
        let Some(mut locked) = lock_purse(&mut transaction, purse)? else { return Ok(None) };
        let outcome = work(&mut transaction, &mut locked)?;
        transaction.commit()?;
        Ok(Some(outcome))
    }
}

/// The account of a gateway's lease in the logs.
pub(super) fn lease_account(stream: i64) -> Arc<str> {
    format!("lease/{stream}").into()
}

/// All accounts, by name.
pub(super) fn purses(session: &mut Session) -> Result<Vec<Purse>, PostgresError> {
    let sql = "SELECT account, asset FROM mintage.pool ORDER BY account, asset";
    let rows = session.client().query(sql, &[])?;
    rows.iter().map(|row| Ok(Purse { account: text(row, 0)?, asset: text(row, 1)? })).collect()
}

/// The account as a whole; zeros where there is none.
pub(super) fn account(session: &mut Session, purse: &Purse) -> Result<PoolAccount, PostgresError> {
    let read = session.prepare(
        "SELECT p.balance::text, p.credit::text,
                (SELECT coalesce(sum(leased - spent), 0)::text FROM mintage.slice s
                 WHERE (s.account, s.asset) = (p.account, p.asset))
         FROM mintage.pool p WHERE p.account = $1 AND p.asset = $2",
    )?;
    let row = session.client().query_opt(&read, &[&&*purse.account, &&*purse.asset])?;
    let Some(row) = row else { return Ok(PoolAccount::default()) };
    Ok(PoolAccount {
        unleased: Amount::from_pico(numeric(&row, 0)?),
        credit: Amount::from_pico(numeric(&row, 1)?),
        leased: Amount::from_pico(numeric(&row, 2)?),
    })
}

/// Applies an operation to its account. A fresh book makes its lines: what they need to know of before comes along.
fn operate(
    transaction: &mut Transaction<'_>,
    id: &Arc<str>,
    operation: &Operation,
) -> Result<(), PostgresError> {
    let body = serde_json::to_string(operation).map_err(damaged)?;
    let purse = purse_of(operation);
    make_purse(transaction, &purse)?;
    let locked = lock_purse(transaction, &purse)?;
    let mut locked = locked.ok_or_else(|| damaged("an account just made is missing"))?;
    let known =
        transaction.query_opt("SELECT body FROM mintage.operation WHERE id = $1", &[&&**id])?;
    if let Some(known) = known {
        let same = get::<&str>(&known, 0)? == body;
        return if same { Ok(()) } else { Err(PostgresError::IdReused(id.to_string())) };
    }
    let mut book = Book::new();
    if let Operation::Refund { posting, .. } = operation {
        let earlier = transaction.query(
            "SELECT o.id, o.body FROM mintage.operation o JOIN mintage.log l USING (stream, seq)
             WHERE l.kind = 'refund' AND l.refers = $1",
            &[&column(*posting)],
        )?;
        for row in &earlier {
            let operation = serde_json::from_str(get(row, 1)?).map_err(damaged)?;
            book.apply(&text(row, 0)?, &operation).map_err(damaged)?;
        }
    }
    let entries = book.apply(id, operation).map_err(PostgresError::Book)?;
    if let Operation::CreditLine { limit, .. } = operation {
        locked.credit = limit.pico();
    }
    let first = locked.seq + 1;
    append(transaction, &mut locked, &entries)?;
    transaction.execute(
        "INSERT INTO mintage.operation (id, stream, seq, body) VALUES ($1, $2, $3, $4)",
        &[&&**id, &locked.stream, &column(first), &body],
    )?;
    notify(transaction, &Notice::Freed(&locked.account))
}

/// Whose account an operation changes.
fn purse_of(operation: &Operation) -> Purse {
    let of = |org: &str, currency: &Currency| Purse {
        account: format!("org/{org}").into(),
        asset: currency.code().into(),
    };
    match operation {
        Operation::TopUp { org, currency, .. }
        | Operation::Credit { org, currency, .. }
        | Operation::Adjustment { org, currency, .. }
        | Operation::Refund { org, currency, .. }
        | Operation::CreditLine { org, currency, .. } => of(org, currency),
        Operation::Grant { grant, .. } => {
            Purse { account: format!("grant/{grant}").into(), asset: TOKENS.into() }
        }
    }
}

/// Opens the account with a log of its own, where it is new.
pub(super) fn make_purse(
    transaction: &mut Transaction<'_>,
    purse: &Purse,
) -> Result<(), PostgresError> {
    let name = format!("{} {}", purse.account, purse.asset);
    transaction.execute(
        "INSERT INTO mintage.stream (kind, name, link) VALUES ('account', $1, $2)
         ON CONFLICT (kind, name) DO NOTHING",
        &[&name, &&chain::GENESIS[..]],
    )?;
    transaction.execute(
        "INSERT INTO mintage.pool (account, asset, stream)
         SELECT $1, $2, id FROM mintage.stream WHERE kind = 'account' AND name = $3
         ON CONFLICT (account, asset) DO NOTHING",
        &[&&*purse.account, &&*purse.asset, &name],
    )?;
    Ok(())
}

/// Puts what a log from a file still has of an account into a pool. Returns the line that must leave that log.
pub(super) fn import(
    transaction: &mut Transaction<'_>,
    purse: &Purse,
    lease: &Arc<str>,
    balance: Amount,
    credit: Amount,
) -> Result<Option<Entry>, PostgresError> {
    make_purse(transaction, purse)?;
    let locked = lock_purse(transaction, purse)?;
    let mut locked = locked.ok_or_else(|| damaged("an account just made is missing"))?;
    locked.credit = credit.pico();
    let kind = if balance.is_negative() { EntryKind::Lease } else { EntryKind::Return };
    let size = balance.pico().checked_abs().map(Amount::from_pico).unwrap_or_default();
    let entry = lease_entry(&locked, lease, size, kind)?;
    if balance.is_zero() {
        append(transaction, &mut locked, &[])?;
        return Ok(None);
    }
    append(transaction, &mut locked, std::slice::from_ref(&entry))?;
    // The same transfer seen from the other log: what is debited here is credited there.
    Ok(Some(Entry { debit: entry.credit, credit: entry.debit, ..entry }))
}

/// New versions of documents, into the log they share, and what goes with them.
fn write_documents(transaction: &mut Transaction<'_>, work: Work) -> Result<(), PostgresError> {
    transaction.execute(
        "INSERT INTO mintage.stream (kind, name, link) VALUES ('documents', '', $1)
         ON CONFLICT (kind, name) DO NOTHING",
        &[&&chain::GENESIS[..]],
    )?;
    let row = transaction.query_one(
        "SELECT id, seq, link FROM mintage.stream WHERE kind = 'documents' FOR UPDATE",
        &[],
    )?;
    let (stream, seq, link): (i64, u64, _) = (get(&row, 0)?, unsigned(&row, 1)?, digest(&row, 2)?);
    for document in &work.documents {
        next_version(transaction, document)?;
    }
    let batch = Batch { work: vec![work], marks: Vec::new() };
    let written = Written::of(&batch, seq, link, &HashMap::new());
    write(transaction, stream, &batch, &written)?;
    transaction.execute(
        "UPDATE mintage.stream SET seq = $2, link = $3 WHERE id = $1",
        &[&stream, &column(written.seq), &&written.link[..]],
    )?;
    for document in &batch.work[0].documents {
        notify(transaction, &Notice::Document(&document.kind))?;
    }
    Ok(())
}

/// Each version is one above the newest, whichever gateway wrote that.
fn next_version(
    transaction: &mut Transaction<'_>,
    document: &Document,
) -> Result<(), PostgresError> {
    let row = transaction.query_one(
        "SELECT coalesce(max(version), 0) FROM mintage.document WHERE kind = $1 AND id = $2",
        &[&&*document.kind, &&*document.id],
    )?;
    let current = unsigned(&row, 0)?;
    if document.version == current + 1 {
        return Ok(());
    }
    let (kind, id) = (document.kind.clone(), document.id.clone());
    Err(PostgresError::Conflict { kind, id, current })
}

/// What gateways tell each other.
pub(super) enum Notice<'a> {
    /// Somebody cannot serve a request.
    Claimed(&'a str),
    /// There is more in the pool, or a claim was answered.
    Freed(&'a str),
    /// There is a new version of a document of this kind.
    Document(&'a str),
}

fn notify(transaction: &mut Transaction<'_>, notice: &Notice<'_>) -> Result<(), PostgresError> {
    let text = match notice {
        Notice::Claimed(account) => format!("claimed {account}"),
        Notice::Freed(account) => format!("freed {account}"),
        Notice::Document(kind) => format!("document {kind}"),
    };
    transaction.execute("SELECT pg_notify($1, $2)", &[&CHANNEL, &text])?;
    Ok(())
}

fn lock_purse(
    transaction: &mut Transaction<'_>,
    purse: &Purse,
) -> Result<Option<Locked>, PostgresError> {
    let row = transaction.query_opt(
        "SELECT p.stream, s.seq, s.link, p.balance::text, p.credit::text,
                (extract(epoch FROM clock_timestamp()) * 1000)::int8
         FROM mintage.pool p JOIN mintage.stream s ON s.id = p.stream
         WHERE p.account = $1 AND p.asset = $2 FOR UPDATE OF p",
        &[&&*purse.account, &&*purse.asset],
    )?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Locked {
        account: purse.account.clone(),
        asset: purse.asset.clone(),
        stream: get(&row, 0)?,
        seq: unsigned(&row, 1)?,
        link: digest(&row, 2)?,
        balance: numeric(&row, 3)?,
        credit: numeric(&row, 4)?,
        now_ms: unsigned(&row, 5)?,
    }))
}

/// Refuses what a gateway asks for that does not have its stream any more.
pub(super) fn live(transaction: &mut Transaction<'_>, tenure: Tenure) -> Result<(), PostgresError> {
    let row = transaction.query_opt(
        "SELECT 1 FROM mintage.stream WHERE id = $1 AND epoch = $2 AND live FOR KEY SHARE",
        &[&tenure.stream, &tenure.epoch],
    )?;
    row.map(|_| ()).ok_or(PostgresError::Fenced)
}

pub(super) fn gateways(transaction: &mut Transaction<'_>) -> Result<i64, PostgresError> {
    let row = transaction.query_one(
        "SELECT count(*) FROM mintage.stream
         WHERE kind = 'gateway' AND live AND expires > now()",
        &[],
    )?;
    get(&row, 0)
}

/// Claims of others that come first.
struct Ahead {
    claims: i64,
    needs: i128,
    ticket: Option<i64>,
}

fn claims_ahead(
    transaction: &mut Transaction<'_>,
    locked: &Locked,
    tenure: Tenure,
) -> Result<Ahead, PostgresError> {
    let (account, asset) = (&*locked.account, &*locked.asset);
    let own = transaction.query_opt(
        "SELECT ticket FROM mintage.claim WHERE account = $1 AND asset = $2 AND stream = $3",
        &[&account, &asset, &tenure.stream],
    )?;
    let ticket: Option<i64> = own.map(|row| get(&row, 0)).transpose()?;
    let row = transaction.query_one(
        "SELECT count(*), coalesce(sum(need), 0)::text FROM mintage.claim
         WHERE account = $1 AND asset = $2 AND stream <> $3 AND until > now() AND ticket < $4",
        &[&account, &asset, &tenure.stream, &ticket.unwrap_or(i64::MAX)],
    )?;
    Ok(Ahead { claims: get(&row, 0)?, needs: numeric(&row, 1)?, ticket })
}

/// Joins the queue, unless all others together could not help.
fn claim(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    locked: &Locked,
    need: Amount,
    ahead: &Ahead,
) -> Result<Claimed, PostgresError> {
    if need.is_zero() {
        return Ok(Claimed::Granted(Amount::ZERO));
    }
    let (account, asset) = (&*locked.account, &*locked.asset);
    // What others could still give back: those that answered this claim had nothing unused.
    let row = transaction.query_one(
        "SELECT coalesce(sum(leased - spent), 0)::text,
                coalesce(sum(leased - spent) FILTER (WHERE answered < $4), 0)::text
         FROM mintage.slice WHERE account = $1 AND asset = $2 AND stream <> $3",
        &[&account, &asset, &tenure.stream, &ahead.ticket.unwrap_or(i64::MAX)],
    )?;
    let pool = locked.balance.saturating_add(locked.credit);
    let (all, open) = (numeric(&row, 0)?, numeric(&row, 1)?);
    if pool.saturating_add(open) < need.pico() {
        drop_claim(transaction, locked, tenure)?;
        // Others may be waiting behind this claim, and be next now.
        notify(transaction, &Notice::Freed(account))?;
        let available = Amount::from_pico(pool.saturating_add(all).max(0));
        return Ok(Claimed::Insufficient { available });
    }
    transaction.execute(
        "INSERT INTO mintage.claim (account, asset, stream, ticket, need, until)
         VALUES ($1, $2, $3, nextval('mintage.ticket'), $4::text::numeric,
                 now() + $5 * interval '1 second')
         ON CONFLICT (account, asset, stream)
         DO UPDATE SET need = EXCLUDED.need, until = EXCLUDED.until",
        &[&account, &asset, &tenure.stream, &need.pico().to_string(), &CLAIM_S],
    )?;
    if ahead.ticket.is_none() {
        notify(transaction, &Notice::Claimed(account))?;
    }
    Ok(Claimed::Waiting)
}

fn drop_claim(
    transaction: &mut Transaction<'_>,
    locked: &Locked,
    tenure: Tenure,
) -> Result<(), PostgresError> {
    transaction.execute(
        "DELETE FROM mintage.claim WHERE account = $1 AND asset = $2 AND stream = $3",
        &[&&*locked.account, &&*locked.asset, &tenure.stream],
    )?;
    Ok(())
}

fn grant(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    lease: &Arc<str>,
    locked: &mut Locked,
    amount: Amount,
) -> Result<(), PostgresError> {
    transaction.execute(
        "INSERT INTO mintage.slice (account, asset, stream, leased)
         VALUES ($1, $2, $3, $4::text::numeric)
         ON CONFLICT (account, asset, stream)
         DO UPDATE SET leased = mintage.slice.leased + EXCLUDED.leased",
        &[&&*locked.account, &&*locked.asset, &tenure.stream, &amount.pico().to_string()],
    )?;
    let entry = lease_entry(locked, lease, amount, EntryKind::Lease)?;
    append(transaction, locked, &[entry])
}

fn take_back(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    lease: &Arc<str>,
    locked: &mut Locked,
    amount: Amount,
) -> Result<(), PostgresError> {
    if amount.pico() <= 0 {
        return Ok(());
    }
    transaction.execute(
        "UPDATE mintage.slice SET leased = leased - $4::text::numeric
         WHERE account = $1 AND asset = $2 AND stream = $3",
        &[&&*locked.account, &&*locked.asset, &tenure.stream, &amount.pico().to_string()],
    )?;
    let entry = lease_entry(locked, lease, amount, EntryKind::Return)?;
    append(transaction, locked, &[entry])
}

fn lease_entry(
    locked: &Locked,
    lease: &Arc<str>,
    amount: Amount,
    kind: EntryKind,
) -> Result<Entry, PostgresError> {
    let (debit, credit) = match kind {
        EntryKind::Lease => (&locked.account, lease),
        _ => (lease, &locked.account),
    };
    let amount = amount.posted_pico();
    Ok(Entry {
        kind,
        id: lease.clone(),
        debit: debit.clone(),
        credit: credit.clone(),
        asset: locked.asset.clone(),
        amount: amount.ok_or_else(|| PostgresError::Refused("a lease is too large".to_owned()))?,
        refers: None,
        detail: [0; 32],
    })
}

/// Writes lines into the account's log, and the balance that results.
fn append(
    transaction: &mut Transaction<'_>,
    locked: &mut Locked,
    entries: &[Entry],
) -> Result<(), PostgresError> {
    let batch = Batch {
        work: vec![Work { at_ms: locked.now_ms, entries: entries.to_vec(), ..Work::default() }],
        marks: Vec::new(),
    };
    let known = sums_of(transaction, locked.stream)?;
    let written = Written::of(&batch, locked.seq, locked.link, &known);
    write(transaction, locked.stream, &batch, &written)?;
    for entry in entries {
        let amount = i128::from(entry.amount);
        locked.balance += if *entry.credit == *locked.account { amount } else { 0 };
        locked.balance -= if *entry.debit == *locked.account { amount } else { 0 };
    }
    (locked.seq, locked.link) = (written.seq, written.link);
    transaction.execute(
        "UPDATE mintage.stream SET seq = $2, link = $3 WHERE id = $1",
        &[&locked.stream, &column(locked.seq), &&locked.link[..]],
    )?;
    transaction.execute(
        "UPDATE mintage.pool SET balance = $3::text::numeric, credit = $4::text::numeric
         WHERE account = $1 AND asset = $2",
        &[
            &&*locked.account,
            &&*locked.asset,
            &locked.balance.to_string(),
            &locked.credit.to_string(),
        ],
    )?;
    Ok(())
}

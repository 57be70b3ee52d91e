//! Where a ledger of the suite is kept: in files, or in a database of its own.

use std::path::Path;

use mintage_ledger::{
    Currency, Ledger, LedgerError, PostgresStore, PostgresUrl, Verified, export_file,
    export_shared, verify_file, verify_shared,
};
use postgres::NoTls;

use crate::cluster::Cluster;
use crate::rig::tokens;

const GATEWAY: &str = "gateway";

pub(crate) enum Ground {
    Sqlite(tempfile::TempDir),
    Postgres(Box<PostgresUrl>, String),
}

impl Ground {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub(crate) fn postgres(cluster: &Cluster, database: &str) -> Self {
        let url = cluster.database(database);
        Self::Postgres(Box::new(url.parse().unwrap()), url)
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(..))
    }

    pub(crate) fn open(&self) -> Ledger {
        match self {
            Self::Sqlite(folder) => Ledger::open(folder.path()).unwrap(),
            Self::Postgres(url, _) => {
                let store = PostgresStore::open(url, GATEWAY).unwrap();
                Ledger::start(Box::new(store), None).unwrap()
            }
        }
    }

    /// A ledger where `acme` can pay for `count` tokens.
    pub(crate) fn funded(&self, count: u64) -> Ledger {
        let ledger = self.open();
        ledger.topup("t1", "acme", Currency::CNY, tokens(count)).unwrap().wait().unwrap();
        ledger
    }

    /// Changes what is stored behind the ledger's back.
    pub(crate) fn run(&self, sql: &str) {
        match self {
            Self::Sqlite(folder) => {
                let file = rusqlite::Connection::open(folder.path().join("ledger.sqlite"));
                file.unwrap().execute_batch(sql).unwrap();
            }
            Self::Postgres(_, url) => {
                let mut client = postgres::Client::connect(url, NoTls).unwrap();
                client.batch_execute(&format!("SET search_path TO mintage; {sql}")).unwrap();
            }
        }
    }

    /// The tables as they were before records had the column.
    pub(crate) fn before_metered_by(&self) {
        self.run("ALTER TABLE usage DROP COLUMN metered_by");
        self.run(if self.is_postgres() {
            "DELETE FROM migration WHERE version >= 4"
        } else {
            "PRAGMA user_version = 2"
        });
    }

    /// As a command verifies it, without bringing it up to date.
    pub(crate) fn verified(&self) -> Result<Verified, LedgerError> {
        match self {
            Self::Sqlite(folder) => verify_file(folder.path()),
            Self::Postgres(url, _) => verify_shared(url),
        }
    }

    /// As a command exports it.
    pub(crate) fn exported(&self) -> String {
        let mut out = Vec::new();
        match self {
            Self::Sqlite(folder) => export_file(folder.path(), &mut out).unwrap(),
            Self::Postgres(url, _) => export_shared(url, &mut out).unwrap(),
        }
        String::from_utf8(out).unwrap()
    }

    /// What another process finds where the first one still believes itself alive: the files as they are, or the
    /// stream after its lease has expired.
    pub(crate) fn after_crash(&self) -> Ledger {
        match self {
            Self::Sqlite(folder) => Ledger::open(&copy(folder.path())).unwrap(),
            Self::Postgres(_, url) => {
                let mut client = postgres::Client::connect(url, NoTls).unwrap();
                client.batch_execute("UPDATE mintage.stream SET expires = now()").unwrap();
                self.open()
            }
        }
    }
}

fn copy(folder: &Path) -> std::path::PathBuf {
    let copy = tempfile::tempdir().unwrap().keep();
    for name in ["ledger.sqlite", "ledger.sqlite-wal"] {
        std::fs::copy(folder.join(name), copy.join(name)).unwrap();
    }
    copy
}

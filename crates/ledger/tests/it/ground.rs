//! Where a ledger of the suite is kept: in files, or in a database of its own.

use std::path::Path;

use mintage_ledger::{Currency, Ledger, PostgresStore, PostgresUrl};
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

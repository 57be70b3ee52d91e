//! A connection to the server, with its settings read back. Not here: what is said over it.
//!
//! Invariants: a password is shown nowhere; commits on a connection from here are durable when they return, which is
//! read back from the server and not assumed.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use postgres::config::{Host, SslMode};
use postgres::error::SqlState;
use postgres::{Client, Config, Statement};
use rustls_platform_verifier::ConfigVerifierExt;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The oldest server: what is used here exists since then, and older ones get no corrections any more.
const OLDEST_VERSION: i32 = 140_000;
/// To open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until a silent network counts as cut.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server works on a statement, and waits for another's lock: both are far beyond what is normal.
const SERVER_TIMEOUTS: &str = "-c statement_timeout=30000 -c lock_timeout=5000 \
     -c idle_in_transaction_session_timeout=30000 -c default_transaction_isolation=read\\ committed";

/// Where the database is. Shown without its password. On another machine it is reached by TLS with a certificate that
/// the system trusts (or the file that `SSL_CERT_FILE` names), unless `sslmode=disable` says otherwise.
#[derive(Clone)]
pub struct PostgresUrl(Config);

impl FromStr for PostgresUrl {
    type Err = PostgresError;

    fn from_str(text: &str) -> Result<Self, PostgresError> {
        // The parser's message may quote the text, and with it the password.
        let config: Config = text.parse().map_err(|_| PostgresError::Url)?;
        if config.get_hosts().is_empty() || config.get_user().is_none() {
            return Err(PostgresError::Url);
        }
        Ok(Self(config))
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.0.get_user().unwrap_or_default();
        let database = self.0.get_dbname().unwrap_or(user);
        let port = self.0.get_ports().first().unwrap_or(&5432);
        match self.0.get_hosts().first() {
            Some(Host::Tcp(host)) => write!(f, "postgres://{user}@{host}:{port}/{database}"),
            Some(Host::Unix(folder)) => {
                write!(f, "postgres://{user}@/{database}?host={}", folder.display())
            }
            None => write!(f, "postgres://{user}@/{database}"),
        }
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// Not a URL of a PostgreSQL database.
    #[error("the URL is not like `postgres://user:password@host:5432/database`")]
    Url,
    /// It cannot be reached at the moment, or the answer got lost: ask again.
    #[error("the database cannot be reached: {0}")]
    Unreachable(String),
    /// It cannot be relied on as it is set up.
    #[error("{0}")]
    Unfit(String),
    /// Another gateway took this one's stream over: its lease had expired.
    #[error("this gateway's lease expired and its slices were taken back")]
    Fenced,
    /// The same id was used before, for something else.
    #[error("the id `{0}` was used before for something else")]
    IdReused(String),
    /// The operation cannot be.
    #[error(transparent)]
    Book(crate::book::Refusal),
    /// Another gateway wrote a version in between.
    #[error("{kind}/{id} is at version {current} already: read it again")]
    Conflict {
        /// The document's kind.
        kind: Arc<str>,
        /// Its id.
        id: Arc<str>,
        /// Its newest version.
        current: u64,
    },
    /// What is stored contradicts itself.
    #[error("the ledger in the database is damaged: {0}")]
    Damaged(String),
    /// The database refused a statement.
    #[error("the database refused: {0}")]
    Refused(String),
}

impl PostgresError {
    /// Whether the same may succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

impl From<postgres::Error> for PostgresError {
    fn from(error: postgres::Error) -> Self {
        let Some(server) = error.as_db_error() else {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            return Self::Unreachable(format!("{error}{}", source.unwrap_or_default()));
        };
        let said = format!("{} ({})", server.message(), server.code().code());
        let passing = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::QUERY_CANCELED,
            SqlState::TOO_MANY_CONNECTIONS,
        ];
        // Class 57P: shut down, crashed or starting; class 08: connections; class 53: out of memory, disk full.
        let class = server.code().code();
        let down = class.starts_with("57P") || class.starts_with("08") || class.starts_with("53");
        if down || passing.contains(server.code()) {
            return Self::Unreachable(said);
        }
        Self::Refused(said)
    }
}

/// A connection with its prepared statements.
pub(super) struct Session {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl Session {
    /// Connects, as `purpose` in the server's list of connections, and reads back what durability rests on.
    pub(super) fn open(url: &PostgresUrl, purpose: &str) -> Result<Self, PostgresError> {
        let mut config = url.0.clone();
        let given = config.get_options().unwrap_or_default();
        let options = format!("{given} {SERVER_TIMEOUTS}");
        config
            .application_name(&format!("mintage {purpose}"))
            .options(&options)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(SILENCE_TIMEOUT)
            .keepalives_idle(SILENCE_TIMEOUT);
        if config.get_ssl_mode() == SslMode::Prefer && config.get_hosts().iter().any(is_elsewhere) {
            // Without a certificate anybody on the way could answer, and read the password.
            config.ssl_mode(SslMode::Require);
        }
        let tls = rustls::ClientConfig::with_platform_verifier()
            .map_err(|e| PostgresError::Unfit(format!("no TLS on this machine: {e}")))?;
        let mut client = config.connect(MakeRustlsConnect::new(tls))?;
        read_back(&mut client)?;
        Ok(Self { client, statements: HashMap::new() })
    }

    /// The statement for this text, prepared once a connection.
    pub(super) fn prepare(&mut self, sql: &'static str) -> Result<Statement, PostgresError> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        let statement = self.client.prepare(sql)?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Whether a network may lie between.
fn is_elsewhere(host: &Host) -> bool {
    match host {
        Host::Unix(_) => false,
        Host::Tcp(name) => {
            name != "localhost" && !name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}

fn read_back(client: &mut Client) -> Result<(), PostgresError> {
    // A weaker setting of the server, the database or the user is overridden; a stronger one stays.
    client.batch_execute(
        "SELECT set_config('synchronous_commit', 'on', false)
         WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')",
    )?;
    let row = client.query_one(
        "SELECT current_setting('server_version_num')::int4, current_setting('server_version'),
                current_setting('synchronous_commit'), current_setting('fsync'),
                current_setting('full_page_writes'), pg_is_in_recovery()",
        &[],
    )?;
    let unfit = |message: String| Err(PostgresError::Unfit(message));
    let (number, version): (i32, String) = (row.get(0), row.get(1));
    if number < OLDEST_VERSION {
        return unfit(format!("PostgreSQL {version} is too old; the ledger needs 14 or newer"));
    }
    let commit: String = row.get(2);
    if !["on", "remote_apply"].contains(&commit.as_str()) {
        return unfit(format!("synchronous_commit reads back as `{commit}`, not `on`"));
    }
    for (column, setting) in [(3, "fsync"), (4, "full_page_writes")] {
        let value: String = row.get(column);
        if value != "on" {
            return unfit(format!(
                "the server runs with {setting}={value}: a power cut would lose money; set it to on"
            ));
        }
    }
    if row.get(5) {
        return unfit("the server is a read-only standby; name the primary".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_reached_without_tls() {
        for (text, elsewhere) in [
            ("postgres://u@127.0.0.1/d", false),
            ("postgres://u@[::1]/d", false),
            ("postgres://u@localhost/d", false),
            ("postgres://u@/d?host=/run/pg", false),
            ("postgres://u@db.example/d", true),
            ("postgres://u@10.0.0.1/d", true),
            ("postgres://u@localhost.example/d", true),
            ("postgres://u@127.0.0.1,db.example/d", true),
        ] {
            let url: PostgresUrl = text.parse().unwrap();
            assert_eq!(url.0.get_hosts().iter().any(is_elsewhere), elsewhere, "{text}");
        }
    }

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (text, shown) in [
            ("postgres://u:s3cret@db.example:5433/mint", "postgres://u@db.example:5433/mint"),
            ("postgres://u:s3cret@h", "postgres://u@h:5432/u"),
            ("host=h user=u password=s3cret dbname=d", "postgres://u@h:5432/d"),
            ("postgres://u@/d?host=/run/pg", "postgres://u@/d?host=/run/pg"),
        ] {
            let url: PostgresUrl = text.parse().unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
        }
        for text in ["", "mysql://u:s3cret@h/d", "postgres://u:s3cret@h/d?no_such=1", "postgres://"]
        {
            let error = text.parse::<PostgresUrl>().unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}

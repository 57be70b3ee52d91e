//! A private PostgreSQL server for one test: made by `initdb` in a temporary folder, reached by a Unix socket in it,
//! stopped and forgotten at the end.
//!
//! Where no PostgreSQL is installed the tests say so and pass. `MINTAGE_TEST_POSTGRES` names the folder of its programs;
//! otherwise they are looked for where Debian and `PATH` have them. PostgreSQL refuses to run as root, so that a
//! privileged test gives it another user.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Where Debian installs each version's programs.
const DEBIAN_FOLDER: &str = "/usr/lib/postgresql";

/// A running server with a database of its own.
pub(crate) struct Cluster {
    programs: PathBuf,
    folder: tempfile::TempDir,
    server: Child,
    user: Option<(u32, u32)>,
}

impl Cluster {
    /// Starts one, or says why the test is skipped.
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("skipped: no PostgreSQL here; MINTAGE_TEST_POSTGRES names its programs");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let user = unprivileged_user(folder.path());
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let home = folder.path().join("pg");
        std::fs::create_dir(&home).unwrap();
        if let Some((uid, gid)) = user {
            chown(&home, Some(uid), Some(gid)).unwrap();
        }
        let mut initdb = as_user(&programs.join("initdb"), user);
        initdb.args(["--no-sync", "--auth=trust", "--username=mintage"]);
        initdb.args(["--encoding=UTF8", "--locale=C", "-D"]).arg(home.join("data"));
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let server = serve(&programs, &home, user);
        let cluster = Self { programs, folder, server, user };
        cluster.wait_until_ready();
        Some(cluster)
    }

    /// The URL of a new database.
    pub(crate) fn database(&self, name: &str) -> String {
        let mut client = self.connect().unwrap();
        client.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        self.url(name)
    }

    fn connect(&self) -> Result<postgres::Client, postgres::Error> {
        postgres::Client::connect(&self.url("postgres"), postgres::NoTls)
    }

    fn url(&self, name: &str) -> String {
        // Only `/` could need escaping, and is legal in a query.
        format!("postgres://mintage@/{name}?host={}", self.socket_folder().display())
    }

    /// The socket itself, for a proxy in front of it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket_folder().join(".s.PGSQL.5432")
    }

    fn socket_folder(&self) -> PathBuf {
        self.folder.path().join("pg")
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + START_TIMEOUT;
        while self.connect().is_err() {
            let log = self.socket_folder().join("log");
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(Instant::now() < deadline, "PostgreSQL did not start: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut stop = as_user(&self.programs.join("pg_ctl"), self.user);
        stop.args(["stop", "-m", "immediate", "-D"]).arg(self.socket_folder().join("data"));
        let stopped = stop.stdout(Stdio::null()).status().is_ok_and(|status| status.success());
        if !stopped {
            let _ = self.server.kill();
        }
        let _ = self.server.wait();
    }
}

fn serve(programs: &Path, home: &Path, user: Option<(u32, u32)>) -> Child {
    let postgres = programs.join("postgres");
    // The server goes when the test's thread does, however that ends.
    let tied = Command::new("setpriv").arg("--version").output().is_ok();
    let mut command = as_user(if tied { Path::new("setpriv") } else { &postgres }, user);
    if tied {
        command.args(["--pdeathsig", "QUIT", "--"]).arg(&postgres);
    }
    command.arg("-D").arg(home.join("data")).arg("-k").arg(home);
    for setting in
        ["listen_addresses=", "shared_buffers=32MB", "max_connections=64", "autovacuum=off"]
    {
        command.args(["-c", setting]);
    }
    let log = std::fs::File::create(home.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn as_user(program: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// The user `postgres`, or else `nobody`, where the test runs as root.
fn unprivileged_user(own: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(own).unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    ["postgres", "nobody"].into_iter().find_map(|name| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

fn programs() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MINTAGE_TEST_POSTGRES") {
        return Some(PathBuf::from(folder));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir(DEBIAN_FOLDER).into_iter().flatten().flatten();
    let mut debian: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    debian.sort();
    std::env::split_paths(&path)
        .chain(debian.into_iter().rev())
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

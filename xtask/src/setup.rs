//! What the tests need and a fresh machine lacks: system packages, Python packages, models, the release binary.
//!
//! Everything lands under `target/`, so that `cargo clean` forgets it, except the models: they lie in `mintage`'s own
//! store, where the user's `mintage up` finds them again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::Step;

/// Models that the tests use, by their catalogue names.
const MODELS: [&str; 4] = [
    "smollm2-135m-instruct-q4_1",
    "qwen2.5-coder-0.5b-instruct-q4_k_m",
    "qwen2.5-coder-1.5b-instruct-q4_k_m",
    "all-minilm-l6-v2",
];

/// OpenAI's client for Node, as npm names it.
const NODE_CLIENT: &str = "openai@7.57.0";
/// A fresh system may lack these; each is a program to look for and the Debian package that brings it.
const SYSTEM_PROGRAMS: [(&str, &str); 2] = [("cc", "gcc"), ("python3", "python3")];

/// What a set-up machine has.
pub(crate) struct Ready {
    /// The Python of the tests' own environment.
    pub(crate) python: String,
    binary: PathBuf,
    models: PathBuf,
    postgres: PathBuf,
    dashscope_1: PathBuf,
    /// Programs that evaluate and load other people's servers.
    tools: PathBuf,
    /// With OpenAI's client for Node, where there is Node.
    node: Option<PathBuf>,
}

impl Ready {
    /// Tells a step where the binary and the models are.
    pub(crate) fn environment(&self, step: Step) -> Step {
        let step = match &self.node {
            Some(folder) => step.env("MINTAGE_TEST_NODE", folder),
            None => step,
        };
        step.env("MINTAGE_BIN", &self.binary)
            .env("MINTAGE_TEST_MODELS", &self.models)
            .env("MINTAGE_TEST_PYTHON", &self.python)
            .env("MINTAGE_TEST_POSTGRES", &self.postgres)
            .env("MINTAGE_TEST_DASHSCOPE_1", &self.dashscope_1)
            .env("MINTAGE_TEST_TOOLS", &self.tools)
    }
}

/// Brings the machine to where every test can run. A second run does almost nothing.
pub(crate) fn run(root: &Path) -> Result<Ready> {
    system_packages(root)?;
    let target = target_folder(root)?;
    let environment = |name, requirements| python_environment(root, &target, name, requirements);
    let python = environment("python", "tests/python/requirements.txt")?.display().to_string();
    // Apart from the clients: they want other versions of the same packages.
    let tools = environment("tools", "tests/python/requirements-tools.txt")?;
    let tools = tools.with_file_name("");
    let dashscope_1 = older_dashscope(root, &target, &python)?;
    let node = node_client(root, &target)?;
    let binary = release_binary(root, &target)?;
    let models = models(root, &target, &binary)?;
    let postgres = postgres_programs().context("PostgreSQL's server programs are not there")?;
    Ok(Ready { python, binary, models, postgres, dashscope_1, tools, node })
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder(root: &Path) -> Result<PathBuf> {
    let text =
        Step::new(root, "cargo", &["metadata", "--locked", "--format-version", "1", "--no-deps"])
            .output()?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target directory")
}

/// On Debian missing packages are installed; elsewhere they are named and the set-up stops.
fn system_packages(root: &Path) -> Result<()> {
    let mut missing: Vec<&str> = SYSTEM_PROGRAMS
        .iter()
        .filter(|(program, _)| !Step::new(root, program, &["--version"]).succeeds())
        .map(|&(_, package)| package)
        .collect();
    if !Step::new(root, "python3", &["-c", "import ensurepip, venv"]).succeeds() {
        missing.push("python3-venv");
    }
    if postgres_programs().is_none() {
        missing.push("postgresql");
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !Step::new(root, "apt-get", &["--version"]).succeeds() {
        bail!(
            "the tests need these Debian packages or what your system calls them: {}",
            missing.join(" ")
        );
    }
    Step::new(root, "apt-get", &["update", "-qq"]).run()?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(missing);
    Step::new(root, "apt-get", &arguments).env("DEBIAN_FRONTEND", "noninteractive").run()
}

/// The folder of PostgreSQL's server programs, which Debian keeps out of `PATH`.
fn postgres_programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    debian.sort();
    std::env::split_paths(&path)
        .chain(debian.into_iter().rev())
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

/// The Python of an environment of its own with these packages.
fn python_environment(
    root: &Path,
    target: &Path,
    name: &str,
    requirements: &str,
) -> Result<PathBuf> {
    let folder = target.join("ci").join(name);
    let path = folder.join("bin").join("python");
    let python = path.display().to_string();
    if !Step::new(root, &python, &["--version"]).succeeds() {
        let folder = folder.display().to_string();
        Step::new(root, "python3", &["-m", "venv", folder.as_str()]).run()?;
    }
    let arguments =
        ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements];
    Step::new(root, &python, &arguments).run()?;
    Ok(path)
}

/// OpenAI's client for Node; `None` where there is no Node: its test says so and passes.
fn node_client(root: &Path, target: &Path) -> Result<Option<PathBuf>> {
    let has = |program| Step::new(root, program, &["--version"]).succeeds();
    if !has("node") || !has("npm") {
        return Ok(None);
    }
    let folder = target.join("ci").join("node");
    if !folder.join("node_modules").join("openai").is_dir() {
        std::fs::create_dir_all(&folder)?;
        let into = folder.display().to_string();
        let arguments = [
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--prefix",
            into.as_str(),
            NODE_CLIENT,
        ];
        Step::new(root, "npm", &arguments).run()?;
    }
    Ok(Some(folder))
}

/// A version 1 of DashScope's SDK beside version 2, in a folder that a test puts first.
fn older_dashscope(root: &Path, target: &Path, python: &str) -> Result<PathBuf> {
    let folder = target.join("ci").join("dashscope-1");
    if folder.join("dashscope").is_dir() {
        return Ok(folder);
    }
    let into = folder.display().to_string();
    let arguments = [
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
        into.as_str(),
        "-r",
        "tests/python/requirements-dashscope-1.txt",
    ];
    Step::new(root, python, &arguments).run()?;
    Ok(folder)
}

fn release_binary(root: &Path, target: &Path) -> Result<PathBuf> {
    Step::cargo(root, &["build", "--locked", "--release", "-p", "mintage-cli"]).run()?;
    Ok(target.join("release").join("mintage"))
}

/// Pulls the models through `hub` and links them by name into one folder.
fn models(root: &Path, target: &Path, binary: &Path) -> Result<PathBuf> {
    let folder = target.join("ci").join("models");
    std::fs::create_dir_all(&folder)?;
    let binary = binary.display().to_string();
    for name in MODELS {
        Step::new(root, &binary, &["pull", name]).run()?;
        let path = Step::new(root, &binary, &["show", name, "--path"]).output()?;
        // A model is a file, or a folder.
        let is_folder = Path::new(path.trim()).is_dir();
        let link = folder.join(if is_folder { name.to_owned() } else { format!("{name}.gguf") });
        if std::fs::symlink_metadata(&link).is_ok() {
            std::fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(path.trim(), &link)
            .with_context(|| format!("`{}` could not be linked", link.display()))?;
    }
    Ok(folder)
}

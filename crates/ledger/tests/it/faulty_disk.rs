//! A disk of our own (FUSE, in memory) that loses power, runs full, fails to write or fails to sync.
//!
//! It knows of each file what was synced and what was only written. When the power goes, every write that was not
//! synced survives or not, by the seed, torn at sectors; a file whose folder was not synced may have no name.
//! Not here: what the ledger makes of it. Where mounting is not permitted, [`FaultyDisk::mount`] says so.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// Tells the test program to serve a disk there.
const SERVED_AT: &str = "MINTAGE_TEST_SERVED_DISK";
/// Begins its answers.
const ANSWER: &str = "disk: ";
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// SplitMix64.
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Length(len) => bytes.resize(*len, 0),
        }
    }
}

#[derive(Default)]
struct Stored {
    /// What the programs see.
    now: Vec<u8>,
    /// What was synced.
    synced: Vec<u8>,
    /// What happened since.
    unsynced: Vec<Change>,
}

/// What goes wrong from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Nothing gets to the disk any more, and syncs fail.
    PowerOff,
    /// No file grows beyond what all of them have now.
    Full,
    /// Writes fail.
    Write,
    /// Syncs fail.
    Sync,
}

impl Fault {
    const ALL: [Self; 5] = [Self::None, Self::PowerOff, Self::Full, Self::Write, Self::Sync];
}

#[derive(Default)]
struct Disk {
    files: BTreeMap<u64, Stored>,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    next: u64,
    fault: Fault,
    syncs: u64,
    failed_syncs: u64,
    /// Bytes that fit, all files together.
    room: usize,
}

/// The disk, mounted until dropped, in a process of its own: whoever closes a mapped file waits for the disk, and must
/// not be the one to serve it. That process ends, and unmounts, as soon as nobody holds its other end: when this is
/// dropped, and when the test's process dies.
pub(crate) struct FaultyDisk {
    server: Mutex<Server>,
}

struct Server {
    process: Child,
    /// `None` once it is to end.
    commands: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

struct Served(Arc<Mutex<Disk>>);

impl FaultyDisk {
    /// `None`, with a message, where this machine does not permit it.
    pub(crate) fn mount(at: &Path) -> Option<Self> {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faulty_disk::a_disk_is_served", "--ignored", "--nocapture"])
            .env(SERVED_AT, at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut server = Server { process, commands, answers };
        let said = server.answer();
        if said != "mounted" {
            eprintln!("skipped: a file system of our own cannot be mounted here: {said}");
            return None;
        }
        Some(Self { server: Mutex::new(server) })
    }

    fn ask(&self, command: &str) -> String {
        let mut server = self.server.lock().unwrap();
        writeln!(server.commands.as_mut().unwrap(), "{command}").unwrap();
        server.answer()
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.ask(&format!("fail {fault:?}"));
    }

    pub(crate) fn syncs(&self) -> (u64, u64) {
        let said = self.ask("syncs");
        let (all, failed) = said.split_once(' ').unwrap();
        (all.parse().unwrap(), failed.parse().unwrap())
    }

    /// What is on the disk when the power comes back, written into `folder`.
    pub(crate) fn after_power_loss(&self, random: &mut Seeded, folder: &Path) {
        random.0 = self.ask(&format!("lose {} {}", random.0, folder.display())).parse().unwrap();
    }
}

impl Server {
    /// The next line that is an answer: the test's frame around the server says things, too.
    fn answer(&mut self) -> String {
        loop {
            let line = self.answers.next().expect("the disk's process ended").unwrap();
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.to_owned();
            }
        }
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        let server = self.server.get_mut().unwrap_or_else(PoisonError::into_inner);
        server.commands = None;
        let _ = server.process.wait();
    }
}

/// Not a test by itself: the process that serves a disk.
#[test]
#[ignore = "runs as a child of other tests"]
fn a_disk_is_served() {
    let Some(at) = std::env::var_os(SERVED_AT) else { return };
    let say = |text: &str| writeln!(std::io::stdout(), "{ANSWER}{text}").unwrap();
    let disk = Disk { next: 2, room: usize::MAX, ..Disk::default() };
    let disk = Arc::new(Mutex::new(disk));
    let session = match fuser::spawn_mount(Served(disk.clone()), &at, &Config::default()) {
        Ok(session) => session,
        Err(error) => return say(&error.to_string()),
    };
    say("mounted");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let mut disk = lock(&disk);
        match *line.split(' ').collect::<Vec<_>>() {
            ["fail", name] => {
                disk.fail(Fault::ALL.into_iter().find(|f| format!("{f:?}") == name).unwrap());
                say("done");
            }
            ["syncs"] => say(&format!("{} {}", disk.syncs, disk.failed_syncs)),
            ["lose", seed, folder] => {
                let mut random = Seeded(seed.parse().unwrap());
                disk.lose(&mut random, Path::new(folder));
                say(&random.0.to_string());
            }
            _ => say("what?"),
        }
    }
    // Nobody asks any more. Whoever still has files there keeps them until it ends; the name is gone at once.
    let lazily = Command::new("umount").arg("-l").arg(&at).stderr(Stdio::null()).status();
    if !lazily.is_ok_and(|status| status.success()) {
        let _ = session.umount_and_join();
    }
    std::process::exit(0);
}

impl Disk {
    fn fail(&mut self, fault: Fault) {
        self.room = match fault {
            Fault::Full => self.files.values().map(|file| file.now.len()).sum(),
            _ => usize::MAX,
        };
        self.fault = fault;
    }

    fn lose(&self, random: &mut Seeded, folder: &Path) {
        for (name, number) in &self.names {
            let named = self.synced_names.get(name) == Some(number) || random.below(2) == 0;
            let file = &self.files[number];
            if !named || name.ends_with("-shm") {
                continue;
            }
            let mut bytes = file.synced.clone();
            // Some losses keep nothing, some keep nearly everything.
            let kept_of_8 = random.below(9);
            for change in &file.unsynced {
                if random.below(8) >= kept_of_8 {
                    continue;
                }
                match change {
                    Change::Write(at, data) if random.below(4) == 0 => {
                        let sectors = random.below((data.len() / SECTOR + 1) as u64) as usize;
                        let torn = data[..(sectors * SECTOR).min(data.len())].to_vec();
                        Change::Write(*at, torn).apply(&mut bytes);
                    }
                    whole => whole.apply(&mut bytes),
                }
            }
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap()
}

const NO_CACHE: Duration = Duration::ZERO;

impl Disk {
    fn attributes(&self, number: u64) -> Option<FileAttr> {
        let (kind, perm, size) = match number {
            1 => (FileType::Directory, 0o755, 0),
            _ => (FileType::RegularFile, 0o600, self.files.get(&number)?.now.len() as u64),
        };
        Some(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(SECTOR as u64),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4_096,
            flags: 0,
        })
    }

    fn change(&mut self, number: u64, change: Change) -> Result<(), Errno> {
        if self.fault == Fault::Write {
            return Err(Errno::EIO);
        }
        let used: usize = self.files.values().map(|file| file.now.len()).sum();
        let room = self.room;
        let file = self.files.get_mut(&number).ok_or(Errno::ENOENT)?;
        let end = match &change {
            Change::Write(at, data) => at + data.len(),
            Change::Length(len) => *len,
        };
        if used + end.saturating_sub(file.now.len()) > room && end > file.now.len() {
            return Err(Errno::ENOSPC);
        }
        change.apply(&mut file.now);
        // Without power the memory of the dying machine still changes, the disk does not.
        if self.fault != Fault::PowerOff {
            file.unsynced.push(change);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Errno> {
        match self.fault {
            Fault::PowerOff => Err(Errno::EIO),
            Fault::Sync => {
                self.failed_syncs += 1;
                Err(Errno::EIO)
            }
            _ => {
                self.syncs += 1;
                Ok(())
            }
        }
    }
}

fn empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = lock(&self.0);
        let number = name.to_str().and_then(|name| disk.names.get(name)).copied();
        match number.and_then(|number| disk.attributes(number)) {
            Some(attributes) => reply.entry(&NO_CACHE, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match lock(&self.0).attributes(ino.0) {
            Some(attributes) => reply.attr(&NO_CACHE, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = lock(&self.0);
        let cut = size.map_or(Ok(()), |size| disk.change(ino.0, Change::Length(size as usize)));
        match (cut, disk.attributes(ino.0)) {
            (Ok(()), Some(attributes)) => reply.attr(&NO_CACHE, &attributes),
            (Err(errno), _) => reply.error(errno),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut disk = lock(&self.0);
        let number = disk.next;
        disk.next += 1;
        disk.files.insert(number, Stored::default());
        disk.names.insert(name.to_string_lossy().into_owned(), number);
        match disk.attributes(number) {
            Some(attributes) => reply.created(
                &NO_CACHE,
                &attributes,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            None => reply.error(Errno::EIO),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let disk = lock(&self.0);
        let Some(file) = disk.files.get(&ino.0) else { return reply.error(Errno::ENOENT) };
        let start = (offset as usize).min(file.now.len());
        let end = (start + size as usize).min(file.now.len());
        reply.data(&file.now[start..end]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match lock(&self.0).change(ino.0, Change::Write(offset as usize, data.to_vec())) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut disk = lock(&self.0);
        let synced = disk.sync();
        if synced.is_ok()
            && let Some(file) = disk.files.get_mut(&ino.0)
        {
            for change in std::mem::take(&mut file.unsynced) {
                change.apply(&mut file.synced);
            }
        }
        empty(reply, synced);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut disk = lock(&self.0);
        let synced = disk.sync();
        if synced.is_ok() {
            disk.synced_names = disk.names.clone();
        }
        empty(reply, synced);
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut disk = lock(&self.0);
        if disk.fault == Fault::PowerOff {
            return reply.error(Errno::EIO);
        }
        disk.names.remove(&*name.to_string_lossy());
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4_096, 255, 4_096);
    }
}

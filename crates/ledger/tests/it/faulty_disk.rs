//! A disk of our own (FUSE, in memory) that loses power, runs full, fails to write or fails to sync.
//!
//! It knows of each file what was synced and what was only written. When the power goes, every write that was not
//! synced survives or not, by the seed, torn at sectors; a file whose folder was not synced may have no name.
//! Not here: what the ledger makes of it. Where mounting is not permitted, [`FaultyDisk::mount`] says so.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

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

/// The disk, mounted until dropped.
pub(crate) struct FaultyDisk {
    disk: Arc<Mutex<Disk>>,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

struct Served(Arc<Mutex<Disk>>);

impl FaultyDisk {
    /// `None`, with a message, where this machine does not permit it.
    pub(crate) fn mount(at: &Path) -> Option<Self> {
        let disk = Disk { next: 2, room: usize::MAX, ..Disk::default() };
        let disk = Arc::new(Mutex::new(disk));
        match fuser::spawn_mount(Served(disk.clone()), at, &Config::default()) {
            Ok(session) => Some(Self { disk, at: at.to_owned(), session: Some(session) }),
            Err(error) => {
                eprintln!("skipped: a file system of our own cannot be mounted here: {error}");
                None
            }
        }
    }

    pub(crate) fn fail(&self, fault: Fault) {
        let mut disk = lock(&self.disk);
        disk.room = match fault {
            Fault::Full => disk.files.values().map(|file| file.now.len()).sum(),
            _ => usize::MAX,
        };
        disk.fault = fault;
    }

    /// The disk is gone: whoever still has files on it gets errors. Without this, closing SQLite's mapped index may wait
    /// for this very process, which serves the disk, while it holds what serving needs. Needs to be privileged.
    pub(crate) fn pull_out(&self) {
        let _ = Command::new("umount").arg("-f").arg(&self.at).stderr(Stdio::null()).status();
    }

    pub(crate) fn syncs(&self) -> (u64, u64) {
        let disk = lock(&self.disk);
        (disk.syncs, disk.failed_syncs)
    }

    /// What is on the disk when the power comes back, written into `folder`.
    pub(crate) fn after_power_loss(&self, random: &mut Seeded, folder: &Path) {
        let disk = lock(&self.disk);
        for (name, number) in &disk.names {
            let named = disk.synced_names.get(name) == Some(number) || random.below(2) == 0;
            let file = &disk.files[number];
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

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
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

//! What a pull reports while it runs. Not how it is drawn: that is the command line's.

/// Something happened during a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullEvent<'a> {
    /// Another process is pulling the same model; this one waits for it.
    Waiting {
        /// The model.
        model: &'a str,
    },
    /// A source is tried.
    Trying {
        /// The source, for people.
        source: &'a str,
    },
    /// A source failed and the next one is tried, or none is left.
    SourceFailed {
        /// The source, for people.
        source: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// Bytes begin to flow, or flow again after a restart.
    Started {
        /// The file.
        file: &'a str,
        /// Its size in bytes, where known.
        bytes: Option<u64>,
        /// Bytes already here.
        at: u64,
    },
    /// The file is this long now; may go back when a part is dropped.
    At {
        /// Bytes here.
        at: u64,
    },
    /// The file on disk is being hashed.
    Verifying {
        /// The file.
        file: &'a str,
        /// Its size in bytes.
        bytes: u64,
    },
    /// The file is whole and verified.
    Finished {
        /// The file.
        file: &'a str,
    },
}

/// Receives the events of a pull.
pub trait Progress: Sync {
    /// One event; called often, so it must be quick.
    fn event(&self, event: PullEvent<'_>);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _event: PullEvent<'_>) {}
}

//! A folder on this machine, or on a disk carried to it: for machines without a network. The file is copied, so that
//! the disk may go.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use crate::error::SourceError;
use crate::partial::Partial;
use crate::progress::{Progress, PullEvent};
use crate::source::{FileSpec, Source};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Looks for a file by its name.
pub(crate) struct LocalFolder {
    pub(crate) folder: PathBuf,
}

impl Source for LocalFolder {
    fn describe(&self) -> String {
        format!("folder {}", self.folder.display())
    }

    fn fetch(
        &self,
        file: &FileSpec,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), SourceError> {
        let path = self.folder.join(file.name.as_str());
        let mut from = match File::open(&path) {
            Ok(from) => from,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SourceError::NotFound { what: path.display().to_string() });
            }
            Err(error) => return Err(error.into()),
        };
        let bytes = from.metadata()?.len();
        if bytes != file.bytes {
            return Err(SourceError::WrongBytes {
                expected: format!("{} bytes", file.bytes),
                got: format!("{bytes} bytes"),
            });
        }
        from.seek(SeekFrom::Start(partial.len()))?;
        progress.event(PullEvent::Started {
            file: file.name.as_str(),
            bytes: Some(file.bytes),
            at: partial.len(),
        });
        let mut buffer = vec![0; COPY_BYTES];
        let mut from = from.take(file.bytes.saturating_sub(partial.len()));
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            partial.append(&buffer[..read])?;
            progress.event(PullEvent::At { at: partial.len() });
        }
    }
}

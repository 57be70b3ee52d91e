//! Lists as DashScope turns their pages: by number.

use crate::error::ApiError;
use crate::paging::Query;
use crate::storage::NumberedPage;

/// DashScope's own default.
const PAGE: u32 = 10;
const MAX_PAGE: u32 = 100;

/// The page that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// From 1 on.
    pub(super) no: u32,
    pub(super) size: u32,
}

impl Page {
    pub(super) fn take(query: &mut Query) -> Result<Self, ApiError> {
        let no = query.count("page_no", u32::MAX)?.unwrap_or(1);
        let size = query.count("page_size", MAX_PAGE)?.unwrap_or(PAGE);
        Ok(Self { no, size })
    }

    /// Where it stands in the list.
    pub(super) fn place(self) -> NumberedPage {
        let offset = u64::from(self.no - 1) * u64::from(self.size);
        NumberedPage { offset, limit: self.size }
    }
}

//! Pages of the KV cache: who counts on each, and which are free. It knows neither tokens nor what a page contains.
//!
//! Invariant: a page is on the free list, or referenced by at least one block table, or (with no reference) kept by the
//! prefix tree; the pool itself tells the first two apart, [`crate::paged_kv`] the third.

/// Reference counts and a free list over pages `0..total`.
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    /// Taken from the end, so the page freed last, warm in the CPU's cache, is used first.
    free: Vec<u32>,
}

impl BlockPool {
    /// All pages free.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        Self { ref_counts: vec![0; pages as usize], free: (0..pages).rev().collect() }
    }

    /// Pages of the pool.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.ref_counts.len() as u32
    }

    /// Pages on the free list.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Takes a free page, with one reference.
    pub fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.ref_counts[page as usize] = 1;
        Some(page)
    }

    /// Adds a reference; returns how many there are now.
    pub fn retain(&mut self, page: u32) -> u32 {
        let count = &mut self.ref_counts[page as usize];
        *count += 1;
        *count
    }

    /// Drops a reference; returns how many are left. At zero the caller frees the page or lets the tree keep it.
    pub fn release(&mut self, page: u32) -> u32 {
        let count = &mut self.ref_counts[page as usize];
        debug_assert!(*count > 0, "page {page} was released more often than retained");
        *count = count.saturating_sub(1);
        *count
    }

    /// Returns a page that nobody references to the free list.
    pub fn put_back(&mut self, page: u32) {
        debug_assert_eq!(self.ref_counts[page as usize], 0, "page {page} is still referenced");
        self.free.push(page);
    }

    /// References to `page`.
    #[must_use]
    pub fn ref_count(&self, page: u32) -> u32 {
        self.ref_counts[page as usize]
    }

    /// The free pages, for [`crate::paged_kv::PagedKv::check`].
    pub(crate) fn free_list(&self) -> &[u32] {
        &self.free
    }
}

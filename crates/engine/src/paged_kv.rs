//! Block pool and prefix tree as one: pages for block tables, shared where their tokens agree. It moves numbers, never
//! keys or values.
//!
//! Invariants ([`PagedKv::check`]): free + cached + referenced = all pages; reference counts equal the block tables;
//! a page that is in the tree is never written again.

use mintage_model::{CacheDomain, TokenId};

use crate::block_pool::BlockPool;
use crate::prefix_tree::{NodeId, PrefixTree};

/// The pages of one sequence, in order of position.
#[derive(Debug, Default)]
pub struct PageTable {
    /// Pages, as the forward pass reads them.
    pub pages: Vec<u32>,
    /// The tree's node of each page that is computed fully: a prefix of `pages`.
    nodes: Vec<NodeId>,
}

impl PageTable {
    /// Pages that stand in the tree.
    #[must_use]
    pub fn published(&self) -> usize {
        self.nodes.len()
    }

    /// The node of the last published page: what follows hangs below it.
    #[must_use]
    pub fn tip(&self) -> Option<NodeId> {
        self.nodes.last().copied()
    }
}

/// The first tokens of a page to be copied before the step's forward pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// Source page.
    pub from: u32,
    /// Destination page.
    pub to: u32,
    /// Tokens to copy.
    pub slots: usize,
}

/// What [`PagedKv::probe`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Tokens in full pages.
    pub tokens: usize,
    /// Of those pages, how many are in a block table now.
    pub pages_in_use: usize,
}

/// All pages of an engine.
#[derive(Debug)]
pub struct PagedKv {
    pool: BlockPool,
    tree: PrefixTree,
    /// The node that holds each page.
    node_of: Vec<Option<NodeId>>,
    page_tokens: usize,
}

impl PagedKv {
    /// `pages` free pages of `page_tokens` tokens.
    #[must_use]
    pub fn new(pages: u32, page_tokens: usize) -> Self {
        Self {
            pool: BlockPool::new(pages),
            tree: PrefixTree::default(),
            node_of: vec![None; pages as usize],
            page_tokens: page_tokens.max(1),
        }
    }

    /// Pages of the cache.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.pool.total()
    }

    /// Pages that can be taken now: free ones and cached ones that no block table refers to.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.pool.free() + self.tree.idle()
    }

    /// Pages that hold `tokens` tokens.
    #[must_use]
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// Tokens of a page.
    #[must_use]
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// What of `tokens` is cached in full pages; changes nothing.
    #[must_use]
    pub fn probe(&self, domain: CacheDomain, tokens: &[TokenId]) -> Found {
        let mut at = None;
        let mut found = Found::default();
        for edge in tokens.chunks_exact(self.page_tokens) {
            let Some(child) = self.tree.child(domain, at, edge) else { break };
            let Some(page) = self.tree.page(child) else { break };
            at = Some(child);
            found.tokens += self.page_tokens;
            found.pages_in_use += usize::from(self.pool.ref_count(page) > 0);
        }
        found
    }

    /// Appends every page to `table` that is cached and continues it, as far as `tokens` go. The table must hold
    /// published pages only. Returns the tokens the table covers then.
    pub fn extend_from_cache(
        &mut self,
        domain: CacheDomain,
        table: &mut PageTable,
        tokens: &[TokenId],
    ) -> usize {
        debug_assert_eq!(table.pages.len(), table.nodes.len());
        let start = table.nodes.len() * self.page_tokens;
        for edge in tokens.get(start..).unwrap_or(&[]).chunks_exact(self.page_tokens) {
            let Some(node) = self.tree.child(domain, table.tip(), edge) else { break };
            let Some(page) = self.tree.page(node) else { break };
            self.retain(page);
            table.pages.push(page);
            table.nodes.push(node);
        }
        table.nodes.len() * self.page_tokens
    }

    /// Where the next page of `table` (published pages only) is cached in part: takes a page of its own for the table
    /// and says what to copy into it. `None` where nothing matches or no page is left.
    pub fn copy_from_cache(
        &mut self,
        domain: CacheDomain,
        table: &mut PageTable,
        tokens: &[TokenId],
    ) -> Option<PageCopy> {
        debug_assert_eq!(table.pages.len(), table.nodes.len());
        let start = table.nodes.len() * self.page_tokens;
        let (node, slots) = self.tree.partial_child(domain, table.tip(), tokens.get(start..)?)?;
        let from = self.tree.page(node)?;
        // Held while the new page is taken, so that the source itself is not evicted for it.
        self.retain(from);
        let to = self.take();
        self.release(from);
        let to = to?;
        table.pages.push(to);
        Some(PageCopy { from, to, slots })
    }

    /// The key under which the page after the published ones is being computed: equal keys are equal work.
    #[must_use]
    pub fn claim<'a>(
        &self,
        table: &PageTable,
        tokens: &'a [TokenId],
    ) -> Option<(Option<NodeId>, &'a [TokenId])> {
        let start = table.nodes.len() * self.page_tokens;
        Some((table.tip(), tokens.get(start..start + self.page_tokens)?))
    }

    /// Takes pages until `table` covers `tokens` tokens; on failure the table keeps what it got.
    pub fn grow(&mut self, table: &mut PageTable, tokens: usize) -> bool {
        while table.pages.len() < self.pages_for(tokens) {
            match self.take() {
                Some(page) => table.pages.push(page),
                None => return false,
            }
        }
        true
    }

    /// Makes every page that the first `computed` of `tokens` fill shareable. Where another sequence was first, the
    /// table changes to its page, which holds the same bits.
    pub fn publish(
        &mut self,
        domain: CacheDomain,
        table: &mut PageTable,
        tokens: &[TokenId],
        computed: usize,
    ) {
        while (table.nodes.len() + 1) * self.page_tokens <= computed {
            let index = table.nodes.len();
            let edge = &tokens[index * self.page_tokens..(index + 1) * self.page_tokens];
            let own = table.pages[index];
            let cached = self.tree.child(domain, table.tip(), edge);
            let shared = cached.and_then(|node| Some((node, self.tree.page(node)?)));
            if let Some((node, page)) = shared {
                self.retain(page);
                self.release(own);
                table.pages[index] = page;
                table.nodes.push(node);
            } else {
                let node = self.tree.insert(domain, table.tip(), edge, own);
                self.node_of[own as usize] = Some(node);
                table.nodes.push(node);
            }
        }
    }

    /// Keeps the last, partly filled page of a sequence that ended, so that a request that continues it can copy it.
    pub fn publish_tail(
        &mut self,
        domain: CacheDomain,
        table: &mut PageTable,
        tokens: &[TokenId],
        computed: usize,
    ) {
        let start = table.nodes.len() * self.page_tokens;
        let Some(&page) = table.pages.get(table.nodes.len()) else { return };
        let Some(edge) = tokens.get(start..computed.min(start + self.page_tokens)) else { return };
        let known = self.tree.partial_child(domain, table.tip(), edge);
        if edge.is_empty() || known.is_some_and(|(_, length)| length == edge.len()) {
            return;
        }
        let node = self.tree.insert(domain, table.tip(), edge, page);
        self.node_of[page as usize] = Some(node);
        table.nodes.push(node);
    }

    /// Drops the pages of the table that are not full.
    pub fn drop_unpublished(&mut self, table: &mut PageTable) {
        while table.pages.len() > table.nodes.len() {
            let Some(page) = table.pages.pop() else { break };
            self.release(page);
        }
    }

    /// Drops every page of the table; published ones stay cached until their place is needed.
    pub fn clear(&mut self, table: &mut PageTable) {
        table.nodes.clear();
        // The last page first, so that of equal age the tail of a prefix is evicted before its head.
        while let Some(page) = table.pages.pop() {
            self.release(page);
        }
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(page) = self.pool.take() {
            return Some(page);
        }
        let page = self.tree.evict()?;
        self.node_of[page as usize] = None;
        self.pool.put_back(page);
        self.pool.take()
    }

    fn retain(&mut self, page: u32) {
        if self.pool.retain(page) == 1
            && let Some(node) = self.node_of[page as usize]
        {
            self.tree.set_busy(node);
        }
    }

    fn release(&mut self, page: u32) {
        if self.pool.release(page) > 0 {
            return;
        }
        match self.node_of[page as usize] {
            Some(node) => self.tree.set_idle(node),
            None => self.pool.put_back(page),
        }
    }

    /// Verifies the invariants against all block tables there are; the text names what is broken.
    ///
    /// # Errors
    /// The first breach found.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a PageTable>) -> Result<(), String> {
        self.tree.check(self.page_tokens)?;
        let total = self.pool.total() as usize;
        let mut references = vec![0u32; total];
        for table in tables {
            for &page in &table.pages {
                references[page as usize] += 1;
            }
            for (&node, &page) in table.nodes.iter().zip(&table.pages) {
                if self.tree.page(node) != Some(page) {
                    return Err(format!("a block table says page {page}, its node does not"));
                }
            }
        }
        let mut places = vec![0u8; total];
        for &page in self.pool.free_list() {
            places[page as usize] += 1;
        }
        for (page, idle) in self.tree.pages() {
            if idle != (references[page as usize] == 0) {
                return Err(format!("page {page} is idle: {idle}, which its users deny"));
            }
            places[page as usize] += u8::from(idle);
        }
        for (page, &references) in references.iter().enumerate() {
            if self.pool.ref_count(page as u32) != references {
                let count = self.pool.ref_count(page as u32);
                return Err(format!("page {page} counts {count} references, has {references}"));
            }
            if places[page] + u8::from(references > 0) != 1 {
                return Err(format!("page {page} is not in exactly one of free, cached, in use"));
            }
        }
        Ok(())
    }
}

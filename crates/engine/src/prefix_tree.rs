//! Which page holds the keys and values of which tokens after which tokens: a radix tree whose edges are one page long.
//! It decides nothing about references; it is told which nodes are idle and forgets the least recently used of those.
//!
//! An edge *is* its tokens, so a hit is verified by construction and no hash can collide. Each [`CacheDomain`] has a
//! root of its own: nothing is ever found across domains.
//!
//! Invariants: a node that is not a leaf holds a full page; a node in use has no idle ancestor (whoever uses a page
//! uses all pages before it), so idle nodes can always be evicted leaf by leaf.

use std::collections::{BTreeSet, HashMap};

use mintage_model::{CacheDomain, TokenId};

/// Index of a node; reused after eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// Children looked at for a partial match; a bound on work, not on correctness.
const PARTIAL_MATCH_CANDIDATES: usize = 64;

type Children = HashMap<Box<[TokenId]>, NodeId>;

#[derive(Debug)]
struct Node {
    domain: CacheDomain,
    parent: Option<NodeId>,
    tokens: Box<[TokenId]>,
    page: u32,
    children: Children,
    /// No block table refers to the page.
    idle: bool,
    last_used: u64,
}

/// The tree; pages are numbers to it.
#[derive(Debug, Default)]
pub struct PrefixTree {
    /// `None` is a slot free for reuse.
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    roots: HashMap<CacheDomain, Children>,
    /// Idle leaves, least recently used first.
    evictable: BTreeSet<(u64, NodeId)>,
    idle: u32,
    /// Counts uses; the larger, the more recent.
    tick: u64,
}

impl PrefixTree {
    /// The child of `at` (`None`: the domain's root) whose edge is exactly `tokens`.
    #[must_use]
    pub fn child(
        &self,
        domain: CacheDomain,
        at: Option<NodeId>,
        tokens: &[TokenId],
    ) -> Option<NodeId> {
        self.children(domain, at)?.get(tokens).copied()
    }

    /// The child of `at` that begins with the most of `tokens`, and how many those are (at least one).
    #[must_use]
    pub fn partial_child(
        &self,
        domain: CacheDomain,
        at: Option<NodeId>,
        tokens: &[TokenId],
    ) -> Option<(NodeId, usize)> {
        let common = |edge: &[TokenId]| edge.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.children(domain, at)?
            .iter()
            .take(PARTIAL_MATCH_CANDIDATES)
            .map(|(edge, &node)| (node, common(edge)))
            .filter(|&(_, length)| length > 0)
            .max_by_key(|&(node, length)| (length, std::cmp::Reverse(node)))
    }

    /// The page of a node.
    #[must_use]
    pub fn page(&self, node: NodeId) -> Option<u32> {
        self.node(node).map(|node| node.page)
    }

    /// Adds a node in use below `at`. The edge must not be there yet, and `at` must hold a full page.
    pub fn insert(
        &mut self,
        domain: CacheDomain,
        at: Option<NodeId>,
        tokens: &[TokenId],
        page: u32,
    ) -> NodeId {
        self.tick += 1;
        let node = Node {
            domain,
            parent: at,
            tokens: tokens.into(),
            page,
            children: Children::new(),
            idle: false,
            last_used: self.tick,
        };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.nodes[id.0 as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                NodeId((self.nodes.len() - 1) as u32)
            }
        };
        match at.and_then(|parent| self.node_mut(parent)) {
            Some(parent) => parent.children.insert(tokens.into(), id),
            None => self.roots.entry(domain).or_default().insert(tokens.into(), id),
        };
        if let Some(parent) = at {
            self.refresh(parent);
        }
        id
    }

    /// Says that a block table refers to the node's page now.
    pub fn set_busy(&mut self, id: NodeId) {
        self.touch(id, false);
    }

    /// Says that no block table refers to the node's page any more: it may be evicted.
    pub fn set_idle(&mut self, id: NodeId) {
        self.touch(id, true);
    }

    fn touch(&mut self, id: NodeId, idle: bool) {
        self.tick += 1;
        let tick = self.tick;
        let Some(node) = self.node_mut(id) else { return };
        let (was_idle, last_used) = (node.idle, node.last_used);
        node.idle = idle;
        node.last_used = tick;
        self.evictable.remove(&(last_used, id));
        self.idle = self.idle + u32::from(idle) - u32::from(was_idle);
        self.refresh(id);
    }

    /// Puts the node on the list of evictable leaves or takes it off.
    fn refresh(&mut self, id: NodeId) {
        let Some(node) = self.node(id) else { return };
        let entry = (node.last_used, id);
        if node.idle && node.children.is_empty() {
            self.evictable.insert(entry);
        } else {
            self.evictable.remove(&entry);
        }
    }

    /// Nodes that can be evicted, one after the other.
    #[must_use]
    pub fn idle(&self) -> u32 {
        self.idle
    }

    /// Forgets the least recently used idle leaf and returns its page.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, id) = self.evictable.pop_first()?;
        let node = self.nodes.get_mut(id.0 as usize)?.take()?;
        self.vacant.push(id);
        self.idle -= 1;
        match node.parent {
            Some(parent) => {
                if let Some(parent) = self.node_mut(parent) {
                    parent.children.remove(&node.tokens);
                }
                self.refresh(parent);
            }
            None => {
                if let Some(root) = self.roots.get_mut(&node.domain) {
                    root.remove(&node.tokens);
                    if root.is_empty() {
                        self.roots.remove(&node.domain);
                    }
                }
            }
        }
        Some(node.page)
    }

    fn children(&self, domain: CacheDomain, at: Option<NodeId>) -> Option<&Children> {
        match at {
            Some(id) => self.node(id).map(|node| &node.children),
            None => self.roots.get(&domain),
        }
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)?.as_ref()
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)?.as_mut()
    }

    /// Pages of all nodes with their idleness, for [`crate::paged_kv::PagedKv::check`].
    pub(crate) fn pages(&self) -> impl Iterator<Item = (u32, bool)> {
        self.nodes.iter().flatten().map(|node| (node.page, node.idle))
    }

    /// Verifies the invariants of this module; the text names what is broken.
    pub(crate) fn check(&self, page_tokens: usize) -> Result<(), String> {
        let mut idle = 0;
        for (index, node) in self.nodes.iter().enumerate() {
            let id = NodeId(index as u32);
            let Some(node) = node else { continue };
            idle += u32::from(node.idle);
            if self.child(node.domain, node.parent, &node.tokens) != Some(id) {
                return Err(format!("{id:?} is not the child its parent knows"));
            }
            if !node.children.is_empty() && node.tokens.len() != page_tokens {
                return Err(format!("{id:?} has children, but {} tokens", node.tokens.len()));
            }
            if let Some(parent) = node.parent {
                let Some(parent) = self.node(parent) else {
                    return Err(format!("{id:?} has lost its parent"));
                };
                if parent.domain != node.domain {
                    return Err(format!("{id:?} is in another domain than its parent"));
                }
                if parent.idle && !node.idle {
                    return Err(format!("{id:?} is in use, but its parent is idle"));
                }
            }
            let listed = self.evictable.contains(&(node.last_used, id));
            if listed != (node.idle && node.children.is_empty()) {
                return Err(format!("{id:?} is wrongly (not) on the list of evictable leaves"));
            }
        }
        if idle != self.idle {
            return Err(format!("{idle} nodes are idle, but {} are counted", self.idle));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: CacheDomain = CacheDomain([1; 16]);
    const B: CacheDomain = CacheDomain([2; 16]);

    #[test]
    fn leaves_go_first_the_least_recently_used_before_others() {
        let mut tree = PrefixTree::default();
        let first = tree.insert(A, None, &[1, 2], 0);
        let second = tree.insert(A, Some(first), &[3, 4], 1);
        let third = tree.insert(A, Some(first), &[5, 6], 2);
        let busy = tree.insert(A, None, &[9, 9], 3);
        for node in [third, second, first] {
            tree.set_idle(node);
            tree.check(2).unwrap();
        }
        assert_eq!(
            (0..4).map(|_| tree.evict()).collect::<Vec<_>>(),
            [Some(2), Some(1), Some(0), None]
        );
        tree.check(2).unwrap();
        assert_eq!(tree.child(A, None, &[9, 9]), Some(busy));
        assert_eq!(tree.child(A, None, &[1, 2]), None);
    }

    #[test]
    fn nothing_is_found_across_domains() {
        let mut tree = PrefixTree::default();
        let node = tree.insert(A, None, &[1, 2], 0);
        assert_eq!(tree.child(A, None, &[1, 2]), Some(node));
        assert_eq!(tree.child(B, None, &[1, 2]), None);
        assert_eq!(tree.partial_child(B, None, &[1, 2]), None);
    }

    #[test]
    fn the_longest_partial_match_wins() {
        let mut tree = PrefixTree::default();
        tree.insert(A, None, &[1, 2, 3, 9], 0);
        let longer = tree.insert(A, None, &[1, 2, 3, 4], 1);
        tree.insert(A, None, &[1, 2], 2);
        assert_eq!(tree.partial_child(A, None, &[1, 2, 3, 4]), Some((longer, 4)));
        assert_eq!(tree.partial_child(A, None, &[1, 2, 3, 4, 5]), Some((longer, 4)));
        assert_eq!(tree.partial_child(A, None, &[7]), None);
    }
}

//! Memory for packed weights: aligned to cache lines, and to huge pages where that pays.
//!
//! Not an allocator: one block, freed on drop. Invariant: every byte is initialised before a slice of it is handed out;
//! the threads that fill it touch it first.

use std::alloc::Layout;
use std::ptr::NonNull;

use crate::KernelError;
use crate::layout::LINE;

/// x86-64's and most of aarch64's large page.
const HUGE_PAGE: usize = 2 << 20;

/// An owned block of bytes.
#[derive(Debug)]
pub(crate) struct AlignedBytes {
    start: NonNull<u8>,
    layout: Layout,
    /// Initialised bytes; the layout has at least one.
    len: usize,
}

// SAFETY: an owned block of plain bytes, like `Box<[u8]>`.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// `pieces` × `piece` bytes, filled piece by piece: `fill(i, bytes)` gets the zeroed `i`-th piece.
    /// `each(run)` calls `run(i)` exactly once for each piece, from any threads.
    pub(crate) fn filled(
        pieces: usize,
        piece: usize,
        each: impl FnOnce(&(dyn Fn(usize) + Sync)),
        fill: &(dyn Fn(usize, &mut [u8]) + Sync),
    ) -> Result<Self, KernelError> {
        let len =
            pieces.checked_mul(piece).ok_or(KernelError::OutOfMemory { bytes: usize::MAX })?;
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        let layout = Layout::from_size_align(len.max(1), align)
            .map_err(|_| KernelError::OutOfMemory { bytes: len })?;
        // SAFETY: the layout has a size of at least 1.
        let start = unsafe { std::alloc::alloc(layout) };
        let Some(start) = NonNull::new(start) else {
            return Err(KernelError::OutOfMemory { bytes: len });
        };
        let block = Self { start, layout, len };
        if len >= HUGE_PAGE {
            advise_huge_pages(start, len);
        }
        let base = SendPointer(start.as_ptr());
        each(&|index| {
            assert!(index < pieces, "piece {index} of {pieces}");
            // SAFETY: piece `index` lies inside the block (asserted), pieces do not overlap, and each is visited by one
            // call only; it is zeroed before a slice of it exists.
            let bytes = unsafe {
                let at = base.get().add(index * piece);
                at.write_bytes(0, piece);
                std::slice::from_raw_parts_mut(at, piece)
            };
            fill(index, bytes);
        });
        Ok(block)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `filled` wrote every byte; the block lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `filled` with this layout, freed once.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

struct SendPointer(*mut u8);

impl SendPointer {
    fn get(&self) -> *mut u8 {
        self.0
    }
}

// SAFETY: only used by `filled`, whose pieces do not overlap.
unsafe impl Sync for SendPointer {}

/// Asks for huge pages, before the first touch; a system that has none says no, which changes nothing.
fn advise_huge_pages(start: NonNull<u8>, len: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the range was just allocated and is aligned to a page; the advice does not change its contents.
    unsafe {
        libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, len);
}

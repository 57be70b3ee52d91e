//! Zeroed buffers that start on a cache line.
//!
//! Not an allocator: a `Vec` with a little spare room, so that vector loads do not straddle lines. Memory comes zeroed
//! from the system and is not touched before it is used.

/// Alignment in bytes: a cache line, and the widest vector.
const ALIGN: usize = 64;

/// One buffer whose element `start` is aligned to [`ALIGN`] bytes.
#[derive(Default)]
pub(crate) struct Aligned<T> {
    data: Vec<T>,
    start: usize,
}

impl<T> Aligned<T>
where
    Vec<T>: ZeroedFromSystem,
{
    pub(crate) fn new(len: usize) -> Self {
        let spare = ALIGN / size_of::<T>();
        let data = <Vec<T> as ZeroedFromSystem>::zeroed(len.saturating_add(spare));
        let start = data.as_ptr().align_offset(ALIGN).min(spare);
        Self { data, start }
    }
}

impl<T> Aligned<T> {
    pub(crate) fn get(&self, start: usize, len: usize) -> &[T] {
        &self.data[self.start + start..][..len]
    }

    pub(crate) fn get_mut(&mut self, start: usize, len: usize) -> &mut [T] {
        &mut self.data[self.start + start..][..len]
    }
}

/// `vec![0; n]` of a primitive comes zeroed from the system without being touched; of a generic type it does not.
pub(crate) trait ZeroedFromSystem {
    fn zeroed(len: usize) -> Self;
}

impl ZeroedFromSystem for Vec<f32> {
    fn zeroed(len: usize) -> Self {
        vec![0.0; len]
    }
}

impl ZeroedFromSystem for Vec<u16> {
    fn zeroed(len: usize) -> Self {
        vec![0; len]
    }
}

//! What a kernel refuses. Sizes that come from a model file are checked here, before memory is touched.

use crate::Format;

/// A refused call; always the caller's data, never worth a retry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A row is no whole number of blocks.
    #[error("{cols} columns are not a multiple of the {block} that a block of {format:?} holds")]
    PartialBlock {
        /// The format of the row.
        format: Format,
        /// Elements of a row.
        cols: usize,
        /// Elements of a block.
        block: usize,
    },
    /// A buffer has another size than its shape says.
    #[error("`{what}` has {got} bytes or elements where its shape needs {expected}")]
    Size {
        /// The argument.
        what: &'static str,
        /// What the shape needs.
        expected: usize,
        /// What was given.
        got: usize,
    },
    /// The shape does not fit into the address space.
    #[error("a matrix of {rows} × {cols} {format:?} is too large")]
    TooLarge {
        /// The format of the matrix.
        format: Format,
        /// Rows (outputs).
        rows: usize,
        /// Columns (inputs).
        cols: usize,
    },
    /// The system gave no memory.
    #[error("no memory for {bytes} bytes of packed weights")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}

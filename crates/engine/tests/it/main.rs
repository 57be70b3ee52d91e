//! The engine against goldens of an independent implementation, and against itself: the equivalences of a batch.

mod forward_goldens;
mod forward_invariance;

//! Where models come from and go: catalogue, sources, content-addressed store. No arithmetic.

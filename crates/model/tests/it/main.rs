//! The model crate from outside: real files, hostile files, goldens.
#![allow(clippy::cast_possible_truncation, reason = "sizes of test data")]

#[cfg(test)]
mod calls;
#[cfg(test)]
mod chat;
#[cfg(test)]
mod encoders;
#[cfg(test)]
mod folders;
#[cfg(test)]
mod gguf_bytes;
#[cfg(test)]
mod goldens;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod real_files;
#[cfg(test)]
mod tokenizer;

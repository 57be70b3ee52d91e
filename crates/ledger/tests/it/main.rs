//! The ledger from outside: what it promises through crashes, full disks and crowds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

mod billing;
mod cluster;
mod dividing;
mod facade;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(target_os = "linux")]
mod faulty_disk;
mod flipped;
mod ground;
#[cfg(target_os = "linux")]
mod kill;
mod parallel;
mod price_list;
mod proxy;
mod rig;
mod shared;

//! The ledger from outside: what it promises through crashes, full disks and crowds.

mod billing;
mod facade;
mod flipped;
mod parallel;
mod rig;

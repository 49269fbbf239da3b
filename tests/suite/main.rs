//! The integration suite: the real binary as a process, real TLS, real files. One binary, a module per subject.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::duration_suboptimal_units,
    clippy::must_use_candidate,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    reason = "a test fails by panicking, reads the clock and writes files as it likes, and nobody imports it"
)]

mod harness;

mod decade;
mod dns;
mod readme;
mod renewal;
mod serving;
mod unattended;

//! Other programs: the binary's own commands, curl, openssl.

use std::path::Path;
use std::process::{Command, Output};

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `provost` with `args` in `folder` to its end.
pub fn provost(folder: &Path, args: &[&str]) -> Ended {
    run(Command::new(env!("CARGO_BIN_EXE_provost")).args(args).current_dir(folder))
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    Ended {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

//! Other programs: the binary's own commands, curl, openssl.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `provost` with `args` in `folder` to its end.
pub fn provost(folder: &Path, args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
    run(command.args(args).current_dir(folder).env_remove("PROVOST_CONFIG"))
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

/// Copies `program` to an executable file. Another process makes the copy, because a file that is open for writing here
/// could be inherited by another test's child and could then not be run (`ETXTBSY`).
pub fn copy_program(program: &Path, copy: &Path) {
    let ended = run(Command::new("cp").arg(program).arg(copy));
    assert_eq!(ended.code, 0, "{}: {}", program.display(), ended.stderr);
}

/// Runs `openssl s_client` against `address` with `arguments`, sends `input`, and reads until the server closes.
///
/// Debian's `openssl.cnf` is not read, because it forbids old versions and ciphers.
pub fn s_client(address: SocketAddr, arguments: &[&str], input: &str) -> Ended {
    let mut command = Command::new("timeout");
    command.args(["20", "openssl", "s_client", "-ign_eof", "-connect", &address.to_string()]).args(arguments);
    command.env("OPENSSL_CONF", "/dev/null").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl");
    // A server that refuses the handshake may close before the input is sent.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

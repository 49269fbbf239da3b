//! Runs the command: without a shell, with a cleared environment, as a process group of its own, with a time limit.
//!
//! The process group is killed at the end of the run, whatever its result, so that no child of the command is left.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::NotifySettings;
use crate::clock;

/// After this time, a run is ended.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);
/// The environment of the command: its search path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of each output is kept.
const MAX_OUTPUT: usize = 2048;
/// How often a running command is ended early if `is_stopping`.
const SLICE: Duration = Duration::from_millis(250);

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program is not safe to run, or does not exist.
    #[error("{0}")]
    Program(String),
    /// The process cannot be started or observed.
    #[error("{program} cannot be run: {source}", program = .program.display())]
    Start { program: PathBuf, source: io::Error },
    /// The time limit has passed.
    #[error("{program} did not end within {limit_s} s and was killed{output}", program = .program.display())]
    Late { program: PathBuf, limit_s: u64, output: String },
    /// It ended with an error.
    #[error("{program} ended with {status}{output}", program = .program.display())]
    Failed { program: PathBuf, status: String, output: String },
    /// The server is shutting down.
    #[error("{program} was ended because provost stops", program = .program.display())]
    Stopped { program: PathBuf },
}

/// Checks that `program` can be run, and that no other user could have replaced it. `owners` may own it, besides root and
/// the user of this process.
///
/// # Errors
/// The problem and its remedy.
pub fn check_program(program: &Path, owners: &[u32]) -> Result<(), String> {
    let shown = program.display();
    let real = program.canonicalize().map_err(|error| format!("{shown} cannot be run: {error}"))?;
    let metadata = real.metadata().map_err(|error| format!("{shown} cannot be run: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("{shown} is not a regular file; name a program"));
    }
    if metadata.mode() & 0o111 == 0 {
        return Err(format!("{shown} is not executable; run chmod +x {shown}"));
    }
    let user = rustix::process::geteuid().as_raw();
    if ![0, user].contains(&metadata.uid()) && !owners.contains(&metadata.uid()) {
        let owner = metadata.uid();
        return Err(format!("{shown} belongs to user {owner}, who can change it; run chown root {shown}"));
    }
    if metadata.mode() & 0o002 != 0 {
        return Err(format!("all users of this machine may change {shown}; run chmod o-w {shown}"));
    }
    // The folders of the path as written, and those of the file behind symlinks.
    for folder in program.ancestors().skip(1).chain(real.ancestors().skip(1)) {
        let mode = folder.metadata().map_err(|error| format!("{} cannot be read: {error}", folder.display()))?.mode();
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            let folder = folder.display();
            return Err(format!("all users of this machine may replace {shown}, by {folder}; run chmod o-w {folder}"));
        }
    }
    Ok(())
}

/// Runs the command with `input` on its standard input, for at most `limit`. Ends it early once `is_stopping`.
///
/// # Errors
/// If it does not end with status 0 in time.
pub fn run(
    settings: &NotifySettings,
    input: &[u8],
    limit: Duration,
    is_stopping: &dyn Fn() -> bool,
) -> Result<(), RunError> {
    let program = settings.program().to_owned();
    check_program(&program, &[]).map_err(RunError::Program)?;
    let start = |source| RunError::Start { program: program.clone(), source };
    let mut child = Command::new(&program)
        .args(settings.command.iter().skip(1))
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let mut output = Output::default();
    let watched = watch(&mut child, input, clock::monotonic() + limit, is_stopping, &mut output);
    // Before the leader is reaped, so that its group cannot be another one yet.
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // The group may be empty.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait().map_err(start)?;
    match watched.map_err(start)? {
        Ended::ByItself if status.success() => Ok(()),
        Ended::ByItself => Err(RunError::Failed { program, status: described(status), output: output.text() }),
        Ended::Late => Err(RunError::Late { program, limit_s: limit.as_secs(), output: output.text() }),
        Ended::Stopped => Err(RunError::Stopped { program }),
    }
}

enum Ended {
    ByItself,
    Late,
    Stopped,
}

/// The first bytes of what the command printed.
#[derive(Default)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    /// The end of an error message. Control characters are replaced.
    fn text(&self) -> String {
        let printed = [&self.stderr, &self.stdout].map(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            text.trim().replace(char::is_control, " ")
        });
        let printed: Vec<&str> = printed.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        if printed.is_empty() { String::new() } else { format!("; it printed: {}", printed.join(" | ")) }
    }
}

/// Feeds `input` and collects the output until the child ends or must be ended. Does not reap it.
fn watch(
    child: &mut Child,
    mut input: &[u8],
    deadline: Instant,
    is_stopping: &dyn Fn() -> bool,
    output: &mut Output,
) -> io::Result<Ended> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    stdin.as_ref().map_or(Ok(()), without_blocking)?;
    stdout.as_ref().map_or(Ok(()), without_blocking)?;
    stderr.as_ref().map_or(Ok(()), without_blocking)?;
    loop {
        let now = clock::monotonic();
        if now >= deadline {
            return Ok(Ended::Late);
        }
        if is_stopping() {
            return Ok(Ended::Stopped);
        }
        let has_ended = {
            let mut watched = vec![PollFd::new(&process, PollFlags::IN)];
            watched.extend(stdin.iter().map(|it| PollFd::new(it, PollFlags::OUT)));
            watched.extend(stdout.iter().map(|it| PollFd::new(it, PollFlags::IN)));
            watched.extend(stderr.iter().map(|it| PollFd::new(it, PollFlags::IN)));
            let timeout = Timespec::try_from(SLICE.min(deadline.duration_since(now))).map_err(io::Error::other)?;
            match poll(&mut watched, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) | Ok(0) => false,
                Ok(_) => watched.first().is_some_and(|process| !process.revents().is_empty()),
                Err(errno) => return Err(errno.into()),
            }
        };
        if stdin.as_mut().is_some_and(|it| !feed(it, &mut input)) {
            stdin = None;
        }
        if stdout.as_mut().is_some_and(|it| !collect(it, &mut output.stdout)) {
            stdout = None;
        }
        if stderr.as_mut().is_some_and(|it| !collect(it, &mut output.stderr)) {
            stderr = None;
        }
        // All that it printed is in the pipes by now, and collected.
        if has_ended {
            return Ok(Ended::ByItself);
        }
    }
}

/// Writes what the pipe takes. Returns whether there is more to write.
fn feed(pipe: &mut impl Write, input: &mut &[u8]) -> bool {
    while !input.is_empty() {
        match pipe.write(input) {
            Ok(written) => *input = input.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            // The command does not read it.
            Err(_) => return false,
        }
    }
    false
}

/// Reads what is there, and keeps the first [`MAX_OUTPUT`] bytes. Returns whether more may come.
fn collect(pipe: &mut impl Read, kept: &mut Vec<u8>) -> bool {
    let mut piece = [0; 4096];
    // A command that prints without end must not keep this thread.
    for _ in 0..64 {
        match pipe.read(&mut piece) {
            Ok(0) => return false,
            Ok(read) => {
                let room = MAX_OUTPUT.saturating_sub(kept.len());
                kept.extend(piece.iter().take(read.min(room)));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

fn without_blocking(pipe: &impl AsFd) -> io::Result<()> {
    let pipe: BorrowedFd<'_> = pipe.as_fd();
    let flags = rustix::fs::fcntl_getfl(pipe)?;
    Ok(rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?)
}

fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A script in `folder`.
    fn script(folder: &Path, text: &str) -> NotifySettings {
        let path = folder.join("notify");
        crate::state::write_private(&path, format!("#!/bin/sh\n{text}\n").as_bytes()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        NotifySettings { command: vec![path.to_str().unwrap().to_owned(), folder.to_str().unwrap().to_owned()] }
    }

    fn run_for(settings: &NotifySettings, input: &[u8], limit: Duration) -> Result<(), RunError> {
        // A process that another test thread has just started may still hold the script open for writing.
        loop {
            match run(settings, input, limit, &|| false) {
                Err(RunError::Start { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
                done => return done,
            }
        }
    }

    const LONG: Duration = Duration::from_mins(5);

    #[test]
    fn command_gets_input_and_only_path_in_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let settings = script(
            folder.path(),
            "cat > \"$1/input\"\ntr '\\0' '\\n' < /proc/self/environ > \"$1/env\"\npwd > \"$1/pwd\"",
        );
        // More than a pipe holds.
        let input = vec![b'x'; 300_000];
        run_for(&settings, &input, LONG).unwrap();
        assert_eq!(std::fs::read(folder.path().join("input")).unwrap(), input);
        let environment = std::fs::read_to_string(folder.path().join("env")).unwrap();
        let names: Vec<&str> = environment.lines().filter_map(|line| line.split('=').next()).collect();
        // The shell adds PWD.
        assert!(names.contains(&"PATH") && names.iter().all(|name| ["PATH", "PWD"].contains(name)), "{names:?}");
        assert_eq!(std::fs::read_to_string(folder.path().join("pwd")).unwrap(), "/\n");
    }

    #[test]
    fn command_that_reads_no_input_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        run_for(&script(folder.path(), "exit 0"), &vec![b'x'; 300_000], LONG).unwrap();
    }

    #[test]
    fn failure_has_status_and_bounded_output() {
        let folder = tempfile::tempdir().unwrap();
        let settings = script(folder.path(), "echo 'no \u{1b}[2Jroute' >&2\nyes | head -c 1000000\nexit 3");
        let error = run_for(&settings, b"", LONG).unwrap_err().to_string();
        assert!(error.contains("/notify ended with status 3; it printed: no  [2Jroute | y y"), "{error}");
        assert!(error.len() < 3 * MAX_OUTPUT && !error.contains(char::is_control), "{error}");
        let error = run_for(&script(folder.path(), "kill -9 $$"), b"", LONG).unwrap_err().to_string();
        assert!(error.contains("ended with signal 9"), "{error}");
    }

    #[test]
    fn late_command_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let settings = script(folder.path(), "sleep 1000 &\necho $$ $! > \"$1/pids\"\nwait");
        let pids = folder.path().join("pids");
        let read = || std::fs::read_to_string(&pids).unwrap_or_default();
        // Ended once both run, as at the time limit.
        let stopped = run(&settings, b"", LONG, &|| read().ends_with('\n'));
        assert!(matches!(stopped, Err(RunError::Stopped { .. })), "{stopped:?}");
        let is_gone = |pid: &str| {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        let text = read();
        let pids: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(pids.len(), 2, "{text}");
        let deadline = clock::monotonic() + Duration::from_mins(1);
        while !pids.iter().all(|pid| is_gone(pid)) {
            assert!(clock::monotonic() < deadline, "{pids:?} are still running");
            std::thread::yield_now();
        }
        let late = run_for(&settings, b"", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(late.contains("did not end within 0 s and was killed"), "{late}");
    }

    #[test]
    fn run_ends_although_an_escaped_child_keeps_its_output_open() {
        let folder = tempfile::tempdir().unwrap();
        let settings = script(folder.path(), "setsid sleep 1000 &\necho $! > \"$1/pid\"\nexit 0");
        run_for(&settings, b"", LONG).unwrap();
        let pid: i32 = std::fs::read_to_string(folder.path().join("pid")).unwrap().trim().parse().unwrap();
        // setsid may have been killed before it left the group.
        let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }

    #[test]
    fn program_that_others_can_replace_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let set_mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        let settings = script(folder.path(), "exit 0");
        let program = settings.program();
        assert_eq!(check_program(program, &[]), Ok(()));
        let link = folder.path().join("link");
        symlink(program, &link).unwrap();
        assert_eq!(check_program(&link, &[]), Ok(()));
        let refused = |part: &str| {
            for path in [program, &link] {
                let error = check_program(path, &[]).unwrap_err();
                assert!(error.contains(part), "{error}");
            }
            assert!(matches!(run(&settings, b"", LONG, &|| false), Err(RunError::Program(_))), "{part}");
        };
        set_mode(program, 0o757);
        refused("all users of this machine may change");
        set_mode(program, 0o644);
        refused("is not executable");
        set_mode(program, 0o755);
        set_mode(folder.path(), 0o707);
        refused("all users of this machine may replace");
        set_mode(folder.path(), 0o700);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(program, Some(65_534), None).unwrap();
            refused("belongs to user 65534");
            assert_eq!(check_program(program, &[65_534]), Ok(()));
        }
        std::fs::remove_file(program).unwrap();
        refused("cannot be run: No such file");
        std::fs::create_dir(program).unwrap();
        refused("is not a regular file");
    }
}

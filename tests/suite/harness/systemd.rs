//! A service started as its unit states and as systemd would: as its own user, with a notification socket and activated
//! sockets.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::site::{Running, Site};
use super::socket::uninterrupted;
use super::tool::{self, copy_program, run};
use super::{Stopwatch, scaled_timeout};

/// A user ID that owns nothing, so that other users' files are closed to it.
const USER: u32 = 64_123;

/// The supervisor's end of the notification socket (`sd_notify`).
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

/// A site whose unit can be started.
pub struct Service {
    pub unit: String,
    folder: PathBuf,
}

/// The value of `key` in `unit`, which has one.
#[track_caller]
pub fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let values: Vec<&str> =
        unit.lines().filter_map(|line| line.split_once('=').filter(|(name, _)| *name == key)).map(|it| it.1).collect();
    assert_eq!(values.len(), 1, "{key} in\n{unit}");
    values[0]
}

impl NotifySocket {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(scaled_timeout())).unwrap();
        for (path, mode) in [(folder.path(), 0o755), (&*path, 0o777)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Self { socket, path, _folder: folder }
    }

    /// The next notification.
    #[track_caller]
    pub fn next(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = uninterrupted(|| self.socket.recv(&mut buffer)).expect("a notification");
        std::str::from_utf8(&buffer[..length]).unwrap().lines().map(str::to_owned).collect()
    }

    /// Waits for a notification line that begins with `start`; returns the whole notification.
    #[track_caller]
    pub fn receives(&self, start: &str) -> Vec<String> {
        let watch = Stopwatch::start();
        loop {
            let reported = self.next();
            assert!(!watch.is_over(), "no {start}, but {reported:?}");
            if reported.iter().any(|line| line.starts_with(start)) {
                return reported;
            }
        }
    }

    /// Waits for notification lines that begin with each of `starts`, in any order; returns all of them.
    #[track_caller]
    pub fn receives_all(&self, starts: &[&str]) -> Vec<String> {
        let watch = Stopwatch::start();
        let mut reported = Vec::new();
        while !starts.iter().all(|start| reported.iter().any(|line: &String| line.starts_with(start))) {
            assert!(!watch.is_over(), "not all of {starts:?}, but {reported:?}");
            reported.extend(self.next());
        }
        reported
    }
}

impl Service {
    /// The unit that provost prints for `site`, whose files then belong to the service's user.
    pub fn of(site: &Site) -> Self {
        let folder = site.path(".");
        site.write_config();
        let copy = site.path("provost");
        copy_program(Path::new(env!("CARGO_BIN_EXE_provost")), &copy);
        if is_root() {
            assert_eq!(run(Command::new("chown").args(["-R", &USER.to_string()]).arg(&folder)).code, 0);
        }
        let printed =
            tool::run(Command::new(copy).args(["print", "systemd-unit", "--config"]).arg(site.path("provost.json")));
        assert_eq!(printed.code, 0, "{printed:?}");
        Self { unit: printed.stdout, folder }
    }

    /// Starts the unit's command with the `supervisor` and the activated socket `kept`.
    pub fn start(&self, supervisor: &NotifySocket, watchdog_us: u64, kept: Option<&TcpListener>) -> Running {
        // systemd sets `WATCHDOG_PID` to the process's own number; here a shell does.
        let mut script = format!("export WATCHDOG_PID=$$ WATCHDOG_USEC={watchdog_us}; ");
        if kept.is_some() {
            script.push_str("exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=listen; ");
        }
        let mut command = Command::new("sh");
        command.args(["-c", &(script + "exec \"$@\""), "sh"]).args(as_user()).args(self.exec_start());
        command.current_dir(&self.folder).env("NOTIFY_SOCKET", &supervisor.path).stdout(Stdio::piped());
        command.stdin(kept.map_or(Stdio::null(), |kept| OwnedFd::from(kept.try_clone().unwrap()).into()));
        Running::start_with_input(command, 1)
    }

    pub fn exec_start(&self) -> Vec<&str> {
        value(&self.unit, "ExecStart").split(' ').collect()
    }
}

/// A wrapper that runs a command as the service's user, if possible.
fn as_user() -> Vec<String> {
    if !is_root() {
        return Vec::new();
    }
    let capability = |option: &str| format!("--{option}=-all,+net_bind_service");
    let mut words = vec!["setpriv".to_owned(), format!("--reuid={USER}"), format!("--regid={USER}")];
    words.extend(["--clear-groups".to_owned(), "--no-new-privs".to_owned()]);
    words.extend(["inh-caps", "ambient-caps", "bounding-set"].map(capability));
    words
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

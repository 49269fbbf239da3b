//! What a unit starts, as systemd would start it: as a user of its own, with a socket to tell how it is, and with sockets
//! that are kept for it.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::site::{Running, Site};
use super::socket::uninterrupted;
use super::tool::{self, copy_program, run};
use super::{PATIENCE, Watch};

/// A user who exists nowhere: what belongs to others is closed to it.
const USER: u32 = 64_123;

/// systemd's end of the socket by which a service tells how it is.
pub struct Supervisor {
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

impl Supervisor {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for (path, mode) in [(folder.path(), 0o755), (&*path, 0o777)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Self { socket, path, _folder: folder }
    }

    /// What is told next.
    #[track_caller]
    pub fn next(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = uninterrupted(|| self.socket.recv(&mut buffer)).expect("a word to the supervisor");
        std::str::from_utf8(&buffer[..length]).unwrap().lines().map(str::to_owned).collect()
    }

    /// Waits until a line is told that begins with `start`; gives all that was told with it.
    #[track_caller]
    pub fn hears(&self, start: &str) -> Vec<String> {
        let watch = Watch::start();
        loop {
            let told = self.next();
            assert!(!watch.is_past(PATIENCE), "no {start}, but {told:?}");
            if told.iter().any(|line| line.starts_with(start)) {
                return told;
            }
        }
    }

    /// Waits until a line is told that begins with each of `starts`, in any order; gives all that was told meanwhile.
    #[track_caller]
    pub fn hears_all(&self, starts: &[&str]) -> Vec<String> {
        let watch = Watch::start();
        let mut told = Vec::new();
        while !starts.iter().all(|start| told.iter().any(|line: &String| line.starts_with(start))) {
            assert!(!watch.is_past(PATIENCE), "not all of {starts:?}, but {told:?}");
            told.extend(self.next());
        }
        told
    }
}

impl Service {
    /// The unit that provost prints for `site`, which then belongs to the user that the service runs as.
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

    /// Starts what the unit says, with `supervisor` and the socket `kept`.
    pub fn start(&self, supervisor: &Supervisor, watchdog_us: u64, kept: Option<&TcpListener>) -> Running {
        // Where the unit has systemd set the number of this process, a shell does it.
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

/// What makes a command run as the unit says, where this may be done.
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

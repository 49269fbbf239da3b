//! A site in a temporary folder, and the real binary serving it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use serde_json::{Value, json};

use super::pki::{FACTORY, Identity, server_certificate};
use super::tls::Client;
use super::{Stopwatch, eventually};

pub const DOMAIN: &str = "phones.example.com";

static RSA: LazyLock<Identity> = LazyLock::new(|| server_certificate(DOMAIN, true));
static ECDSA: LazyLock<Identity> = LazyLock::new(|| server_certificate(DOMAIN, false));

/// Folders and a configuration. Dropped, it is removed.
pub struct Site {
    folder: tempfile::TempDir,
    pub config: Value,
}

pub struct Running {
    child: Child,
    /// The addresses that it listens on.
    pub addresses: Vec<SocketAddr>,
    stdout: Lines,
    stderr: Lines,
}

/// The lines that a process has written so far.
#[derive(Clone, Default)]
pub struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    is_complete: Arc<AtomicBool>,
}

impl Site {
    /// A site with server certificates of both kinds, the trust bundle `factory`, JSON logs, and no constituency yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        RSA.write(folder.path(), "rsa");
        ECDSA.write(folder.path(), "ec");
        std::fs::write(folder.path().join("factory.pem"), FACTORY.bundle()).unwrap();
        std::fs::create_dir(folder.path().join("constituencies")).unwrap();
        let config = json!({
            "domain": DOMAIN,
            "listen": ["127.0.0.1:0"],
            "constituencies": "constituencies",
            "state": "state",
            "certificate": { "files": [
                { "chain": "rsa.pem", "key": "rsa.key" }, { "chain": "ec.pem", "key": "ec.key" }
            ] },
            "trust": { "factory": ["factory.pem"] },
            "log": "json",
            "limits": { "free_space_bytes": 0 },
        });
        Self { folder, config }
    }

    /// The usual site: the constituency `ote`, which knows the phone VVX500 and has a `site.cfg`.
    pub fn with_ote() -> Self {
        let site = Self::new();
        site.constituency("ote", &json!({ "trust": ["factory"], "phones": { super::VVX500: "vvx500" } }));
        site.file("ote/site.cfg", "<site/>");
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn served(&self, name: &str) -> PathBuf {
        self.path("constituencies").join(name)
    }

    /// The upload folder of a phone.
    pub fn uploads(&self, constituency: &str, mac: &str) -> PathBuf {
        self.path("state/uploads").join(constituency).join(mac)
    }

    /// Creates the constituency `name` or replaces its policy, atomically.
    pub fn constituency(&self, name: &str, policy: &Value) {
        std::fs::create_dir_all(self.served(name)).unwrap();
        let new = self.served(name).join(".policy.new");
        std::fs::write(&new, policy.to_string()).unwrap();
        std::fs::rename(new, self.served(name).join("constituency.json")).unwrap();
    }

    /// Writes a file below `constituencies`, with its folders.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.served(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Writes `self.config` to `provost.json`.
    pub fn write_config(&self) -> PathBuf {
        let path = self.path("provost.json");
        std::fs::write(&path, serde_json::to_string_pretty(&self.config).unwrap()).unwrap();
        path
    }

    /// The command that serves this site.
    pub fn command(&self) -> Command {
        self.command_under(&[])
    }

    /// The command that serves this site, run by another program such as `prlimit` in the same process.
    pub fn command_under(&self, wrapper: &[&str]) -> Command {
        let mut words = wrapper.iter().copied().chain([env!("CARGO_BIN_EXE_provost"), "serve", "--config"]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(self.write_config()).current_dir(self.folder.path());
        // The proxy of the machine does not lead to the CAs of tests.
        for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts the server and waits until it listens.
    pub fn start(&self) -> Running {
        Running::start(self.command(), self.config["listen"].as_array().map_or(1, Vec::len))
    }
}

impl Running {
    /// Starts `command`, a server, and waits until it listens on `listeners` addresses.
    pub fn start(mut command: Command, listeners: usize) -> Self {
        command.stdout(Stdio::piped());
        Self::start_with_log(command, listeners)
    }

    /// The same for a `command` with its own standard output.
    pub fn start_with_log(mut command: Command, listeners: usize) -> Self {
        command.stdin(Stdio::null());
        Self::start_with_input(command, listeners)
    }

    /// The same for a `command` with its own standard input.
    pub fn start_with_input(mut command: Command, listeners: usize) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (Lines::default(), Lines::default());
        match child.stdout.take() {
            Some(piped) => stdout.follow(piped),
            None => stdout.is_complete.store(true, Ordering::Release),
        }
        stderr.follow(child.stderr.take().unwrap());
        let mut running = Self { child, addresses: Vec::new(), stdout, stderr };
        running.addresses = eventually("the server to listen", || {
            if let Ok(Some(status)) = running.child.try_wait() {
                panic!("the server ended with {status}:\n{}", running.stderr.all().join("\n"));
            }
            let addresses: Vec<SocketAddr> = running
                .stderr
                .all()
                .iter()
                .filter_map(|line| line.split_once("listening on ")?.1.split(['"', ' ']).next()?.parse().ok())
                .collect();
            (addresses.len() >= listeners).then_some(addresses)
        });
        running
    }

    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn processor_time(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }

    /// The private memory of the process.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// A client of the constituency `name` that presents `identity`.
    pub fn client(&self, name: &str, identity: &Identity) -> Client {
        Client::new(self.address(), Some(&format!("{name}.{DOMAIN}"))).with_identity(identity)
    }

    /// Waits for an access-log line that satisfies `is_it`, past or future.
    #[track_caller]
    pub fn access(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let find = || self.access_lines().into_iter().find(|line| is_it(line));
        let watch = Stopwatch::start();
        loop {
            if let Some(line) = find() {
                return line;
            }
            let all = || self.access_lines().iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
            assert!(
                !watch.is_over(),
                "no access-log line of {what} among:\n{}\n{}",
                all(),
                self.stderr.all().join("\n")
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// The access log so far; its format must be JSON.
    pub fn access_lines(&self) -> Vec<Value> {
        self.stdout.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an access-log line whose reason contains `text`.
    #[track_caller]
    pub fn reason(&self, text: &str) -> Value {
        self.access(text, |line| line["reason"].as_str().is_some_and(|reason| reason.contains(text)))
    }

    /// Waits for a diagnostic line that contains `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> String {
        eventually(&format!("{text:?} in the diagnostics"), || {
            self.stderr.all().into_iter().find(|line| line.contains(text))
        })
    }

    pub fn stdout(&self) -> Vec<String> {
        self.stdout.all()
    }

    pub fn stderr(&self) -> Vec<String> {
        self.stderr.all()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Lowers the server's limit of open files to `count`: at 0, it can open nothing more.
    pub fn limit_descriptors(&self, count: u64) {
        use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current: Some(count), maximum }).unwrap();
    }

    /// Waits until the server ends.
    pub fn wait(self) -> ExitStatus {
        self.ended().0
    }

    /// Waits until the server ends; returns its status and the whole access log (JSON).
    pub fn ended(mut self) -> (ExitStatus, Vec<Value>) {
        let status = eventually("the server to end", || self.child.try_wait().unwrap());
        eventually("the end of its output", || self.stdout.is_complete().then_some(()));
        (status, self.access_lines())
    }

    /// Kills the server and waits for it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    /// Collects the lines of `source` until it ends.
    pub fn follow(&self, source: impl std::io::Read + Send + 'static) {
        let all = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines() {
                let Ok(line) = line else { break };
                all.lines.lock().unwrap().push(line);
            }
            all.is_complete.store(true, Ordering::Release);
        });
    }

    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Whether the source has ended.
    pub fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }
}

/// Whether `path` holds exactly `content`.
pub fn holds(path: &Path, content: impl AsRef<[u8]>) -> bool {
    std::fs::read(path).is_ok_and(|found| found == content.as_ref())
}

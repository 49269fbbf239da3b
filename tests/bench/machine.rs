//! The machine: its processors, its description, and the processor time and memory of processes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::read_to_string;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The processors of the servers and of the load.
pub const SERVER_CPU: &str = "0";
const LOAD_CPU: &str = "1";

pub fn has_two_processors() -> bool {
    read_to_string("/proc/cpuinfo").is_ok_and(|info| info.matches("processor\t:").count() > 1)
}

/// Pins this process to the load's processor and raises its limit of open files.
pub fn prepare() {
    if has_two_processors() {
        let pid = std::process::id().to_string();
        let taskset = Command::new("taskset").args(["-pc", LOAD_CPU, &pid]).stdout(Stdio::null()).status();
        assert!(taskset.expect("taskset").success(), "processor {LOAD_CPU} is not available");
    } else {
        eprintln!("one processor for servers and load: expect noise");
    }
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("file descriptors");
}

/// The processor time of every thread of a process and of its children.
#[derive(Debug)]
pub struct CpuTime(BTreeMap<String, Duration>);

impl CpuTime {
    /// The time so far, from schedstat, because stat counts in hundredths of a second.
    pub fn of(pid: u32) -> Self {
        let mut threads = BTreeMap::new();
        for pid in family(pid) {
            for thread in std::fs::read_dir(format!("/proc/{pid}/task")).expect("/proc").flatten() {
                // A thread that has just ended has no schedstat.
                let Ok(stat) = read_to_string(thread.path().join("schedstat")) else { continue };
                threads.insert(thread.file_name().into_string().expect("a number"), ran(&stat));
            }
        }
        Self(threads)
    }

    pub fn total(&self) -> Duration {
        self.0.values().sum()
    }

    pub fn since(&self, before: &Self) -> Duration {
        let new =
            |(thread, ran): (&String, &Duration)| ran.saturating_sub(before.0.get(thread).copied().unwrap_or_default());
        self.0.iter().map(new).sum()
    }
}

/// The processor time of all commands that this process has run so far, in hundredths of a second.
pub fn children_time() -> Duration {
    let stat = read_to_string("/proc/self/stat").expect("stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("stat").1.split(' ').collect();
    let ticks: u64 = fields[13..15].iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(10 * ticks)
}

/// The processor time so far of the thread `name` of a process.
pub fn thread_time(pid: u32, name: &str) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("/proc").flatten().map(|thread| thread.path());
    let is_named = |thread: &PathBuf| read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let thread = threads.into_iter().find(is_named).unwrap_or_else(|| panic!("no thread {name:?}"));
    ran(&read_to_string(thread.join("schedstat")).expect("schedstat"))
}

/// The processor time in a schedstat file.
fn ran(schedstat: &str) -> Duration {
    Duration::from_nanos(schedstat.split(' ').next().and_then(|ran| ran.parse().ok()).expect("schedstat"))
}

/// The memory of a process and its children, in KiB, shared pages divided among their users.
pub fn memory_kib(pid: u32) -> u64 {
    family(pid).map(pss_kib).sum()
}

fn pss_kib(pid: u32) -> u64 {
    let rollup = read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("Pss");
    line.trim().trim_end_matches(" kB").parse().expect("KiB")
}

/// A process and its children: nginx works in children of the process that was started.
fn family(pid: u32) -> impl Iterator<Item = u32> {
    let children = read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = children.split_whitespace().map(|child| child.parse().expect("a pid")).collect();
    std::iter::once(pid).chain(children)
}

/// The description to print beside absolute figures.
pub fn description() -> String {
    let mut text = String::new();
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |it| it.1);
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let _ = writeln!(
        text,
        "machine: {model}, {} processors, Linux {}",
        info.matches("processor\t:").count(),
        kernel.trim()
    );
    let nginx = said("nginx", "-V");
    let version = nginx.lines().find_map(|line| line.strip_prefix("nginx version: ")).unwrap_or("?");
    // If nginx runs with another OpenSSL than it was built with, it prints both.
    let openssl = nginx.lines().find_map(|line| line.strip_prefix("built with ")).unwrap_or("?");
    let _ = writeln!(text, "nginx: {version}, built with {openssl}");
    let _ = writeln!(text, "provost: {}", env!("CARGO_PKG_VERSION"));
    text
}

fn said(command: &str, argument: &str) -> String {
    let Ok(output) = Command::new(command).arg(argument).output() else { return String::new() };
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

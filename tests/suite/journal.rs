//! Diagnostics in systemd's journal, with a journal daemon of the test.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::site::Site;
use crate::harness::tool::run;
use crate::harness::{VVX500, eventually, is_here, namespace, not_run};

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// A process that is killed with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The journal's entries for `question`.
fn journal(question: &[&str]) -> Vec<Value> {
    let found = run(Command::new("journalctl").args(["--no-pager", "--output=json"]).args(question)).stdout;
    found.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn journal_entries_carry_priority_and_fields() {
    let test = "journal::journal_entries_carry_priority_and_fields";
    if !is_here(test, "journalctl") || !is_here(test, "systemd-cat") {
        return;
    }
    if !std::path::Path::new(JOURNALD).exists() {
        return not_run(test, "systemd-journald is not installed");
    }
    if !namespace::is_inside(test, &[]) {
        return;
    }
    namespace::mount_empty("/run");
    // In memory: the machine's own journal is not used.
    namespace::mount_empty("/var/log");
    std::fs::create_dir_all("/run/systemd/journal").unwrap();
    std::fs::create_dir_all("/run/log/journal").unwrap();
    let _journald = Killed(Command::new(JOURNALD).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("the journal", || std::fs::metadata("/run/systemd/journal/socket").ok());

    let site = Site::with_ote();
    std::fs::create_dir(site.served("Not A Label")).unwrap();
    // systemd sets the variable to the device and inode of the stream; here a shell does.
    let script = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec \"$@\"";
    let mut command = Command::new("systemd-cat");
    let served = site.command();
    command.args(["sh", "-c", script, "sh"]).arg(served.get_program()).args(served.get_args());
    let _server = Killed(command.stdin(Stdio::null()).spawn().unwrap());

    let of_ote = eventually("an entry of ote", || journal(&["CONSTITUENCY=ote"]).into_iter().next());
    assert_eq!((&of_ote["MESSAGE"], &of_ote["PRIORITY"]), (&"ote is served".into(), &"6".into()));
    assert_eq!((&of_ote["SYSLOG_IDENTIFIER"], &of_ote["_TRANSPORT"]), (&"provost".into(), &"journal".into()));
    let fault = eventually("an entry of the fault", || journal(&["CONSTITUENCY=Not A Label"]).into_iter().next());
    assert!(["3", "4"].contains(&fault["PRIORITY"].as_str().unwrap()), "{fault}");
    let listening = eventually("its addresses", || {
        let all = journal(&["SYSLOG_IDENTIFIER=provost"]);
        all.into_iter().find_map(|entry| Some(entry["MESSAGE"].as_str()?.strip_prefix("listening on ")?.to_owned()))
    });
    let colorless = |entry: &Value| !entry["MESSAGE"].to_string().contains("\\u001b");
    assert!(journal(&["SYSLOG_IDENTIFIER=provost"]).iter().all(colorless));

    drop(std::net::TcpStream::connect(&listening).unwrap());
    let line = eventually("the access log's line", || {
        let lines = journal(&["_TRANSPORT=stdout"]);
        lines.into_iter().find_map(|entry| serde_json::from_str::<Value>(entry["MESSAGE"].as_str()?).ok())
    });
    assert!(line["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    assert!(line["reason"].is_string() && !line.to_string().contains(VVX500), "{line}");
}

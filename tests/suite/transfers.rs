//! Large files: exact content, little memory, and changes of the file or disconnects during a transfer.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Connection;
use crate::harness::tool::{Ended, run};
use crate::harness::{VVX500, eventually, not_run};

const MIB: usize = 1 << 20;

fn phone(server: &Running) -> Connection {
    server.client("ote", &FACTORY.device(VVX500)).connect().unwrap()
}

/// Bytes that do not repeat at any power of two, so that a misplaced piece is detected.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| u8::try_from((index ^ (index >> 8)) % 251).unwrap()).collect()
}

/// The server's peak resident memory, in bytes.
fn peak_memory(server: &Running) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Requests a file and reads only the response's head and `first` bytes.
fn begin(phone: &mut Connection, path: &str, first: usize) -> (usize, Vec<u8>) {
    phone.send(format!("GET {path} HTTP/1.1\r\nHost: ote.{DOMAIN}\r\n\r\n").as_bytes()).unwrap();
    let head = phone.response("HEAD").unwrap();
    assert_eq!(head.status, 200);
    (head.header("content-length").unwrap().parse().unwrap(), phone.read(first).unwrap())
}

#[test]
fn file_of_80_mib_is_exact_and_costs_no_memory() {
    let site = Site::with_ote();
    let content = pattern(80 * MIB);
    site.file("ote/firmware.ld", &content);
    site.file("ote/small.ld", &content[..MIB]);
    let server = site.start();
    let mut phone = phone(&server);
    assert!(phone.get("/small.ld").unwrap().body == content[..MIB]);
    let before = peak_memory(&server);
    let got = phone.get("/firmware.ld").unwrap();
    assert!(got.body == content, "{} of {} bytes, or wrong ones", got.body.len(), content.len());
    let ranged = phone.request("GET", "/firmware.ld", "Range: bytes=300001-41943042\r\n", b"").unwrap();
    assert!(ranged.status == 206 && ranged.body == content[300_001..=41_943_042]);
    // The server must not buffer for a client that does not read.
    let mut lazy = self::phone(&server);
    begin(&mut lazy, "/firmware.ld", 1);
    assert!(phone.get("/firmware.ld").unwrap().body == content);
    let grown = peak_memory(&server).saturating_sub(before);
    assert!(grown < 8 * MIB, "{grown} bytes more than before");
    let is_whole = |line: &Value| line["bytes"] == content.len();
    assert_eq!(server.access("the file", is_whole)["reason"], Value::Null);
}

#[test]
fn client_hangup_mid_download_is_one_log_line_and_no_error() {
    let site = Site::with_ote();
    site.file("ote/firmware.ld", pattern(40 * MIB));
    let server = site.start();
    let mut phone = phone(&server);
    begin(&mut phone, "/firmware.ld", MIB);
    drop(phone);
    let line = server.reason("the client disconnected after ");
    assert_eq!((&line["path"], &line["status"], &line["mac"]), (&"/firmware.ld".into(), &200.into(), &VVX500.into()));
    let sent = usize::try_from(line["bytes"].as_u64().unwrap()).unwrap();
    assert!((MIB..40 * MIB).contains(&sent), "{line}");
    assert_eq!(self::phone(&server).get("/site.cfg").unwrap().status, 200);
    let troubles: Vec<String> =
        server.stderr().into_iter().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    assert_eq!(troubles, Vec::<String>::new());
    server.signal(rustix::process::Signal::TERM);
    let (_, lines) = server.ended();
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn file_that_shrinks_while_sent_aborts_without_padding() {
    let site = Site::with_ote();
    let content = vec![0xAA; 40 * MIB];
    let file = site.file("ote/firmware.ld", &content);
    let server = site.start();
    let mut phone = phone(&server);
    let (promised, first) = begin(&mut phone, "/firmware.ld", MIB);
    assert_eq!(promised, content.len());
    std::fs::File::options().write(true).open(&file).unwrap().set_len(MIB as u64).unwrap();
    let rest = phone.read_to_close().unwrap();
    let received = first.len() + rest.len();
    assert!(received < promised, "{received} of {promised}");
    assert!(first.iter().chain(&rest).all(|byte| *byte == 0xAA), "the received bytes are those of the file");
    let line = server.reason("the file shrank while it was sent");
    assert_eq!(line["path"], "/firmware.ld");
    assert_eq!(self::phone(&server).get("/firmware.ld").unwrap().body.len(), MIB);
}

#[test]
fn file_replaced_while_sent_arrives_in_its_old_version() {
    let site = Site::with_ote();
    let content = pattern(20 * MIB);
    let file = site.file("ote/firmware.ld", &content);
    let server = site.start();
    let mut phone = phone(&server);
    let (promised, first) = begin(&mut phone, "/firmware.ld", MIB);
    std::fs::rename(site.file("ote/.new", "new"), &file).unwrap();
    assert_eq!(self::phone(&server).get("/firmware.ld").unwrap().text(), "new");
    let rest = phone.read(promised - MIB).unwrap();
    assert!([first, rest].concat() == content, "the old file, to its end");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(phone.get("/firmware.ld").unwrap().status, 404);
}

/// Real curl as the phone VVX500; `None`, after NOT RUN, without curl.
struct Curl {
    folder: tempfile::TempDir,
    resolve: String,
    base: String,
}

impl Curl {
    fn new(test: &str, server: &Running) -> Option<Self> {
        if Command::new("curl").arg("--version").output().is_err() {
            not_run(test, "curl is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        FACTORY.device(VVX500).write(folder.path(), "device");
        std::fs::write(folder.path().join("ca.pem"), crate::harness::pki::SERVER_CA.pem()).unwrap();
        let port = server.address().port();
        let resolve = format!("ote.{DOMAIN}:{port}:127.0.0.1");
        Some(Self { folder, resolve, base: format!("https://ote.{DOMAIN}:{port}/") })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Fetches `name` and prints the status after the other output.
    fn get(&self, args: &[&str], name: &str) -> Ended {
        let mut command = Command::new("curl");
        command.current_dir(self.folder.path()).args(["--silent", "--show-error", "--noproxy", "*"]);
        command.args(["--cert", "device.pem", "--key", "device.key", "--cacert", "ca.pem", "--resolve", &self.resolve]);
        command.args(["--write-out", "%{http_code}"]).args(args).arg(format!("{}{name}", self.base));
        run(&mut command)
    }
}

fn printed(ended: &Ended) -> &str {
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    &ended.stdout
}

#[test]
fn curl_gets_ranges_and_conditional_answers() {
    let site = Site::with_ote();
    site.file("ote/text.txt", "0123456789");
    let server = site.start();
    let Some(curl) = Curl::new("curl_gets_ranges_and_conditional_answers", &server) else { return };
    assert_eq!(printed(&curl.get(&[], "text.txt")), "0123456789200");
    assert_eq!(printed(&curl.get(&["-r", "2-4"], "text.txt")), "234206");
    assert_eq!(printed(&curl.get(&["-r", "-2"], "text.txt")), "89206");
    assert_eq!(printed(&curl.get(&["-r", "0-1,5-6"], "text.txt")), "0123456789200");
    assert!(curl.get(&["-I"], "text.txt").stdout.contains("content-length: 10\r\n"));
    assert_eq!(printed(&curl.get(&["--etag-save", "tag"], "text.txt")), "0123456789200");
    assert_eq!(printed(&curl.get(&["--etag-compare", "tag"], "text.txt")), "304");
    assert_eq!(printed(&curl.get(&["-R", "-o", "copy"], "text.txt")), "200");
    assert_eq!(printed(&curl.get(&["-z", "copy"], "text.txt")), "304");
    assert_eq!(printed(&curl.get(&["-z", "1 Jan 2020"], "text.txt")), "0123456789200");
    std::fs::rename(site.file("ote/.new", "abcdefghij"), site.served("ote/text.txt")).unwrap();
    assert_eq!(printed(&curl.get(&["--etag-compare", "tag"], "text.txt")), "abcdefghij200");
    assert_eq!(printed(&curl.get(&[], "00005e0053c7.cfg")), "Forbidden\n403");
}

#[test]
fn curl_resumes_an_aborted_download() {
    let site = Site::with_ote();
    let content = pattern(3 * MIB);
    site.file("ote/firmware.ld", &content);
    let server = site.start();
    let Some(curl) = Curl::new("curl_resumes_an_aborted_download", &server) else { return };
    let half = |path: &Path| std::fs::File::create(path).unwrap().write_all(&content[..MIB + 7]).unwrap();
    half(&curl.path("image"));
    assert_eq!(printed(&curl.get(&["-C", "-", "-o", "image"], "firmware.ld")), "206");
    assert!(std::fs::read(curl.path("image")).unwrap() == content);
    let line = server.access("the rest", |line| line["status"] == 206);
    assert_eq!(line["bytes"], content.len() - MIB - 7);
}

#[test]
fn stalled_downloads_hold_little_memory() {
    const TRANSFERS: usize = 60;
    let mut site = Site::with_ote();
    site.config["limits"]["stall_s"] = 2.into();
    site.file("ote/firmware.ld", vec![0; 64 * MIB]);
    let server = site.start();
    assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
    let before = peak_memory(&server);
    let mut lazy: Vec<Connection> = (0..TRANSFERS).map(|_| phone(&server)).collect();
    for lazy in &mut lazy {
        begin(lazy, "/firmware.ld", 1);
    }
    // They are closed by the stall timeout, so their buffers were full.
    eventually("the end of all", || {
        let lines = server.access_lines();
        let stalled = |line: &&Value| line["reason"].to_string().contains("no progress for too long");
        (lines.iter().filter(stalled).count() == TRANSFERS).then_some(())
    });
    let each = peak_memory(&server).saturating_sub(before) / TRANSFERS;
    eprintln!("{} KiB for each download that stands still", each >> 10);
    assert!(each < 200 << 10, "{each} bytes for each download");
}

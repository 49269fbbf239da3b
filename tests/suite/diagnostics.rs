//! Diagnostics on standard error: they block nothing, and none is lost at exit.

use std::io::{BufRead, BufReader, PipeReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Site};
use crate::harness::tls::Client;
use crate::harness::{VVX500, eventually, tool};
use crate::uploads::LOG;

/// A server whose standard error is not read beyond the lines with its address.
fn start_unread(site: &Site) -> (Child, SocketAddr, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = site.command();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    drop(command);
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    while !line.contains("listening on ") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the server ended");
    }
    let address = line.split_once("listening on ").unwrap().1.split(['"', ' ', '\n']).next().unwrap().parse().unwrap();
    (child, address, reader)
}

#[test]
fn unread_stderr_blocks_neither_requests_nor_shutdown() {
    let site = Site::with_ote();
    let (mut server, address, unread) = start_unread(&site);
    let client = Client::new(address, Some(&format!("ote.{DOMAIN}"))).with_identity(&FACTORY.device(VVX500));
    // Each upload fails with a diagnostic line: far more lines than a pipe holds.
    std::fs::remove_dir_all(site.path("state/uploads")).unwrap();
    let mut phone = client.connect().unwrap();
    for _ in 0..2000 {
        assert_eq!(phone.request("PUT", LOG, "", b"x").unwrap().status, 500);
    }
    assert_eq!(phone.get("/site.cfg").unwrap().status, 200);
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    let status = eventually("the end", || server.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    drop(unread);
}

#[test]
fn lost_diagnostic_lines_are_counted_in_the_log() {
    let site = Site::with_ote();
    let (mut server, address, mut unread) = start_unread(&site);
    let client = Client::new(address, Some(&format!("ote.{DOMAIN}"))).with_identity(&FACTORY.device(VVX500));
    std::fs::remove_dir_all(site.path("state/uploads")).unwrap();
    let mut phone = client.connect().unwrap();
    // More lines than the pipe and the queue hold, from concurrent connections.
    let burst = format!("PUT {LOG} HTTP/1.1\r\nHost: ote.{DOMAIN}\r\nContent-Length: 0\r\n\r\n").repeat(100);
    for _ in 0..200 {
        phone.send(burst.as_bytes()).unwrap();
        for _ in 0..100 {
            assert_eq!(phone.response("PUT").unwrap().status, 500);
        }
    }
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    let mut said = String::new();
    while !said.contains("lines of diagnostics were lost") {
        said.clear();
        assert!(unread.read_line(&mut said).unwrap() > 0, "the server logged no reason for its end");
    }
    std::io::copy(&mut unread, &mut std::io::sink()).unwrap();
    assert_eq!(eventually("the end", || server.try_wait().unwrap()).code(), Some(0));
}

#[test]
fn final_log_lines_are_flushed_at_every_exit() {
    let mut site = Site::with_ote();
    let server = site.start();
    let address = server.address();
    server.signal(Signal::TERM);
    server.says("stopped");
    assert!(server.wait().success());

    let _other = std::net::TcpListener::bind(address).unwrap();
    site.config["listen"] = serde_json::json!(["127.0.0.1:0", address.to_string()]);
    let ended = tool::run(&mut site.command());
    assert_eq!(ended.code, 1);
    let (said, complaint) =
        (ended.stderr.find("listening on 127.0.0.1:"), ended.stderr.find("another process listens there"));
    assert!(said.is_some() && said < complaint, "{}", ended.stderr);
}

//! Under systemd: the units, notifications, and activated sockets that outlive the service.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::systemd::{NotifySocket, Service, value};
use crate::harness::tls::Client;
use crate::harness::tool::{provost, run};
use crate::harness::{VVX500, eventually, is_here};

/// A short watchdog interval, so that the test need not wait.
const WATCHDOG_US: u64 = 300_000;

/// A listening socket as systemd holds it, and a site that names it.
fn kept() -> (TcpListener, Site) {
    let kept = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut site = Site::with_ote();
    site.config["listen"] = json!([kept.local_addr().unwrap().to_string()]);
    (kept, site)
}

fn client(address: SocketAddr) -> Client {
    Client::new(address, Some(&format!("ote.{DOMAIN}"))).with_identity(&FACTORY.device(VVX500))
}

#[test]
fn printed_units_verify_with_an_exposure_below_2() {
    if !is_here("printed_units_verify_with_an_exposure_below_2", "systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (unit, name) in [("systemd-unit", "provost.service"), ("systemd-socket", "provost.socket")] {
        let printed = provost(folder.path(), &["print", unit]);
        assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
        std::fs::write(folder.path().join(name), printed.stdout).unwrap();
    }
    let analyze = |arguments: &[&str]| run(Command::new("systemd-analyze").args(arguments).current_dir(folder.path()));
    let verified = analyze(&["verify", "--man=no", "./provost.service", "./provost.socket"]);
    assert_eq!((verified.code, verified.stderr.as_str()), (0, ""), "{}", verified.stdout);
    let security = analyze(&["security", "--offline=true", "--threshold=19", "--no-pager", "./provost.service"]);
    let overall = security.stdout.split("Overall exposure level for provost.service: ").nth(1);
    let exposure: f64 = overall.unwrap().split(' ').next().unwrap().parse().unwrap();
    assert_eq!(security.code, 0, "{}", security.stdout);
    assert!(exposure > 0.1 && exposure < 2.0, "{exposure}");
    // With this setting, systemd answers openat2(2) with ENOSYS, and nothing could be served.
    let service = std::fs::read_to_string(folder.path().join("provost.service")).unwrap();
    assert!(!service.lines().any(|line| line.starts_with("RestrictSUIDSGID=")), "{service}");
}

#[test]
fn newline_in_a_path_cannot_inject_a_unit_line() {
    let mut site = Site::with_ote();
    let line = "/srv/a\nExecStartPre=/bin/x";
    for key in ["state", "constituencies"] {
        let good = site.config[key].clone();
        site.config[key] = json!(line);
        site.write_config();
        let printed = provost(&site.path("."), &["print", "systemd-unit", "--config", "provost.json"]);
        assert_ne!(printed.code, 0, "{printed:?}");
        let reported = format!("\"{key}\": {line:?} has a control character");
        assert!(printed.stdout.is_empty() && printed.stderr.contains(&reported), "{printed:?}");
        site.config[key] = good;
    }
    let printed = provost(&site.path("."), &["print", "systemd-unit", "--config", line]);
    assert!(printed.code != 0 && printed.stdout.is_empty(), "{printed:?}");
    assert!(printed.stderr.contains("a unit cannot hold a path"), "{printed:?}");
}

#[test]
fn printed_units_match_the_configuration() {
    let mut site = Site::with_ote();
    site.config["listen"] = json!(["192.0.2.1:443", "[2001:db8::1]:8443"]);
    let config = site.write_config().display().to_string();
    let service = provost(&site.path("."), &["print", "systemd-unit", "--config", "provost.json"]).stdout;
    let program = env!("CARGO_BIN_EXE_provost");
    assert_eq!(value(&service, "ExecStart"), format!("{program} serve --config {config}"));
    assert_eq!(value(&service, "ReadWritePaths"), site.path("state").display().to_string());
    let socket = provost(&site.path("."), &["print", "systemd-socket", "--config", "provost.json"]).stdout;
    let streams: Vec<&str> = socket.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    assert_eq!(streams, ["192.0.2.1:443", "[2001:db8::1]:8443"]);

    let usual = provost(&site.path("."), &["print", "systemd-unit"]).stdout;
    assert!(value(&usual, "ExecStart").ends_with(" serve --config /etc/provost/provost.json"), "{usual}");
    std::fs::write(site.path("provost.json"), "{").unwrap();
    assert_eq!(provost(&site.path("."), &["print", "systemd-unit", "--config", "provost.json"]).code, 2);
}

#[test]
fn service_notifies_ready_reload_watchdog_and_stopping() {
    let (kept, site) = kept();
    let service = Service::of(&site);
    assert_eq!((value(&service.unit, "Type"), value(&service.unit, "WatchdogSec")), ("notify", "1min"));
    let supervisor = NotifySocket::new();
    let server = service.start(&supervisor, WATCHDOG_US, Some(&kept));
    let status = supervisor.receives_all(&["READY=1", "STATUS="]);
    assert_eq!(client(server.address()).get("/site.cfg").unwrap().status, 200);
    let how = "STATUS=1 constituency; the certificate ends in ";
    assert!(status.iter().any(|line| line.starts_with(how)), "{status:?}");
    for _ in 0..3 {
        supervisor.receives("WATCHDOG=1");
    }
    site.constituency("home", &json!({ "trust": ["factory"] }));
    supervisor.receives("STATUS=2 constituencies; ");

    let reload: Vec<&str> = value(&service.unit, "ExecReload").split(' ').collect();
    let pid = server.pid().to_string();
    let reload: Vec<&str> = reload.iter().map(|word| if *word == "$MAINPID" { &*pid } else { word }).collect();
    site.constituency("ote", &json!({ "trust": ["factory"] }));
    assert_eq!(run(Command::new(reload[0]).args(&reload[1..])).code, 0);
    let since = supervisor.receives("RELOADING=1");
    let since: u64 = since[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!(since > 0);
    supervisor.receives("READY=1");
    let status = client(server.address()).get("/site.cfg").unwrap().status;
    assert_eq!(status, 403, "changes made before the reload apply after it");
    server.says("SIGHUP: ");

    server.signal(Signal::TERM);
    supervisor.receives("STOPPING=1");
    assert!(server.wait().success());
}

#[test]
fn draining_service_extends_its_stop_timeout() {
    let (kept, mut site) = kept();
    site.config["limits"]["drain_s"] = 600.into();
    let service = Service::of(&site);
    let supervisor = NotifySocket::new();
    let server = service.start(&supervisor, WATCHDOG_US, Some(&kept));
    let mut upload = client(server.address()).connect().unwrap();
    let head = format!("PUT /{VVX500}-app.log HTTP/1.1\r\nHost: ote.{DOMAIN}\r\nContent-Length: 2\r\n\r\n1");
    upload.send(head.as_bytes()).unwrap();
    eventually("the upload", || std::fs::read_dir(site.path("state/uploads/.incoming")).ok()?.next().map(drop));
    server.signal(Signal::TERM);
    supervisor.receives("STOPPING=1");
    for _ in 0..3 {
        let reported = supervisor.receives("EXTEND_TIMEOUT_USEC=");
        assert!(reported.contains(&"WATCHDOG=1".to_owned()), "{reported:?}");
    }
    upload.send(b"2").unwrap();
    assert_eq!(upload.response("PUT").unwrap().status, 201);
    assert!(server.wait().success());
}

#[test]
fn shutdown_delay_extends_the_stop_timeout() {
    let (kept, mut site) = kept();
    site.config["limits"]["shutdown_delay_s"] = 600.into();
    let service = Service::of(&site);
    let supervisor = NotifySocket::new();
    let server = service.start(&supervisor, WATCHDOG_US, Some(&kept));
    supervisor.receives("READY=1");
    server.signal(Signal::TERM);
    // At once, because the unit's timeout may be shorter than the watchdog's period.
    let reported = supervisor.receives("STOPPING=1");
    assert!(reported.iter().any(|line| line.starts_with("EXTEND_TIMEOUT_USEC=")), "{reported:?}");
    assert!(reported.iter().any(|line| line.starts_with("STATUS=/readyz is 503 from now on")), "{reported:?}");
    for _ in 0..3 {
        let reported = supervisor.receives("EXTEND_TIMEOUT_USEC=");
        assert!(reported.contains(&"WATCHDOG=1".to_owned()), "{reported:?}");
    }
    assert_eq!(client(server.address()).get("/site.cfg").unwrap().status, 200);
    server.signal(Signal::TERM);
    supervisor.receives("STATUS=graceful shutdown");
    assert!(server.wait().success());
}

#[test]
fn restart_with_socket_activation_refuses_no_connection() {
    let (kept, site) = kept();
    let address = kept.local_addr().unwrap();
    let service = Service::of(&site);
    let supervisor = NotifySocket::new();
    let over = Arc::new(AtomicBool::new(false));
    let visitor = {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut visits = 0;
            while !over.load(Ordering::Relaxed) {
                TcpStream::connect(address).expect("a connection");
                visits += 1;
                std::thread::yield_now();
                // The backlog suffices for as many connections.
                if visits % 10 == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
            visits
        })
    };
    for _ in 0..3 {
        let server = service.start(&supervisor, WATCHDOG_US, Some(&kept));
        supervisor.receives("READY=1");
        server.says(&format!("listening on {address} (socket activation)"));
        assert_eq!(client(address).get("/site.cfg").unwrap().status, 200);
        server.signal(Signal::TERM);
        assert!(server.wait().success());
        // No server runs now, so this phone waits.
        let phone = client(address);
        let waits = std::thread::spawn(move || phone.get("/site.cfg").map(|response| response.status));
        let next = service.start(&supervisor, WATCHDOG_US, Some(&kept));
        assert_eq!(waits.join().unwrap().unwrap(), 200);
        next.signal(Signal::TERM);
        assert!(next.wait().success());
    }
    over.store(true, Ordering::Relaxed);
    assert!(visitor.join().unwrap() > 10);
}

#[test]
fn activated_socket_is_close_on_exec() {
    let (kept, site) = kept();
    let service = Service::of(&site);
    let server = service.start(&NotifySocket::new(), WATCHDOG_US, Some(&kept));
    let flags = std::fs::read_to_string(format!("/proc/{}/fdinfo/3", server.pid())).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    let flags = u32::from_str_radix(flags, 8).unwrap();
    assert_ne!(flags & 0o2_000_000, 0, "close-on-exec in {flags:o}");
}

#[test]
fn unused_activated_socket_is_named_and_stops_the_start() {
    let (kept, mut site) = kept();
    site.config["listen"] = json!(["127.0.0.1:0"]);
    let config = site.write_config();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=listen; exec \"$@\"",
        "sh",
    ]);
    command.args([env!("CARGO_BIN_EXE_provost"), "serve", "--config"]).arg(config);
    let address = kept.local_addr().unwrap();
    let ended = run(command.stdin(std::os::fd::OwnedFd::from(kept)));
    assert_eq!(ended.code, 1);
    let message = format!("systemd passes the socket {address} (listen), which provost.json does not configure");
    assert!(ended.stderr.contains(&message) && ended.stderr.contains("print systemd-socket"), "{}", ended.stderr);
}

#[test]
fn activated_sockets_are_matched_by_address() {
    if !is_here("activated_sockets_are_matched_by_address", "systemd-socket-activate") {
        return;
    }
    // systemd's own program opens them, and starts the service at the first connection. No other test uses this address,
    // so none takes the ports meanwhile.
    let free = [(); 2].map(|()| TcpListener::bind("127.7.7.8:0").unwrap());
    let addresses = free.each_ref().map(|listener| listener.local_addr().unwrap());
    drop(free);
    let mut site = Site::with_ote();
    site.config["listen"] = json!([addresses[1].to_string(), "127.0.0.1:0", addresses[0].to_string()]);
    let operators = site.path("status.sock");
    site.config["status"] = json!({ "listen": format!("unix:{}", operators.display()) });
    let config = site.write_config();
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--fdname=status:listen:provost.socket").arg("-l").arg(&operators);
    for address in addresses {
        command.args(["-l", &address.to_string()]);
    }
    command.args([env!("CARGO_BIN_EXE_provost"), "serve", "--config"]).arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).current_dir(site.path("."));
    let knock = std::thread::spawn(move || {
        eventually("systemd to listen", || TcpStream::connect(addresses[0]).ok());
    });
    let server = Running::start(command, 3);
    knock.join().unwrap();
    for (address, is_kept) in [(addresses[0], true), (addresses[1], true), (server.addresses[1], false)] {
        let line = server.says(&format!("listening on {address}"));
        assert_eq!(line.contains("(socket activation)"), is_kept, "{line}");
        assert_eq!(client(address).get("/site.cfg").unwrap().status, 200);
    }
    let mut curl = Command::new("curl");
    let healthy = run(curl.args(["-sf", "http://localhost/healthz", "--unix-socket"]).arg(&operators));
    assert_eq!(healthy.code, 0, "{healthy:?}");
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    assert!(operators.exists(), "systemd's sockets stay");
}

#[test]
fn activated_descriptor_that_does_not_listen_stops_the_start() {
    let site = Site::with_ote();
    let (connected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"", "sh"]);
    command.args([env!("CARGO_BIN_EXE_provost"), "serve"]).current_dir(site.path("."));
    let ended = run(command.stdin(std::os::fd::OwnedFd::from(connected)));
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("file descriptor 3 (), which"), "{}", ended.stderr);
}

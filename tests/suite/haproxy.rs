//! Two nodes that share constituencies and certificate files: behind a real HAProxy with the configuration that provost
//! prints, and by two addresses of one name.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::pages::{code_spans, fences, section};
use crate::harness::pki::{FACTORY, SERVER_CA};
use crate::harness::site::{DOMAIN, Lines, Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, namespace, not_run};

/// Where HAProxy listens. Phones connect from this address and from [`PHONES`].
const FRONT: &str = "10.77.0.1:443";
const PHONES: [[u8; 4]; 4] = [[10, 77, 0, 21], [10, 77, 0, 22], [10, 77, 0, 23], [10, 77, 0, 24]];
const ADDRESSES: [&str; 5] = ["10.77.0.1/24", "10.77.0.21/24", "10.77.0.22/24", "10.77.0.23/24", "10.77.0.24/24"];
const NODES: [&str; 2] = ["127.0.0.11", "127.0.0.12"];

/// A running HAProxy; ended when dropped.
struct Haproxy {
    child: Child,
    log: Lines,
}

impl Haproxy {
    /// Starts HAProxy with the configuration in `file`, and waits until it listens.
    fn start(file: &Path) -> Self {
        let mut child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Lines::default();
        log.follow(child.stdout.take().unwrap());
        let errors = Lines::default();
        errors.follow(child.stderr.take().unwrap());
        let haproxy = Self { child, log };
        let front: SocketAddr = FRONT.parse().unwrap();
        eventually("HAProxy to listen", || {
            assert!(!errors.is_complete(), "{:?}", errors.all());
            TcpStream::connect(front).ok()
        });
        haproxy
    }

    /// Waits for a line of its log that contains `text`.
    fn says(&self, text: &str) {
        eventually(&format!("{text:?} in HAProxy's log"), || {
            self.log.all().iter().any(|line| line.contains(text)).then_some(())
        });
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the tests can run: HAProxy is here, and the process is in a network of its own.
fn is_inside(test: &str) -> bool {
    // HAProxy knows no --version.
    if !Command::new("haproxy").arg("-v").output().is_ok_and(|output| output.status.success()) {
        not_run(test, "haproxy is not installed");
        return false;
    }
    namespace::is_inside(&format!("haproxy::{test}"), &ADDRESSES)
}

/// The first site, and the configuration of a second node that shares its constituencies and certificate files.
fn sites() -> [Site; 2] {
    let [mut first, mut second] = [Site::with_ote(), Site::new()];
    first.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" } }));
    first.file("ote/000000000000.cfg", r#"<APPLICATION CONFIG_FILES="site.cfg" LOG_FILE_DIRECTORY=""/>"#);
    std::fs::write(first.path("ca.pem"), SERVER_CA.certificate.pem()).unwrap();
    FACTORY.device(VVX500).write(&first.path("."), "phone");
    let absolute = |site: &Site, name: &str| site.path(name).display().to_string();
    second.config["constituencies"] = absolute(&first, "constituencies").into();
    second.config["certificate"]["files"] = ["rsa", "ec"]
        .map(|name| json!({ "chain": absolute(&first, &format!("{name}.pem")), "key": absolute(&first, &format!("{name}.key")) }))
        .to_vec()
        .into();
    second.config["trust"]["factory"] = json!([absolute(&first, "factory.pem")]);
    for (site, node) in [&mut first, &mut second].into_iter().zip(NODES) {
        site.config["listen"] = json!([format!("{node}:443")]);
        site.config["status"] = json!({ "listen": format!("{node}:8444") });
        // The address from which HAProxy connects to other addresses of the loopback interface.
        site.config["proxy_protocol"] = json!(["127.0.0.1/32"]);
        site.config["limits"]["shutdown_delay_s"] = 600.into();
    }
    [first, second]
}

/// Prints the configuration for both nodes, which HAProxy must accept, and writes it to a file.
fn print(site: &Site, more: &[&str]) -> (PathBuf, Ended) {
    site.write_config();
    let args = ["print", "haproxy", "--node", NODES[0], NODES[1], "--listen", FRONT];
    let printed = provost(&site.path("."), &[&args[..], more].concat());
    assert_eq!(printed.code, 0, "{printed:?}");
    let file = site.path("haproxy.cfg");
    std::fs::write(&file, &printed.stdout).unwrap();
    assert_accepted(&file);
    (file, printed)
}

fn assert_accepted(file: &Path) {
    let checked = run(Command::new("haproxy").args(["-c", "-f"]).arg(file));
    assert_eq!(checked.code, 0, "{checked:?}\n{}", std::fs::read_to_string(file).unwrap());
    assert!(!checked.stderr.contains("WARNING"), "{checked:?}");
}

/// Boots a virtual phone with these further arguments.
fn boot(site: &Site, more: &[&str]) -> Ended {
    let url = format!("https://ote.{DOMAIN}/");
    let args = ["phone", "--url", &url, "--mac", VVX500, "--ca", "ca.pem"];
    let identity = ["--certificate", "phone.pem", "--key", "phone.key"];
    provost(&site.path("."), &[&args[..], &identity, more].concat())
}

/// A phone at `address`, behind HAProxy.
fn phone(address: [u8; 4]) -> Client {
    let client = Client::new(FRONT.parse().unwrap(), Some(&format!("ote.{DOMAIN}")));
    client.with_identity(&FACTORY.device(VVX550)).from(address.into())
}

/// The address of an access-log line.
fn address(line: &Value) -> IpAddr {
    line["address"].as_str().unwrap().parse::<SocketAddr>().unwrap().ip()
}

fn served(server: &Running) -> usize {
    server.access_lines().iter().filter(|line| line["status"] == 200).count()
}

#[test]
fn phone_boots_through_haproxy_under_its_own_address() {
    if !is_inside("phone_boots_through_haproxy_under_its_own_address") {
        return;
    }
    for version in [&[][..], &["--v1"]] {
        let sites = sites();
        let nodes = [sites[0].start(), sites[1].start()];
        let (file, printed) = print(&sites[0], version);
        assert_eq!(printed.stderr, "");
        let _haproxy = Haproxy::start(&file);
        let booted = boot(&sites[0], &["--resolve", FRONT]);
        assert_eq!(booted.code, 0, "{booted:?}");
        for source in PHONES {
            assert_eq!(phone(source).get("/site.cfg").unwrap().status, 200);
        }
        // Both nodes together, since each phone stays at one.
        let lines = eventually("the lines of all phones", || {
            let lines: Vec<Value> = nodes.iter().flat_map(Running::access_lines).collect();
            PHONES.iter().all(|phone| lines.iter().any(|line| address(line) == IpAddr::from(*phone))).then_some(lines)
        });
        let own: IpAddr = FRONT.parse::<SocketAddr>().unwrap().ip();
        assert!(lines.iter().filter(|line| address(line) == own).count() > 3, "{lines:?}");
        assert!(lines.iter().all(|line| address(line) != IpAddr::from([127, 0, 0, 1])), "{lines:?}");
    }
}

/// Phones that request a file again and again, each on a new connection, while a node goes.
struct Visitors {
    is_over: AtomicBool,
    visits: [AtomicUsize; PHONES.len()],
}

impl Visitors {
    /// Runs `act` while the phones come. No request may fail.
    fn during(act: impl FnOnce(&Self)) {
        let visitors = Self { is_over: AtomicBool::new(false), visits: Default::default() };
        thread::scope(|scope| {
            for (source, visits) in PHONES.into_iter().zip(&visitors.visits) {
                let is_over = &visitors.is_over;
                scope.spawn(move || {
                    let phone = phone(source);
                    while !is_over.load(Ordering::Relaxed) {
                        assert_eq!(phone.get("/site.cfg").unwrap().status, 200, "{source:?}");
                        visits.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&visitors)));
            visitors.is_over.store(true, Ordering::Relaxed);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }

    /// Waits until each phone has made a visit that began after this call.
    fn come_again(&self) {
        for visits in &self.visits {
            let before = visits.load(Ordering::Relaxed);
            eventually("two visits", || (visits.load(Ordering::Relaxed) >= before + 2).then_some(()));
        }
    }
}

#[test]
fn no_phone_is_lost_when_a_node_drains() {
    if !is_inside("no_phone_is_lost_when_a_node_drains") {
        return;
    }
    let sites = sites();
    let nodes = [sites[0].start(), sites[1].start()];
    let haproxy = Haproxy::start(&print(&sites[0], &[]).0);
    let [first, second] = nodes;
    Visitors::during(|phones| {
        phones.come_again();
        first.signal(Signal::TERM);
        haproxy.says("Server provost/node1 is DOWN");
        // No connection for the first node is left.
        phones.come_again();
        first.signal(Signal::TERM);
        let (status, lines) = first.ended();
        assert!(status.success());
        assert!(lines.iter().any(|line| line["status"] == 200), "{lines:?}");
        let is_cut = |line: &Value| line["reason"].as_str().is_some_and(|reason| reason.contains("shutting down"));
        assert!(!lines.iter().any(is_cut), "{lines:?}");
        let before = served(&second);
        phones.come_again();
        assert!(served(&second) >= before + PHONES.len());
    });
}

#[test]
fn no_new_connection_fails_after_a_node_is_killed() {
    if !is_inside("no_new_connection_fails_after_a_node_is_killed") {
        return;
    }
    let mut sites = sites();
    // HAProxy checks only that the port is open, by connections with a LOCAL header.
    sites[0].config.as_object_mut().unwrap().remove("status");
    let nodes = [sites[0].start(), sites[1].start()];
    let (file, printed) = print(&sites[0], &[]);
    assert!(printed.stderr.contains("HAProxy cannot reach /readyz"), "{printed:?}");
    let haproxy = Haproxy::start(&file);
    for source in PHONES {
        assert_eq!(phone(source).get("/site.cfg").unwrap().status, 200);
    }
    let mut nodes = nodes.map(Some);
    for (killed, site) in sites.iter().enumerate() {
        nodes[killed].take().unwrap().kill();
        // Also before HAProxy has noticed.
        for source in PHONES {
            assert_eq!(phone(source).get("/site.cfg").unwrap().status, 200, "{source:?}");
        }
        haproxy.says(&format!("Server provost/node{} is DOWN", killed + 1));
        nodes[killed] = Some(site.start());
        haproxy.says(&format!("Server provost/node{} is UP", killed + 1));
    }
    // No check is in the log: neither those that began before the kills, nor the later ones.
    for node in nodes.iter().flatten() {
        let lines = node.access_lines();
        assert!(lines.iter().all(|line| address(line) != IpAddr::from([127, 0, 0, 1])), "{lines:?}");
    }
}

#[test]
fn printed_configuration_is_accepted_for_all_settings() {
    if !is_inside("printed_configuration_is_accepted_for_all_settings") {
        return;
    }
    let mut site = Site::with_ote();
    let file = site.path("haproxy.cfg");
    let print = |site: &Site, args: &[&str]| {
        site.write_config();
        let printed = provost(&site.path("."), &[&["print", "haproxy"], args].concat());
        assert_eq!(printed.code, 0, "{printed:?}");
        std::fs::write(&file, &printed.stdout).unwrap();
        assert_accepted(&file);
        printed
    };
    // The defaults: two examples, every address.
    site.config.as_object_mut().unwrap().remove("listen");
    let printed = print(&site, &[]);
    for line in
        ["    bind :443\n", "    bind [::]:443 v6only\n", "    server node2 192.0.2.12:443\n", " send-proxy-v2\n"]
    {
        assert!(printed.stdout.contains(line), "{line:?} in {}", printed.stdout);
    }
    for warning in ["has no \"proxy_protocol\"", "cannot reach /readyz"] {
        assert!(printed.stderr.contains(warning), "{printed:?}");
    }
    site.config["listen"] = json!(["192.0.2.1:8443", "192.0.2.2:8443", "[2001:db8::1]:9443"]);
    site.config["proxy_protocol"] = json!(["10.0.0.5/32"]);
    site.config["status"] = json!({ "listen": "192.0.2.1:9000", "token_file": "token" });
    site.config["limits"] = json!({ "idle_s": 600 });
    let printed = print(&site, &["--node", "2001:db8::11", "--node", "192.0.2.12:444", "--v1"]);
    for line in [
        "    bind :8443\n",
        "    bind [::]:9443 v6only\n",
        "    server node1 [2001:db8::11]:8443\n",
        "    server node2 192.0.2.12:444\n",
        "    timeout client 660s\n",
        "    option httpchk GET /readyz\n",
        "check port 9000 inter 2s fall 2 rise 2 send-proxy\n",
    ] {
        assert!(printed.stdout.contains(line), "{line:?} in {}", printed.stdout);
    }
    assert_eq!(printed.stdout.matches("    bind ").count(), 2);
    let warned = printed.stderr;
    assert!(warned.contains("limits.shutdown_delay_s is 0") && warned.lines().count() == 1, "{warned}");
    // The configuration in the manual, with the command in the text.
    let manual = section("docs/operating.md", "## Several nodes");
    let documented = fences(manual).into_iter().find(|fence| fence.0 == "json").unwrap().1;
    site.config = serde_json::from_str(documented).unwrap();
    let command = code_spans(manual).into_iter().find(|span| span.starts_with("provost print haproxy ")).unwrap();
    let printed = print(&site, &command.split(' ').skip(3).collect::<Vec<_>>());
    assert_eq!(printed.stderr, "");
    assert!(
        printed.stdout.ends_with("    server node1 10.0.0.11:443\n    server node2 10.0.0.12:443\n"),
        "{printed:?}"
    );
}

#[test]
fn two_addresses_of_one_name_serve_the_same_phones() {
    if !is_inside("two_addresses_of_one_name_serve_the_same_phones") {
        return;
    }
    let mut sites = sites();
    for site in &mut sites {
        // No load balancer: the phones' own addresses.
        site.config.as_object_mut().unwrap().remove("proxy_protocol");
    }
    let hosts = sites[0].path("hosts");
    let name = format!("ote.{DOMAIN}");
    std::fs::write(&hosts, format!("{} {name}\n{} {name}\n", NODES[0], NODES[1])).unwrap();
    namespace::bind_mount(&hosts, Path::new("/etc/hosts"));
    let mut nodes = [sites[0].start(), sites[1].start()].map(Some);
    let at = |node: usize, mac: &str| {
        let client = Client::new(format!("{}:443", NODES[node]).parse().unwrap(), Some(&name));
        client.with_identity(&FACTORY.device(mac)).get("/site.cfg").unwrap().status
    };
    assert_eq!((at(0, VVX550), at(1, VVX550)), (200, 200));
    assert_eq!((at(0, STRANGER), at(1, STRANGER)), (403, 403));
    // A phone that one node allows counts at the other, because both follow the same folder.
    let allowed = provost(&sites[0].path("."), &["allow", STRANGER, "--constituency", "ote"]);
    assert_eq!(allowed.code, 0, "{allowed:?}");
    for node in 0..2 {
        eventually("the phone to be known", || (at(node, STRANGER) == 200).then_some(()));
    }
    // A denial of the whole server and an upload stay at their node.
    assert_eq!(provost(&sites[1].path("."), &["deny", VVX550]).code, 0);
    eventually("the denial", || (at(1, VVX550) == 403).then_some(()));
    assert_eq!(at(0, VVX550), 200);
    assert_eq!(boot(&sites[0], &[]).code, 0);
    // The phone goes to the next address.
    for killed in 0..2 {
        nodes[killed].take().unwrap().kill();
        let booted = boot(&sites[0], &[]);
        assert_eq!(booted.code, 0, "{booted:?}");
        nodes[killed] = Some(sites[killed].start());
    }
}

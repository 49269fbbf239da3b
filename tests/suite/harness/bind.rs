//! BIND on a port of its own with a configuration of the test: primaries, secondaries, resolvers. The machine's own
//! configuration is not read, and the server ends with the test.

use std::fmt::{self, Write as _};
use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use provost::dns::DnsSettings;
use socket2::{Domain, Socket, Type};

use super::site::Lines;
use super::{TIMEOUT, eventually, tool};

/// The configuration of a server.
#[derive(Default)]
pub struct BindConfig {
    keys: Vec<(String, String)>,
    zones: String,
    files: Vec<(String, String)>,
    zone_names: Vec<String>,
    recursion: bool,
    more_addresses: String,
    /// A key: messages that it signs see another copy of the zones.
    view_of: Option<String>,
}

/// A running server. Dropped, it is killed and waited for.
pub struct Bind {
    folder: tempfile::TempDir,
    child: Child,
    pub address: SocketAddr,
    control: SocketAddr,
    log: Lines,
}

/// The key of rndc, on a port that only this test knows.
const CONTROL_KEY: &str =
    "key \"control\" { algorithm hmac-sha256; secret \"Y29udHJvbC1jb250cm9sLWNvbnRyb2wtY29udHJvbA==\"; };\n";

/// Whether BIND is installed; if not, `test` is reported as NOT RUN.
pub fn is_here(test: &str) -> bool {
    let missing: Vec<&str> =
        ["named", "tsig-keygen", "dig"].into_iter().filter(|name| program(name).is_none()).collect();
    if !missing.is_empty() {
        super::not_run(test, &format!("{} not installed (bind9, bind9-dnsutils)", missing.join(", ")));
    }
    missing.is_empty()
}

/// The path of a program, also from sbin, which a user's PATH may lack.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    path.split(':').map(|folder| Path::new(folder).join(name)).find(|file| file.is_file())
}

/// A port of 127.0.0.1 that is free for TCP and UDP.
pub fn free_address() -> SocketAddr {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// An address of 127.0.0.1 that refuses TCP connections. As long as this is held, no other test gets its port.
pub struct DeadAddress {
    pub address: SocketAddr,
    _bound_without_listening: Socket,
}

pub fn dead_address() -> DeadAddress {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    DeadAddress { address: socket.local_addr().unwrap().as_socket().unwrap(), _bound_without_listening: socket }
}

impl fmt::Display for DeadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl BindConfig {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key made by `tsig-keygen`.
    pub fn key(mut self, name: &str, algorithm: &str) -> Self {
        let made = tool::run(Command::new(program("tsig-keygen").unwrap()).args(["-a", algorithm, name]));
        assert_eq!(made.code, 0, "{}", made.stderr);
        self.keys.push((name.to_owned(), made.stdout));
        self
    }

    /// Uses the keys of another server.
    pub fn keys_of(mut self, other: &Bind) -> Self {
        let text = std::fs::read_to_string(other.folder.path().join("keys.conf")).unwrap();
        self.keys.push(("keys-of-another".to_owned(), text));
        self
    }

    /// A zone with these `records` beside SOA and NS, with the update policy `policy`.
    pub fn primary(self, zone: &str, records: &str, policy: &str) -> Self {
        let text = format!(
            "$TTL 300\n@ SOA ns1.{zone}. hostmaster.{zone}. 1 3600 600 86400 60\n@ NS ns1.{zone}.\nns1 A 127.0.0.1\n{records}\n"
        );
        self.primary_from(zone, &text, policy)
    }

    /// A zone with the file content `text`.
    pub fn primary_from(mut self, zone: &str, text: &str, policy: &str) -> Self {
        self.files.push((zone.to_owned(), text.to_owned()));
        let policy = if policy.is_empty() { String::new() } else { format!("update-policy {{ {policy} }};") };
        self.zone(zone, &format!("type primary; file \"{zone}.zone\"; {policy}"))
    }

    /// The same, signed by the server's default policy, which proves with NSEC records that names do not exist.
    pub fn signed(mut self, zone: &str, text: &str, policy: &str) -> Self {
        self.files.push((zone.to_owned(), text.to_owned()));
        let policy = format!("update-policy {{ {policy} }}; dnssec-policy default;");
        self.zone(zone, &format!("type primary; file \"{zone}.zone\"; {policy}"))
    }

    /// A copy of a zone of `primary`, which sends it no NOTIFY: it lags until [`Bind::notify`].
    pub fn secondary(self, zone: &str, primary: &Bind) -> Self {
        let (address, port) = (primary.address.ip(), primary.address.port());
        self.zone(zone, &format!("type secondary; file \"{zone}.copy\"; primaries {{ {address} port {port}; }};"))
    }

    /// Answers for names in `zone` what `server` answers, like a resolver.
    pub fn forward(mut self, zone: &str, server: &Bind) -> Self {
        self.recursion = true;
        let (address, port) = (server.address.ip(), server.address.port());
        self.zone(zone, &format!("type forward; forward only; forwarders {{ {address} port {port}; }};"))
    }

    /// Listens on `address` too, at the same port.
    pub fn also_at(mut self, address: &str) -> Self {
        write!(self.more_addresses, " {address};").unwrap();
        self
    }

    /// Shows messages signed with `key` other copies of the zones than all others.
    pub fn in_views(mut self, key: &str) -> Self {
        self.view_of = Some(key.to_owned());
        self
    }

    fn zone(mut self, zone: &str, clauses: &str) -> Self {
        writeln!(self.zones, "zone \"{zone}\" {{ {clauses} }};").unwrap();
        self.zone_names.push(zone.to_owned());
        self
    }

    fn write(&self, folder: &Path, address: SocketAddr, control: SocketAddr) -> PathBuf {
        let keys: String = self.keys.iter().map(|(_, text)| text.as_str()).collect();
        std::fs::write(folder.join("keys.conf"), keys).unwrap();
        for (name, text) in &self.keys {
            let file = folder.join(format!("{}.key", name.trim_end_matches('.')));
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        }
        for (zone, text) in &self.files {
            std::fs::write(folder.join(format!("{zone}.zone")), text).unwrap();
            std::fs::write(folder.join(format!("{zone}.zone.public")), text).unwrap();
        }
        let (ip, port, recursion) = (address.ip(), address.port(), if self.recursion { "yes" } else { "no" });
        let (folder_name, more) = (folder.display(), &self.more_addresses);
        let text = format!(
            "include \"{folder_name}/keys.conf\";\n\
             options {{\n  directory \"{folder_name}\";\n  pid-file none;\n  lock-file none;\n  \
             session-keyfile \"{folder_name}/session.key\";\n  listen-on port {port} {{ {ip};{more} }};\n  \
             listen-on-v6 {{ none; }};\n  recursion {recursion};\n  allow-query {{ any; }};\n  \
             allow-transfer {{ any; }};\n  dnssec-validation no;\n  notify no;\n  empty-zones-enable no;\n}};\n\
             {CONTROL_KEY}controls {{ inet {} port {} allow {{ any; }} keys {{ \"control\"; }}; }};\n{}",
            control.ip(),
            control.port(),
            self.views()
        );
        std::fs::write(folder.join("rndc.conf"), CONTROL_KEY).unwrap();
        let file = folder.join("named.conf");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// The zones, in views if there are some.
    fn views(&self) -> String {
        let Some(key) = &self.view_of else { return self.zones.clone() };
        let public = self.zones.replace(".zone\"", ".zone.public\"");
        format!(
            "view \"signed\" {{ match-clients {{ key {key}; }};\n{}}};\nview \"public\" {{ match-clients {{ any; }};\n{public}}};\n",
            self.zones
        )
    }

    /// Starts it and waits until it answers for all its zones: it loads them one after another.
    pub fn start(&self) -> Bind {
        // Another process may take the port before the server binds it.
        let mut attempts = (0..5).map(|_| self.try_at(free_address()));
        attempts.find_map(|started| started).expect("named found no port")
    }

    /// The same at a given address, such as that of a server that has ended.
    pub fn start_at(&self, address: SocketAddr) -> Bind {
        self.try_at(address).unwrap_or_else(|| panic!("{address} is in use"))
    }

    fn try_at(&self, address: SocketAddr) -> Option<Bind> {
        let (folder, control) = (tempfile::tempdir().unwrap(), free_address());
        let config = self.write(folder.path(), address, control);
        let (child, log) = run_named(folder.path(), &config);
        // Dropped, it is killed.
        let mut bind = Bind { folder, child, address, control, log };
        let zones = if self.zone_names.is_empty() { vec![".".to_owned()] } else { self.zone_names.clone() };
        zones.iter().all(|zone| answers(address, zone, &mut bind.child, &bind.log)).then_some(bind)
    }
}

/// A server with a configuration file from elsewhere. Dropped, it is killed and waited for.
pub struct Named {
    child: Child,
    pub log: Lines,
    _folder: tempfile::TempDir,
}

impl Named {
    /// Starts it; its log contains `running` when it is ready.
    pub fn start(config: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (child, log) = run_named(folder.path(), config);
        eventually("named to run", || log.all().iter().any(|line| line.ends_with(" running")).then_some(()));
        Self { child, log, _folder: folder }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run_named(folder: &Path, config: &Path) -> (Child, Lines) {
    let named = unconfined(&program("named").unwrap(), folder);
    let mut child = Command::new(named)
        .arg("-g")
        .args(["-n", "1", "-c"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Lines::default();
    log.follow(child.stderr.take().unwrap());
    (child, log)
}

/// A copy of the program: `AppArmor` confines `/usr/sbin/named` to the machine's own folders.
fn unconfined(named: &Path, folder: &Path) -> PathBuf {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|enabled| enabled.starts_with('Y')) {
        return named.to_owned();
    }
    let copy = folder.join("named");
    tool::copy_program(named, &copy);
    copy
}

/// Waits until the server at `address` answers for `zone`; `false` if its port was taken.
fn answers(address: SocketAddr, zone: &str, child: &mut Child, log: &Lines) -> bool {
    eventually("named to answer", || {
        if log.all().iter().any(|line| line.contains("address in use")) {
            return Some(false);
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!("named ended with {status}:\n{}", log.all().join("\n"));
        }
        let soa = dig(address, &[zone, "SOA"]);
        (soa.contains("status: NOERROR") && soa.contains("ANSWER: 1")).then_some(true)
    })
}

/// What `dig` prints when it asks the server at `address`.
pub fn dig(address: SocketAddr, question: &[&str]) -> String {
    ask(address, question).stdout
}

fn ask(address: SocketAddr, question: &[&str]) -> tool::Ended {
    let server = format!("@{}", address.ip());
    let port = address.port().to_string();
    let mut command = Command::new(program("dig").unwrap());
    command.args(["-r", "+noidnin", "+tries=3", "+time=5", &server, "-p", &port]).args(question);
    tool::run(&mut command)
}

/// The values of the TXT records of `name` at the server at `address`, sorted.
pub fn txt(address: SocketAddr, name: &str) -> Vec<String> {
    let answer = ask(address, &["+short", name, "TXT"]);
    assert_eq!(answer.code, 0, "{address} does not answer: {answer:?}");
    let mut values: Vec<String> = answer.stdout.lines().map(|line| line.trim_matches('"').to_owned()).collect();
    values.sort();
    values
}

impl Bind {
    /// The file of one key.
    pub fn key_file(&self, key: &str) -> PathBuf {
        self.folder.path().join(format!("{}.key", key.trim_end_matches('.')))
    }

    /// The DNSKEY record that signs a [signed](BindConfig::signed) zone, once all is signed.
    pub fn trust_anchor(&self, zone: &str) -> String {
        eventually("the zone to be signed", || {
            dig(self.address, &["+dnssec", &format!("absent.{zone}"), "TXT"]).contains("NSEC").then_some(())
        });
        let key = dig(self.address, &["+short", "+nosplit", zone, "DNSKEY"]);
        format!("{zone}. DNSKEY {}", key.lines().next().unwrap())
    }

    /// Settings that send updates and queries only to this server.
    pub fn settings(&self, key: &str) -> DnsSettings {
        settings(self.address, &self.key_file(key))
    }

    /// The values of the TXT records of `name`, sorted.
    pub fn txt(&self, name: &str) -> Vec<String> {
        txt(self.address, name)
    }

    /// Sends this secondary a NOTIFY for `zone`.
    pub fn notify(&self, zone: &str) {
        let answer = dig(self.address, &["+opcode=notify", zone, "SOA"]);
        assert!(answer.contains("status: NOERROR"), "{answer}");
    }

    /// Changes a zone with `key` by one line of `nsupdate`.
    pub fn nsupdate(&self, key: &str, line: &str) {
        let file = self.folder.path().join("update");
        let (ip, port) = (self.address.ip(), self.address.port());
        std::fs::write(&file, format!("server {ip} {port}\n{line}\nsend\n")).unwrap();
        let mut command = Command::new(program("nsupdate").unwrap());
        let ended = tool::run(command.arg("-k").arg(self.key_file(key)).arg(file));
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }

    /// Ends it, edits its folder, and starts it again.
    pub fn restart(&mut self, edit: impl FnOnce(&Path)) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        edit(self.folder.path());
        (self.child, self.log) = run_named(self.folder.path(), &self.folder.path().join("named.conf"));
        eventually("named to run", || self.log.all().iter().any(|line| line.ends_with(" running")).then_some(()));
    }

    /// Runs `rndc`; what it prints.
    pub fn rndc(&self, args: &[&str]) -> String {
        let mut command = Command::new(program("rndc").unwrap());
        command.arg("-c").arg(self.folder.path().join("rndc.conf")).args(["-y", "control", "-s"]);
        let (ip, port) = (self.control.ip().to_string(), self.control.port().to_string());
        let ended = tool::run(command.args([&ip, "-p", &port]).args(args));
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.all().join("\n")
    }

    /// Kills it and returns its address.
    pub fn kill(self) -> SocketAddr {
        self.address
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Settings with this server as resolver, primary and only authority.
pub fn settings(address: SocketAddr, key_file: &Path) -> DnsSettings {
    DnsSettings {
        primary: address.to_string(),
        tsig_key_file: key_file.to_owned(),
        tsig_key_name: None,
        zone: None,
        resolvers: vec![address.to_string()],
        authorities: vec![address.to_string()],
        ttl_s: 1,
        propagation_timeout_s: TIMEOUT.as_secs(),
        settle_s: 0,
    }
}

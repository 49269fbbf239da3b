//! A LAN inside a [namespace](super::namespace): a DHCP server at one end of a veth pair, and at the other a client
//! that sends DISCOVER and reads the OFFER, like a booting phone.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Stopwatch;
use super::tool::{copy_program, run};

/// The server's end, with the address [`SERVER`]/24.
const SERVER_END: &str = "lan0";
/// The client's end, without an address.
const CLIENT_END: &str = "lan1";
const SERVER: &str = "192.0.2.1";

/// The file name of the server's log.
const LOG: &str = "log";

/// What a DHCP server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub address: Ipv4Addr,
    pub options: BTreeMap<u8, Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Dhcpd,
    Kea,
    Dnsmasq,
}

/// A DHCP server as a process. Dropped, it is killed and waited for.
pub struct DhcpServer {
    child: Child,
    folder: tempfile::TempDir,
}

/// Creates the LAN; false if the machine has no veth devices.
pub fn create() -> bool {
    let ip = |line: &str| run(Command::new("ip").args(line.split(' ')));
    if ip(&format!("link add {SERVER_END} type veth peer name {CLIENT_END}")).code != 0 {
        return false;
    }
    for line in [
        &format!("addr add {SERVER}/24 dev {SERVER_END}"),
        &format!("link set {SERVER_END} up"),
        &format!("link set {CLIENT_END} up"),
    ] {
        let ended = ip(line);
        assert_eq!(ended.code, 0, "{line}: {}", ended.stderr);
    }
    // Both ends belong to one machine, so the source of each packet is a local address.
    for end in ["all", SERVER_END, CLIENT_END] {
        let settings = Path::new("/proc/sys/net/ipv4/conf").join(end);
        fs::write(settings.join("accept_local"), "1").unwrap();
        fs::write(settings.join("rp_filter"), "0").unwrap();
    }
    true
}

impl DhcpServer {
    /// Starts `program` with `config`.
    pub fn start(program: Program, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("dhcp.conf"), config).unwrap();
        let (name, arguments) = match program {
            Program::Dhcpd => {
                fs::write(at("leases"), "").unwrap();
                (
                    "dhcpd",
                    ["-4", "-f", "-d", "--no-pid", "-cf", &at("dhcp.conf"), "-lf", &at("leases"), SERVER_END]
                        .map(str::to_owned)
                        .to_vec(),
                )
            }
            Program::Kea => ("kea-dhcp4", vec!["-c".to_owned(), at("dhcp.conf")]),
            Program::Dnsmasq => ("dnsmasq", vec!["--no-daemon".to_owned(), "-C".to_owned(), at("dhcp.conf")]),
        };
        // AppArmor may confine these programs to some folders; a copy is not confined.
        let copy = folder.path().join(name);
        let found = run(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", name]));
        copy_program(Path::new(found.stdout.trim()), &copy);
        let output = fs::File::create(at(LOG)).unwrap();
        let mut command = Command::new(copy);
        command.args(arguments).current_dir(folder.path()).stdin(Stdio::null());
        command.env("KEA_PIDFILE_DIR", folder.path()).env("KEA_LOCKFILE_DIR", "none");
        command.stdout(output.try_clone().unwrap()).stderr(output);
        Self { child: command.spawn().unwrap(), folder }
    }

    /// The offer to the client `mac` that requests the options `wanted`. The client repeats its DISCOVER until it gets
    /// one.
    #[track_caller]
    pub fn offer(&mut self, mac: &str, wanted: &[u8]) -> Offer {
        self.offer_for(mac, wanted, None)
    }

    /// The same for a client that requests a lease of `lease` seconds.
    #[track_caller]
    pub fn offer_for(&mut self, mac: &str, wanted: &[u8], lease: Option<u32>) -> Offer {
        let socket = client_socket();
        let discover = discover(mac, wanted, lease);
        let watch = Stopwatch::start();
        while !watch.is_over() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the DHCP server ended with {status}:\n{}", self.log());
            }
            // Fails until the server listens.
            let _ = socket.send_to(&discover, SocketAddr::from((Ipv4Addr::BROADCAST, 67)));
            let mut packet = [0; 1500];
            while let Ok(length) = socket.recv(&mut packet) {
                if let Some(offer) = offer_in(&packet[..length], &discover) {
                    return offer;
                }
            }
        }
        panic!("{mac} was offered nothing:\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The configuration of a server of the LAN with the further options `more`.
pub fn config(program: Program, more: &str) -> String {
    match program {
        Program::Dhcpd => format!(
            "authoritative;\nping-check false;\nsubnet 192.0.2.0 netmask 255.255.255.0 {{ range 192.0.2.100 192.0.2.120; }}\n{more}\n"
        ),
        Program::Dnsmasq => format!(
            "port=0\ninterface={SERVER_END}\nbind-interfaces\nno-ping\nuser=root\nleasefile-ro\npid-file=\n\
             dhcp-range=192.0.2.100,192.0.2.120,1h\n{more}\n"
        ),
        Program::Kea => panic!("Kea's configuration is JSON"),
    }
}

/// The same for Kea.
pub fn kea_config() -> serde_json::Value {
    serde_json::json!({ "Dhcp4": {
        "interfaces-config": { "interfaces": [SERVER_END] },
        "lease-database": { "type": "memfile", "persist": false },
        "subnet4": [{ "subnet": "192.0.2.0/24", "pools": [{ "pool": "192.0.2.100 - 192.0.2.120" }] }],
    } })
}

fn client_socket() -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(CLIENT_END.as_bytes())).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.into()
}

/// RFC 2131 §2: the fixed fields, then options, and of these first the type DISCOVER.
fn discover(mac: &str, wanted: &[u8], lease: Option<u32>) -> Vec<u8> {
    let hardware: Vec<u8> = (0..6).map(|pair| u8::from_str_radix(&mac[2 * pair..2 * pair + 2], 16).unwrap()).collect();
    // BOOTREQUEST, Ethernet, six bytes of address, no hops; the transaction number is from the MAC address.
    let mut packet = vec![1, 1, 6, 0];
    packet.extend(&hardware[2..6]);
    // The broadcast flag.
    packet.extend([0, 0, 0x80, 0]);
    packet.extend([0; 16]);
    packet.extend(&hardware);
    packet.resize(236, 0);
    packet.extend([99, 130, 83, 99, 53, 1, 1]);
    if let Some(lease) = lease {
        packet.extend([51, 4]);
        packet.extend(lease.to_be_bytes());
    }
    packet.extend([55, u8::try_from(wanted.len()).unwrap()]);
    packet.extend(wanted);
    packet.push(255);
    packet.resize(packet.len().max(300), 0);
    packet
}

/// The OFFER in `packet`, if it answers `discover`.
fn offer_in(packet: &[u8], discover: &[u8]) -> Option<Offer> {
    let is_answer = packet.len() > 240 && packet[0] == 2 && packet[4..8] == discover[4..8];
    if !is_answer {
        return None;
    }
    let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let mut rest = &packet[240..];
    while let [code, after @ ..] = rest {
        match (code, after) {
            (0, after) => rest = after,
            (255, _) => break,
            (code, [length, after @ ..]) => {
                let (value, after) = after.split_at(usize::from(*length));
                options.entry(*code).or_default().extend(value);
                rest = after;
            }
            _ => break,
        }
    }
    let address: [u8; 4] = packet[16..20].try_into().unwrap();
    (options.get(&53)? == &[2]).then(|| Offer { address: address.into(), options })
}

impl Offer {
    /// An option's value as text. dnsmasq ends some with a zero byte.
    pub fn text(&self, code: u8) -> Option<String> {
        let value = self.options.get(&code)?;
        Some(String::from_utf8(value.clone()).unwrap().trim_end_matches('\0').to_owned())
    }

    /// The lease time, in seconds.
    pub fn lease(&self) -> u32 {
        u32::from_be_bytes(self.options[&51][..].try_into().unwrap())
    }
}

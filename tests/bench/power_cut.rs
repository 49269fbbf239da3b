//! A power cut: all phones boot at once, each from its own address with its own certificate. None retries.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::load;
use super::machine::CpuTime;
use super::servers::Server;
use super::site::{HOST, SITE_FILE, SMALL_FILE, Site};
use super::table::Sample;

/// The requests of a booting phone, `{mac}` being its own, and the expected statuses.
const BOOT: [(&str, u16); 10] = [
    ("/{mac}.cfg", 404),
    (SMALL_FILE, 200),
    (SITE_FILE, 200),
    ("/{mac}-phone.cfg", 404),
    ("/{mac}-web.cfg", 404),
    ("/000000000000-license.cfg", 404),
    ("/{mac}-license.cfg", 404),
    ("/{mac}-calls.xml", 404),
    ("/{mac}-directory.xml", 404),
    ("/000000000000-directory.xml", 404),
];

struct Phone {
    mac: String,
    source: IpAddr,
    connector: TlsConnector,
}

pub struct Phones(Vec<Arc<Phone>>);

impl Phones {
    /// The first phones of the site's list, `count` of them.
    pub fn new(site: &Site, count: usize) -> Self {
        eprintln!("certificates of {count} phones");
        let phones = site.phones(count).into_iter().enumerate().map(|(number, (mac, identity))| {
            let byte = |number: usize| u8::try_from(number % 250).unwrap();
            let source = IpAddr::from([127, 1 + byte(number / 62_500), byte(number / 250), 1 + byte(number)]);
            Arc::new(Phone { mac, source, connector: load::phone_connector(site, &identity) })
        });
        Self(phones.collect())
    }

    /// Boots all phones at once. A failed request ends the benchmark.
    pub async fn boot(&self, server: &Server) -> Sample {
        let power = Arc::new(Barrier::new(self.0.len() + 1));
        let mut boots = JoinSet::new();
        for phone in &self.0 {
            let (phone, power, address) = (Arc::clone(phone), Arc::clone(&power), server.address);
            boots.spawn(async move {
                power.wait().await;
                phone.boot(address).await
            });
        }
        let before = CpuTime::of(server.pid());
        power.wait().await;
        let began = Instant::now();
        let mut failures = Vec::new();
        while let Some(boot) = boots.join_next().await {
            failures.extend(boot.unwrap().err());
        }
        let elapsed = began.elapsed();
        let (phones, program) = (self.0.len(), server.program);
        assert!(failures.is_empty(), "{program:?}: {} of {phones} phones failed: {:?}", failures.len(), failures[0]);
        // Lets the server process the last closes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let used = CpuTime::of(server.pid()).since(&before);
        eprintln!("{program:?}: {phones} of {phones} phones provisioned in {:.2} s", elapsed.as_secs_f64());
        Sample { used, elapsed, amount: phones as f64 }
    }
}

impl Phones {
    /// Boots one phone after another for `time`, one in each `interval` even if those before are slow. Returns how long
    /// each boot took.
    pub async fn boot_in_turn(&self, server: &Server, interval: Duration, time: Duration) -> Vec<io::Result<Duration>> {
        let mut ticks = tokio::time::interval(interval);
        let deadline = Instant::now() + time;
        let mut boots = JoinSet::new();
        for phone in self.0.iter().cycle() {
            ticks.tick().await;
            if Instant::now() > deadline {
                break;
            }
            let (phone, address) = (Arc::clone(phone), server.address);
            boots.spawn(async move {
                let began = Instant::now();
                phone.boot(address).await.map(|()| began.elapsed())
            });
        }
        boots.join_all().await
    }
}

impl Phone {
    async fn boot(&self, address: SocketAddr) -> io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.source, 0))?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let mut tls = self.connector.connect(ServerName::try_from(HOST).unwrap(), stream).await?;
        for (path, status) in BOOT {
            get(&mut tls, &path.replace("{mac}", &self.mac), status).await?;
        }
        tls.shutdown().await
    }
}

/// Asks for `path`, reads the whole answer and checks it.
async fn get(tls: &mut TlsStream<TcpStream>, path: &str, status: u16) -> io::Result<()> {
    let failed = |what: &str| io::Error::other(format!("{path}: {what}"));
    tls.write_all(&load::get(path)).await?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let head = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if tls.read_buf(&mut buffer).await? == 0 {
            return Err(failed("closed"));
        }
    };
    let text = std::str::from_utf8(&buffer[..head]).map_err(|_| failed("not text"))?;
    if !text.starts_with(&format!("HTTP/1.1 {status} ")) {
        return Err(failed(text));
    }
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
    });
    let end = head + length.ok_or_else(|| failed("no length"))?;
    while buffer.len() < end {
        if tls.read_buf(&mut buffer).await? == 0 {
            return Err(failed("broken off"));
        }
    }
    Ok(())
}

//! Whole boots against a small server in this process: the order of requests, and the report of each refusal.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;

mod over_tls;

const MASTER: &str = r#"<APPLICATION APP_FILE_PATH="sip.ld" CONFIG_FILES="[PHONE_MAC_ADDRESS]-user.cfg, site.cfg"/>"#;

/// A server with some files and fixed responses for other paths. It records the requests.
#[derive(Default)]
struct Server {
    files: Mutex<HashMap<String, Vec<u8>>>,
    answers: HashMap<(Method, String), StatusCode>,
    seen: Mutex<Vec<(Method, String, HeaderMap)>>,
    connections: Mutex<usize>,
    lied_size: Option<u64>,
    /// Whether it closes the connection after each response.
    closes: bool,
    /// Whether it asks for a password even after an answer.
    asks: bool,
}

impl Server {
    fn with_files(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
        Self { files: Mutex::new(files), ..Self::default() }
    }

    fn answering(mut self, method: Method, path: &str, status: StatusCode) -> Self {
        self.answers.insert((method, path.to_owned()), status);
        self
    }

    fn requests(&self) -> Vec<String> {
        let program = |headers: &HeaderMap| {
            let user_agent = headers[header::USER_AGENT].to_str().unwrap();
            user_agent.rsplit_once("Type/").unwrap().1.to_owned()
        };
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(method, path, headers)| format!("{method} {path} {}", program(headers))).collect()
    }

    async fn answer(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        self.seen.lock().unwrap().push((head.method.clone(), path.clone(), head.headers.clone()));
        let answer = |status, body: Vec<u8>| {
            let mut answer = http::Response::new(Full::from(body));
            *answer.status_mut() = status;
            answer
        };
        if self.asks && !head.headers.contains_key(header::AUTHORIZATION) {
            let mut asks = answer(StatusCode::UNAUTHORIZED, Vec::new());
            let challenge = "Digest realm=\"r\", qop=\"auth\", algorithm=MD5, nonce=\"n\"";
            asks.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            return asks;
        }
        if let Some(status) = self.answers.get(&(head.method.clone(), path.clone())) {
            return answer(*status, Vec::new());
        }
        if head.method == Method::PUT {
            let body = body.collect().await.unwrap().to_bytes();
            return self.put(path, &head.headers, &body);
        }
        match self.files.lock().unwrap().get(&path) {
            Some(_) if head.method == Method::HEAD && self.lied_size.is_some() => {
                let mut reply = answer(StatusCode::OK, Vec::new());
                reply.headers_mut().insert(header::CONTENT_LENGTH, self.lied_size.unwrap().into());
                reply
            }
            Some(text) => answer(StatusCode::OK, text.clone()),
            None => answer(StatusCode::NOT_FOUND, Vec::new()),
        }
    }

    fn put(&self, path: String, headers: &HeaderMap, body: &[u8]) -> http::Response<Full<Bytes>> {
        let mut files = self.files.lock().unwrap();
        let file = files.entry(path).or_default();
        let mut answer = http::Response::new(Full::default());
        let start = headers.get(header::CONTENT_RANGE).map(|range| {
            let range = range.to_str().unwrap().strip_prefix("bytes ").unwrap();
            range.split_once('-').unwrap().0.parse::<usize>().unwrap()
        });
        if start.is_some_and(|start| start != file.len()) {
            *answer.status_mut() = StatusCode::CONFLICT;
            let size = format!("bytes */{}", file.len()).parse().unwrap();
            answer.headers_mut().insert(header::CONTENT_RANGE, size);
        } else {
            file.truncate(start.unwrap_or(0));
            file.extend_from_slice(body);
            *answer.status_mut() = StatusCode::NO_CONTENT;
        }
        answer
    }
}

/// Serves until the set is dropped.
async fn listen(server: &Arc<Server>, tls: Option<ServerConfig>, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::clone(server);
    let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let tcp = listener.accept().await.unwrap().0;
            *server.connections.lock().unwrap() += 1;
            let (server, acceptor) = (Arc::clone(&server), acceptor.clone());
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let server = Arc::clone(&server);
                    async move {
                        let closes = server.closes;
                        let mut answer = server.answer(request).await;
                        if closes {
                            answer.headers_mut().insert(header::CONNECTION, "close".parse().unwrap());
                        }
                        Ok::<_, Infallible>(answer)
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                // Some of these tests close the connection early.
                match acceptor {
                    None => drop(http.serve_connection(TokioIo::new(tcp), service).await),
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(tcp).await {
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                }
            });
        }
    });
    address
}

fn phone() -> VirtualPhone {
    VirtualPhone::new("00005e00530c".parse().unwrap())
}

fn sound_point() -> VirtualPhone {
    VirtualPhone { model: "SPIP_550".to_owned(), firmware: "4.0.15.1047".to_owned(), ..phone() }
}

/// The requests that proved a password.
fn proofs(server: &Server) -> usize {
    server.seen.lock().unwrap().iter().filter(|(_, _, headers)| headers.contains_key(header::AUTHORIZATION)).count()
}

async fn boot_in_the_clear(server: &Arc<Server>, phone: &VirtualPhone) -> BootReport {
    let mut tasks = JoinSet::new();
    let address = listen(server, None, &mut tasks).await;
    let url = format!("http://ote.phones.localhost:{}/", address.port()).parse().unwrap();
    let target = BootTarget { url, server_roots: Arc::new(RootCertStore::empty()), resolve: None, password: None };
    boot(phone, &target, None, &mut ()).await
}

/// The requests of a recorded boot. `{config}` becomes the two entries of [`MASTER`].
fn trace(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let lines = lines.flat_map(|line| {
        if line.contains("{config}") {
            vec![line.replace("{config}", "{mac}-user.cfg"), line.replace("{config}", "site.cfg")]
        } else {
            vec![line]
        }
    });
    lines.map(|line| line.replace("{mac}", "00005e00530c")).collect()
}

#[tokio::test]
async fn boot_makes_the_requests_of_a_recorded_boot() {
    let vvx = include_str!("../../../tests/suite/traces/vvx-500-5.9.7.txt");
    let sound_point_550 = include_str!("../../../tests/suite/traces/soundpoint-550-4.0.15.txt");
    for (phone, recorded, requests) in [(phone(), vvx, 15), (sound_point(), sound_point_550, 8)] {
        let server = Arc::new(Server::with_files(&[("/000000000000.cfg", MASTER), ("/site.cfg", "<a/>")]));
        let report = boot_in_the_clear(&server, &phone).await;
        assert!(report.is_provisioned(), "{}", report.outcome);
        assert_eq!(server.requests(), trace(recorded));
        assert_eq!(report.exchanges.len(), requests);
        assert_eq!(*server.connections.lock().unwrap(), 1, "one connection carries it all");
    }
}

#[tokio::test]
async fn server_that_closes_after_each_response_works() {
    let server = Server { closes: true, ..Server::with_files(&[("/000000000000.cfg", MASTER)]) };
    let server = Arc::new(server);
    let report = boot_in_the_clear(&server, &phone()).await;
    assert!(report.is_provisioned(), "{}", report.outcome);
    assert_eq!(*server.connections.lock().unwrap(), 15);
    assert!(report.duration < std::time::Duration::from_secs(10), "{:?}", report.duration);
}

#[tokio::test]
async fn log_append_follows_head_size_then_409_size() {
    let log = "/logs/00005e00530c-app.log";
    for lied_size in [None, Some(7)] {
        let master = r#"<APPLICATION LOG_FILE_DIRECTORY="logs"/>"#;
        let mut server = Server::with_files(&[("/00005e00530c.cfg", master), (log, "old\n")]);
        server.lied_size = lied_size;
        let server = Arc::new(server);
        let report = boot_in_the_clear(&server, &phone()).await;
        assert!(report.is_provisioned(), "{}", report.outcome);
        let last = report.exchanges.last().unwrap();
        assert_eq!((last.status, &last.remark), (Some(StatusCode::NO_CONTENT), &Some(Remark::AppendedAt(4))));
        let text = String::from_utf8(server.files.lock().unwrap()[log].clone()).unwrap();
        assert!(text.starts_with("old\n") && text.contains("GET /00005e00530c.cfg 200"), "{text}");
        assert_eq!(text.len() as u64, 4 + last.sent);
        let seen = server.seen.lock().unwrap();
        assert_eq!(seen.last().unwrap().2[header::EXPECT], "100-continue");
    }
}

#[tokio::test]
async fn refused_logs_and_firmware_do_not_stop_a_boot() {
    let server = Server::with_files(&[("/000000000000.cfg", MASTER)])
        .answering(Method::PUT, "/00005e00530c-boot.log", StatusCode::FORBIDDEN)
        .answering(Method::GET, "/3111-44500-001.sip.ld", StatusCode::FORBIDDEN)
        .answering(Method::PUT, "/00005e00530c-app.log", StatusCode::INSUFFICIENT_STORAGE);
    let report = boot_in_the_clear(&Arc::new(server), &phone()).await;
    assert!(report.is_provisioned(), "{}", report.outcome);
    let remark = |step| report.exchanges.iter().rfind(|exchange| exchange.step == step).unwrap().remark.clone();
    assert_eq!(remark(BootStep::BootLog), Some(Remark::LogLost(StatusCode::FORBIDDEN)));
    assert_eq!(remark(BootStep::Firmware), Some(Remark::FirmwareKept(StatusCode::FORBIDDEN)));
    assert_eq!(remark(BootStep::AppLog), Some(Remark::LogLost(StatusCode::INSUFFICIENT_STORAGE)));
}

#[tokio::test]
async fn failed_boot_reports_its_reason() {
    let get = |path, status| Server::with_files(&[("/000000000000.cfg", MASTER)]).answering(Method::GET, path, status);
    for (server, expected) in [
        (Server::default(), "neither 00005e00530c.cfg nor 000000000000.cfg"),
        (
            Server::with_files(&[("/00005e00530c.cfg", "<APPLICATION")]),
            "00005e00530c.cfg cannot be read: the file ends within a tag",
        ),
        (get("/00005e00530c.cfg", StatusCode::FORBIDDEN), "/00005e00530c.cfg: refused (403)"),
        (get("/00005e00530c.cfg", StatusCode::MISDIRECTED_REQUEST), "/00005e00530c.cfg: 421"),
        (get("/site.cfg", StatusCode::FORBIDDEN), "/site.cfg: refused (403)"),
        (get("/site.cfg", StatusCode::BAD_GATEWAY), "/site.cfg: the server failed (502"),
        (get("/site.cfg", StatusCode::FOUND), "/site.cfg: a phone cannot use a response with status 302"),
        (
            Server::with_files(&[("/000000000000.cfg", r#"<APPLICATION CONFIG_FILES="tftp://h/x"/>"#)]),
            "use https or http",
        ),
    ] {
        let report = boot_in_the_clear(&Arc::new(server), &phone()).await;
        assert!(report.outcome.to_string().contains(expected), "{} ≠ {expected}", report.outcome);
    }
}

#[tokio::test]
async fn unreachable_server_is_reported() {
    let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let url = format!("http://localhost:{}/", free.port()).parse().unwrap();
    let target = BootTarget { url, server_roots: Arc::new(RootCertStore::empty()), resolve: None, password: None };
    let report = boot(&phone(), &target, None, &mut ()).await;
    assert!(report.outcome.to_string().contains("cannot be reached"), "{}", report.outcome);
    assert_eq!(report.exchanges.len(), 1);
}

#[tokio::test]
async fn fleet_of_phones_boots_concurrently() {
    let server = Arc::new(Server::with_files(&[("/000000000000.cfg", MASTER)]));
    let mut tasks = JoinSet::new();
    let address = listen(&server, None, &mut tasks).await;
    let url = "http://anything.example/".parse().unwrap();
    let target =
        BootTarget { url, server_roots: Arc::new(RootCertStore::empty()), resolve: Some(address), password: None };
    let phones = (0..20).map(|steps| (phone().neighbor(steps), None)).collect();
    let summary = boot_fleet(phones, &target, 8, |_| ()).await;
    assert!(summary.all_provisioned());
    assert_eq!((summary.phones, summary.requests), (20, 300));
    assert!(summary.slowest.is_some());
}

/// The files directly in a shipped constituency, by request path.
fn shipped(constituency: &str) -> Server {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("constituencies").join(constituency);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (format!("/{}", entry.file_name().to_str().unwrap()), std::fs::read(entry.path()).unwrap())
    });
    Server { files: Mutex::new(files.collect()), ..Server::default() }
}

#[tokio::test]
async fn shipped_constituencies_provision_their_three_phones() {
    for (constituency, firmware) in
        [("ucs-5-9", ["5.9.7.4477", "5.9.7.4477", "5.9.7.4477"]), ("ote", ["5.9.8", "6.4.6", "6.4.6"])]
    {
        let server = Arc::new(shipped(constituency));
        let phones = [("00005e00530c", "VVX_500"), ("00005e0053c7", "VVX_550"), ("00005e0053ee", "VVX_601")];
        for ((mac, model), firmware) in phones.into_iter().zip(firmware) {
            let phone = VirtualPhone { model: model.to_owned(), ..VirtualPhone::new(mac.parse().unwrap()) };
            let report = boot_in_the_clear(&server, &phone).await;
            assert!(report.is_provisioned(), "{constituency} {model}: {}", report.outcome);
            let of = |step| report.exchanges.iter().filter(move |exchange| exchange.step == step);
            let paths: Vec<_> = of(BootStep::Configuration).map(|exchange| exchange.path.as_str()).collect();
            assert!(paths.len() >= 2 && paths[0] == format!("/{mac}-user.cfg"), "{paths:?}");
            assert!(of(BootStep::Configuration).all(|exchange| exchange.status == Some(StatusCode::OK)), "{paths:?}");
            assert!(of(BootStep::Configuration).all(|exchange| exchange.remark.is_none()), "{paths:?}");
            let image = format!("/firmware/{firmware}/3111-44500-001.sip.ld");
            assert_eq!(of(BootStep::Firmware).next().unwrap().path, image);
        }
    }
}

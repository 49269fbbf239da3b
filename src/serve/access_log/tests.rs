//! Lines of the access log, normal and hostile.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

fn record() -> Box<AccessRecord> {
    Box::new(AccessRecord {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123),
        address: "192.0.2.1:50000".parse().unwrap(),
        constituency: Some("ote".parse().unwrap()),
        identity: ClientIdentity::Password("00005e00530c".parse().unwrap()),
        request: Some((Method::GET, "/00005e00530c.cfg?x=\"1".into())),
        status: Some(200),
        bytes: 1234,
        duration: Duration::from_micros(1500),
        user_agent: Some((*b"Polycom \"x\\\x1b\xff").into()),
        reason: None,
        kind: None,
        tls: Some(TlsResult::Agreed(ServedTls {
            version: ProtocolVersion::TLSv1_3,
            suite: CipherSuite::TLS13_AES_128_GCM_SHA256,
            is_tolerated: false,
            has_only_sha1: false,
        })),
    })
}

fn discarded() -> Arc<LineQueue> {
    Arc::new(LineQueue::start("test", 0, |_| {}, |_| {}).unwrap().0)
}

fn line(format: LogFormat, record: &AccessRecord) -> String {
    let mut line = String::new();
    format.line(record, &mut line);
    line
}

#[test]
fn text_line_has_the_documented_format() {
    let mut request = record();
    request.request = Some((Method::GET, "/a.cfg".into()));
    request.user_agent = Some((*b"FileTransport").into());
    assert_eq!(
        line(LogFormat::Text, &request),
        "2026-01-01T00:00:00.123Z 192.0.2.1:50000 ote 00005e00530c \"GET /a.cfg\" 200 1234 1.500ms \"FileTransport\" TLSv1.3/TLS13_AES_128_GCM_SHA256\n"
    );
    let refused = AccessRecord {
        constituency: None,
        identity: ClientIdentity::Anonymous,
        request: None,
        status: None,
        bytes: 0,
        user_agent: None,
        tls: None,
        reason: Some("offered only TLS 1.0".to_owned()),
        ..*request
    };
    assert_eq!(
        line(LogFormat::Text, &refused),
        "2026-01-01T00:00:00.123Z 192.0.2.1:50000 - - - - 0 1.500ms - - reason=\"offered only TLS 1.0\"\n"
    );
}

#[test]
fn json_line_has_every_key_even_without_value() {
    let value: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, &record())).unwrap();
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "address",
            "bytes",
            "constituency",
            "duration_ms",
            "mac",
            "method",
            "path",
            "reason",
            "status",
            "time",
            "tls",
            "user_agent"
        ]
    );
    assert_eq!(value["duration_ms"], 1.5);
    assert_eq!(value["reason"], serde_json::Value::Null);
}

#[test]
fn openssl_connection_is_logged_with_lane_old() {
    let tls = ServedTls {
        version: ProtocolVersion::TLSv1_0,
        suite: CipherSuite::TLS_RSA_WITH_AES_128_CBC_SHA,
        is_tolerated: true,
        has_only_sha1: false,
    };
    let old = AccessRecord { tls: Some(TlsResult::Agreed(tls)), ..*record() };
    let value: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, &old)).unwrap();
    assert_eq!(value["tls"], "TLSv1.0/TLS_RSA_WITH_AES_128_CBC_SHA/expired-certificate");
    assert_eq!(value["lane"], "old");
    assert!(
        line(LogFormat::Text, &old).ends_with(" TLSv1.0/TLS_RSA_WITH_AES_128_CBC_SHA/expired-certificate lane=old\n")
    );
    let sha1 = ServedTls { version: ProtocolVersion::TLSv1_2, is_tolerated: false, has_only_sha1: true, ..tls };
    let sha1 = AccessRecord { tls: Some(TlsResult::Agreed(sha1)), ..*record() };
    assert!(line(LogFormat::Text, &sha1).contains(" TLSv1.2-sha1/TLS_RSA_WITH_AES_128_CBC_SHA lane=old"));
    let refused = AccessRecord { tls: Some(TlsResult::OpensslFailed), reason: Some("why".to_owned()), ..*record() };
    assert!(line(LogFormat::Text, &refused).ends_with(" - lane=old reason=\"why\"\n"));
    let value: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, &refused)).unwrap();
    assert_eq!((&value["tls"], &value["lane"]), (&serde_json::Value::Null, &"old".into()));
}

#[test]
fn quotes_in_a_reason_stay_readable() {
    let mut refused = record();
    refused.reason = Some(r#"offered TLS 1.0; "tls": "legacy" would accept it"#.to_owned());
    let text = line(LogFormat::Text, &refused);
    assert!(text.ends_with(" reason=\"offered TLS 1.0; 'tls': 'legacy' would accept it\"\n"), "{text}");
}

#[test]
fn hostile_bytes_cannot_start_a_new_line() {
    let mut hostile = record();
    hostile.reason = Some("x\n\"forged\u{1b}[2J ä".to_owned());
    let text = line(LogFormat::Text, &hostile);
    assert_eq!(text.matches('\n').count(), 1);
    assert!(text.contains(r#" reason="x\x0A'forged\x1B[2J \xC3\xA4""#), "{text}");
    assert!(text.is_ascii());
    let json = line(LogFormat::Json, &hostile);
    assert_eq!(json.matches('\n').count(), 1);
    assert!(json.is_ascii(), "{json}");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["reason"],
        "x\\u{a}\"forged\\u{1b}[2J \\u{e4}"
    );
}

#[test]
fn escapes_in_a_reason_are_not_escaped_twice() {
    let mut refused = record();
    let reason = |reason: &str, format, record: &mut AccessRecord| {
        record.reason = Some(reason.to_owned());
        line(format, record)
    };
    let sent = r#"is not TLS (starts with "\xd0\x1b[2J\\")"#;
    let text = reason(sent, LogFormat::Text, &mut refused);
    assert!(text.ends_with(" reason=\"is not TLS (starts with '\\xd0\\x1b[2J\\\\')\"\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&reason(sent, LogFormat::Json, &mut refused)).unwrap();
    assert_eq!(json["reason"], sent);
    // One at the very end would keep a reader of quotes from seeing this one.
    for ended in ["name\\", "name\\\\"] {
        let text = reason(ended, LogFormat::Text, &mut refused);
        assert!(text.ends_with("\\x5C\"\n"), "{text}");
    }
}

#[test]
fn dropped_line_does_not_block_on_diagnostics() {
    struct Stuck;
    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            panic!("the request's thread writes diagnostics")
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (queue, _records) = sync_channel(0);
    let log = AccessLog { queue, lines: discarded() };
    let diagnostics = tracing_subscriber::fmt().with_writer(|| Stuck).finish();
    tracing::subscriber::with_default(diagnostics, || log.record(record()));
    assert_eq!(log.lost(), 1);
}

#[test]
fn blocked_output_does_not_block_the_observer() {
    struct Noting(Sender<Option<u16>>);
    impl Observer for Noting {
        fn saw(&self, record: Box<AccessRecord>) {
            self.0.send(record.status).unwrap();
        }
    }
    struct Unread(Receiver<()>);
    impl Write for Unread {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // Until the channel closes.
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let ((seen, observed), (reader, unread)) = (channel(), channel());
    let (log, writer) = AccessLog::start(LogFormat::Text, Unread(unread), Noting(seen)).unwrap();
    for status in 200..300 {
        log.record(Box::new(AccessRecord { status: Some(status), ..*record() }));
    }
    drop(log);
    assert_eq!(observed.iter().flatten().collect::<Vec<_>>(), (200..300).collect::<Vec<_>>());
    drop(reader);
    assert!(writer.wait(Duration::from_mins(1)));
}

#[test]
fn overlong_reason_is_truncated() {
    let mut long = record();
    long.reason = Some(format!("the issuer \"{}", "ä".repeat(50_000)));
    let (queue, records) = sync_channel(1);
    AccessLog { queue, lines: discarded() }.record(long);
    let QueuedEntry::Record(record) = records.recv().unwrap() else { panic!("a record was handed over") };
    let reason = record.reason.unwrap();
    assert!(reason.starts_with("the issuer \"ä"), "{reason}");
    assert!(reason.len() < 1100 && reason.ends_with("..."), "{reason}");
}

#[test]
fn writer_flushes_everything_before_it_ends() {
    #[derive(Clone, Default)]
    struct Shared(Arc<std::sync::Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let output = Shared::default();
    let (log, writer) = AccessLog::start(LogFormat::Text, output.clone(), ()).unwrap();
    for _ in 0..100 {
        log.record(record());
    }
    drop(log);
    assert!(writer.wait(Duration::from_mins(1)));
    assert_eq!(output.0.lock().unwrap().split(|byte| *byte == b'\n').count(), 101);
}

//! Tests of the text that Prometheus reads.

use super::*;

fn line(text: &str, metric: &str) -> String {
    text.lines().find(|line| line.starts_with(metric)).unwrap_or_else(|| panic!("no {metric} in\n{text}")).to_owned()
}

#[test]
fn counters_are_exposed_until_the_constituency_is_removed() {
    let metrics = Metrics::default();
    let name: ConstituencyName = "ote".parse().unwrap();
    let get = Observation {
        constituency: Some(&name),
        method: Some(&Method::GET),
        status: Some(200),
        refusal: None,
        bytes: 7,
    };
    metrics.observe(get);
    metrics.observe(get);
    metrics.observe(Observation { status: Some(403), refusal: Some(RefusalKind::UnknownPhone), bytes: 0, ..get });
    metrics.observe(Observation { method: Some(&Method::from_bytes(b"FROB").unwrap()), status: None, ..get });
    metrics.observe(Observation {
        constituency: None,
        method: None,
        status: None,
        refusal: Some(RefusalKind::UnknownServerName),
        bytes: 0,
    });
    metrics.handshakes.count(false);
    metrics.handshakes.count(true);
    metrics.handshakes.count(true);
    let spoken = TlsGauges {
        constituency: "ote".to_owned(),
        level: "legacy",
        version: "TLSv1.0".to_owned(),
        suite: "TLS_RSA_WITH_AES_128_CBC_SHA".to_owned(),
    };
    let mut facts = GaugeValues {
        constituencies: vec![("ote".to_owned(), true)],
        tls: [(spoken, 3)].into(),
        ..GaugeValues::default()
    };
    for exposition in [Exposition::OpenMetrics, Exposition::Plain] {
        let text = metrics.text(&facts, exposition).unwrap();
        for expected in [
            r#"provost_requests_total{constituency="ote",method="GET",code="200"} 2"#,
            r#"provost_requests_total{constituency="ote",method="GET",code="403"} 1"#,
            r#"provost_requests_total{constituency="ote",method="other",code="none"} 1"#,
            r#"provost_refusals_total{constituency="ote",reason="unknown_phone"} 1"#,
            r#"provost_refusals_total{constituency="",reason="unknown_name"} 1"#,
            r#"provost_sent_bytes_total{constituency="ote"} 21"#,
            r#"provost_handshakes_total{outcome="resumed"} 2"#,
            r#"provost_handshakes_total{outcome="refused"} 1"#,
            r#"provost_phones_tls{constituency="ote",level="legacy",version="TLSv1.0",suite="TLS_RSA_WITH_AES_128_CBC_SHA"} 3"#,
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
        }
    }
    assert_eq!(metrics.observed(), 5);
    facts.constituencies.clear();
    facts.tls.clear();
    let text = metrics.text(&facts, Exposition::Plain).unwrap();
    assert!(!text.contains("constituency=\"ote\""), "{text}");
    assert!(line(&text, "provost_refusals_total").contains("unknown_name"));
}

#[test]
fn both_expositions_have_their_format() {
    let text = |exposition| {
        Metrics::default().text(&GaugeValues { version: "1.2", ..GaugeValues::default() }, exposition).unwrap()
    };
    let (open, plain) = (text(Exposition::OpenMetrics), text(Exposition::Plain));
    assert!(open.ends_with("# EOF\n") && open.contains("# TYPE provost_handshakes counter"), "{open}");
    assert!(plain.contains("# TYPE provost_handshakes_total counter") && !plain.contains("EOF"), "{plain}");
    assert_eq!(line(&plain, "provost_build_info"), "provost_build_info{version=\"1.2\"} 1");
}

#[test]
fn totals_are_the_sums_of_the_constituencies_and_never_decrease() {
    let metrics = Metrics::default();
    let names: [ConstituencyName; 2] = ["home", "ote"].map(|name| name.parse().unwrap());
    for name in &names {
        let get = Observation {
            constituency: Some(name),
            method: Some(&Method::GET),
            status: Some(200),
            refusal: None,
            bytes: 7,
        };
        metrics.observe(get);
        metrics.observe(Observation { status: Some(403), refusal: Some(RefusalKind::UnknownPhone), ..get });
    }
    let mut facts = GaugeValues {
        detail: MetricsDetail::Totals,
        constituencies: names.iter().map(|name| (name.to_string(), true)).collect(),
        phones: [((String::new(), "well"), 5)].into(),
        seen: [(String::new(), 4)].into(),
        silent_together: [(String::new(), 3)].into(),
        ..GaugeValues::default()
    };
    for _ in 0..2 {
        let text = metrics.text(&facts, Exposition::Plain).unwrap();
        for expected in [
            r#"provost_requests_total{method="GET",code="200"} 2"#,
            r#"provost_requests_total{method="GET",code="403"} 2"#,
            r#"provost_refusals_total{reason="unknown_phone"} 2"#,
            "provost_sent_bytes_total 28",
            r#"provost_phones{state="well"} 5"#,
            "provost_phones_seen 4",
            "provost_phones_silent_together 3",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("constituency="), "{text}");
        // One is removed.
        facts.constituencies.truncate(1);
    }
}

#[test]
fn metrics_of_some_constituencies_have_no_others_and_drop_no_counter() {
    let metrics = Metrics::default();
    let names: [ConstituencyName; 2] = ["ote", "rival"].map(|name| name.parse().unwrap());
    for name in [Some(&names[0]), Some(&names[1]), None] {
        let get =
            Observation { constituency: name, method: Some(&Method::GET), status: Some(200), refusal: None, bytes: 7 };
        metrics.observe(get);
    }
    let of = |names: &[ConstituencyName]| names.iter().map(|name| (name.to_string(), true)).collect();
    let part = GaugeValues { is_part: true, constituencies: of(&names[..1]), ..GaugeValues::default() };
    let text = metrics.text(&part, Exposition::Plain).unwrap();
    let requests: Vec<_> = text.lines().filter(|line| line.starts_with("provost_requests_total{")).collect();
    assert_eq!(requests, [r#"provost_requests_total{constituency="ote",method="GET",code="200"} 1"#]);
    for whole in ["rival", "handshakes", "connections", "ledger", "access_log", "dns_queries"] {
        assert!(!text.contains(whole), "{whole}: {text}");
    }
    let all = GaugeValues { constituencies: of(&names), ..GaugeValues::default() };
    assert!(metrics.text(&all, Exposition::Plain).unwrap().contains("constituency=\"rival\""));
}

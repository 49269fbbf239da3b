use provost::status::page::{self, View};
use provost::status::picture::*;
const NOW: i64 = 1_795_552_267;
const DAY: i64 = 86_400;
fn ph(
    c: &str,
    mac: &str,
    state: PhoneState,
    note: &str,
    model: &str,
    fw: &str,
    addr: &str,
    ago: i64,
    refusal: Option<&str>,
) -> Phone {
    Phone {
        constituency: c.parse().unwrap(),
        mac: mac.parse().unwrap(),
        state,
        note: note.into(),
        first_seen: Some(NOW - 200 * DAY),
        last_seen: (ago >= 0).then_some(NOW - ago),
        address: Some(addr.into()).filter(|_| ago >= 0),
        model: Some(model.into()).filter(|m: &String| !m.is_empty()),
        firmware: Some(fw.into()).filter(|m: &String| !m.is_empty()),
        tls: Some("TLSv1.2/TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384".into()),
        certificate_not_after: Some(NOW + 2900 * DAY),
        configuration: Some((format!("/{mac}-user.cfg"), NOW - ago - 2)),
        upload: Some((format!("/logs/{mac}-app.log"), NOW - ago)),
        refusal: refusal.map(|r| (r.to_owned(), NOW - ago)),
        requests: 4821,
        refusals: if refusal.is_some() { 14 } else { 0 },
    }
}
fn main() {
    let out = std::env::args().nth(1).unwrap();
    let mut served = vec![];
    let mut refused = vec![];
    let mut hs = vec![];
    for i in 0..144u64 {
        let h = (i + 123) % 144 / 6;
        let base = if (7..19).contains(&h) { 40 + (i * 37 % 23) * 2 } else { 8 + (i * 17 % 7) };
        let b = if i % 36 == 20 { base * 3 } else { base };
        served.push(b);
        refused.push(if i % 11 == 3 { (i * 7) % 9 } else { 0 });
        hs.push(b / 4 + (i % 3));
    }
    let cert = |key: &str, nb: i64, na: i64, next: i64| Certificate {
        key: key.into(),
        names: vec!["*.phones.example.com".into()],
        issuer: Some("Let's Encrypt R12".into()),
        not_before: Some(NOW - nb * DAY),
        not_after: Some(NOW + na * DAY),
        source: "acme",
        next_attempt: Some(NOW + next * DAY),
        step: None,
        last_error: None,
        needs_human: false,
    };
    let cons = |name: &str, d: &str, url: Option<&str>, problem: Option<&str>, known, seen, refd| Constituency {
        name: name.into(),
        description: d.into(),
        url: url.map(Into::into),
        problem: problem.map(Into::into),
        known,
        seen_lately: seen,
        refused: refd,
        not_allowable: if name == "museum" {
            Some("/srv/provost/constituencies/museum cannot be written by provost".into())
        } else {
            None
        },
    };
    let phones = vec![
        ph(
            "ucs-5-9",
            "00005e005321",
            PhoneState::Refused,
            "Dr Okafor, reception",
            "VVX_601",
            "5.9.7.4477",
            "198.51.100.24",
            410,
            Some("its certificate expired on 2026-11-20"),
        ),
        ph(
            "ote",
            "00005e0053aa",
            PhoneState::Waiting,
            "",
            "VVX_450",
            "6.4.6.2453",
            "203.0.113.77",
            130,
            Some("00005e0053aa is not known to ote"),
        ),
        ph(
            "museum",
            "00005e0053b1",
            PhoneState::Waiting,
            "",
            "SSIP_6000",
            "4.0.15.1047",
            "198.51.100.180",
            5000,
            Some("00005e0053b1 is not known to museum"),
        ),
        ph(
            "ucs-5-9",
            "00005e005318",
            PhoneState::Silent,
            "the workshop",
            "SPIP_550",
            "4.0.15.1047",
            "198.51.100.91",
            4 * DAY,
            None,
        ),
        ph("ucs-5-9", "00005e005319", PhoneState::Never, "Ms Lindqvist, from December", "", "", "", -1, None),
        ph(
            "ucs-5-9",
            "00005e00530c",
            PhoneState::Well,
            "the kitchen",
            "VVX_500",
            "5.9.7.4477",
            "198.51.100.12",
            42,
            None,
        ),
        ph(
            "ucs-5-9",
            "00005e0053c7",
            PhoneState::Well,
            "front desk",
            "VVX_550",
            "5.9.7.4477",
            "198.51.100.12",
            190,
            None,
        ),
        ph(
            "ote",
            "00005e005330",
            PhoneState::Well,
            "test bench 1",
            "Edge_E450",
            "8.0.0.15602",
            "2001:db8:4:1::30",
            700,
            None,
        ),
        ph(
            "ote",
            "00005e005331",
            PhoneState::Well,
            "test bench 2",
            "CCX_600",
            "8.0.2.3267",
            "2001:db8:4:1::31",
            1900,
            None,
        ),
        ph(
            "household",
            "00005e005340",
            PhoneState::Well,
            "Grandmother's hall",
            "VVX_250",
            "6.4.6.2453",
            "203.0.113.9",
            3 * 3600,
            None,
        ),
        ph(
            "household",
            "00005e005341",
            PhoneState::Well,
            "upstairs",
            "VVX_250",
            "6.4.6.2453",
            "203.0.113.9",
            5 * 3600,
            None,
        ),
        ph(
            "ote",
            "00005e0053ff",
            PhoneState::Denied,
            "",
            "VVX_500",
            "5.9.7.4477",
            "192.0.2.200",
            9 * DAY,
            Some("00005e0053ff is kept out of ote"),
        ),
    ];
    let waiting = phones.iter().filter(|p| p.state == PhoneState::Waiting).cloned().collect();
    let o = Overview {
        now: NOW,
        version: "0.1.0",
        domain: "phones.example.com".into(),
        started: NOW - 12 * DAY,
        not_ready: None,
        certificates: vec![cert("RSA", 45, 45, 15), cert("ECDSA", 45, 45, 15)],
        constituencies: vec![
            cons("household", "Friends and family", Some("https://household.phones.example.com/"), None, Some(2), 2, 0),
            cons(
                "museum",
                "Loans to the museum",
                None,
                Some("constituency.json, line 3: unknown key \"phone\"; did you mean \"phones\"?"),
                Some(0),
                0,
                1,
            ),
            cons("ote", "Trial of firmware 6 and 8", Some("https://ote.phones.example.com/"), None, Some(3), 2, 1),
            cons(
                "ucs-5-9",
                "UC Software 5.9, production",
                Some("https://ucs-5-9.phones.example.com/"),
                None,
                Some(5),
                3,
                1,
            ),
        ],
        counts: Counts { known: 10, well: 6, silent: 2, refused: 1 },
        waiting,
        unproven: vec![Unproven {
            constituency: "ucs-5-9".parse().unwrap(),
            mac: "00005e00530c".parse().unwrap(),
            certificate_sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
            address: "192.0.2.66".into(),
            first_seen: NOW - DAY,
            last_seen: NOW - 7300,
            count: 41,
            reason: "its certificate is signed by itself".into(),
        }],
        activity: Activity { step_s: 600, since: (NOW / 600 - 143) * 600, served, refused, handshakes: hs },
        troubles: vec![],
    };
    let page = PhonePage { total: 12, matching: 12, phones };
    let q = PhoneQuery { limit: 100, ..Default::default() };
    let html = page::render(&View { overview: &o, phones: &page, query: &q, is_signed_in: true, has_token: true });
    std::fs::write(format!("{out}/index.html"), html).unwrap();
    let rq = |ago: i64, m: &str, t: &str, s: u16, b: u64, d: f64, r: Option<&str>| PhoneRequest {
        time_ms: (NOW - ago) * 1000,
        address: "203.0.113.77".into(),
        method: Some(m.into()),
        target: Some(t.into()),
        status: Some(s),
        bytes: b,
        duration_ms: d,
        reason: r.map(Into::into),
    };
    let h = PhoneHistory {
        phone: page.phones[1].clone(),
        requests: vec![
            rq(130, "GET", "/00005e0053aa.cfg", 403, 0, 0.4, Some("00005e0053aa is not known to ote")),
            rq(131, "GET", "/000000000000.cfg", 403, 0, 0.3, Some("00005e0053aa is not known to ote")),
            rq(9000, "GET", "/firmware/6.4.6.2453/3111-48450-001.sip.ld", 200, 93_000_000, 8123.0, None),
        ],
    };
    std::fs::write(format!("{out}/phone.html"), page::render_phone(&o, &h, true)).unwrap();
    std::fs::write(format!("{out}/style.css"), page::STYLE).unwrap();
    std::fs::write(format!("{out}/script.js"), page::SCRIPT).unwrap();
}

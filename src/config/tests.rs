//! The syntax of `provost.json`, and its error messages.

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/etc/provost/provost.json"), text).map_err(|error| error.to_string())
}

#[test]
fn documented_keys_parse_and_paths_are_relative() {
    let config = parse(
        r#"{ "domain": "Phones.Example.com.", "listen": ["0.0.0.0:443", "[::]:443"], "constituencies": "constituencies",
             "state": "/var/lib/provost",
             "certificate": { "files": [ { "chain": "rsa.pem", "key": "rsa.key" }, { "chain": "ec.pem", "key": "ec.key" } ] },
             "trust": { "acme-corp": ["trust/acme-root.pem", "trust/acme-issuing.der"] },
             "plain_http": { "listen": "192.168.1.5:80", "networks": ["192.168.0.0/16"] },
             "no_sni": "ucs-5-9", "tls": "modern", "log": "text", "limits": { },
             "status": { "listen": "unix:status.sock", "token_file": "token", "hosts": ["provost.example.com"] } }"#,
    )
    .unwrap();
    assert_eq!(config.domain, "phones.example.com");
    assert_eq!(config.state, Path::new("/var/lib/provost"));
    assert_eq!(config.trust["acme-corp"].files[1], Path::new("/etc/provost/trust/acme-issuing.der"));
    let CertificateSource::Files(pairs) = config.certificate else { panic!("files") };
    assert_eq!(pairs[1].key, Path::new("/etc/provost/ec.key"));
}

#[test]
fn single_listen_address_needs_no_list() {
    let listen = |listen: &str| {
        parse(&format!(r#"{{ "domain": "a.example", "certificate": {{ "local_ca": {{}} }}{listen} }}"#)).unwrap().listen
    };
    let one = listen(r#", "listen": "0.0.0.0:443""#);
    assert_eq!(one, ["0.0.0.0:443".parse().unwrap()]);
    assert_eq!(listen(r#", "listen": ["0.0.0.0:443"]"#), one);
    assert_eq!(listen(""), Config::default_listen());
}

#[test]
fn url_has_the_port_unless_it_is_443() {
    assert_eq!(Config::local().url("ote"), "https://ote.phones.localhost:8443/");
    let public = parse(r#"{ "domain": "phones.example.com", "certificate": { "local_ca": {} } }"#).unwrap();
    assert_eq!(public.url("ote"), "https://ote.phones.example.com/");
}

#[test]
fn errors_name_the_line_and_key() {
    let error = |text: &str| parse(text).unwrap_err();
    assert!(error("{}").contains("the key \"domain\" is missing"));
    assert!(error(r#"{"domain": "phones.example.com"}"#).contains("the key \"certificate\" is missing"));
    let certificate = r#""certificate": {"local_ca": {}}"#;
    let bad = error(&format!("{{{certificate},\n\"domain\": \"localhost\"}}"));
    assert!(bad.starts_with("/etc/provost/provost.json:2: \"domain\": invalid domain name \"localhost\""), "{bad}");
    let site = format!("\"domain\": \"a.example\", {certificate}");
    assert!(error(&format!("{{{site}, \"listen\": [\":443\"]}}")).contains("invalid address \":443\""));
    let one = error(&format!("{{{site}, \"listen\": \"443\"}}"));
    assert!(one.contains(": \"listen\": ") && one.contains("invalid address \"443\""), "{one}");
    assert!(error(&format!("{{{site}, \"listen\": []}}")).contains("name an address to listen on"));
    assert!(
        error(&format!("{{{site}, \"log\": \"xml\"}}"))
            .ends_with(": \"log\": must be one of \"text\", \"json\", not \"xml\"")
    );
    let misspelt = r#"{"domain": "a.example", "certificate": {"fles": []}}"#;
    assert!(error(misspelt).ends_with(":1:41: \"fles\": unknown key; did you mean \"files\"?"));
    for ways in [r#""local_ca": {}, "files": []"#, ""] {
        let bad = error(&format!("{{\"domain\": \"a.example\", \"certificate\": {{{ways}}}}}"));
        assert!(
            bad.ends_with(":1:40: \"certificate\": takes exactly one of \"acme\", \"files\" and \"local_ca\""),
            "{bad}"
        );
    }
    assert!(error("{\n\"domain\": \"a.example\",").ends_with("provost.json:2:22: the file ends before the closing }"));
    assert!(error(&format!("{{{site}, \"trust\": {{\"polycom\": []}}}}")).contains("built in"));
    assert!(error(&format!("{{{site}, \"no-sni\": \"a\"}}")).contains("did you mean \"no_sni\"?"));
    assert!(error(&format!("{{{site}, \"limits\": {{\"drain\": 1}}}}")).contains("did you mean \"drain_s\"?"));
    for (limit, value) in
        [("idle_s", "0"), ("header_s", "0"), ("stall_s", "86401"), ("handshake_s", "18446744073709551615")]
    {
        let bad = error(&format!("{{{site}, \"limits\": {{\"{limit}\": {value}}}}}"));
        assert!(bad.contains(&format!("\"limits\": {limit} is {value}; ")), "{bad}");
    }
    assert!(parse(&format!("{{{site}, \"limits\": {{\"drain_s\": 0, \"idle_s\": 86400}}}}")).is_ok());
}

#[test]
fn state_inside_constituencies_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("constituencies")).unwrap();
    std::os::unix::fs::symlink("constituencies", path("link")).unwrap();
    let check = |state: PathBuf| {
        Config { constituencies: path("constituencies"), state, ..Config::local() }.check_apart().is_ok()
    };
    assert!(check(path("state")));
    assert!(!check(path("constituencies/state")));
    assert!(!check(path("link/state")));
    assert!(!check(folder.path().to_owned()));
}

#[test]
fn control_character_in_path_or_name_is_rejected() {
    let certificate = r#""certificate": {"local_ca": {}}"#;
    let acme = |keys: &str| format!(r#""certificate": {{"acme": {{"terms_of_service_agreed": true, {keys}}}}}"#);
    let dns = r#""dns": {"primary": "ns1.example.com", "tsig_key_file": "k"}"#;
    let with = |more: &str| format!("{certificate},\n{more}");
    let bad = r"a\nExecStartPre=/bin/x";
    let cases = [
        (with(&format!(r#""state": "{bad}""#)), "state"),
        (with(&format!(r#""constituencies": "{bad}""#)), "constituencies"),
        (with(&format!(r#""trust": {{"acme": ["good.pem", "{bad}"]}}"#)), "trust.acme[1]"),
        (with(&format!(r#""trust": {{"acme": {{"files": ["{bad}"]}}}}"#)), "trust.acme.files[0]"),
        (with(&format!(r#""status": {{"listen": "unix:{bad}"}}"#)), "status.listen"),
        (with(&format!(r#""status": {{"token_file": "{bad}"}}"#)), "status.token_file"),
        (
            format!("\n\"certificate\": {{\"files\": [{{\"chain\": \"{bad}\", \"key\": \"k\"}}]}}"),
            "certificate.files[0].chain",
        ),
        (
            format!("\n\"certificate\": {{\"files\": [{{\"chain\": \"c\", \"key\": \"{bad}\"}}]}}"),
            "certificate.files[0].key",
        ),
        (format!("\n{}", acme(&format!(r#"{dns}, "directory_root": "{bad}""#))), "certificate.acme.directory_root"),
        (format!("\n{}", acme(&dns.replace("\"k\"", &format!("\"{bad}\"")))), "certificate.acme.dns.tsig_key_file"),
        (with(r#""state": "a\u007f""#), "state"),
        (with(r#""state": "a\u0085b""#), "state"),
    ];
    for (keys, key) in cases {
        let error = parse(&format!("{{\"domain\": \"a.example\", {keys}}}")).unwrap_err();
        let place = "/etc/provost/provost.json:2:";
        assert!(error.starts_with(place) && error.contains(&format!(": \"{key}\": ")), "{key}: {error}");
        assert!(error.contains("has a control character"), "{key}: {error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
    let good = with(r#""state": "a b/ä", "limits": {}, "no_sni": null"#);
    assert!(parse(&format!("{{\"domain\": \"a.example\", {good}}}")).is_ok());
}

#[test]
fn list_in_place_of_an_object_is_rejected() {
    let table = [
        ("limits", "[]"),
        ("limits", "[1]"),
        ("plain_http", r#"["192.168.1.5:80", ["192.168.0.0/16"]]"#),
        ("status", r#"["127.0.0.1:0"]"#),
        ("certificate", "[]"),
        ("certificate", r"[null, {}, null]"),
        ("certificate", r#"{"local_ca": []}"#),
        ("certificate", r#"{"files": [["a.pem", "b.pem"]]}"#),
        ("certificate", r#"{"acme": []}"#),
        ("trust", r#"{"corp": {"files": ["a.pem"], "family": {"polycom": null}}}"#),
        ("log", r#"{"json": null}"#),
        ("log", r#"["json"]"#),
        ("log", "true"),
    ];
    for (key, value) in table {
        let mut keys =
            std::collections::BTreeMap::from([("certificate", r#"{"local_ca": {}}"#), ("domain", "\"a.example\"")]);
        keys.insert(key, value);
        let keys: Vec<String> = keys.into_iter().map(|(key, value)| format!("{key:?}: {value}")).collect();
        let error = parse(&format!("{{{}}}", keys.join(", "))).unwrap_err();
        let kind = if value.contains("{\"") && key != "certificate" { "an object" } else { "a list" };
        let kind = if value == "true" { "true" } else { kind };
        assert!(error.contains(": must be ") && error.ends_with(&format!(", not {kind}")), "{key}: {value}: {error}");
    }
    assert_eq!(table.len(), 13);
}

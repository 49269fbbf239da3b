//! Polycom's files as phones read them: `provost check` and the virtual phone parse them alike, and accept what is in
//! common use.

use serde_json::json;

use crate::check_as_a_phone::{check, findings, finds};
use crate::harness::operators::Operators;
use crate::harness::pki::{FACTORY, SERVER_CA};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tool::{Ended, provost};
use crate::harness::{VVX500, VVX550, eventually};
use crate::uploads::phone;

const WITHOUT_MASTER: &str = "note: ote: no 000000000000.cfg";

/// A site of two phones whose constituency `ote` holds only `files`.
fn site(files: &[(&str, &str)]) -> Site {
    let site = Site::new();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" } }));
    for (name, text) in files {
        site.file(&format!("ote/{name}"), text);
    }
    site
}

/// Boots the virtual phone `mac` with the URL path `path` of ote.
fn boot(site: &Site, server: &Running, mac: &str, path: &str, more: &[&str]) -> Ended {
    FACTORY.device(mac).write(&site.path("."), mac);
    std::fs::write(site.path("ca.pem"), SERVER_CA.pem()).unwrap();
    let url = format!("https://ote.{DOMAIN}:{}/{path}", server.address().port());
    let (certificate, key, resolve) = (format!("{mac}.pem"), format!("{mac}.key"), server.address().to_string());
    let mut args = vec!["phone", "--url", &url, "--mac", mac, "--certificate", &certificate, "--key", &key];
    args.extend(["--ca", "ca.pem", "--resolve", &resolve]);
    args.extend(more);
    provost(&site.path("."), &args)
}

/// The requests of the virtual phone in the step `step`, with their statuses.
fn asked(ended: &Ended, step: &str) -> Vec<String> {
    let lines = ended.stdout.lines().filter(|line| line.starts_with(step));
    let words = lines.map(|line| line[step.len()..].split_whitespace().collect::<Vec<_>>());
    words.map(|words| format!("{} {}", words[1], words[2])).collect()
}

fn verdict(ended: &Ended) -> &str {
    ended.stdout.lines().last().unwrap_or_default()
}

#[test]
fn mac_cfg_holding_parameters_is_accepted() {
    for root in ["PHONE", "PHONE_CONFIG", "polycomConfig", "x"] {
        let parameters = format!("<{root}>\n<REGISTRATION reg.1.auth.password='x1'/></{root}>");
        let site = site(&[(&format!("{VVX500}.cfg"), &parameters)]);
        finds(&site, &[(WITHOUT_MASTER, "")]);
        let server = site.start();
        let ended = boot(&site, &server, VVX500, "", &["--strict"]);
        assert_eq!(ended.code, 0, "{}", ended.stdout);
        assert!(verdict(&ended).starts_with("provisioned ("), "{}", ended.stdout);
    }
}

#[test]
fn mac_cfg_named_by_the_master_is_followed() {
    let site = site(&[
        ("000000000000.cfg", "<APPLICATION CONFIG_FILES='site.cfg, [PHONE_MAC_ADDRESS].cfg, gone.cfg'/>"),
        ("site.cfg", "<s a='1'/>"),
        (&format!("{VVX500}.cfg"), "<polycomConfig><reg reg.1.address='100'/></polycomConfig>"),
        (&format!("{VVX550}.cfg"), "<polycomConfig/>"),
    ]);
    finds(&site, &[("warning: ote/000000000000.cfg:1: CONFIG_FILES names gone.cfg, which is not found", "")]);
    std::fs::remove_file(site.served(&format!("ote/{VVX550}.cfg"))).unwrap();
    let own = format!("CONFIG_FILES names [PHONE_MAC_ADDRESS].cfg, which is not found (for {VVX550})");
    assert!(findings(&site).iter().any(|line| line.ends_with(&own)), "{:#?}", findings(&site));
}

#[test]
fn file_names_are_read_from_any_root_and_element() {
    let spread = "<?xml version='1.0' encoding='utf-8' standalone='yes'?>\n<APPLICATION LOG_FILE_DIRECTORY='LOGS'>\n\
                  <Software APP_FILE_PATH='FW/5.9/sip.ld'/>\n\
                  <Configuration CONFIG_FILES='gone.cfg, site.cfg' CONFIG_FILES_VVX500='own.cfg'/>\n</APPLICATION>";
    let wrapped = "<polycomConfig><APPLICATION APP_FILE_PATH='sip.ld' CONFIG_FILES='gone.cfg'/><x up.warningLevel='2'/></polycomConfig>";
    let site = site(&[("000000000000.cfg", spread), ("site.cfg", "<s/>"), (&format!("{VVX550}.cfg"), wrapped)]);
    finds(
        &site,
        &[
            ("warning: ote/000000000000.cfg:4: CONFIG_FILES names gone.cfg, which is not found", ""),
            (&format!("warning: ote/{VVX550}.cfg:1: CONFIG_FILES names gone.cfg, which is not found"), ""),
            (
                "warning: ote/000000000000.cfg: it names missing files for models that no known phone has (VVX500)",
                "): own.cfg",
            ),
            ("note: ote: firmware FW/5.9/sip.ld is not here", ""),
            ("note: ote: firmware sip.ld is not here", ""),
        ],
    );
    let server = site.start();
    let ended = boot(&site, &server, VVX500, "", &[]);
    assert_eq!(asked(&ended, "configuration"), ["/own.cfg 404"], "{}", ended.stdout);
    assert_eq!(asked(&ended, "firmware"), ["/FW/5.9/3111-44500-001.sip.ld 404"], "{}", ended.stdout);
    assert_eq!(
        (ended.code, verdict(&ended).split(" (").next().unwrap()),
        (0, "provisioned, 1 named file missing: own.cfg")
    );
    let ended = boot(&site, &server, VVX550, "", &["--model", "VVX_550"]);
    assert_eq!(asked(&ended, "configuration"), ["/gone.cfg 404"], "{}", ended.stdout);
}

#[test]
fn misc_and_service_files_and_query_names_are_requested() {
    let site = site(&[
        (
            "000000000000.cfg",
            "<APPLICATION CONFIG_FILES='site.cfg?v=2' MISC_FILES='a.xml,b.xml' SERVICE_FILES='c.xml?v=1'/>",
        ),
        ("site.cfg", "<s/>"),
        ("a.xml", "<a/>"),
    ]);
    finds(
        &site,
        &[
            ("warning: ote/000000000000.cfg:1: MISC_FILES names b.xml, which is not found", ""),
            ("warning: ote/000000000000.cfg:1: SERVICE_FILES names c.xml?v=1, which is not found", ""),
        ],
    );
    let server = site.start();
    let ended = boot(&site, &server, VVX500, "", &[]);
    assert_eq!(asked(&ended, "configuration"), ["/site.cfg?v=2 200"], "{}", ended.stdout);
    assert_eq!(asked(&ended, "further file"), ["/a.xml 200", "/b.xml 404", "/c.xml?v=1 404"], "{}", ended.stdout);
    assert!(verdict(&ended).starts_with("provisioned, 2 named files missing: b.xml, c.xml?v=1 ("), "{}", ended.stdout);
}

#[test]
fn master_in_a_subfolder_names_files_relative_to_it() {
    let master = "<APPLICATION CONFIG_FILES='gone.cfg, site.cfg, [MACADDRESS]-user.cfg' LOG_FILE_DIRECTORY='My Logs'/>";
    let site = site(&[
        ("app/provision/000000000000.cfg", master),
        ("app/provision/site.cfg", "<s/>"),
        (&format!("app/provision/{VVX500}-user.cfg"), "<u/>"),
        (&format!("app/provision/{VVX550}-user.cfg"), "<u/>"),
        (&format!("polycom/provisioning/{VVX550}.cfg"), "<APPLICATION CONFIG_FILES='../site.cfg, other.cfg'/>"),
        ("other.cfg", "<o/>"),
    ]);
    let at = "warning: ote/app/provision/000000000000.cfg:1:";
    finds(
        &site,
        &[
            (&format!("{at} CONFIG_FILES names gone.cfg, which is not found"), ""),
            (&format!("{at} LOG_FILE_DIRECTORY names My Logs, where uploads are refused"), ""),
            (
                &format!(
                    "warning: ote/polycom/provisioning/{VVX550}.cfg:1: CONFIG_FILES names ../site.cfg, which cannot be requested"
                ),
                "",
            ),
            (
                &format!(
                    "warning: ote/polycom/provisioning/{VVX550}.cfg:1: CONFIG_FILES names other.cfg, which is not found"
                ),
                "",
            ),
        ],
    );
    let server = site.start();
    let ended = boot(&site, &server, VVX500, "app/provision", &[]);
    let expected = [
        "/app/provision/gone.cfg 404",
        "/app/provision/site.cfg 200",
        &format!("/app/provision/{VVX500}-user.cfg 200"),
    ];
    assert_eq!(asked(&ended, "configuration"), expected, "{}", ended.stdout);
}

#[test]
fn urls_of_this_server_are_checked_and_foreign_ones_noted() {
    let names = "https://OTE.phones.example.com/site.cfg, https://second.phones.example.com:8443/gone.cfg?x, \
                 https://elsewhere.example/a.cfg, http://ote.phones.example.com/site.cfg, tftp://192.0.2.1/b.cfg";
    let site = site(&[("000000000000.cfg", &format!("<APPLICATION CONFIG_FILES='{names}'/>")), ("site.cfg", "<s/>")]);
    let phones = json!({ VVX500: "" });
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones, "aliases": ["second"] }));
    let at = "ote/000000000000.cfg:1: CONFIG_FILES names";
    finds(
        &site,
        &[
            (&format!("warning: {at} https://second.phones.example.com:8443/gone.cfg?x, which is not found"), ""),
            (&format!("note: {at} https://elsewhere.example/a.cfg, on another server, so it was not checked"), ""),
            (&format!("warning: {at} http://ote.phones.example.com/site.cfg, which is transferred without TLS"), ""),
            (&format!("warning: {at} tftp://192.0.2.1/b.cfg, which is transferred without TLS"), ""),
        ],
    );
}

/// Each occurs in public templates, or is left behind by an editor.
#[test]
fn malformed_xml_that_phones_accept_is_a_located_warning() {
    for (text, at, what) in [
        ("<P\n a='1'\n a='2'/>", "3:2", "the attribute a is repeated in one element"),
        ("<!DOCTYPE P>\n<P a='1'/>", "1:1", "a DOCTYPE"),
        ("<P>\n<x xsi:type='y' a='1'/></P>", "2:4", "the prefix xsi: is not declared"),
        ("\n<?xml version='1.0'?><P a='1'/>", "2:1", "the XML declaration (<?xml …?>) is not at the start of the file"),
        ("<P a='x & y'/>", "1:9", "an & without an entity name; write &amp;"),
        ("<P a='1'/>\n<Q b='2'/>", "2:1", "text or markup is not allowed here"),
        ("<P a='1'><x></P>", "1:13", "found </P> instead of </x>"),
        ("<P a=1/>", "1:6", "found 1 instead of a quote"),
    ] {
        let site = site(&[("000000000000.cfg", "<APPLICATION CONFIG_FILES='site.cfg'/>"), ("site.cfg", text)]);
        finds(&site, &[(&format!("warning: ote/site.cfg:{at}: {what}"), "not known")]);
        let said = check(&site).stdout;
        assert!(!said.contains("passes over") && !said.contains("well-formed"), "{said}");
        let server = site.start();
        let ended = boot(&site, &server, VVX500, "", &["--strict"]);
        assert_eq!(
            (ended.code, verdict(&ended).split(" (").next()),
            (0, Some("provisioned")),
            "{text}: {}",
            ended.stdout
        );
        assert!(ended.stdout.contains(&format!("{at}: {what}")), "{text}: {}", ended.stdout);
    }
    for text in ["\u{feff}<?xml version='1.0'?><P a='1'/>", "<P a='\u{e4}'/>"] {
        finds(&site(&[("000000000000.cfg", "<APPLICATION CONFIG_FILES='site.cfg'/>"), ("site.cfg", text)]), &[]);
    }
    let latin = site(&[("000000000000.cfg", "<APPLICATION CONFIG_FILES='site.cfg'/>")]);
    latin.file("ote/site.cfg", b"<?xml version='1.0' encoding='ISO-8859-1'?><P a='\xe4'/>");
    finds(&latin, &[]);
}

#[test]
fn malformed_master_is_followed_with_warnings() {
    let master =
        "<!DOCTYPE APPLICATION>\n<APPLICATION CONFIG_FILES='site.cfg' CONFIG_FILES='gone.cfg' MISC_FILES='a & b.xml'>";
    let site =
        site(&[("000000000000.cfg", &format!("{master}</APPLICATION>")), ("site.cfg", "<s/>"), ("a & b.xml", "<a/>")]);
    finds(
        &site,
        &[
            ("warning: ote/000000000000.cfg:1:1: a DOCTYPE", ""),
            ("warning: ote/000000000000.cfg:2:76: an & without an entity name; write &amp;", ""),
            ("warning: ote/000000000000.cfg:2: CONFIG_FILES names gone.cfg, which is not found", ""),
        ],
    );
    let server = site.start();
    let ended = boot(&site, &server, VVX500, "", &[]);
    assert_eq!(asked(&ended, "configuration"), ["/site.cfg 200", "/gone.cfg 404"], "{}", ended.stdout);
}

#[test]
fn truncated_file_is_an_error_and_leaves_the_boot_incomplete() {
    for (text, error) in [
        ("<P a='1'>\n<x b='2'", "the file ends within a tag that begins at 2:1"),
        ("<P a='1'>\n<x b='2'/>", "the file ends before </P>, which 1:1 opens"),
        ("no XML", "the file holds no XML element"),
        ("", "the file is empty"),
        ("<P a='\0'/>", "the file holds binary data"),
    ] {
        let site = site(&[("000000000000.cfg", "<APPLICATION CONFIG_FILES='site.cfg'/>"), ("site.cfg", text)]);
        finds(&site, &[(&format!("error: ote/site.cfg: {error}"), "")]);
        let server = site.start();
        let ended = boot(&site, &server, VVX500, "", &[]);
        assert_eq!(ended.code, 0, "{}", ended.stdout);
        assert!(verdict(&ended).starts_with("provisioned, 1 named file not readable: site.cfg ("), "{}", ended.stdout);
        assert_eq!(boot(&site, &server, VVX500, "", &["--strict"]).code, 1);
    }
    let site = site(&[("000000000000.cfg", "<APPLICATION CONFIG_FILES='gone.cfg'")]);
    assert!(
        findings(&site)[0].starts_with("error: ote/000000000000.cfg: the file ends within a tag that begins at 1:1")
    );
    let server = site.start();
    let ended = boot(&site, &server, VVX500, "", &[]);
    let expected =
        "not provisioned: the master configuration /000000000000.cfg cannot be read: the file ends within a tag";
    assert!(ended.code == 1 && verdict(&ended).starts_with(expected), "{}", ended.stdout);
}

#[test]
fn missing_named_file_is_reported_in_the_boot_verdict() {
    let master = "<APPLICATION CONFIG_FILES='[PHONE_MAC_ADDRESS]-user.cfg, site.cfg'/>";
    let site = site(&[("000000000000.cfg", master), ("site.cfg", "<s/>"), (&format!("{VVX500}-user.cfg"), "<u/>")]);
    let server = site.start();
    let expected = format!("provisioned, 1 named file missing: {VVX550}-user.cfg");
    for (mac, strict, code, verdict_begins) in
        [(VVX500, true, 0, "provisioned"), (VVX550, false, 0, &*expected), (VVX550, true, 1, &expected)]
    {
        let ended = boot(&site, &server, mac, "", if strict { &["--strict"] } else { &[] });
        assert_eq!(
            (ended.code, verdict(&ended).split(" (").next().unwrap()),
            (code, verdict_begins),
            "{}",
            ended.stdout
        );
    }
    let ended = boot(&site, &server, VVX550, "", &["--json"]);
    let outcome: serde_json::Value = serde_json::from_str(verdict(&ended)).unwrap();
    assert_eq!((&outcome["provisioned"], &outcome["missing"]), (&json!(true), &json!([format!("{VVX550}-user.cfg")])));
}

#[test]
fn allow_and_page_name_the_missing_files_of_a_phone() {
    let master = "<APPLICATION CONFIG_FILES='[PHONE_MAC_ADDRESS]-user.cfg'/>";
    let mut site = site(&[("000000000000.cfg", master), (&format!("{VVX500}-user.cfg"), "<u/>")]);
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    let none = |mac: &str| format!("all files that 000000000000.cfg names for it are missing: {mac}-user.cfg");
    for (mac, warning) in [("00005e0053aa", Some(none("00005e0053aa"))), (VVX500, None), (VVX550, Some(none(VVX550)))] {
        let ended = provost(&site.path("."), &["allow", mac, "--constituency", "ote"]);
        let expected = warning.map(|warning| format!("warning: {warning}\n")).unwrap_or_default();
        assert_eq!((ended.code, ended.stderr), (0, expected), "{mac}");
    }
    let operators = Operators::of(&server);
    for (mac, missing) in [(VVX500, 0), (VVX550, 1)] {
        assert_eq!(boot(&site, &server, mac, "", &[]).code, 0);
        let page = eventually("the phone's requests", || {
            let page = operators.get(&format!("/phones/ote/{mac}")).body;
            [".cfg<", "-user.cfg<"].iter().all(|end| page.contains(&format!("/{mac}{end}"))).then_some(page)
        });
        let rows: Vec<&str> = page.split("<tr").skip(1).collect();
        let row = |file: &str| *rows.iter().find(|row| row.contains(&format!("/{mac}{file}<"))).unwrap();
        assert!(row(".cfg").starts_with(" class=\"expected\""), "{}", row(".cfg"));
        let is_red = row("-user.cfg").starts_with(" class=\"refused\"");
        assert_eq!((is_red, page.matches(&none(mac)).count()), (missing == 1, missing), "{page}");
        let red = rows.iter().filter(|row| row.starts_with(" class=\"refused\"")).count();
        assert_eq!(red, missing, "{page}");
    }
}

/// The vendor's master file, shortened.
const VENDORS: &str = r#"<APPLICATION APP_FILE_PATH="sip.ld" CONFIG_FILES="">
  <APPLICATION_SPIP300 APP_FILE_PATH_SPIP300="sip_213.ld" CONFIG_FILES_SPIP300="phone1_213.cfg, sip_213.cfg"/>
  <APPLICATION_SPIP501 APP_FILE_PATH_SPIP501="sip_318.ld" CONFIG_FILES_SPIP501="phone1_318.cfg, sip_318.cfg"/>
  <APPLICATION_VVX500 APP_FILE_PATH_VVX500="sip_59x.ld" CONFIG_FILES_VVX500="gone.cfg, [PHONE_MODEL]-[PHONE_MAC_ADDRESS].cfg"/>
</APPLICATION>"#;

#[test]
fn files_of_unused_models_are_one_finding_per_master() {
    let site = site(&[("000000000000.cfg", VENDORS), (&format!("{VVX550}.cfg"), VENDORS)]);
    let unseen = "it names missing files for models that no known phone has (SPIP300, SPIP501, VVX500): gone.cfg, \
                  phone1_213.cfg, phone1_318.cfg, sip_213.cfg, sip_318.cfg, 3 more";
    finds(
        &site,
        &[
            ("warning: ote/000000000000.cfg: it names", unseen),
            (&format!("warning: ote/{VVX550}.cfg: it names"), unseen),
            ("note: ote: firmware sip.ld is not here", ""),
        ],
    );
    // After the phone was seen, its model's files count, and those of other models are only a note.
    let server = site.start();
    let agent = "User-Agent: FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application\r\n";
    assert_eq!(phone(&server).request("GET", "/000000000000.cfg", agent, b"").unwrap().status, 200);
    let missing =
        |line: &String| line.starts_with("warning: ote/000000000000.cfg:4: CONFIG_FILES_VVX500 names gone.cfg, which");
    let found =
        eventually("the phone's model to be known", || Some(findings(&site)).filter(|found| found.iter().any(missing)));
    let own = format!(
        "warning: ote/000000000000.cfg:4: CONFIG_FILES_VVX500 names VVX500-[PHONE_MAC_ADDRESS].cfg, which is not found (for {VVX500})"
    );
    assert!(found.contains(&own), "{found:#?}");
    let others =
        "note: ote/000000000000.cfg: it names missing files for models that no known phone has (SPIP300, SPIP501)";
    assert!(found.iter().any(|line| line.starts_with(others)), "{found:#?}");
    assert_eq!(found.len(), 6, "{found:#?}");
}

#[test]
fn file_that_an_upload_would_hide_is_a_warning() {
    let site = site(&[
        (&format!("{VVX500}.cfg"), &format!("<APPLICATION CONFIG_FILES='{VVX500}-phone.cfg'/>")),
        (&format!("{VVX500}-phone.cfg"), "<x reg.1.address='100'/>"),
        (&format!("{VVX500}-directory.xml"), "<directory/>"),
        (&format!("calls/{}-calls.xml", VVX550.to_uppercase()), "<x/>"),
    ]);
    let upload = "phones upload files of this name: once";
    finds(
        &site,
        &[
            (
                &format!(
                    "warning: ote/{VVX500}-phone.cfg: {upload} {VVX500} does, it gets its upload instead of this file, although \
                     {VVX500}.cfg:1 in CONFIG_FILES names this file; give it another name"
                ),
                "",
            ),
            (&format!("warning: ote/{VVX500}-directory.xml: {upload} {VVX500} does"), ""),
            (&format!("warning: ote/calls/{}-calls.xml: {upload} {VVX550} does", VVX550.to_uppercase()), ""),
            (WITHOUT_MASTER, ""),
        ],
    );
    // Several findings of one kind are one line.
    site.file(&format!("ote/{VVX550}-directory.xml"), "<directory/>");
    let both =
        format!("warning: ote: phones upload files of these names: {VVX500}-directory.xml, {VVX550}-directory.xml: ");
    assert!(findings(&site).iter().any(|line| line.starts_with(&both)), "{:#?}", findings(&site));
    // Without uploads, no file can be hidden.
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "uploads": false }));
    assert!(!findings(&site).iter().any(|line| line.contains("phones upload files")), "{:#?}", findings(&site));
}

#[test]
fn older_upload_hiding_a_newer_file_shows_both_times() {
    let site = site(&[("000000000000.cfg", "<APPLICATION/>")]);
    let file = format!("{VVX500}-directory.xml");
    let server = site.start();
    assert_eq!(phone(&server).put(&format!("/{file}"), "", b"<theirs/>").unwrap().status, 201);
    site.file(&format!("ote/{file}"), "<ours/>");
    let upload = std::fs::File::open(site.path(&format!("state/uploads/ote/{VVX500}/{file}"))).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    upload.set_modified(old).unwrap();
    let remove = format!("uploads remove {VVX500} {file} --constituency ote");
    let found = findings(&site);
    let expected = format!("warning: ote/{file}: this file was changed at 20");
    let before = format!(
        "{VVX500} still gets its older upload, of 2023-11-14T22:13:20Z; to give it this file, run provost {remove}"
    );
    assert!(found.len() == 1 && found[0].starts_with(&expected) && found[0].ends_with(&before), "{found:#?}");
    assert_eq!(phone(&server).get(&format!("/{file}")).unwrap().body, b"<theirs/>");
    assert_eq!(provost(&site.path("."), &remove.split(' ').collect::<Vec<_>>()).code, 0);
    assert_eq!(phone(&server).get(&format!("/{file}")).unwrap().body, b"<ours/>");
}

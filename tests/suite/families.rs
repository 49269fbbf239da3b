//! Vendor families: the certificates of each vendor contain the MAC in its own form, under its own CA.

use std::sync::LazyLock;

use rcgen::{CertificateParams, DnType};
use serde_json::json;

use crate::check_as_a_phone::{check, findings};
use crate::harness::pki::{Ca, Identity, device_params};
use crate::harness::site::{Running, Site};
use crate::harness::tool::provost;
use crate::harness::{VVX500, eventually};

/// Each family with a CA, and the CN and serialNumber of its certificate for the phone VVX500.
const FAMILIES: [(&str, &str, Option<&str>); 6] = [
    ("polycom", "00005E00530C", None),
    ("yealink", "00:00:5e:00:53:0c", None),
    ("snom", "00005E00530C", None),
    ("grandstream", "00-00-5E-00-53-0C", None),
    ("cisco-mpp", "CP-8841-3PCC", Some("00005E00530C")),
    ("cisco", "CP-8845-SEP00005E00530C", None),
];

static CAS: LazyLock<Vec<Ca>> =
    LazyLock::new(|| FAMILIES.iter().map(|(family, ..)| Ca::root(&format!("{family} test CA"))).collect());

/// A certificate of the CA of `family` with this CN and serialNumber.
fn device(family: &str, common_name: &str, number: Option<&str>) -> Identity {
    let at = FAMILIES.iter().position(|(name, ..)| *name == family).unwrap();
    let mut params: CertificateParams = device_params(VVX500);
    params.distinguished_name = crate::harness::pki::named(common_name);
    if let Some(number) = number {
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), number);
    }
    CAS[at].issue(&params)
}

/// A site with a bundle for each family, and the constituency `all`, which trusts them all.
fn site() -> Site {
    let mut site = Site::with_ote();
    for ((family, ..), ca) in FAMILIES.iter().zip(CAS.iter()) {
        std::fs::write(site.path(&format!("{family}.pem")), ca.pem()).unwrap();
        let files = json!([format!("{family}.pem")]);
        // Polycom's is the default of a plain list.
        let bundle = if *family == "polycom" { files } else { json!({ "files": files, "family": family }) };
        site.config["trust"][format!("the-{family}")] = bundle;
    }
    let trust: Vec<String> = FAMILIES.iter().map(|(family, ..)| format!("the-{family}")).collect();
    site.constituency("all", &json!({ "trust": trust, "phones": { VVX500: "" } }));
    site.file("all/site.cfg", "<all/>");
    site.file(&format!("all/{VVX500}-user.cfg"), "<mine/>");
    site
}

fn status(server: &Running, identity: &Identity) -> u16 {
    server.client("all", identity).get(&format!("/{VVX500}-user.cfg")).unwrap().status
}

#[test]
fn mac_is_read_in_the_form_of_each_vendor_family() {
    let site = site();
    let server = site.start();
    for (family, common_name, number) in FAMILIES {
        let identity = device(family, common_name, number);
        assert_eq!(status(&server, &identity), 200, "{family}");
        identity.write(&site.path(""), "phone");
        let verified = provost(&site.path(""), &["trust", "verify", "--constituency", "all", "phone.pem"]);
        assert_eq!(
            (verified.code, verified.stdout.as_str()),
            (0, "accepted: 00005e00530c\n"),
            "{family}: {verified:?}"
        );
    }
    let listed = provost(&site.path(""), &["trust", "list"]).stdout;
    assert!(
        listed.contains("the-cisco\n  family cisco: the subject's CN is CP-<model>-SEP<12 hex digits>\n"),
        "{listed}"
    );
    assert!(
        listed.contains("polycom\n  family polycom: the subject's CN is a MAC address of 12 hex digits\n"),
        "{listed}"
    );
}

#[test]
fn name_in_another_family_form_is_refused() {
    let site = site();
    let server = site.start();
    let mut crossings = 0;
    for (family, _, _) in FAMILIES {
        for (other, common_name, number) in FAMILIES {
            // Four families use twelve plain digits in the CN.
            let are_alike = |family: &str| matches!(family, "polycom" | "yealink" | "snom" | "grandstream");
            let is_plain = common_name.len() == 12 && number.is_none();
            let takes_pairs = |family: &str| matches!(family, "yealink" | "grandstream");
            let is_pairs = common_name.len() == 17;
            if family == other || (is_plain && are_alike(family)) || (is_pairs && takes_pairs(family)) {
                continue;
            }
            crossings += 1;
            assert_eq!(status(&server, &device(family, common_name, number)), 403, "{other}'s form under {family}");
        }
    }
    assert_eq!(crossings, 22);
    server.reason("CN \"CP-8845-SEP00005E00530C\" is not a MAC address of 12 hex digits");
    server.reason("the device certificate's subject has no serialNumber");
    server.reason("CN \"00005E00530C\" is not CP-<model>-SEP<12 hex digits>");
}

#[test]
fn shared_certificate_without_a_single_mac_is_refused() {
    let site = site();
    let server = site.start();
    let shared = [
        ("yealink", "Yealink Equipment", None),
        ("grandstream", "Grandstream HTTPS Client", None),
        ("snom", "snom", None),
        ("cisco", "CP-8845", None),
        ("cisco-mpp", "CP-8841-3PCC", Some("PID:CP-8841 SN:FCH00000001")),
        ("yealink", "000000000000", None),
        ("cisco", "CP-8845-SEP000000000000", None),
        ("grandstream", "ff:ff:ff:ff:ff:ff", None),
    ];
    for (family, common_name, number) in shared {
        assert_eq!(status(&server, &device(family, common_name, number)), 403, "{family}: {common_name}");
    }
    server.reason("\"Yealink Equipment\" is not a MAC address of 12 hex digits, or of six pairs with : or - between: it names no single phone");
    server.reason("serialNumber \"PID:CP-8841 SN:FCH00000001\" is not");
    server.reason("CN names no phone: 000000000000 is the name of the fallback files");
    server.reason("CN names no phone: ffffffffffff is a multicast address");
    // Two different MACs in one subject are invalid.
    let at = FAMILIES.iter().position(|(name, ..)| *name == "cisco-mpp").unwrap();
    let twice = CAS[at].issue_by_openssl(
        "/CN=x/serialNumber=00005E00530C/serialNumber=00005E0053C7",
        &["-newkey", "rsa:2048", "-addext", "extendedKeyUsage=clientAuth"],
    );
    assert_eq!(status(&server, &twice), 403);
    server.reason("the device certificate's subject has 2 serialNumbers, exactly one is allowed");
}

#[test]
fn ca_in_bundles_of_two_families_is_a_policy_error() {
    let mut site = site();
    site.config["trust"]["again"] = json!({ "files": ["cisco.pem"], "family": "snom" });
    site.constituency("both", &json!({ "trust": ["the-cisco", "again"], "phones": { VVX500: "" } }));
    let server = site.start();
    server.says("both is not served: the trust bundles \\\"again\\\" and \\\"the-cisco\\\" assign CN=cisco test CA to different device families");
    // Each alone is valid.
    assert_eq!(status(&server, &device("cisco", "CP-8845-SEP00005E00530C", None)), 200);
}

#[test]
fn invalid_bundle_is_an_error_with_a_suggestion() {
    let mut site = site();
    for (bundle, said) in [
        (json!({ "files": ["cisco.pem"], "family": "yaelink" }), "did you mean \"yealink\"?"),
        (json!({ "files": ["cisco.pem"], "familiy": "cisco" }), "did you mean \"family\"?"),
        (json!({ "family": "cisco" }), "the key \"files\" is missing"),
        (json!("cisco.pem"), "a list of files, or an object of \"files\" and \"family\""),
    ] {
        site.config["trust"]["bad"] = bundle;
        site.write_config();
        let ended = provost(&site.path(""), &["trust", "list"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
}

/// Files and the `User-Agent` of one vendor's phones.
struct Vendor {
    family: &'static str,
    /// The name of a phone's own file, with `{mac}` for its MAC.
    own_file: &'static str,
    common_file: &'static str,
    /// The content of both files.
    text: &'static str,
    /// The line and the parameter of each secret in it.
    secrets: &'static [&'static str],
    agent: &'static str,
    model: &'static str,
    firmware: &'static str,
}

const OF_VENDORS: [Vendor; 5] = [
    Vendor {
        family: "yealink",
        own_file: "{mac}.cfg",
        common_file: "y000000000028.cfg",
        text: "#!version:1.0.0.1\naccount.1.password = hunter2\nauto_provision.server.password = hunter2\naccount.2.password =\n",
        secrets: &["2: account.1.password", "3: auto_provision.server.password"],
        agent: "Yealink SIP-T46G 28.83.0.120 00:15:65:4a:a9:37",
        model: "SIP-T46G",
        firmware: "28.83.0.120",
    },
    Vendor {
        family: "snom",
        own_file: "snomD345-{mac}.htm",
        common_file: "snomD345.htm",
        text: "<?xml version='1.0'?>\n<settings><phone-settings>\n<user_pass idx=\"1\" perm=\"\">hunter2</user_pass>\n\
         <http_pass perm=\"R\">hunter2</http_pass><admin_mode_password>hunter2</admin_mode_password>\n</phone-settings></settings>",
        secrets: &["3: user_pass", "4: admin_mode_password", "4: http_pass"],
        agent: "Mozilla/4.0 (compatible; snomD345-SIP 10.1.46.16 000413A1B2C3)",
        model: "snomD345",
        firmware: "10.1.46.16",
    },
    Vendor {
        family: "grandstream",
        own_file: "cfg{mac}.xml",
        common_file: "cfg.xml",
        text: "<?xml version='1.0'?>\n<gs_provision version='1'><config version='1'>\n<P2>hunter2</P2><P35>100</P35>\n<P34>hunter2</P34>\n\
         </config></gs_provision>",
        secrets: &["3: P2", "4: P34"],
        agent: "Grandstream Model HW GXP2160 SW 1.0.9.132 DevId 000b82462d97",
        model: "GXP2160",
        firmware: "1.0.9.132",
    },
    Vendor {
        family: "cisco-mpp",
        own_file: "spa{mac}.xml",
        common_file: "spa504G.cfg",
        text: "<flat-profile>\n<Password_1_ ua=\"na\">hunter2</Password_1_>\n<Admin_Passwd>hunter2</Admin_Passwd>\n<PSK_1>fnc=sd</PSK_1>\n\
         <Profile_Rule>[--uid u --pwd hunter2]https://h/$MA.xml</Profile_Rule></flat-profile>",
        secrets: &["2: Password_1_", "3: Admin_Passwd", "5: Profile_Rule"],
        agent: "Cisco-CP-8841-3PCC/11.3.1 (00562b043615)",
        model: "CP-8841-3PCC",
        firmware: "11.3.1",
    },
    Vendor {
        family: "cisco",
        own_file: "SEP{mac}.cnf.xml",
        common_file: "XMLDefault.cnf.xml",
        text: "<device>\n<sshPassword>hunter2</sshPassword>\n<sipLines><line><authPassword>hunter2</authPassword></line></sipLines></device>",
        secrets: &["2: sshPassword", "3: authPassword"],
        agent: "Cisco-CP8845/12.5.1",
        model: "CP8845",
        firmware: "12.5.1",
    },
];

/// The findings of `check` about the constituency `own`.
fn found_in_own(site: &Site) -> Vec<String> {
    let is_of_own = |line: &String| line.split(": ").nth(1).is_some_and(|subject| subject.starts_with("own"));
    findings(site).into_iter().filter(is_of_own).collect()
}

#[test]
fn secrets_and_models_are_recognized_for_each_vendor() {
    for vendor in OF_VENDORS {
        let Vendor { family, own_file, common_file, text, secrets, agent, .. } = vendor;
        let site = site();
        let (_, common_name, number) = FAMILIES.into_iter().find(|(name, ..)| *name == family).unwrap();
        site.constituency("own", &json!({ "trust": [format!("the-{family}")], "phones": { VVX500: "" } }));
        site.file(&format!("own/{}", own_file.replace("{mac}", &VVX500.to_uppercase())), text);
        site.file(&format!("own/{common_file}"), text);
        let found = found_in_own(&site);
        let expected = secrets.iter().map(|secret| format!("warning: own/{common_file}:{secret} holds a "));
        for (line, expected) in found.iter().zip(expected) {
            assert!(line.starts_with(&expected), "{family}: {line} is not {expected}");
        }
        assert_eq!(found.len(), secrets.len(), "{family}: {found:#?}");
        assert!(!check(&site).stdout.contains("hunter2"), "a secret is shown");

        let server = site.start();
        let header = format!("User-Agent: {agent}\r\n");
        let identity = device(family, common_name, number);
        assert_eq!(
            server.client("own", &identity).request("GET", &format!("/{common_file}"), &header, b"").unwrap().status,
            200
        );
        let line = eventually("the phone's model", || {
            let listed = provost(&site.path("."), &["phones", "--constituency", "own", "--json"]).stdout;
            listed
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                .find(|it| it["model"].is_string())
        });
        assert_eq!([&line["model"], &line["firmware"]], [vendor.model, vendor.firmware], "{family}");
    }
}

#[test]
fn polycom_file_checks_apply_only_to_polycom_constituencies() {
    let yealinks = "#!version:1.0.0.1\naccount.1.enable = 1\n";
    let broken = "<PHONE a='1'";
    let policies = [
        (json!({ "trust": ["the-yealink"], "phones": { VVX500: "" } }), yealinks, false),
        (json!({ "trust": ["the-yealink", "the-cisco"], "phones": { VVX500: "" } }), yealinks, false),
        (json!({ "trust": ["the-polycom"], "phones": { VVX500: "" } }), yealinks, true),
        (json!({ "trust": ["the-yealink", "the-polycom"], "phones": { VVX500: "" } }), yealinks, true),
        (json!({ "client_auth": "digest", "phones": { VVX500: "" } }), yealinks, false),
        (json!({ "client_auth": "digest", "phones": { VVX500: "" } }), "<PHONE/>", true),
        (json!({ "client_auth": "none" }), yealinks, false),
        (json!({ "client_auth": "none" }), "<PHONE/>", true),
    ];
    for (policy, first, is_polycoms) in policies {
        let site = site();
        site.constituency("own", &policy);
        site.file("own/common.cfg", first);
        site.file("own/x.cfg", broken);
        let found = found_in_own(&site);
        let is_broken = |line: &String| line.starts_with("warning: own/x.cfg: the file ends within a tag");
        assert_eq!(found.iter().any(is_broken), is_polycoms, "{policy}: {found:#?}");
        let has_note = found.iter().any(|line| line.starts_with("note: own: no 000000000000.cfg"));
        assert_eq!(has_note, is_polycoms && policy["client_auth"] != "none", "{policy}: {found:#?}");
        assert!(!found.iter().any(|line| line.contains("common.cfg")), "{policy}: {found:#?}");
    }
}

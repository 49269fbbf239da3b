//! The rules as examples, and as properties over all spellings.

use proptest::prelude::*;

use super::*;
use crate::constituency::Registry;
use crate::constituency::registry::replace_lists;
use crate::constituency::scan::Scanner;
use crate::constituency::spelled_macs::GROUPS;

const OWN: &str = "00005e00530c";
const OTHER: &str = "00005e0053c7";
/// Listed by the constituency `else` alone.
const ELSEWHERE: &str = "202611300630";

/// Two constituencies: `home` with two phones and a `common`, `else` with one phone.
fn registry() -> Registry {
    let folder = tempfile::tempdir().unwrap();
    let policies = [
        (
            "home",
            format!(
                r#"{{ "phones": {{ "{OWN}": "" }}, "denied": ["{OTHER}"], "common": ["fw/00005e0053aa-*.ld", "{OTHER}.txt"] }}"#
            ),
        ),
        ("else", format!(r#"{{ "phones": {{ "{ELSEWHERE}": "", "000000000028": "", "00005e0053ee": "" }} }}"#)),
    ];
    for (name, policy) in policies {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        crate::state::write_private(&folder.path().join(name).join("constituency.json"), policy.as_bytes()).unwrap();
    }
    let registry = Scanner::new(folder.path().to_owned(), vec!["polycom".to_owned()]).scan(crate::clock::now());
    assert_eq!(registry.served().count(), 2, "{:?}", registry.faults());
    registry
}

fn mac(text: &str) -> MacAddress {
    text.parse().unwrap()
}

fn reading(registry: &Registry) -> NameRules<'_> {
    NameRules::reading(registry.listed(), registry.find("home").unwrap())
}

fn check(path: &str, own: &str) -> Result<(), ForeignMac> {
    static REGISTRY: std::sync::LazyLock<Registry> = std::sync::LazyLock::new(registry);
    reading(&REGISTRY).check(path, Some(mac(own)))
}

fn spelled(segment: &str) -> Vec<String> {
    mac_spellings(segment).into_iter().map(|spelling| spelling.mac.to_string()).collect()
}

#[test]
fn every_mac_spelling_is_found_at_any_offset() {
    for segment in [
        "00005e00530c.cfg",
        "00005E00530C-phone.cfg",
        "0004f2-00530c".replace("0004f2", "00005e").as_str(),
        "x00-00-5e-00-53-0c.xml",
        "00:00:5e:00-53_0c",
        "00.00.5e.00.53.0c",
        "00 00 5e 00 53 0c",
        "00_00_5E_00_53_0c",
        "0000.5e00.530c",
        "x0000-5e00_530c",
        "00005e:00530c",
    ] {
        assert_eq!(spelled(segment), [OWN], "{segment}");
    }
    for (segment, expected) in [
        ("phone00005e00530c.cfg", vec!["e00005e00530", OWN]),
        ("00005e00530ccopy", vec![OWN, "0005e00530cc"]),
        ("ab-00-00-5e-00-53-0c", vec!["ab00005e0053", OWN]),
        ("00005e00530c-00005e", vec![OWN, "00530c00005e"]),
    ] {
        assert_eq!(spelled(segment), expected, "{segment}");
    }
    for none in ["00005e00530", "00--00-5e-00-53-0c", "0-00-5e-00-53-0c", "00005e/00530c", "00005é0530c", "sip.ld", ""]
    {
        assert_eq!(spelled(none), Vec::<String>::new(), "{none}");
    }
}

#[test]
fn file_with_a_listed_mac_belongs_to_that_phone() {
    for path in [
        format!("phone{OTHER}.cfg"),
        format!("spa{OTHER}.xml"),
        format!("device{OTHER}"),
        format!("line{OTHER}-user.cfg"),
        format!("{OTHER}ext.cfg"),
        format!("{OTHER}copy.cfg"),
        format!("{OTHER}backup"),
        format!("phone{OTHER}/user.cfg"),
        format!("a/b{OTHER}c/d.cfg"),
        "0000.5e00.53c7".to_owned(),
        "00-00-5E-00-53-C7.cfg".to_owned(),
        "00.00.5e.00.53.c7".to_owned(),
        "00005e-0053c7".to_owned(),
        "00 00 5e:00_53.c7".to_owned(),
        // Also within a hash, and although "common" matches it.
        format!("{OTHER}00112233445566778899"),
        format!("{OTHER}.txt"),
    ] {
        assert_eq!(check(&path, OWN), Err(ForeignMac::Listed(mac(OTHER))), "{path}");
        assert_eq!(check(&path, OTHER), Ok(()), "{path}");
    }
}

#[test]
fn file_with_an_unlisted_mac_is_served_to_no_phone() {
    for path in
        ["00005e0053ab.cfg", "phone00005e0053ab.cfg", "a/00-00-5e-00-53-ab.cfg", "20261330063015.log", "2026-1130-0631"]
    {
        assert!(matches!(check(path, OWN), Err(ForeignMac::Unlisted(_))), "{path}");
    }
    // Twelve more digits are another phone's address, listed or not; fewer are part of the name.
    assert_eq!(check(&format!("phone{OWN}-20261130.cfg"), OWN), Ok(()));
    assert!(check(&format!("x{OWN}00005e0053ab"), OWN).is_err());
    assert!(check(&format!("x-aaaaaa{OWN}bbbbbb"), OWN).is_err());
}

#[test]
fn after_the_own_mac_only_listed_macs_count() {
    for path in [format!("{OWN}-20261130063015.log"), format!("{OWN}-00005e0053ab.cfg"), format!("{OWN}.00005e0053ab")]
    {
        assert_eq!(check(&path, OWN), Ok(()), "{path}");
    }
    assert_eq!(check(&format!("{OWN}-{OTHER}.cfg"), OWN), Err(ForeignMac::Listed(mac(OTHER))));
    assert!(check(&format!("{OWN}_00005e0053ab.cfg"), OWN).is_err());
    assert!(check(&format!("00005e0053ab/{OWN}-app.log"), OWN).is_err());
}

#[test]
fn dates_hashes_and_uuids_are_not_macs() {
    let common = [
        "000000000000.cfg",
        "y000000000028.cfg",
        "00-00-00-ab-cd-ef",
        "log-202602280000.txt",
        "20000229235959.log",
        "123e4567-e89b-12d3-a456-426614174000.wav",
        "d41d8cd98f00b204e9800998ecf8427e",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709.ld",
        &"ab".repeat(28),
        &"ab".repeat(32),
        &"ab".repeat(48),
        &"ab".repeat(64),
        // Listed only by another constituency.
        &format!("{ELSEWHERE}.log"),
        "fw/00005e0053aa-5.9.ld",
    ];
    for path in common {
        assert_eq!(check(path, OWN), Ok(()), "{path}");
    }
    for path in [
        "209902300000.log",
        "210001010000.log",
        "199912312359.log",
        "202602282400.log",
        "2026022800000.log",
        "x123e4567-e89b-12d3-a456-426614174000a",
        "a23e4567-e89b-12d3-a456-426614174000-1234567890ab",
        &"ab".repeat(15),
        "fw/00005E0053AA-5.9.ld",
    ] {
        assert!(matches!(check(path, OWN), Err(ForeignMac::Unlisted(_))), "{path}");
    }
    // Listed on this server, though by another constituency: no shape exempts it.
    assert_eq!(check("00005e0053ee.cfg", OWN), Err(ForeignMac::Listed(mac("00005e0053ee"))));
}

#[test]
fn common_does_not_apply_to_uploads() {
    let registry = registry();
    let home = registry.find("home").unwrap();
    let rules = NameRules::writing(registry.listed(), home);
    assert!(rules.check("fw/00005e0053aa-5.9.ld", Some(mac(OWN))).is_err());
    assert_eq!(rules.check(&format!("logs/{OWN}-20261130063015.log"), Some(mac(OWN))), Ok(()));
}

#[test]
fn linked_file_follows_lists_and_common_of_its_owner() {
    let registry = registry();
    let (home, other) = (registry.find("home").unwrap(), registry.find("else").unwrap());
    let from_else = NameRules::linked(registry.listed(), other, home);
    assert_eq!(from_else.check("fw/00005e0053aa-5.9.ld", None), Ok(()));
    assert_eq!(from_else.check(&format!("{ELSEWHERE}.log"), None), Err(ForeignMac::Listed(mac(ELSEWHERE))));
    let from_home = NameRules::linked(registry.listed(), home, other);
    assert!(from_home.check("fw/00005e0053aa-5.9.ld", None).is_err());
}

/// A MAC address in a random spelling that the rules cover.
fn spelling_of(mac: &'static str) -> impl Strategy<Value = String> {
    let separator = prop::sample::select(vec!['-', ':', '.', '_', ' ']);
    let separators = prop::collection::vec(separator, 5);
    let cases = prop::collection::vec(any::<bool>(), 12);
    (prop::sample::select(GROUPS.to_vec()), separators, cases).prop_map(move |(group, separators, cases)| {
        let mut text = String::new();
        for (index, (digit, is_upper)) in mac.chars().zip(cases).enumerate() {
            if index > 0 && index % group == 0 {
                text.push(separators[index / group - 1]);
            }
            text.push(if is_upper { digit.to_ascii_uppercase() } else { digit });
        }
        text
    })
}

proptest! {
    #[test]
    fn no_spelling_of_a_listed_mac_is_served_to_others(
        spelled in spelling_of(OTHER),
        before in "[a-z0-9._ :-]{0,10}",
        after in "[a-z0-9._ :-]{0,10}",
        folder in "([a-z0-9-]{1,6}/){0,2}",
        below in "(/[a-z0-9.]{1,8})?",
    ) {
        static REGISTRY: std::sync::LazyLock<Registry> = std::sync::LazyLock::new(registry);
        let home = REGISTRY.find("home").unwrap();
        let path = format!("{folder}{before}{spelled}{after}{below}");
        for own in [None, Some(mac(OWN)), Some(mac("00005e0053ee"))] {
            for rules in [
                reading(&REGISTRY),
                NameRules::writing(REGISTRY.listed(), home),
                NameRules::linked(REGISTRY.listed(), REGISTRY.find("else").unwrap(), home),
            ] {
                prop_assert!(rules.check(&path, own).is_err(), "{path:?} by {own:?}");
            }
        }
    }

    #[test]
    fn name_with_own_mac_belongs_to_that_phone(
        spelled in spelling_of(OWN),
        before in "[a-z]{0,8}",
        after in "[g-z.][a-z.]{0,8}",
    ) {
        prop_assert_eq!(check(&format!("{before}{spelled}{after}"), OWN), Ok(()));
    }

    #[test]
    fn no_path_panics_and_short_names_are_common(path in "\\PC{0,60}", short in "[0-9a-f]{0,11}([g-z][0-9a-f]{0,11}){0,3}") {
        let _ = check(&path, OWN);
        prop_assert_eq!(check(&short, OWN), Ok(()));
    }
}

/// The work of an edit depends on its difference, not on the number of constituencies.
#[test]
fn policy_edit_updates_listed_phones_by_difference() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, phones: &[u64]| {
        let first = mac("020000000000");
        let phones: Vec<String> = phones.iter().map(|number| format!("\"{}\": \"\"", first.plus(*number))).collect();
        let text = format!("{{ \"phones\": {{ {} }} }}", phones.join(", "));
        std::fs::create_dir_all(folder.path().join(name)).unwrap();
        crate::state::write_private(&folder.path().join(name).join("constituency.json"), text.as_bytes()).unwrap();
    };
    for constituency in 0..300 {
        write(&format!("c{constituency}"), &[constituency * 2, constituency * 2 + 1, 9999]);
    }
    let mut scanner = Scanner::new(folder.path().to_owned(), Vec::new());
    let before = scanner.scan(crate::clock::now());
    let phone = |number| mac("020000000000").plus(number);
    assert!(before.listed().contains(phone(0)) && before.listed().contains(phone(9999)));
    let (old, new) = (before.find("c0").unwrap(), {
        write("c0", &[1, 7777]);
        let later = crate::clock::now() + std::time::Duration::from_mins(1);
        scanner.scan(later)
    });
    // One phone was added, one removed, and a third is on one list fewer.
    let mut set = before.listed().clone();
    assert_eq!(replace_lists(&mut set, Some(old), new.find("c0").map(AsRef::as_ref)), 3);
    for (number, is_listed) in [(0, false), (1, true), (7777, true), (9999, true)] {
        assert_eq!(
            (set.contains(phone(number)), new.listed().contains(phone(number))),
            (is_listed, is_listed),
            "{number}"
        );
    }
    assert!(before.listed().contains(phone(0)), "the old snapshot stays as it was");
}

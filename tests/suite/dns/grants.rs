//! The grants that `provost print` prints, used by the real servers.

use std::process::Command;

use provost::cli::print::{Dialect, grant};

use super::{CHALLENGE, open, place, values};
use crate::harness::bind::{self, BindConfig, program};
use crate::harness::knot::{self, Knot};
use crate::harness::tool;

#[tokio::test]
async fn printed_bind_policy_allows_only_the_challenge() {
    if !bind::is_here("dns::grants::printed_bind_policy_allows_only_the_challenge") {
        return;
    }
    let printed = grant(Dialect::BindPolicy, "provost", "phones.example.com", Some((CHALLENGE, "example.com")), &[]);
    let policy = printed.split_once("update-policy {").unwrap().1.split_once('}').unwrap().0;
    let primary = BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", "", policy).start();
    let dns = open(&primary.settings("provost"));
    dns.add(&place(), &values(&["one"])).await.unwrap();
    let mut below = place();
    below.name = format!("below.{CHALLENGE}");
    dns.add(&below, &values(&["one"])).await.unwrap_err();
    // The whole output is valid in named.conf once the zone has a file and the key exists.
    let whole = printed.replace("type primary;", "type primary; file \"example.com.zone\";");
    let file = primary.key_file("provost").with_file_name("printed.conf");
    let keys = std::fs::read_to_string(primary.key_file("provost")).unwrap();
    std::fs::write(&file, keys + &whole).unwrap();
    let checked = tool::run(Command::new(program("named-checkconf").unwrap()).arg(&file));
    assert_eq!(checked.code, 0, "{}{}", checked.stdout, checked.stderr);
}

#[tokio::test]
async fn printed_knot_acl_allows_only_the_challenge() {
    if !knot::is_here("dns::grants::printed_knot_acl_allows_only_the_challenge") {
        return;
    }
    let printed = grant(Dialect::KnotAcl, "provost", "phones.example.com", Some((CHALLENGE, "example.com")), &[]);
    let knot = Knot::start("example.com", "provost", &printed);
    let dns = open(&knot.settings());
    dns.add(&place(), &values(&["one"])).await.unwrap();
    assert_eq!(bind::txt(knot.address, CHALLENGE), ["one"]);
    let mut below = place();
    below.name = format!("below.{CHALLENGE}");
    dns.add(&below, &values(&["one"])).await.unwrap_err();
}

//! Reloading under difficult conditions: thousands of constituencies, a policy with thousands of phones, no inotify, no
//! file descriptors.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::{Stopwatch, VVX500, VVX550, eventually, not_run, within_a_second};

/// A policy that lists 20 000 phones, and `more`.
fn many_phones(more: &[&str]) -> String {
    let mut phones = String::new();
    for number in 0..20_000 {
        writeln!(phones, "    \"{:012x}\": \"phone {number}\",", 0x0004_f200_0000_u64 + number).unwrap();
    }
    for mac in more {
        writeln!(phones, "    \"{mac}\": \"\",").unwrap();
    }
    format!(
        "{{\n  \"trust\": [\"factory\"],\n  \"phones\": {{\n{}\n  }}\n}}\n",
        phones.trim_end().trim_end_matches(',')
    )
}

fn gives(server: &Running, name: &str, mac: &str, status: u16) -> Option<()> {
    let response = server.client(name, &FACTORY.device(mac)).get("/site.cfg").ok()?;
    (response.status == status).then_some(())
}

fn policy(phones: &[&str]) -> Value {
    let phones: serde_json::Map<String, Value> = phones.iter().map(|mac| ((*mac).to_owned(), "".into())).collect();
    json!({ "trust": ["factory"], "phones": phones })
}

/// Starts a server of `site` in a user namespace with `value` for this inotify `sysctl`; `None` if that is not allowed.
fn with_inotify_limit(site: &Site, sysctl: &str, value: u32) -> Option<Running> {
    let script = format!("echo {value} > /proc/sys/user/{sysctl} && exec \"$@\"");
    let can = crate::harness::tool::run(
        std::process::Command::new("unshare").args(["-r", "sh", "-c", &script, "sh", "true"]),
    );
    (can.code == 0).then(|| Running::start(site.command_under(&["unshare", "-r", "sh", "-c", &script, "sh"]), 1))
}

#[test]
fn change_among_2000_folders_and_20000_phones_takes_a_second() {
    const FOLDERS: usize = 2000;
    let site = Site::with_ote();
    for number in 0..FOLDERS {
        fs::create_dir(site.served(&format!("c{number}"))).unwrap();
        fs::write(site.served(&format!("c{number}/constituency.json")), policy(&[]).to_string()).unwrap();
    }
    site.file("large/site.cfg", "<large/>");
    site.file("large/constituency.json", many_phones(&[]));
    let start = Instant::now();
    let server = site.start();
    eventually("the first answer", || gives(&server, "ote", VVX500, 200));
    let started = start.elapsed();
    assert_eq!(gives(&server, "large", VVX500, 403), Some(()));

    site.file("large/constituency.json", many_phones(&[VVX500]));
    let ((), phone) = within_a_second("a phone among 20 000", || gives(&server, "large", VVX500, 200));
    site.constituency("c1999", &policy(&[VVX500]));
    let ((), one) = within_a_second("a policy among 2000", || gives(&server, "c1999", VVX500, 404));
    site.file("added/site.cfg", "");
    site.constituency("added", &policy(&[VVX500]));
    let ((), added) = within_a_second("a folder added to 2000", || gives(&server, "added", VVX500, 200));
    fs::remove_dir_all(site.served("added")).unwrap();
    let ((), removed) = within_a_second("a folder removed", || {
        server.client("added", &FACTORY.device(VVX500)).connect().is_err().then_some(())
    });
    eprintln!(
        "{FOLDERS} constituencies: first answer {started:?}; a phone among 20 000 {phone:?}, a policy {one:?}, a folder added {added:?}, removed {removed:?}"
    );
    let reported = server.stderr().iter().filter(|line| line.contains(" is served")).count();
    assert_eq!(reported, FOLDERS + 3);
}

#[test]
fn continuous_writes_do_not_delay_a_reload() {
    let site = Site::with_ote();
    let server = site.start();
    eventually("the server", || gives(&server, "ote", VVX500, 200));
    let mut is_seen = false;
    let mut number = 0;
    site.constituency("new", &policy(&[VVX500]));
    let watch = Stopwatch::start();
    while !watch.is_past(Duration::from_secs(2)) || !is_seen && !watch.is_over() {
        site.file(&format!("ote/noise-{}.xml", number % 50), "noise");
        number += 1;
        if number % 50 == 0 && !is_seen && gives(&server, "new", VVX500, 404).is_some() {
            is_seen = true;
            watch.at_most(Duration::from_secs(1), &format!("a change during {number} writes"));
        }
    }
    assert!(is_seen, "not among {number} writes");
    // After the writes, the next change does not wait for queued reloads.
    site.constituency("ote", &policy(&[VVX500, VVX550]));
    within_a_second("a change after the writes", || gives(&server, "ote", VVX550, 200));
}

#[test]
fn missing_inotify_falls_back_to_polling_and_names_the_sysctl() {
    let site = Site::with_ote();
    let Some(server) = with_inotify_limit(&site, "max_inotify_instances", 0) else {
        let reason = "no user namespace in which inotify can be limited";
        return not_run("missing_inotify_falls_back_to_polling_and_names_the_sysctl", reason);
    };
    server.says("raise the sysctl fs.inotify.max_user_instances");
    for round in 0..3 {
        let watch = Stopwatch::start();
        site.constituency("ote", &policy(&[VVX500, VVX550]));
        eventually("the phone", || gives(&server, "ote", VVX550, 200));
        watch.at_most(Duration::from_secs(2), &format!("the phone of round {round}"));
        site.constituency("ote", &policy(&[VVX500]));
        eventually("no phone", || gives(&server, "ote", VVX550, 403));
    }
}

#[test]
fn inotify_missing_at_start_is_used_once_available() {
    let test = "inotify_missing_at_start_is_used_once_available";
    let site = Site::with_ote();
    let Some(server) = with_inotify_limit(&site, "max_inotify_instances", 0) else {
        return not_run(test, "no user namespace in which inotify can be limited");
    };
    server.says("raise the sysctl fs.inotify.max_user_instances");
    let pid = server.pid().to_string();
    let raise = "echo 100 > /proc/sys/user/max_inotify_instances";
    let raised = crate::harness::tool::run(std::process::Command::new("nsenter").args([
        "--user",
        "--preserve-credentials",
        "--target",
        &pid,
        "sh",
        "-c",
        raise,
    ]));
    if raised.code != 0 {
        return not_run(test, &raised.stderr);
    }
    server.says("all folders are watched again");
    site.constituency("ote", &policy(&[VVX500, VVX550]));
    within_a_second("the phone", || gives(&server, "ote", VVX550, 200));
}

#[test]
fn too_few_inotify_watches_fall_back_to_polling() {
    let site = Site::with_ote();
    for number in 0..4 {
        site.constituency(&format!("c{number}"), &policy(&[]));
    }
    // Enough for `constituencies` and two folders in it.
    let Some(server) = with_inotify_limit(&site, "max_inotify_watches", 3) else {
        let reason = "no user namespace in which inotify could be restricted";
        return not_run("too_few_inotify_watches_fall_back_to_polling", reason);
    };
    server.says("raise the sysctl fs.inotify.max_user_watches");
    for number in 0..4 {
        let watch = Stopwatch::start();
        site.constituency(&format!("c{number}"), &policy(&[VVX500]));
        eventually("the phone", || gives(&server, &format!("c{number}"), VVX500, 404));
        watch.at_most(Duration::from_secs(2), &format!("the phone of c{number}"));
    }
    let said = server.stderr().iter().filter(|line| line.contains("cannot be watched")).count();
    assert_eq!(said, 1, "once, not every second");
    for number in 0..4 {
        fs::remove_dir_all(site.served(&format!("c{number}"))).unwrap();
    }
    server.says("all folders are watched again");
}

//! ISC's dhcpd: options in a group of hosts.

use std::fmt::Write;

use super::{Told, with_colons};

pub(super) fn print(told: &Told) -> String {
    let mut text = String::new();
    let place = if told.phones.is_empty() {
        "Include it in dhcpd.conf within the subnet of the phones."
    } else {
        "Include it in dhcpd.conf, outside of every subnet. Addresses come from the pools that are there."
    };
    for line in told.heading(place) {
        add(&mut text, &format!("# {line}"));
    }
    add(&mut text, "option polycom-server code 160 = text;");
    add(&mut text, "option polycom-vlan code 128 = text;");
    if told.phones.is_empty() {
        options(told, "", &mut text);
        return text;
    }
    add(&mut text, "group {");
    options(told, "  ", &mut text);
    for (mac, note) in &told.phones {
        // A comment ends with its line, and a note is one line.
        if !note.is_empty() {
            add(&mut text, &format!("  # {note}"));
        }
        let hardware = with_colons(*mac);
        add(&mut text, &format!("  host {}-{mac} {{ hardware ethernet {hardware}; }}", told.name));
    }
    add(&mut text, "}");
    text
}

fn options(told: &Told, indent: &str, text: &mut String) {
    let mut option = |name: &str, value: &str| add(text, &format!("{indent}option {name} {value};"));
    let quoted = |value: &str| format!("\"{value}\"");
    option("polycom-server", &quoted(&told.url));
    option("tftp-server-name", &quoted(&told.url));
    if let Some(vlan) = told.vlan() {
        option("polycom-vlan", &quoted(&vlan));
    }
    if let Some(zone) = told.zone {
        option("pcode", &quoted(zone.posix));
        option("tcode", &quoted(zone.name));
    }
    if let Some(offset) = told.offset {
        option("time-offset", &offset.seconds.to_string());
    }
    if !told.ntp.is_empty() {
        let servers: Vec<String> = told.ntp.iter().map(ToString::to_string).collect();
        option("ntp-servers", &servers.join(", "));
    }
}

fn add(text: &mut String, line: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{line}");
}

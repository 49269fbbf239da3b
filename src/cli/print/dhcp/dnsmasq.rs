//! dnsmasq: options for a tag that the phones' hosts set.

use super::{Told, with_colons};

pub(super) fn print(told: &Told) -> anyhow::Result<String> {
    let place = "Put it into a file of its own, which conf-file= or conf-dir= names.";
    let mut lines: Vec<String> = told.heading(place).iter().map(|line| format!("# {line}")).collect();
    for (mac, note) in &told.phones {
        // A comment ends with its line, and a note is one short line.
        if !note.is_empty() {
            lines.push(format!("# {note}"));
        }
        lines.push(format!("dhcp-host={},set:{}", with_colons(*mac), told.name));
    }
    let tag = if told.phones.is_empty() { String::new() } else { format!("tag:{},", told.name) };
    let mut option = |code: u8, value: &str| lines.push(format!("dhcp-option={tag}{code},{value}"));
    // Within quotes a comma is a comma.
    let quoted = |value: &str| format!("\"{value}\"");
    option(160, &quoted(&told.url));
    option(66, &quoted(&told.url));
    if let Some(vlan) = told.vlan() {
        option(128, &quoted(&vlan));
    }
    if let Some(zone) = told.zone {
        option(100, &quoted(zone.posix));
        option(101, &quoted(zone.name));
    }
    if let Some(offset) = told.offset {
        // Four bytes each of their own: a number would be as long as it looks.
        option(2, &offset.seconds.to_be_bytes().map(|byte| format!("{byte:02x}")).join(":"));
    }
    let ntp = told.ntp_addresses("dnsmasq")?;
    if !ntp.is_empty() {
        let servers: Vec<String> = ntp.iter().map(ToString::to_string).collect();
        option(42, &servers.join(","));
    }
    Ok(lines.join("\n"))
}

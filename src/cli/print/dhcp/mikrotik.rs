//! MikroTik's RouterOS: a set of options that the phones' leases name. Commands for its terminal, or a file to import.
//!
//! Values are written in hexadecimal, which RouterOS reads alike in every version: quoted ones it takes for numbers or
//! addresses where they look like some.

use super::{Told, with_colons};

pub(super) fn print(told: &Told) -> anyhow::Result<String> {
    let name = &told.name;
    let for_everybody = format!("Afterwards: /ip dhcp-server network set [find] dhcp-option-set={name}");
    let place = if told.phones.is_empty() { &for_everybody } else { "Paste it into a terminal, or /import it." };
    let mut lines: Vec<String> = told.heading(place).iter().map(|line| format!("# {line}")).collect();
    lines.push("/ip dhcp-server option".to_owned());
    let options = options(told)?;
    for (code, value, meaning) in &options {
        lines.push(format!("# {code}: {meaning}"));
        lines.push(format!("add name={name}-{code} code={code} value=0x{}", hex(value)));
    }
    let names: Vec<String> = options.iter().map(|(code, ..)| format!("{name}-{code}")).collect();
    lines.push("/ip dhcp-server option sets".to_owned());
    lines.push(format!("add name={name} options={}", names.join(",")));
    if !told.phones.is_empty() {
        lines.push("/ip dhcp-server lease".to_owned());
    }
    for (mac, note) in &told.phones {
        let mac = with_colons(*mac).to_ascii_uppercase();
        let comment = quoted(note);
        lines.push(format!("add address=0.0.0.0 mac-address={mac} dhcp-option-set={name} comment={comment}"));
    }
    Ok(lines.join("\n"))
}

/// Each option: its code, its value, and what that says.
fn options(told: &Told) -> anyhow::Result<Vec<(u8, Vec<u8>, String)>> {
    let text = |code, text: &str| (code, text.as_bytes().to_vec(), text.to_owned());
    let mut options = vec![text(160, &told.url), text(66, &told.url)];
    options.extend(told.vlan().map(|vlan| text(128, &vlan)));
    if let Some(zone) = told.zone {
        options.extend([text(100, zone.posix), text(101, zone.name)]);
    }
    if let Some(offset) = told.offset {
        options.push((2, offset.seconds.to_be_bytes().to_vec(), format!("{} s", offset.seconds)));
    }
    let ntp = told.ntp_addresses("RouterOS")?;
    if !ntp.is_empty() {
        let meaning: Vec<String> = ntp.iter().map(ToString::to_string).collect();
        options.push((42, ntp.iter().flat_map(std::net::Ipv4Addr::octets).collect(), meaning.join(", ")));
    }
    Ok(options)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A string of RouterOS. All that could mean something in one (`"`, `\`, `$`, `?`, line ends) is written as its code.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b" #()*+,-./:;<=>@_".contains(&byte);
    let escaped = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("\\{byte:02X}") };
    format!("\"{}\"", text.bytes().map(escaped).collect::<String>())
}

//! MikroTik RouterOS: a set of options that the phones' leases refer to. Commands for its terminal, or a file to
//! import.
//!
//! Values are hexadecimal, which every version of RouterOS reads in the same way. It takes quoted values for numbers or
//! addresses if they look like ones.

use super::{DhcpPlan, NtpServer, OptionValue, with_colons};

pub(super) fn print(plan: &DhcpPlan) -> String {
    let name = &plan.name;
    let for_all = format!("Afterwards: /ip dhcp-server network set [find] dhcp-option-set={name}");
    let existing = format!(
        "A phone with a static lease keeps it. Do not add another one, but run /ip dhcp-server lease set \
         [find mac-address=MAC] dhcp-option-set={name}"
    );
    let place: &[&str] =
        if plan.is_for_all() { &[&for_all] } else { &["Paste it into a terminal, or /import it.", &existing] };
    let mut lines: Vec<String> = plan.heading(place).iter().map(|line| format!("# {line}")).collect();
    lines.push("/ip dhcp-server option".to_owned());
    for (code, value) in &plan.options {
        let (bytes, meaning) = encoded(value);
        lines.push(format!("# {code}: {meaning}"));
        lines.push(format!("add name={name}-{code} code={code} value=0x{}", hex(&bytes)));
    }
    let names: Vec<String> = plan.options.iter().map(|(code, _)| format!("{name}-{code}")).collect();
    lines.push("/ip dhcp-server option sets".to_owned());
    lines.push(format!("add name={name} options={}", names.join(",")));
    let reserved: Vec<_> = plan.reservations().map(|(phone, _)| phone).collect();
    let leases = if plan.is_for_all() { reserved } else { plan.members().iter().collect() };
    if !leases.is_empty() {
        lines.push("/ip dhcp-server lease".to_owned());
    }
    for phone in leases {
        // 0.0.0.0: from the server's pool.
        let address = phone.address.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        let mac = with_colons(phone.mac).to_ascii_uppercase();
        let set = if plan.is_for_all() { String::new() } else { format!(" dhcp-option-set={name}") };
        let lease = plan.lease.map(|lease| format!(" lease-time={}", time(lease.default))).unwrap_or_default();
        let comment = quoted(&phone.note);
        lines.push(format!("add address={address} mac-address={mac}{set}{lease} comment={comment}"));
    }
    lines.join("\n")
}

/// A value's bytes, and its text for a comment.
fn encoded(value: &OptionValue) -> (Vec<u8>, String) {
    match value {
        OptionValue::Text(text) => (text.as_bytes().to_vec(), text.clone()),
        OptionValue::Seconds(seconds) => (seconds.to_be_bytes().to_vec(), format!("{seconds} s")),
        OptionValue::Servers(servers) => {
            let addresses = servers.iter().filter_map(|server| match server {
                NtpServer::Address(address) => Some(address),
                NtpServer::Name(_) => None,
            });
            let meaning: Vec<String> = addresses.clone().map(ToString::to_string).collect();
            (addresses.flat_map(std::net::Ipv4Addr::octets).collect(), meaning.join(", "))
        }
    }
}

/// A time as RouterOS writes it: `1d2h3m4s`.
fn time(seconds: u32) -> String {
    let parts = [(seconds / 86_400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A RouterOS string. Every special character (`"`, `\`, `$`, `?`, line breaks) is written as its code.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b" #()*+,-./:;<=>@_".contains(&byte);
    let escaped = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("\\{byte:02X}") };
    format!("\"{}\"", text.bytes().map(escaped).collect::<String>())
}

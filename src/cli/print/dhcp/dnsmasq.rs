//! dnsmasq: `dhcp-mac` sets a tag in addition to the site's `dhcp-host`. Another `dhcp-host` for the phone would
//! replace the site's.

use super::{DhcpPlan, OptionValue, with_colons};

pub(super) fn print(plan: &DhcpPlan) -> String {
    let place: &[&str] = if plan.is_for_all() {
        &["Save it as a separate file that conf-file= or conf-dir= names."]
    } else {
        &[
            "Save it as a separate file that conf-file= or conf-dir= names.",
            "The phones keep their addresses.",
            "If several tags of a phone set an option, the last one wins: let dnsmasq read this file last.",
        ]
    };
    let mut lines: Vec<String> = plan.heading(place).iter().map(|line| format!("# {line}")).collect();
    for phone in plan.members() {
        // A comment ends at the line break, and a note is one short line.
        if !phone.note.is_empty() {
            lines.push(format!("# {}", phone.note));
        }
        lines.push(format!("dhcp-mac=set:{},{}", plan.name, with_colons(phone.mac)));
    }
    for (phone, address) in plan.reservations() {
        let lease = plan.lease.map(|lease| format!(",{}", lease.default)).unwrap_or_default();
        lines.push(format!("dhcp-host={},{address}{lease}", with_colons(phone.mac)));
    }
    let tag = if plan.is_for_all() { String::new() } else { format!("tag:{},", plan.name) };
    lines.extend(plan.options.iter().map(|(code, data)| format!("dhcp-option={tag}{code},{}", value(data))));
    lines.join("\n")
}

fn value(value: &OptionValue) -> String {
    match value {
        // Quotes keep a comma in the text.
        OptionValue::Text(text) => format!("\"{text}\""),
        // Four separate bytes: dnsmasq would encode a number in as few bytes as it needs.
        OptionValue::Seconds(seconds) => seconds.to_be_bytes().map(|byte| format!("{byte:02x}")).join(":"),
        OptionValue::Servers(servers) => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

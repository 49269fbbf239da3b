//! ISC dhcpd: a class of hardware addresses. A phone gets its options and lease times in addition to those of the host
//! declaration that reserves its address.

use super::{DhcpPlan, OptionValue, with_colons};

/// The options that dhcpd does not know by name.
const DEFINED_HERE: [(u8, &str); 2] = [(160, "polycom-server"), (128, "polycom-vlan")];

pub(super) fn print(plan: &DhcpPlan) -> String {
    let mut lines: Vec<String> = plan.heading(&place(plan)).iter().map(|line| format!("# {line}")).collect();
    let used = DEFINED_HERE.iter().filter(|(code, _)| plan.options.iter().any(|(used, _)| used == code));
    if plan.has_definitions {
        lines.push(
            "# If dhcpd.conf already defines these options, leave the definitions out (--without-definitions):"
                .to_owned(),
        );
        lines.extend(used.map(|(code, name)| format!("option {name} code {code} = text;")));
    } else {
        let names: Vec<String> = used.map(|(code, name)| format!("{name} (option {code}, text)")).collect();
        lines.push(format!("# dhcpd.conf must define before this: {}.", names.join(", ")));
    }
    let statements = lease(plan).into_iter().chain(plan.options.iter().map(|(code, value)| option(*code, value)));
    if plan.is_for_all() {
        lines.extend(statements);
    } else {
        lines.push(format!("class \"{}\" {{", plan.name));
        lines.push("  match hardware;".to_owned());
        lines.extend(statements.map(|statement| format!("  {statement}")));
        lines.push("}".to_owned());
    }
    for phone in plan.members() {
        // A comment ends at the line break, and a note is one line.
        if !phone.note.is_empty() {
            lines.push(format!("# {}", phone.note));
        }
        // dhcp-eval(5): the hardware type precedes the address. Ethernet is 1.
        lines.push(format!("subclass \"{}\" 1:{};", plan.name, with_colons(phone.mac)));
    }
    for (phone, address) in plan.reservations() {
        let hardware = with_colons(phone.mac);
        lines.push(format!(
            "host {}-{} {{ hardware ethernet {hardware}; fixed-address {address}; }}",
            plan.name, phone.mac
        ));
    }
    lines.join("\n")
}

fn place(plan: &DhcpPlan) -> Vec<&'static str> {
    if plan.is_for_all() {
        return vec!["Include it in dhcpd.conf within the subnet of the phones."];
    }
    vec![
        "Include it in dhcpd.conf, outside of every subnet. The phones keep their addresses.",
        "If several classes of a phone set an option, the first one wins: include this before the others.",
        "A phone's own host declaration and its group override this: remove options 160 and 66 there.",
    ]
}

fn lease(plan: &DhcpPlan) -> Vec<String> {
    let Some(lease) = plan.lease else { return Vec::new() };
    vec![format!("default-lease-time {};", lease.default), format!("max-lease-time {};", lease.longest)]
}

fn option(code: u8, value: &OptionValue) -> String {
    let name = match code {
        160 => "polycom-server",
        66 => "tftp-server-name",
        128 => "polycom-vlan",
        100 => "pcode",
        101 => "tcode",
        2 => "time-offset",
        _ => "ntp-servers",
    };
    let value = match value {
        OptionValue::Text(text) => format!("\"{text}\""),
        OptionValue::Seconds(seconds) => seconds.to_string(),
        OptionValue::Servers(servers) => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    format!("option {name} {value};")
}

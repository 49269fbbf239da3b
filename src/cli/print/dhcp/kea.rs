//! Kea: a client class that tests the hardware address. It applies to a phone with any reservation. A class named in a
//! reservation of ours would apply only if Kea finds no other reservation first.

use serde_json::{Map, Value as Json, json};

use super::{DhcpPlan, OptionValue, with_colons};

pub(super) fn print(plan: &DhcpPlan) -> anyhow::Result<String> {
    let mut dhcp = Map::new();
    if plan.has_definitions {
        let definition =
            |name: &str, code: u8| json!({ "name": name, "code": code, "type": "string", "space": "dhcp4" });
        let used = [("polycom-server", 160), ("polycom-vlan", 128)]
            .into_iter()
            .filter(|(_, code)| plan.options.iter().any(|(used, _)| used == code));
        dhcp.insert("option-def".to_owned(), used.map(|(name, code)| definition(name, code)).collect());
    }
    let mut scope = Map::new();
    scope.insert("user-context".to_owned(), context(plan));
    if !plan.is_for_all() {
        scope.insert("name".to_owned(), json!(plan.name));
        let tests: Vec<String> = plan.members().iter().map(|phone| format!("pkt4.mac == 0x{}", phone.mac)).collect();
        scope.insert("test".to_owned(), json!(tests.join(" or ")));
    }
    if let Some(lease) = plan.lease {
        scope.insert("valid-lifetime".to_owned(), json!(lease.default));
        scope.insert("max-valid-lifetime".to_owned(), json!(lease.longest));
    }
    let options = plan.options.iter().map(|(code, value)| option(*code, value, plan.has_definitions));
    scope.insert("option-data".to_owned(), options.collect());
    if plan.is_for_all() {
        dhcp.extend(scope);
    } else {
        dhcp.insert("client-classes".to_owned(), json!([scope]));
    }
    let reservations: Vec<Json> = plan
        .reservations()
        .map(|(phone, address)| json!({ "hw-address": with_colons(phone.mac), "ip-address": address }))
        .collect();
    if !reservations.is_empty() {
        dhcp.insert("reservations-global".to_owned(), json!(true));
        dhcp.insert("reservations".to_owned(), json!(reservations));
    }
    Ok(serde_json::to_string_pretty(&json!({ "Dhcp4": dhcp }))?)
}

/// The `user-context`, used for comments, which JSON lacks: Kea keeps it and ignores it.
fn context(plan: &DhcpPlan) -> Json {
    let mut place = vec!["Merge it into the Dhcp4 of your configuration, list by list."];
    if !plan.is_for_all() {
        place.push("The phones keep their addresses.");
        place.push("If several classes of a phone set an option, the first one wins: put this before the others.");
        place.push("A subnet, a pool and a reservation override this: remove options 160 and 66 there.");
    }
    if plan.has_definitions {
        place.push("Leave out the option-def entries that your configuration already has (--without-definitions).");
    }
    let notes: Map<String, Json> = plan
        .members()
        .iter()
        .filter(|phone| !phone.note.is_empty())
        .map(|phone| (phone.mac.to_string(), json!(phone.note)))
        .collect();
    let mut context = json!({ "comment": plan.heading(&place).join(" ") });
    if !notes.is_empty() {
        context["phones"] = notes.into();
    }
    context
}

/// An option that is sent even if the phone does not request it, as dhcpd and dnsmasq do for a client without a request
/// list.
fn option(code: u8, value: &OptionValue, has_definitions: bool) -> Json {
    let name = match code {
        160 if has_definitions => Some("polycom-server"),
        128 if has_definitions => Some("polycom-vlan"),
        66 => Some("tftp-server-name"),
        100 => Some("pcode"),
        101 => Some("tcode"),
        2 => Some("time-offset"),
        42 => Some("ntp-servers"),
        _ => None,
    };
    match (name, value) {
        // By number and as raw data, whatever name the site gives this option.
        (None, OptionValue::Text(text)) => {
            json!({ "code": code, "csv-format": false, "data": format!("'{text}'"), "always-send": true })
        }
        // An unescaped comma would end the value.
        (_, OptionValue::Text(text)) => json!({ "name": name, "data": text.replace(',', "\\,"), "always-send": true }),
        (_, OptionValue::Seconds(seconds)) => json!({ "name": name, "data": seconds.to_string(), "always-send": true }),
        (_, OptionValue::Servers(servers)) => {
            let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
            json!({ "name": name, "data": servers.join(", "), "always-send": true })
        }
    }
}

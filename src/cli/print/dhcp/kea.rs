//! Kea: options of a class that the phones' reservations give.

use serde_json::{Value, json};

use super::{Told, with_colons};
use crate::constituency::MacAddress;

pub(super) fn print(told: &Told) -> anyhow::Result<String> {
    let comment = told.heading("Merge it into the Dhcp4 of your configuration.").join(" ");
    let definition = |name: &str, code: u8| json!({ "name": name, "code": code, "type": "string", "space": "dhcp4" });
    let mut dhcp = json!({
        "user-context": { "comment": comment },
        "option-def": [definition("polycom-server", 160), definition("polycom-vlan", 128)],
    });
    let options = options(told)?;
    let more = if told.phones.is_empty() {
        json!({ "option-data": options })
    } else {
        let reservations: Vec<Value> = told.phones.iter().map(|(mac, note)| reservation(told, *mac, note)).collect();
        json!({
            "client-classes": [{ "name": told.name, "option-data": options }],
            "reservations-global": true,
            "reservations": reservations,
        })
    };
    if let (Value::Object(dhcp), Value::Object(more)) = (&mut dhcp, more) {
        dhcp.extend(more);
    }
    Ok(serde_json::to_string_pretty(&json!({ "Dhcp4": dhcp }))?)
}

fn reservation(told: &Told, mac: MacAddress, note: &str) -> Value {
    let mut reservation = json!({ "hw-address": with_colons(mac), "client-classes": [told.name] });
    if !note.is_empty() {
        reservation["user-context"] = json!({ "comment": note });
    }
    reservation
}

fn options(told: &Told) -> anyhow::Result<Vec<Value>> {
    // A comma would end the value.
    let option = |name: &str, value: &str| json!({ "name": name, "data": value.replace(',', "\\,") });
    let mut options = vec![option("polycom-server", &told.url), option("tftp-server-name", &told.url)];
    options.extend(told.vlan().map(|vlan| option("polycom-vlan", &vlan)));
    if let Some(zone) = told.zone {
        options.extend([option("pcode", zone.posix), option("tcode", zone.name)]);
    }
    options.extend(told.offset.map(|offset| option("time-offset", &offset.seconds.to_string())));
    let ntp: Vec<String> = told.ntp_addresses("Kea")?.iter().map(ToString::to_string).collect();
    if !ntp.is_empty() {
        options.push(json!({ "name": "ntp-servers", "data": ntp.join(", ") }));
    }
    Ok(options)
}

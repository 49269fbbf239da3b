//! The configuration of the primary that permits our key the updates it needs, and no others. Pure.

use std::fmt;

/// The narrowest grant for challenges: TXT records at exactly these names, for exactly this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateGrant {
    key: String,
    names: Vec<String>,
    zone: String,
}

impl UpdateGrant {
    /// Permits `key` to change TXT records at `name` in `zone`.
    #[must_use]
    pub fn new(key: &str, name: &str, zone: &str) -> Self {
        Self { key: absolute(key), names: vec![absolute(name)], zone: absolute(zone) }
    }

    /// Adds another name of the same zone.
    #[must_use]
    pub fn and(mut self, name: &str) -> Self {
        self.names.push(absolute(name));
        self
    }

    /// The lines for `update-policy { … }` of BIND's zone, one per name: no BIND rule for several names is as narrow.
    pub fn bind_lines(&self) -> impl Iterator<Item = String> {
        self.names.iter().map(|name| format!("grant {} name {name} TXT;", self.key))
    }

    /// The text for BIND's `named.conf`.
    #[must_use]
    pub fn bind_policy(&self) -> String {
        let zone = self.zone.trim_end_matches('.');
        let lines: String = self.bind_lines().map(|line| format!("        {line}\n")).collect();
        format!(
            "// named.conf: include the key file, and add the update-policy to the zone.\n\
             zone \"{zone}\" {{\n    type primary;\n    update-policy {{\n{lines}    }};\n}};\n"
        )
    }

    /// The text for Knot's `knot.conf`.
    #[must_use]
    pub fn knot_acl(&self) -> String {
        let Self { key, names, zone } = self;
        let names = names.join(", ");
        let id = key.trim_end_matches('.');
        format!(
            "# knot.conf: the key's own section comes from the key file (keymgr -t prints one).\n\
             acl:\n  - id: {id}\n    key: {key}\n    action: update\n    update-type: [TXT]\n    \
             update-owner: name\n    update-owner-match: equal\n    update-owner-name: [{names}]\n\n\
             zone:\n  - domain: {zone}\n    acl: [{id}]\n"
        )
    }
}

/// The text for error messages, for each server. `PowerDNS` permits a key all names of a zone or none.
impl fmt::Display for UpdateGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.bind_lines().collect();
        write!(f, "BIND, in update-policy of zone {}: `{}`", self.zone, lines.join(" "))?;
        let names = self.names.join(", ");
        write!(f, "; Knot: an acl with `key: {}`, `action: update`, `update-owner-name: [{names}]`", self.key)?;
        let (zone, key) = (self.zone.trim_end_matches('.'), self.key.trim_end_matches('.'));
        write!(f, "; PowerDNS: `pdnsutil set-meta {zone} TSIG-ALLOW-DNSUPDATE {key}` and `dnsupdate=yes` in pdns.conf")
    }
}

fn absolute(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.').to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grant_is_limited_to_one_key_name_and_type() {
        let grant = UpdateGrant::new("provost", "_acme-challenge.Phones.example.com", "example.com");
        let line = "grant provost. name _acme-challenge.phones.example.com. TXT;";
        assert_eq!(grant.bind_lines().collect::<Vec<_>>(), [line]);
        assert!(grant.bind_policy().contains("zone \"example.com\" {"));
        assert!(grant.knot_acl().contains("update-owner-name: [_acme-challenge.phones.example.com.]"));
        assert!(grant.to_string().contains(line));
        assert!(grant.to_string().contains("`pdnsutil set-meta example.com TSIG-ALLOW-DNSUPDATE provost`"));
    }

    #[test]
    fn two_names_get_one_grant_line_each() {
        let grant =
            UpdateGrant::new("provost", "_acme-challenge.a.example", "example").and("_acme-challenge.x.a.example");
        let lines: Vec<String> = grant.bind_lines().collect();
        assert_eq!(lines[1], "grant provost. name _acme-challenge.x.a.example. TXT;");
        assert!(lines.iter().all(|line| grant.bind_policy().contains(line)));
        assert!(grant.knot_acl().contains("[_acme-challenge.a.example., _acme-challenge.x.a.example.]"));
    }
}

//! What an operator writes into the primary's configuration so that our key may do what it must, and no more. Pure.

use std::fmt;

/// The narrowest grant for one challenge: TXT records at exactly this name, for exactly this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    key: String,
    name: String,
    zone: String,
}

impl Grant {
    /// For the key `key`, to change TXT records at `name`, which is in `zone`.
    #[must_use]
    pub fn new(key: &str, name: &str, zone: &str) -> Self {
        let absolute = |name: &str| format!("{}.", name.trim_end_matches('.').to_ascii_lowercase());
        Self { key: absolute(key), name: absolute(name), zone: absolute(zone) }
    }

    /// The line in `update-policy { … }` of BIND's zone.
    #[must_use]
    pub fn bind_line(&self) -> String {
        format!("grant {} name {} TXT;", self.key, self.name)
    }

    /// What BIND's `named.conf` needs.
    #[must_use]
    pub fn bind_policy(&self) -> String {
        let (zone, line) = (self.zone.trim_end_matches('.'), self.bind_line());
        format!(
            "// named.conf: include the key file, and add the update-policy to the zone.\n\
             zone \"{zone}\" {{\n    type primary;\n    update-policy {{\n        {line}\n    }};\n}};\n"
        )
    }

    /// What Knot's `knot.conf` needs.
    #[must_use]
    pub fn knot_acl(&self) -> String {
        let Self { key, name, zone } = self;
        let id = key.trim_end_matches('.');
        format!(
            "# knot.conf: the key's own section comes from the key file (keymgr -t prints one).\n\
             acl:\n  - id: {id}\n    key: {key}\n    action: update\n    update-type: [TXT]\n    \
             update-owner: name\n    update-owner-match: equal\n    update-owner-name: [{name}]\n\n\
             zone:\n  - domain: {zone}\n    acl: [{id}]\n"
        )
    }
}

/// As errors name it, for both dialects.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BIND, in update-policy of zone {}: `{}`", self.zone, self.bind_line())?;
        write!(f, "; Knot: an acl with `key: {}`, `action: update`, `update-owner-name: [{}]`", self.key, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_one_key_one_name_and_one_type() {
        let grant = Grant::new("provost", "_acme-challenge.Phones.example.com", "example.com");
        assert_eq!(grant.bind_line(), "grant provost. name _acme-challenge.phones.example.com. TXT;");
        assert!(grant.bind_policy().contains("zone \"example.com\" {"));
        assert!(grant.knot_acl().contains("update-owner-name: [_acme-challenge.phones.example.com.]"));
        assert!(grant.to_string().contains(&grant.bind_line()));
    }
}

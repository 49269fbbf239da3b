//! Passwords of phones without a usable certificate: creates them and prints them once, removes them, and finds missing
//! ones.

use anyhow::{Context, ensure};

use super::audit::{entry, record};
use super::phone_set::print_each;
use super::{print_line, warn};
use crate::audit::AuditAction;
use crate::clock;
use crate::config::Config;
use crate::constituency::scan::Scanner;
use crate::constituency::{ClientAuth, Constituency, ConstituencyName, MacAddress};
use crate::identity::digest::Ha1;
use crate::identity::digest::passwords::{self, PasswordsError};

/// A new password. It is stored nowhere, only its hash.
pub(super) struct NewPassword {
    mac: MacAddress,
    password: String,
    had_one: bool,
}

/// Checks that the constituency asks for passwords, and that its stored passwords would stay valid.
pub(super) fn check_uses_passwords(config: &Config, constituency: &ConstituencyName) -> anyhow::Result<()> {
    let asks = uses_passwords(config, constituency);
    let asks = asks.with_context(|| format!("constituency {constituency} not found, or not served"))?;
    ensure!(
        asks,
        "{constituency} does not use passwords: its constituency.json does not have \"client_auth\": \"digest\""
    );
    passwords::check_realm(&config.state, constituency, &realm(config, constituency)).context("nothing was changed")
}

/// Whether `constituency` asks for passwords; `None` if it cannot be served.
fn uses_passwords(config: &Config, constituency: &ConstituencyName) -> Option<bool> {
    let registry = Scanner::new(config.constituencies.clone(), config.bundle_names()).scan(clock::now());
    let found = registry.find(constituency.as_str()).filter(|found| found.name == *constituency);
    found.map(|found| found.policy.tls.client_auth == ClientAuth::Digest)
}

/// Those of `macs` that have no password; none if `client_auth` asks for none.
pub(super) fn missing_of(
    config: &Config,
    constituency: &ConstituencyName,
    macs: &[MacAddress],
    client_auth: ClientAuth,
) -> Result<Vec<MacAddress>, PasswordsError> {
    if client_auth != ClientAuth::Digest {
        return Ok(Vec::new());
    }
    let stored = passwords::stored(&config.state, constituency)?;
    Ok(macs.iter().filter(|mac| !stored.phones.contains_key(mac)).copied().collect())
}

/// Warns if phones on the list have no password that they need.
pub(super) fn warn_of_missing(config: &Config, name: &ConstituencyName, macs: &[MacAddress], client_auth: ClientAuth) {
    match missing_of(config, name, macs, client_auth) {
        Ok(missing) if missing.is_empty() => {}
        Ok(missing) => warn(&format_args!(
            "{} of these on the list of {name} are refused until they have a password; make one for each with provost allow \
             MAC --constituency {name} --digest",
            missing.len()
        )),
        Err(error) => warn(&format_args!("cannot read the passwords, and without one a phone is refused: {error}")),
    }
}

/// The digest realm of the passwords: the constituency's full name.
fn realm(config: &Config, constituency: &ConstituencyName) -> String {
    format!("{constituency}.{}", config.domain)
}

/// Creates a password for a phone.
pub(super) fn create(config: &Config, constituency: &ConstituencyName, mac: MacAddress) -> anyhow::Result<NewPassword> {
    let realm = realm(config, constituency);
    let password = passwords::generate().ok().context("the system's random number generator failed")?;
    let ha1 = Ha1::of(&mac.to_string(), &realm, &password);
    let had_one = passwords::set(&config.state, constituency, &realm, mac, ha1, &super::waiting)?;
    record(&config.state, &[entry(AuditAction::PasswordMade).of(constituency).phone(mac)]);
    Ok(NewPassword { mac, password, had_one })
}

impl NewPassword {
    /// Prints the password with the lines that configure the phone. It is stored nowhere.
    pub(super) fn show(self) {
        let Self { mac, password, had_one } = self;
        if had_one {
            print_line(&"the old password is no longer valid");
        }
        print_line(&"the password is shown only once; the phone reads it from a parameter file such as");
        print_line(&format_args!("<device device.set=\"1\" device.prov.user.set=\"1\" device.prov.user=\"{mac}\""));
        print_line(&format_args!("        device.prov.password.set=\"1\" device.prov.password=\"{password}\"/>"));
    }
}

/// Removes the passwords of phones.
pub(super) fn remove_of(config: &Config, constituency: &ConstituencyName, macs: &[MacAddress]) -> anyhow::Result<()> {
    let removed = passwords::remove(&config.state, constituency, macs, &super::waiting)?;
    print_each(&removed, |mac| format!("removed the password of {mac} for {constituency}"));
    record(&config.state, &entry(AuditAction::PasswordRemoved).of(constituency).phones(&removed));
    Ok(())
}

/// Faults in the passwords of a constituency that asks for them.
pub(super) fn faults(config: &Config, constituency: &Constituency) -> Vec<String> {
    let stored = match passwords::stored(&config.state, &constituency.name) {
        Ok(stored) => stored,
        Err(error) => return vec![error.to_string()],
    };
    let name = &constituency.name;
    let mut faults = Vec::new();
    if let Err(error) = passwords::check_realm(&config.state, name, &realm(config, name)) {
        faults.push(error.to_string());
    }
    let without = constituency.known_phones().into_iter().filter(|mac| !stored.phones.contains_key(mac));
    faults.extend(
        without.map(|mac| {
            format!("{mac} has no password; make one with provost allow {mac} --constituency {name} --digest")
        }),
    );
    faults
}

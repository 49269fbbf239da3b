//! The passwords of phones that have no certificate of use: made and shown once, taken back, missed.

use anyhow::{Context, ensure};

use super::say;
use crate::clock;
use crate::config::Config;
use crate::constituency::scan::Scanner;
use crate::constituency::{ClientAuth, Constituency, ConstituencyName, MacAddress};
use crate::digest::{Ha1, passwords};

/// A password is of use only where one is asked for.
pub(super) fn check_asks(config: &Config, constituency: &ConstituencyName) -> anyhow::Result<()> {
    let registry = Scanner::new(config.constituencies.clone(), config.bundle_names()).scan(clock::now());
    let found = registry.find(constituency.as_str()).filter(|found| found.name == *constituency);
    let found = found.with_context(|| format!("there is no constituency {constituency} that could be served"))?;
    ensure!(
        found.policy.tls.client_auth == ClientAuth::Digest,
        "{constituency} asks for no passwords: its constituency.json does not say \"client_auth\": \"digest\""
    );
    Ok(())
}

/// Makes a password for a phone, and prints it with the lines that bring it to the phone: it is not stored anywhere.
pub(super) fn give(config: &Config, constituency: &ConstituencyName, mac: MacAddress) -> anyhow::Result<()> {
    let realm = format!("{constituency}.{}", config.domain);
    let password = passwords::generate().ok().context("the system gives no random numbers")?;
    let ha1 = Ha1::of(&mac.to_string(), &realm, &password);
    if passwords::set(&config.state, constituency, &realm, mac, ha1)? {
        say(&"the password that it had counts no more");
    }
    say(&"this is shown once; the phone takes it from a file such as");
    say(&format_args!("<device device.set=\"1\" device.prov.user.set=\"1\" device.prov.user=\"{mac}\""));
    say(&format_args!("        device.prov.password.set=\"1\" device.prov.password=\"{password}\"/>"));
    Ok(())
}

/// Forgets the password of a phone.
pub(super) fn take(config: &Config, constituency: &ConstituencyName, mac: MacAddress) -> anyhow::Result<()> {
    if passwords::remove(&config.state, constituency, mac)? {
        say(&format_args!("{mac} has no password for {constituency} any more"));
    }
    Ok(())
}

/// What is wrong with the passwords of a constituency that asks for them.
pub(super) fn faults(config: &Config, constituency: &Constituency) -> Vec<String> {
    let (stored, is_open) = match passwords::stored(&config.state, &constituency.name) {
        Ok(stored) => stored,
        Err(error) => return vec![error.to_string()],
    };
    let name = &constituency.name;
    let realm = format!("{name}.{}", config.domain);
    let mut faults = Vec::new();
    if is_open {
        faults.push(format!("others may read its passwords, {}/{name}.json; give phones new ones", passwords::FOLDER));
    }
    if !stored.phones.is_empty() && stored.realm != realm {
        faults.push(format!("its passwords were made for {}, not {realm}; give phones new ones", stored.realm));
    }
    let without = constituency.known_phones().into_iter().filter(|mac| !stored.phones.contains_key(mac));
    faults.extend(
        without.map(|mac| format!("{mac} has no password: provost allow {mac} --constituency {name} --digest")),
    );
    faults
}

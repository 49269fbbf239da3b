//! `provost phones`: lists every phone that is known or was seen, and its problems.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use super::{ConfigArg, code, constituency, note, print_json, print_line, registry_of, replace_controls, server, warn};
use crate::clock::{self, rfc3339};
use crate::config::Config;
use crate::constituency::scan::NOT_SERVED;
use crate::constituency::{
    ConstituencyName, Fault, Fingerprint, MacAddress, PHONES_FILE, PhoneStanding, Registry, ServerDenial,
    ServerDenials, Severity, TlsLevel,
};
use crate::phone_history::summary::{PhoneSummary, summarize};
use crate::phone_history::{ClaimAddress, StoredClaim, StoredEvent, StoredPhone};
use crate::serve::access_log::without_controls;

/// How long before its end, in seconds, a certificate's expiry is reported.
const SOON: i64 = 90 * 86_400;

/// What `provost phones` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only phones of this constituency.
    #[arg(long, value_name = "NAME")]
    constituency: Option<ConstituencyName>,
    /// Only phones whose last request was refused, and clients that only claim to be a phone.
    #[arg(long)]
    refused: bool,
    /// Only known phones that were not seen for this time, such as 2d, 12h or 30m, or never.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    silent_for: Option<Duration>,
    /// Only phones that used TLS when last seen that needs "tls": "compatible" or "legacy".
    #[arg(long)]
    tls_legacy: bool,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "use for example 2d, 12h or 30m".to_owned())
}

pub(super) fn run(args: &Args, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    Ok(code(list(args, &config)))
}

fn list(args: &Args, config: &Config) -> anyhow::Result<()> {
    let now = clock::unix_seconds(clock::now());
    let denials = Arc::new(ServerDenials::read(&config.state)?);
    let registry = registry_of(config, Arc::clone(&denials));
    let history = server::phone_history(config)?;
    let (seen, claims) = match &history {
        Some(history) => (history.phones()?, history.claims()?),
        None => Default::default(),
    };
    let all = summarize(&registry, seen, &claims);
    let folders = constituency::folders(&config.constituencies).unwrap_or_default();
    let unknown_lists = unknown_lists(folders, &registry);
    if let Some(wanted) = &args.constituency
        && registry.find(wanted.as_str()).is_none()
        && !all.keys().any(|(name, _)| name == wanted)
    {
        match unknown_lists.get(wanted) {
            Some(why) => anyhow::bail!("{}", unlisted(wanted, why)),
            None => anyhow::bail!("constituency {wanted} not found; see provost constituency list"),
        }
    }
    for (name, why) in unknown_lists.iter().filter(|(name, _)| args.wants(name)) {
        warn(&unlisted(name, why));
    }
    let is_list_broken = |fault: &&Fault| fault.severity == Severity::Error && fault.message.contains(PHONES_FILE);
    for fault in registry.faults().iter().filter(is_list_broken) {
        let served = registry.by_folder(&fault.subject).filter(|served| args.wants(&served.name));
        if let Some(served) = served {
            warn(&format_args!("{}: {}", served.name, replace_controls(&fault.message)));
        }
    }
    let phones: Vec<_> =
        all.iter().filter(|((name, _), known)| args.wants(name) && args.wants_phone(known, now)).collect();
    let claims: Vec<_> = claims.iter().filter(|claim| args.wants(&claim.constituency)).collect();
    if args.json {
        for ((name, mac), known) in &phones {
            print_json(&known.json(name, *mac, &unknown_lists, now));
        }
    } else {
        print(&phones, &unknown_lists, now);
        let is_claimed = args.refused && !claims.is_empty();
        let is_denied = args.has_no_filter() && !denials.phones().is_empty();
        if phones.is_empty() && !is_claimed && !is_denied {
            let is_nowhere = config.is_local() && !config.constituencies.exists();
            let why = if is_nowhere {
                ": local mode, without constituencies here; name the configuration with --config"
            } else {
                ""
            };
            note(&format_args!("no phones found{why}"));
        }
    }
    if args.has_no_filter() {
        // These phones belong to no constituency.
        let known: BTreeSet<MacAddress> = phones.iter().map(|((_, mac), _)| *mac).collect();
        for (mac, denial) in denials.phones().iter().filter(|(mac, _)| !known.contains(mac)) {
            print_denial(*mac, denial, args.json);
        }
    }
    if args.refused {
        for claim in claims {
            let phone = all.get(&(claim.constituency.clone(), claim.mac)).and_then(|known| known.seen.as_ref());
            print_claim(claim, phone, args.json);
        }
    } else if !claims.is_empty() && !args.json {
        note(&"there are unproven claims to be a phone; --refused lists them");
    }
    Ok(())
}

/// Constituencies whose policy cannot be read, and why. A running server may still use the last good policy.
type UnknownLists = BTreeMap<ConstituencyName, String>;

fn unknown_lists(folders: Vec<ConstituencyName>, registry: &Registry) -> UnknownLists {
    let mut messages: HashMap<&str, &str> = HashMap::new();
    for fault in registry.faults() {
        messages.entry(&fault.subject).or_insert(&fault.message);
    }
    let unserved = folders.into_iter().filter(|name| registry.by_folder(name.as_str()).is_none());
    let why = |name: ConstituencyName| {
        // Only a running server knows whether it is served.
        let message = messages.get(name.as_str())?.split(&format!(" ({NOT_SERVED}")).next()?;
        Some((name, replace_controls(message)))
    };
    unserved.filter_map(why).collect()
}

fn unlisted(name: &ConstituencyName, why: &str) -> String {
    format!("invalid policy of {name}, so its list of phones is unknown: {why}")
}

impl Args {
    fn has_no_filter(&self) -> bool {
        self.constituency.is_none() && !self.refused && self.silent_for.is_none() && !self.tls_legacy
    }

    fn wants(&self, constituency: &ConstituencyName) -> bool {
        self.constituency.as_ref().is_none_or(|wanted| wanted == constituency)
    }

    fn wants_phone(&self, known: &PhoneSummary, now: i64) -> bool {
        let is_silent = |silence: Duration| {
            let last = known.seen.as_ref().map_or(0, |phone| phone.last_seen / 1000);
            known.standing == Some(PhoneStanding::Known)
                && u64::try_from(now.saturating_sub(last)).unwrap_or(0) >= silence.as_secs()
        };
        (!self.refused || known.is_refused())
            && (!self.tls_legacy || known.old_tls().is_some())
            && self.silent_for.is_none_or(is_silent)
    }
}

impl PhoneSummary {
    /// The level of its TLS, if that is older than `Modern`.
    fn old_tls(&self) -> Option<TlsLevel> {
        self.seen.as_ref()?.tls_level().filter(|level| *level > TlsLevel::Modern)
    }

    fn standing(&self, constituency: &ConstituencyName, unknown_lists: &UnknownLists) -> &'static str {
        match self.standing {
            Some(PhoneStanding::Known) => "known",
            Some(PhoneStanding::Unknown) => "unknown",
            Some(PhoneStanding::Denied | PhoneStanding::DeniedEverywhere) => "denied",
            None if unknown_lists.contains_key(constituency) => "unclear",
            None => "not served",
        }
    }

    fn json(&self, constituency: &ConstituencyName, mac: MacAddress, unknown_lists: &UnknownLists, now: i64) -> Value {
        let locked_out = self.locked_out(now.saturating_mul(1000)).map(|claim| {
            let reason = claim.refusal.as_deref().map(without_controls);
            json!({ "proven": false, "reason": reason, "address": claim.address, "time": time(claim.last_seen) })
        });
        let mut object = json!({
            "constituency": constituency, "mac": mac, "standing": self.standing(constituency, unknown_lists),
            "note": self.note, "proven": true, "refused": self.is_refused(), "locked_out": locked_out,
            "pinned_certificate_sha256": self.pin.map(|pin| pin.to_string()),
            "denied_everywhere": self.server_denial,
        });
        let Some(phone) = &self.seen else { return object };
        let event = |what: &str, event: &Option<StoredEvent>| {
            event.as_ref().map(|event| json!({ what: replace_controls(&event.what), "time": time(event.at) }))
        };
        let seen = json!({
            "first_seen": time(phone.first_seen), "last_seen": time(phone.last_seen),
            "last_let_in": phone.last_accepted.map(time), "address": phone.address, "model": phone.model,
            "firmware": phone.firmware, "tls": phone.tls.as_ref().map(|(version, suite)| format!("{version}/{suite}")),
            "tls_level": phone.tls_level().map(TlsLevel::as_str),
            "certificate_not_after": phone.certificate_not_after.map(rfc3339),
            "last_configuration": event("path", &phone.configuration), "last_upload": event("path", &phone.upload),
            "last_refusal": event("reason", &phone.refusal), "requests": phone.requests, "refusals": phone.refusals,
            "uploads": phone.uploads, "bytes": phone.bytes,
        });
        if let (Value::Object(object), Value::Object(seen)) = (&mut object, seen) {
            object.extend(seen);
        }
        object
    }

    /// The remarks below its line.
    fn remarks(&self, now: i64) -> Vec<String> {
        let denied = self.server_denial.iter().map(|denial| format!("denied everywhere {}", denial.explained()));
        let locked_out = self.locked_out(now.saturating_mul(1000)).map(|claim| {
            let reason = claim.refusal.as_deref().map(without_controls).unwrap_or_default();
            format!(
                "may be locked out: a client at {} that claims to be it (unproven) was refused at {}: {reason}",
                claim.address,
                time(claim.last_seen)
            )
        });
        let seen = self.seen.iter().flat_map(|phone| self.remarks_on(phone, now));
        denied.chain(locked_out).chain(seen).collect()
    }

    fn remarks_on(&self, phone: &StoredPhone, now: i64) -> Vec<String> {
        let refusal = phone.refusal.as_ref().filter(|_| self.is_refused());
        let refused =
            refusal.map(|refusal| format!("refused at {}: {}", time(refusal.at), replace_controls(&refusal.what)));
        let end = phone.certificate_not_after.filter(|end| end - now < SOON);
        let expiry = end.map(|end| {
            let word = if end < now { "expired" } else { "expires" };
            format!("its certificate {word} at {}", rfc3339(end))
        });
        let tls = self
            .old_tls()
            .zip(phone.tls.as_ref())
            .map(|(level, (version, suite))| format!("it needs \"tls\": \"{}\" ({version}, {suite})", level.as_str()));
        let allowed = self
            .is_allowed_since()
            .then(|| "was put on the list after its last refusal, and has sent no request since".to_owned());
        refused.into_iter().chain(allowed).chain(expiry).chain(tls).collect()
    }
}

const HEADINGS: [&str; 7] = ["CONSTITUENCY", "PHONE", "STANDING", "LAST SEEN", "ADDRESS", "MODEL AND FIRMWARE", "NOTE"];

fn print(phones: &[(&(ConstituencyName, MacAddress), &PhoneSummary)], unknown_lists: &UnknownLists, now: i64) {
    let rows: Vec<[String; 7]> = phones
        .iter()
        .map(|((name, mac), known)| {
            let seen = known.seen.as_ref();
            let program = seen.and_then(|phone| {
                Some(format!("{} {}", phone.model.as_deref()?, phone.firmware.as_deref().unwrap_or_default()))
            });
            let standing = known.standing(name, unknown_lists);
            [
                name.to_string(),
                mac.to_string(),
                if known.pin.is_some() { format!("{standing}, pinned") } else { standing.to_owned() },
                seen.map_or_else(|| "never".to_owned(), |phone| time(phone.last_seen)),
                seen.map_or_else(String::new, |phone| phone.address.clone()),
                program.unwrap_or_default(),
                known.note.clone(),
            ]
            .map(|cell| replace_controls(&cell))
        })
        .collect();
    let headings = HEADINGS.map(str::to_owned);
    let width = |column: usize| {
        let texts = rows.iter().chain([&headings]).filter_map(|row| row.get(column));
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |row: &[String; 7], style: Style| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        print_line(&format_args!("{style}{}{style:#}", cells.join("  ").trim_end()));
    };
    line(&headings, Style::new().dimmed());
    for (row, (_, known)) in rows.iter().zip(phones) {
        line(row, Style::new());
        let style = AnsiColor::Red.on_default();
        for remark in known.remarks(now) {
            print_line(&format_args!("{style}    {}{style:#}", replace_controls(&remark)));
        }
    }
}

/// Prints that `mac` is denied everywhere, as JSON or for people.
pub(super) fn print_denial(mac: MacAddress, denial: &ServerDenial, is_json: bool) {
    if is_json {
        print_json(&json!({ "constituency": null, "mac": mac, "standing": "denied", "denied_everywhere": denial }));
    } else {
        let style = AnsiColor::Red.on_default();
        print_line(&format_args!("{style}{mac} is denied everywhere {}{style:#}", denial.explained()));
    }
}

/// Prints a claim, as JSON or for people. `phone` is the phone that has proved this identity, if any.
pub(super) fn print_claim(claim: &StoredClaim, phone: Option<&StoredPhone>, is_json: bool) {
    let accepted_at = phone.and_then(|phone| phone.last_accepted).filter(|at| *at > claim.last_seen);
    if is_json { print_json(&claim_json(claim, accepted_at)) } else { print_line(&claim_line(claim, accepted_at)) }
}

fn claim_line(claim: &StoredClaim, accepted_at: Option<i64>) -> String {
    let reason = claim.refusal.as_deref().map(without_controls).unwrap_or_default();
    let places = claim
        .addresses
        .iter()
        .map(|place| (replace_controls(&place.address), time(place.first_seen), time(place.last_seen)))
        .map(|(address, first, last)| format!("\n    from {address}, {first} to {last}"));
    let certificate =
        |bytes| format!("certificate (unproven; any client can make or copy it): SHA-256 {}", Fingerprint::from(bytes));
    let by = claim.fingerprint.map_or_else(|| "wrong password".to_owned(), certificate);
    let since =
        accepted_at.map(|at| format!("\n    the phone itself was accepted since, at {}", time(at))).unwrap_or_default();
    let style = AnsiColor::Red.on_default();
    format!(
        "unproven: a client at {} claims to be {} of {} ({}, last at {})\n    {style}refused: {reason}{style:#}\n    {by}{}{since}",
        replace_controls(&claim.address),
        claim.mac,
        claim.constituency,
        if claim.count == 1 { "once".to_owned() } else { format!("{} times", claim.count) },
        time(claim.last_seen),
        places.collect::<String>(),
    )
}

fn claim_json(claim: &StoredClaim, accepted_at: Option<i64>) -> Value {
    let place = |place: &ClaimAddress| json!({ "address": place.address, "first_seen": time(place.first_seen), "last_seen": time(place.last_seen) });
    json!({
        "constituency": claim.constituency, "mac": claim.mac, "proven": false, "refused": true,
        "certificate_sha256": claim.fingerprint.map(|bytes| Fingerprint::from(bytes).to_string()), "first_seen": time(claim.first_seen),
        "last_seen": time(claim.last_seen), "address": claim.address,
        "addresses": claim.addresses.iter().map(place).collect::<Vec<_>>(), "refusals": claim.count,
        "let_in_since": accepted_at.map(time),
        "last_refusal": { "reason": claim.refusal.as_deref().map(without_controls), "time": time(claim.last_seen) },
    })
}

/// A time of the phone history, to the second.
pub(super) fn time(milliseconds: i64) -> String {
    rfc3339(milliseconds.div_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constituency::VISITED;
    use crate::constituency::scan::Scanner;
    use crate::state;

    #[test]
    fn unknown_lists_are_found_without_visiting_every_constituency() {
        const EACH: usize = 50;
        let root = tempfile::tempdir().unwrap();
        for number in 0..EACH {
            for (name, policy) in [(format!("good{number}"), "{}"), (format!("bad{number}"), "{")] {
                std::fs::create_dir(root.path().join(&name)).unwrap();
                state::write_private(&root.path().join(&name).join("constituency.json"), policy.as_bytes()).unwrap();
            }
        }
        let registry = Scanner::new(root.path().to_owned(), Vec::new()).scan(clock::now());
        let before = VISITED.get();
        let unknown = unknown_lists(constituency::folders(root.path()).unwrap(), &registry);
        assert_eq!(VISITED.get(), before);
        assert_eq!(unknown.len(), EACH);
        assert!(unknown.keys().all(|name| name.as_str().starts_with("bad")), "{unknown:?}");
        assert!(unknown.values().all(|why| !why.is_empty()), "{unknown:?}");
    }
}

//! Reduces what the server knows to the scope of an operator.
//!
//! An operator whose scope is some constituencies sees these, their phones, and the certificates that they present. It
//! sees neither the names of other constituencies, nor problems and activity of the whole server, nor other operators.
//! A new field of a view does not compile until it is decided here whether it is shown.

use std::collections::BTreeSet;

use super::operators::{Operator, Scope};
use super::snapshot::{
    ActivityView, CertificateView, ConstituencyView, DenialView, DeniedPhone, Overview, PhoneHistoryView, PhoneView,
};
use crate::audit::{AuditAction, AuditActor, AuditEntry, AuditReading, AuditSource};
use crate::constituency::{MacAddress, Registry};

/// What a text is replaced by that may name what is outside of the scope.
const ASK: &str = "ask an administrator";
/// The authors of what other operators did.
const ADMINISTRATOR: &str = "an administrator";
const OTHER: &str = "another operator";

/// Hides what is outside of a scope.
pub struct ScopeFilter<'a> {
    scope: &'a Scope,
    registry: Option<&'a Registry>,
    /// The names of all folders outside of the scope.
    others: BTreeSet<&'a str>,
}

impl<'a> ScopeFilter<'a> {
    #[must_use]
    pub fn new(scope: &'a Scope, registry: Option<&'a Registry>) -> Self {
        let names = registry.filter(|_| !scope.is_all()).into_iter().flat_map(|registry| {
            let served = registry.served().map(|served| served.name.as_str());
            served.chain(registry.faults().iter().map(|fault| fault.subject.as_str()))
        });
        let others = names.filter(|name| !name.is_empty() && !scope.includes(name)).collect();
        Self { scope, registry, others }
    }

    /// Hides who denied the phone, and the names of other constituencies.
    pub fn reduce_phone(&self, phone: &mut PhoneView) {
        if self.scope.is_all() {
            return;
        }
        phone.denied_everywhere.iter_mut().for_each(DenialView::hide_author);
        for (text, _) in phone.refusal.iter_mut().chain(&mut phone.claimed) {
            self.hide_names(text);
        }
    }

    /// The same for a phone and its requests.
    pub fn reduce_history(&self, history: &mut PhoneHistoryView) {
        if self.scope.is_all() {
            return;
        }
        self.reduce_phone(&mut history.phone);
        history
            .requests
            .iter_mut()
            .filter_map(|request| request.reason.as_mut())
            .for_each(|text| self.hide_names(text));
    }

    /// Replaces a text that has the name of a folder outside of the scope, or the target of a symlink.
    fn hide_names(&self, text: &mut String) {
        if text.contains("symlink") || self.names_another(text) {
            *text = format!("it concerns what is shared with others; {ASK}");
        }
    }

    fn names_another(&self, text: &str) -> bool {
        let is_inside = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        text.split(|letter| !is_inside(letter)).any(|word| self.others.contains(word))
            || self.others.iter().any(|name| !name.chars().all(is_inside) && text.contains(name))
    }

    /// Whether a list within the scope has the phone.
    fn is_own(&self, mac: MacAddress) -> bool {
        let names = self.scope.constituencies().into_iter().flatten();
        let mut lists = names.filter_map(|name| self.registry?.by_folder(name.as_str()));
        lists.any(|list| list.listing(mac).is_some())
    }
}

impl Overview {
    /// The part that an operator may see. The numbers and the waiting phones are already within the scope.
    #[must_use]
    pub fn within(self, filter: &ScopeFilter<'_>) -> Self {
        let scope = filter.scope;
        if scope.is_all() {
            return self;
        }
        let Self {
            now,
            version,
            domain,
            config: _,
            started,
            not_ready,
            certificates,
            constituencies,
            counts,
            waiting,
            silent_together,
            unproven,
            denied,
            activity: ActivityView { step_s, since, served: _, refused: _, handshakes: _ },
            problems: _,
            notify_failure: _,
        } = self;
        let own_constituency = |mut constituency: ConstituencyView| {
            let texts = constituency.problem.iter_mut().chain(&mut constituency.warnings);
            texts.for_each(|text| filter.hide_names(text));
            constituency.not_allowable.iter_mut().for_each(|text| filter.hide_names(text));
            constituency
        };
        let own_phone = |mut phone: PhoneView| {
            filter.reduce_phone(&mut phone);
            phone
        };
        let own_denial = |mut denied: DeniedPhone| {
            denied.denial.hide_author();
            denied
        };
        Self {
            now,
            version,
            config: None,
            started,
            not_ready: not_ready.map(|_| format!("phones cannot be served now; {ASK}")),
            certificates: certificates.into_iter().filter_map(|it| it.within(scope, &domain)).collect(),
            constituencies: constituencies
                .into_iter()
                .filter(|it| scope.includes(&it.name))
                .map(own_constituency)
                .collect(),
            counts,
            waiting: waiting.into_iter().filter(|it| scope.includes(it.constituency.as_str())).map(own_phone).collect(),
            silent_together: silent_together
                .into_iter()
                .filter(|it| scope.includes(it.constituency.as_str()))
                .collect(),
            unproven: unproven
                .into_iter()
                .filter(|it| scope.includes(it.constituency.as_str()))
                .map(|mut claim| {
                    filter.hide_names(&mut claim.reason);
                    claim
                })
                .collect(),
            denied: denied.into_iter().filter(|it| filter.is_own(it.mac)).map(own_denial).collect(),
            activity: ActivityView { step_s, since, ..ActivityView::default() },
            problems: Vec::new(),
            notify_failure: None,
            domain,
        }
    }
}

impl CertificateView {
    /// The part that concerns names within `scope`. `None` if there is none.
    fn within(self, scope: &Scope, domain: &str) -> Option<Self> {
        let is_visible = |name: &String| match name.strip_suffix(domain).and_then(|label| label.strip_suffix('.')) {
            Some(label) => label == "*" || scope.includes(label),
            None => false,
        };
        let names: Vec<String> = self.names.into_iter().filter(is_visible).collect();
        let ask = |text: Option<String>, what: &str| text.map(|_| format!("{what}; {ASK}"));
        (!names.is_empty()).then(|| Self {
            key: self.key,
            names,
            issuer: self.issuer,
            not_before: self.not_before,
            not_after: self.not_after,
            source: self.source,
            level: self.level,
            state: self.state,
            problem: ask(self.problem, "needs attention"),
            next_attempt: self.next_attempt,
            step: ask(self.step, "the renewal is under way"),
            last_error: ask(self.last_error, "the last attempt failed"),
            action_required: self.action_required,
        })
    }
}

impl DenialView {
    /// Hides who denied a phone on the whole server, and why.
    fn hide_author(&mut self) {
        ADMINISTRATOR.clone_into(&mut self.by);
        self.note.clear();
    }
}

impl Operator {
    /// Whether the operator may see that this was changed.
    #[must_use]
    pub fn sees(&self, entry: &AuditEntry) -> bool {
        self.scope.is_all() || entry.constituency.as_ref().is_some_and(|name| self.scope.includes(name.as_str()))
    }

    /// The part of `reading` that the operator may see.
    #[must_use]
    pub fn restrict(&self, reading: AuditReading) -> AuditReading {
        if self.scope.is_all() {
            return reading;
        }
        let entries = reading.entries.into_iter().filter(|entry| self.sees(entry)).map(|entry| self.reduce(entry));
        AuditReading { entries: entries.collect(), damaged: Vec::new() }
    }

    /// Hides who else made the change, from where, and what a detail says about other constituencies.
    fn reduce(&self, entry: AuditEntry) -> AuditEntry {
        let AuditEntry { time, action, actor, constituency, mac, macs, detail } = entry;
        let detail = match action {
            // Fingerprints, counts, and names of the phone's own files.
            AuditAction::Allowed
            | AuditAction::Pinned
            | AuditAction::Unpinned
            | AuditAction::Denied
            | AuditAction::Undenied
            | AuditAction::PasswordMade
            | AuditAction::PasswordRemoved
            | AuditAction::UploadRemoved
            | AuditAction::FileChanged => detail,
            // These name another constituency, or concern the whole server.
            AuditAction::ConstituencyAdded
            | AuditAction::UploadsMoved
            | AuditAction::CaMade
            | AuditAction::DeviceCertificateIssued
            | AuditAction::DeviceCertificateRevoked
            | AuditAction::OperatorAdded
            | AuditAction::OperatorRemoved
            | AuditAction::OperatorRotated
            | AuditAction::CertificateRenewed
            | AuditAction::CertificateRevoked => String::new(),
        };
        let actor = match actor.by {
            AuditSource::Page | AuditSource::Api if actor.who == self.name => actor,
            AuditSource::File => AuditActor::file(),
            by => AuditActor { by, who: OTHER.to_owned(), ..AuditActor::file() },
        };
        AuditEntry { time, action, actor, constituency, mac, macs, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::snapshot::PhoneRequestView;
    use crate::admin::snapshot::{PhoneCounts, SilentTogether, UnprovenView};
    use crate::certificate::ConditionLevel;
    use crate::clock;
    use crate::constituency::scan::Scanner;
    use crate::phone_history::PhoneState;
    use crate::state;

    fn scope(names: &[&str]) -> Scope {
        Scope::Constituencies(names.iter().map(|name| name.parse().unwrap()).collect())
    }

    fn mac(last: &str) -> MacAddress {
        format!("00005e0053{last}").parse().unwrap()
    }

    fn denial() -> DenialView {
        DenialView { by: "berta, on the status page".to_owned(), at: Some(1), note: "lost".to_owned() }
    }

    fn constituency(name: &str, problem: Option<&str>) -> ConstituencyView {
        ConstituencyView {
            name: name.to_owned(),
            description: format!("about {name}"),
            url: None,
            problem: problem.map(str::to_owned),
            warnings: problem.map(str::to_owned).into_iter().collect(),
            known: None,
            counts: PhoneCounts::default(),
            seen_lately: 0,
            refused: 0,
            not_allowable: None,
        }
    }

    fn certificate(names: &[&str]) -> CertificateView {
        CertificateView {
            key: "RSA".to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            issuer: None,
            not_before: Some(1),
            not_after: Some(2),
            source: "acme",
            level: ConditionLevel::Ok,
            state: "valid",
            problem: Some("rival is not covered".to_owned()),
            next_attempt: None,
            step: Some("the order for rival".to_owned()),
            last_error: Some("the CA refused rival".to_owned()),
            action_required: false,
        }
    }

    fn overview() -> Overview {
        let phone = |name: &str, last: &str| PhoneView {
            denied_everywhere: Some(denial()),
            ..PhoneView::unseen(name.parse().unwrap(), mac(last), PhoneState::Waiting, format!("at {name}"))
        };
        let claim = |name: &str| UnprovenView {
            constituency: name.parse().unwrap(),
            mac: mac("0c"),
            certificate_sha256: None,
            address: "192.0.2.7".to_owned(),
            addresses: Vec::new(),
            first_seen: 1,
            last_seen: 1,
            count: 1,
            reason: format!("not of {name}"),
        };
        let silent = |name: &str| SilentTogether { constituency: name.parse().unwrap(), silent: 3, of: 4, since: 1 };
        Overview {
            now: 2,
            version: "1",
            domain: "phones.example".to_owned(),
            config: Some("/srv/rival/provost.json".to_owned()),
            started: 1,
            not_ready: Some("rival is not served".to_owned()),
            certificates: vec![
                certificate(&["*.phones.example", "rival.phones.example"]),
                certificate(&["rival.phones.example"]),
                certificate(&["own.phones.example", "rival.phones.example"]),
                certificate(&["/etc/rival/chain.pem"]),
                certificate(&["own.rival.example"]),
            ],
            constituencies: vec![
                constituency("own", Some("the alias \"x\" has no effect: own and rival have the same alias")),
                constituency("own-2", Some("provost.json:3: unknown key; see rivalry")),
                constituency("rival", Some("broken")),
                constituency("Own", None),
                constituency("Not A rival Label", None),
            ],
            counts: PhoneCounts::default(),
            waiting: vec![phone("own", "01"), phone("rival", "02")],
            silent_together: vec![silent("own"), silent("rival")],
            unproven: vec![claim("rival"), claim("own-2")],
            denied: [mac("0c"), mac("0d")].map(|mac| DeniedPhone { mac, denial: denial() }).to_vec(),
            activity: ActivityView { step_s: 60, since: 1, served: vec![7], refused: vec![7], handshakes: vec![7] },
            problems: vec!["rival's disk is full".to_owned()],
            notify_failure: Some("exit code 1 of /srv/notify".to_owned()),
        }
    }

    /// The constituencies `own`, which lists a phone, `own-2` and `rival`.
    fn registry() -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["own", "own-2", "rival"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let policy = format!("{{\"phones\": {{\"{}\": \"\"}}}}", mac("0d"));
        state::write_private(&folder.path().join("own/constituency.json"), policy.as_bytes()).unwrap();
        let registry = Scanner::new(folder.path().to_owned(), Vec::new()).scan(clock::now());
        assert_eq!(registry.served().count(), 3);
        (folder, registry)
    }

    #[test]
    fn scope_hides_other_constituencies_operators_and_the_server() {
        let (_folder, registry) = registry();
        let scope = scope(&["own", "own-2"]);
        let own = overview().within(&ScopeFilter::new(&scope, Some(&registry)));
        let text = serde_json::to_string(&own).unwrap();
        assert_eq!(text.replace("rivalry", "").matches("rival").count(), 0, "{text}");
        assert!(!text.contains("berta") && !text.contains("/srv") && !text.contains("lost"), "{text}");
        let names: Vec<&str> = own.constituencies.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["own", "own-2"]);
        let problems = own.constituencies.iter().map(|it| it.problem.as_deref().unwrap()).collect::<Vec<_>>();
        assert!(problems[0].contains(ASK) && problems[1].contains("unknown key"), "{problems:?}");
        let certificates: Vec<_> = own.certificates.iter().map(|it| it.names.join(" ")).collect();
        assert_eq!(certificates, ["*.phones.example", "own.phones.example"]);
        assert_eq!((own.waiting.len(), own.silent_together.len(), own.unproven.len()), (1, 1, 1));
        assert_eq!((own.denied.len(), own.denied[0].mac), (1, mac("0d")));
        assert!(own.activity.served.is_empty() && own.problems.is_empty() && own.config.is_none());
    }

    #[test]
    fn administrator_sees_everything() {
        let (_folder, registry) = registry();
        let whole = serde_json::to_value(overview()).unwrap();
        let filtered = overview().within(&ScopeFilter::new(&Scope::All, Some(&registry)));
        assert_eq!(serde_json::to_value(filtered).unwrap(), whole);
        let absent = scope(&["absent"]);
        let none = overview().within(&ScopeFilter::new(&absent, Some(&registry)));
        assert!(none.constituencies.is_empty() && none.waiting.is_empty() && none.denied.is_empty());
        // Before the first scan.
        let none = overview().within(&ScopeFilter::new(&absent, None));
        assert!(none.constituencies.is_empty() && none.certificates.len() == 1 && none.denied.is_empty());
    }

    #[test]
    fn reasons_of_a_phone_name_no_other_constituency() {
        let (_folder, registry) = registry();
        let scope = scope(&["own"]);
        let filter = ScopeFilter::new(&scope, Some(&registry));
        for (reason, is_shown) in [
            ("00005e00530d is not known to own", true),
            ("rivalry is not a file", true),
            ("Host \"rival.phones.example\" is not the constituency of this connection", false),
            ("the symlink leads to gone/site.cfg, and gone is not a served constituency", false),
        ] {
            let mut phone = PhoneView::unseen("own".parse().unwrap(), mac("0d"), PhoneState::Well, String::new());
            phone.refusal = Some((reason.to_owned(), 1));
            phone.claimed = Some((reason.to_owned(), 1));
            let request = PhoneRequestView {
                time_ms: 1,
                address: "192.0.2.7".to_owned(),
                method: None,
                target: None,
                status: None,
                bytes: 0,
                duration_ms: 0.0,
                reason: Some(reason.to_owned()),
                is_named: false,
            };
            let mut history = PhoneHistoryView { phone, named: None, requests: vec![request] };
            filter.reduce_history(&mut history);
            let count = serde_json::to_string(&history).unwrap().matches(&reason.replace('"', "\\\"")).count();
            assert_eq!(count, if is_shown { 3 } else { 0 }, "{reason}");
        }
    }

    #[test]
    fn audit_log_is_of_the_scope_and_names_no_other_operator() {
        let actor = |by, who: &str| AuditActor {
            by,
            who: who.to_owned(),
            claimed_user: Some("carla".to_owned()),
            from: Some("192.0.2.1".to_owned()),
            claimed_from: Some("192.0.2.2".to_owned()),
        };
        let entry = |action, by, who| AuditEntry::new(1, action, actor(by, who)).detail("detail");
        let of = |entry: AuditEntry, name: &str| entry.of(&name.parse().unwrap());
        let entries = vec![
            of(entry(AuditAction::Allowed, AuditSource::Page, "reseller"), "own"),
            of(entry(AuditAction::Denied, AuditSource::Api, "berta"), "own"),
            // A user of the system with the operator's name.
            of(entry(AuditAction::Denied, AuditSource::Command, "reseller"), "own"),
            of(entry(AuditAction::UploadsMoved, AuditSource::Command, "root"), "own"),
            of(entry(AuditAction::FileChanged, AuditSource::File, ""), "own"),
            of(entry(AuditAction::Allowed, AuditSource::Page, "reseller"), "rival"),
            entry(AuditAction::Denied, AuditSource::Api, "reseller"),
            entry(AuditAction::OperatorAdded, AuditSource::Command, "root"),
        ];
        let reading = || AuditReading { entries: entries.clone(), damaged: vec![("audit.jsonl".to_owned(), 1)] };
        let operator = |scope| Operator { name: "reseller".to_owned(), scope, is_read_only: false };
        let own = operator(scope(&["own"])).restrict(reading());
        assert!(own.damaged.is_empty());
        let shown: Vec<_> =
            own.entries.iter().map(|it| (it.actor.who.as_str(), it.actor.from.is_some(), it.detail.as_str())).collect();
        let expected = [
            ("reseller", true, "detail"),
            (OTHER, false, "detail"),
            (OTHER, false, "detail"),
            (OTHER, false, ""),
            ("", false, "detail"),
        ];
        assert_eq!(shown, expected);
        for hidden in &own.entries[1..] {
            assert_eq!((&hidden.actor.claimed_user, &hidden.actor.claimed_from), (&None, &None));
        }
        let whole = operator(Scope::All).restrict(reading());
        assert_eq!((whole.entries, whole.damaged.len()), (entries, 1));
    }
}

//! Which CAs may issue for a domain: its CAA records (RFC 8659), with restrictions to accounts and methods (RFC 8657).

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::rdata::CAA;
use hickory_net::proto::rr::{Name, RData, RecordType};

use super::authority::cname_target;
use super::failure::DnsError;
use super::lookup::Lookup;
use super::name;
use super::settings::DnsSettings;

/// CAs follow at least as many.
const MOST_ALIASES: usize = 8;

/// Our validation method (RFC 8657 §4).
const OUR_METHOD: &str = "dns-01";

/// The properties that CAs know. `iodef` and `issuemail` do not restrict server certificates.
const KNOWN_TAGS: [&str; 4] = ["issue", "issuewild", "iodef", "issuemail"];

/// The CAA records that apply to a domain and its wildcard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaaRecords {
    domain: String,
    /// The owner of the records: the domain, or its nearest ancestor that has some.
    owner: String,
    records: Vec<CAA>,
    unknown_above: Option<DnsError>,
}

/// A CA, and our account there.
#[derive(Debug, Clone, Copy)]
pub struct Issuer<'a> {
    /// The names that stand for this CA in CAA records (RFC 8555 §9.7.6).
    pub identities: &'a [String],
    /// The URL of the account that orders, if there is one.
    pub account: Option<&'a str>,
}

impl Issuer<'_> {
    /// The record of `domain` that allows only this CA, only our account, and only our method (RFC 8657).
    #[must_use]
    pub fn record(&self, domain: &str, tag: &str) -> String {
        let account = self.account.map_or_else(String::new, |account| format!("; accounturi={account}"));
        let value = format!("{}{account}; validationmethods={OUR_METHOD}", main_identity(self));
        format!("{domain}. CAA 0 {tag} \"{value}\"")
    }
}

/// Why a CA may not issue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaaRefusal {
    #[error(
        "the CAA record of {owner}, {record}, forbids every CA to issue: it is critical, and CAs do not know its tag \"{tag}\"; remove it"
    )]
    Critical { owner: String, record: String, tag: String },
    #[error("the CAA records of {owner} do not permit {ca} to issue for {name}: {}", .reasons.join("; "))]
    Forbidden { owner: String, ca: String, name: String, reasons: Vec<String> },
}

/// The value of an `issue` or `issuewild` property.
struct IssueValue<'a> {
    issuer: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl CaaRecords {
    /// Finds the records that apply to `domain`: asks the authoritative servers, also those that `update` names, which are
    /// found through `resolvers` or, if empty, the system's.
    ///
    /// # Errors
    /// If no server can say whether the domain itself has any. A CA does not issue then either.
    pub async fn find(resolvers: &[String], update: Option<&DnsSettings>, domain: &str) -> Result<Self, DnsError> {
        let mut source = CaaSource { lookup: Lookup::new(resolvers, update)?, is_reachable: true };
        let domain = name::parse(domain).map_err(DnsError::Setting)?;
        let mut found = Self {
            domain: name::text(&domain),
            owner: name::text(&domain),
            records: source.records(&domain).await?,
            unknown_above: None,
        };
        let mut owner = domain.base_name();
        // "The search for a CAA RRset climbs the DNS name tree from the specified label up to, but not including, the DNS
        // root '.' until a CAA RRset is found." (RFC 8659 §3)
        while found.records.is_empty() && !owner.is_root() {
            found.owner = name::text(&owner);
            match source.records(&owner).await {
                Ok(records) => found.records = records,
                Err(error) => {
                    found.unknown_above = Some(error);
                    break;
                }
            }
            owner = owner.base_name();
        }
        Ok(found)
    }

    /// Why an ancestor of the domain could not be queried, if so. The domain and the names between have no records.
    #[must_use]
    pub fn unknown_above(&self) -> Option<&DnsError> {
        self.unknown_above.as_ref()
    }

    /// Checks that `issuer` may issue for the wildcard and for the domain itself. Returns those of the two names that
    /// any CA may issue for.
    ///
    /// # Errors
    /// If it may not.
    pub fn judge(&self, issuer: &Issuer<'_>) -> Result<Vec<String>, CaaRefusal> {
        let (issue, issue_wild) = (self.tagged("issue"), self.tagged("issuewild"));
        // "issuewild properties MUST be ignored when processing a request for an FQDN that is not a Wildcard Domain
        // Name", and they win over issue properties for one that is (RFC 8659 §4.3).
        let for_wildcard = if issue_wild.is_empty() { &issue } else { &issue_wild };
        self.check_each(issuer, [(format!("*.{}", self.domain), for_wildcard), (self.domain.clone(), &issue)])
    }

    /// Checks that `issuer` may issue for the domain alone, without a wildcard. Returns it if any CA may issue for it.
    ///
    /// # Errors
    /// If it may not.
    pub fn judge_exact(&self, issuer: &Issuer<'_>) -> Result<Vec<String>, CaaRefusal> {
        self.check_each(issuer, [(self.domain.clone(), &self.tagged("issue"))])
    }

    fn check_each<'a>(
        &self,
        issuer: &Issuer<'_>,
        names: impl IntoIterator<Item = (String, &'a Vec<&'a CAA>)>,
    ) -> Result<Vec<String>, CaaRefusal> {
        if let Some(unknown) = self.records.iter().find(|record| record.issuer_critical && !is_known(&record.tag)) {
            let (owner, tag) = (self.owner.clone(), unknown.tag.clone());
            return Err(CaaRefusal::Critical { owner, record: shown(unknown), tag });
        }
        let mut unrestricted = Vec::new();
        for (name, properties) in names {
            if properties.is_empty() {
                unrestricted.push(name);
            } else {
                self.permits(&name, properties, issuer)?;
            }
        }
        Ok(unrestricted)
    }

    /// The records that allow only `issuer`, only our account, and only our method.
    #[must_use]
    pub fn recommended(&self, issuer: &Issuer<'_>) -> String {
        format!("{} and {}", self.record("issue", issuer), self.record("issuewild", issuer))
    }

    /// The same for the domain without a wildcard.
    #[must_use]
    pub fn recommended_exact(&self, issuer: &Issuer<'_>) -> String {
        self.record("issue", issuer)
    }

    /// The records that restrict a CA to `account` by `accounturi`, or without an account given, to any one account; each with
    /// its owner. A record of a CA that may issue to all its accounts by another record with the same tag does not count.
    #[must_use]
    pub fn bound_to(&self, account: Option<&str>) -> Vec<String> {
        let bound = ["issue", "issuewild"].into_iter().flat_map(|tag| {
            let values = self.tagged(tag).into_iter().filter_map(|record| Some((record, parse(&record.value)?)));
            let values: Vec<_> = values.collect();
            let has_unrestricted = |ca: &str| {
                let of_ca = values.iter().filter(|(_, value)| value.issuer.eq_ignore_ascii_case(ca));
                of_ca.into_iter().any(|(_, value)| value.accounts().next().is_none())
            };
            let is_bound = |value: &IssueValue<'_>| {
                value.accounts().any(|uri| account.is_none_or(|account| uri == account))
                    && !has_unrestricted(value.issuer)
            };
            let bound = values.iter().filter(|(_, value)| is_bound(value));
            bound.map(|(record, _)| format!("{}. CAA {}", self.owner, shown(record))).collect::<Vec<_>>()
        });
        bound.collect()
    }

    fn record(&self, tag: &str, issuer: &Issuer<'_>) -> String {
        issuer.record(&self.domain, tag)
    }

    fn tagged(&self, tag: &str) -> Vec<&CAA> {
        self.records.iter().filter(|record| record.tag.eq_ignore_ascii_case(tag)).collect()
    }

    /// Properties are additive: one that permits is enough (RFC 8659 §4.2).
    fn permits(&self, name: &str, properties: &[&CAA], issuer: &Issuer<'_>) -> Result<(), CaaRefusal> {
        let mut reasons = Vec::new();
        for property in properties {
            match objection(property, issuer) {
                None => return Ok(()),
                Some(objection) => reasons.push(format!("{} {objection}", shown(property))),
            }
        }
        let (owner, ca, name) = (self.owner.clone(), main_identity(issuer).to_owned(), name.to_owned());
        Err(CaaRefusal::Forbidden { owner, ca, name, reasons })
    }
}

impl<'a> IssueValue<'a> {
    /// The accounts to which it restricts issuance (RFC 8657 §3).
    fn accounts(&self) -> impl Iterator<Item = &'a str> {
        let accounts = self.parameters.iter().filter(|(name, _)| name.eq_ignore_ascii_case("accounturi"));
        accounts.map(|(_, uri)| *uri)
    }
}

/// Where CAA records are asked for.
///
/// These names may have no records, and a resolver concludes from that answer that a challenge below or beside them does not
/// exist: see [`lookup`](super::lookup). So authoritative servers are asked. The resolver is asked about top-level domains,
/// and about all names if this machine cannot reach the servers.
struct CaaSource {
    lookup: Lookup,
    is_reachable: bool,
}

impl CaaSource {
    /// The CAA records of `owner`, also through CNAME records. An answer may have several of these.
    async fn records(&mut self, owner: &Name) -> Result<Vec<CAA>, DnsError> {
        let mut chain = vec![owner.clone()];
        loop {
            let asked = chain.len();
            let answer = self.ask(&chain[asked - 1]).await?;
            while let Some(target) = cname_target(&answer, &chain[chain.len() - 1]) {
                let is_ring = chain.contains(&target);
                chain.push(target);
                if is_ring || chain.len() > MOST_ALIASES {
                    return Err(DnsError::CnameChain { chain: chain.iter().map(name::text).collect() });
                }
            }
            let end = &chain[chain.len() - 1];
            let of_end = answer.answers.into_iter().filter(|record| record.name == *end);
            let found = of_end.filter_map(|it| if let RData::CAA(caa) = it.data { Some(caa) } else { None });
            let found: Vec<CAA> = found.collect();
            if !found.is_empty() || chain.len() == asked {
                return Ok(found);
            }
        }
    }

    async fn ask(&mut self, name: &Name) -> Result<Message, DnsError> {
        if self.is_reachable && name.num_labels() > 1 {
            match self.lookup.ask(name, RecordType::CAA, name, |_| true).await {
                Ok(answered) => return Ok(answered.message),
                Err(_) => self.is_reachable = false,
            }
        }
        self.lookup.resolver().ask(name, RecordType::CAA).await
    }
}

fn is_known(tag: &str) -> bool {
    KNOWN_TAGS.iter().any(|known| tag.eq_ignore_ascii_case(known))
}

/// Why `property` does not permit `issuer` with our account and method; `None` if it does.
fn objection(property: &CAA, issuer: &Issuer<'_>) -> Option<String> {
    // "An issue Property Tag where the issue-value does not match the ABNF grammar MUST be treated the same as one
    // specifying an empty issuer-domain-name." (RFC 8659 §4.2)
    let Some(value) = parse(&property.value) else { return Some("is malformed and permits no CA".to_owned()) };
    if !issuer.identities.iter().any(|identity| identity.eq_ignore_ascii_case(value.issuer)) {
        return Some(if value.issuer.is_empty() { "permits no CA" } else { "permits another CA" }.to_owned());
    }
    let all = |tag: &str| {
        let found = value.parameters.iter().filter(|(name, _)| name.eq_ignore_ascii_case(tag));
        found.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    if value.accounts().any(|uri| Some(uri) != issuer.account) {
        let ours = issuer.account.map_or_else(
            || "we have none there yet (or its state directory is not this one)".to_owned(),
            |account| format!("ours is {account}"),
        );
        return Some(format!("permits another account: {ours}"));
    }
    let methods = all("validationmethods");
    let has_ours = |methods: &&str| methods.split(',').any(|method| method.trim() == OUR_METHOD);
    (!methods.iter().all(has_ours)).then(|| format!("does not permit the method {OUR_METHOD}"))
}

/// `*WSP [issuer-domain-name *WSP] [";" *WSP [parameters *WSP]]` (RFC 8659 §4.2)
fn parse(value: &[u8]) -> Option<IssueValue<'_>> {
    let text = std::str::from_utf8(value).ok()?;
    let (issuer, parameters) = text.split_once(';').unwrap_or((text, ""));
    let parameters = if parameters.trim().is_empty() {
        Vec::new()
    } else {
        let each = parameters.split(';').map(|parameter| parameter.split_once('='));
        each.map(|pair| pair.map(|(tag, value)| (tag.trim(), value.trim()))).collect::<Option<_>>()?
    };
    Some(IssueValue { issuer: issuer.trim(), parameters })
}

/// The record as in a zone file, from its flags on.
fn shown(record: &CAA) -> String {
    format!("`{} {} \"{}\"`", record.flags(), record.tag, String::from_utf8_lossy(&record.value).escape_debug())
}

fn main_identity<'a>(issuer: &Issuer<'a>) -> &'a str {
    issuer.identities.first().map_or("this CA", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "https://ca.example/acct/1";

    /// The records, each `flags tag value`, as a search returns them.
    fn found(records: &[&str]) -> CaaRecords {
        let record = |text: &&str| {
            let mut parts = text.splitn(3, ' ');
            let flags: u8 = parts.next().unwrap().parse().unwrap();
            let (tag, value) = (parts.next().unwrap(), parts.next().unwrap());
            let mut caa = CAA::new_issue(flags == 128, None, Vec::new());
            (caa.tag, caa.value) = (tag.to_owned(), value.as_bytes().to_vec());
            caa
        };
        let (domain, owner) = ("phones.example.com".to_owned(), "example.com".to_owned());
        CaaRecords { domain, owner, records: records.iter().map(record).collect(), unknown_above: None }
    }

    /// The result for a CA called `ca.example`.
    fn judge(records: &[&str]) -> Result<Vec<String>, String> {
        let identities = ["ca.example".to_owned(), "other-name.example".to_owned()];
        let issuer = Issuer { identities: &identities, account: Some(OURS) };
        found(records).judge(&issuer).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn ca_named_by_issue_or_issuewild_may_issue() {
        let bound = format!("0 issue ca.example; accounturi={OURS}; validationmethods=http-01,dns-01");
        for permitting in [
            &["0 issue ca.example"][..],
            &["0 issue digicert.com", "128 ISSUE \t CA.Example "],
            &["0 issue other-name.example;", "0 issuewild ca.example ; x=1"],
            &[&bound, "0 iodef mailto:security@example.com", "128 issuemail ;"],
        ] {
            assert_eq!(judge(permitting), Ok(Vec::new()), "{permitting:?}");
        }
    }

    #[test]
    fn name_without_issue_property_is_open_to_every_ca() {
        let both = vec!["*.phones.example.com".to_owned(), "phones.example.com".to_owned()];
        assert_eq!(judge(&[]), Ok(both.clone()));
        assert_eq!(judge(&["0 iodef mailto:security@example.com", "0 unknown x"]), Ok(both.clone()));
        assert_eq!(judge(&["0 issuewild ca.example"]), Ok(both[1..].to_vec()));
    }

    #[test]
    fn refusal_names_the_caa_record_that_forbids_issuance() {
        for (records, name, reason) in [
            (&["0 issue ;"][..], "*.phones", "`0 issue \";\"` permits no CA"),
            (&["0 issue %%%"], "*.phones", "permits another CA"),
            (&["0 issue ca.example; nonsense"], "*.phones", "is malformed and permits no CA"),
            (&["0 issue ca.example", "0 issuewild digicert.com"], "*.phones", "`0 issuewild \"digicert.com\"`"),
            (&["0 issue digicert.com", "0 issuewild ca.example"], "phones", "`0 issue \"digicert.com\"`"),
            (
                &["0 issue ca.example; accounturi=https://ca.example/acct/2"],
                "*.phones",
                "permits another account: ours is https://ca.example/acct/1",
            ),
            (&["0 issue ca.example; validationmethods=http-01"], "*.phones", "does not permit the method dns-01"),
        ] {
            let refusal = judge(records).unwrap_err();
            let start =
                format!("the CAA records of example.com do not permit ca.example to issue for {name}.example.com: ");
            assert!(refusal.starts_with(&start) && refusal.contains(reason), "{refusal}");
        }
    }

    #[test]
    fn records_that_bind_an_account_are_found() {
        let bound = |records: &[&str], account| found(records).bound_to(account);
        let ours = format!("0 issue ca.example; accounturi={OURS}");
        let wild = format!("0 issuewild ca.example; validationmethods=dns-01; accounturi={OURS}");
        let shown = [
            format!("example.com. CAA `0 issue \"ca.example; accounturi={OURS}\"`"),
            format!("example.com. CAA `0 issuewild \"ca.example; validationmethods=dns-01; accounturi={OURS}\"`"),
        ];
        assert_eq!(bound(&[&ours, &wild], Some(OURS)), shown);
        assert_eq!(bound(&[&ours, "0 issue other.example"], Some(OURS)), shown[..1]);
        assert_eq!(bound(&[&ours], None), shown[..1]);
        for free in [&["0 issue ca.example"][..], &[&ours, "0 issue ca.example"], &[]] {
            assert!(bound(free, Some(OURS)).is_empty() && bound(free, None).is_empty(), "{free:?}");
        }
        assert!(bound(&[&ours], Some("https://ca.example/acct/10")).is_empty());
    }

    #[test]
    fn issuewild_does_not_apply_to_an_exact_name() {
        let issuer = Issuer { identities: &["ca.example".to_owned()], account: Some(OURS) };
        let judged = |records: &[&str]| found(records).judge_exact(&issuer).map_err(|refusal| refusal.to_string());
        assert_eq!(judged(&["0 issue ca.example", "0 issuewild ;"]), Ok(Vec::new()));
        assert_eq!(judged(&["0 issuewild ;"]), Ok(vec!["phones.example.com".to_owned()]));
        assert!(
            judged(&["0 issue ;", "0 issuewild ca.example"]).unwrap_err().contains("issue for phones.example.com: ")
        );
        assert!(!found(&[]).recommended_exact(&issuer).contains("issuewild"));
    }

    #[test]
    fn unknown_critical_property_forbids_issuance() {
        let refusal = judge(&["0 issue ca.example", "128 tbs x"]).unwrap_err();
        assert!(
            refusal.contains("`128 tbs \"x\"`, forbids every CA to issue: it is critical, and CAs do not know its tag"),
            "{refusal}"
        );
    }

    proptest::proptest! {
        #[test]
        fn caa_parser_accepts_any_bytes_without_panic(value in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)) {
            let _ = parse(&value);
        }
    }
}

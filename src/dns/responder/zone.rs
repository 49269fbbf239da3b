//! The contents of the zone: the apex with its SOA and NS, the challenges, and proofs for `check --live`. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hickory_net::proto::rr::rdata::{HINFO, NS, SOA, TXT};
use hickory_net::proto::rr::{LowerName, Name, RData, Record, RecordType};

/// The TTL of records that rarely change.
const STABLE_TTL_S: u32 = 3600;
/// The TTL of challenges and of negative answers. A resolver that asked too early asks again at once.
const CHALLENGE_TTL_S: u32 = 1;
/// The label of a name that proves who answers: `_provost-<nonce>`.
const PROOF_PREFIX: &str = "_provost-";
/// The longest character-string of a TXT record (RFC 1035 §3.3).
const LONGEST_STRING: usize = 255;

/// The key of the proofs.
#[derive(Debug, Clone)]
pub(super) struct ProofKey(hmac::Key);

impl ProofKey {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The value of the TXT record whose name starts with `label`, in any case: resolvers mix it.
    pub(super) fn proof(&self, label: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.0, &label.to_ascii_lowercase()))
    }
}

/// The label that proves by `nonce` who answers.
pub(super) fn proof_label(nonce: &str) -> String {
    format!("{PROOF_PREFIX}{nonce}")
}

/// A snapshot of the zone.
#[derive(Debug, Clone)]
pub(super) struct Zone {
    pub(super) apex: Name,
    pub(super) name_server: Name,
    /// The name server's addresses. They are served if its name is in the zone.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) serial: u32,
    pub(super) proof_key: ProofKey,
    /// Each name of a challenge, also between orders, with its values.
    pub(super) challenges: BTreeMap<LowerName, Vec<String>>,
}

/// What a zone says to a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// The name is not in the zone.
    Outside,
    /// The name does not exist.
    Missing,
    /// The records of the name. Without any, it exists and has none of this type.
    Records(Vec<Record>),
}

impl Zone {
    /// Finds the records of type `kind` that `name` has. They are named as the question is, in its case.
    pub(super) fn look_up(&self, name: &Name, kind: RecordType) -> Lookup {
        if !self.apex.zone_of(name) {
            return Lookup::Outside;
        }
        if !self.exists(name) {
            return Lookup::Missing;
        }
        if kind == RecordType::ANY {
            // "return a synthesized HINFO resource record" (RFC 8482 §4.2)
            let hinfo = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
            return Lookup::Records(vec![Record::from_rdata(name.clone(), STABLE_TTL_S, hinfo)]);
        }
        let record = |ttl: u32, data: RData| Record::from_rdata(name.clone(), ttl, data);
        let records = match kind {
            RecordType::SOA if *name == self.apex => vec![record(STABLE_TTL_S, self.soa())],
            RecordType::NS if *name == self.apex => {
                vec![record(STABLE_TTL_S, RData::NS(NS(self.name_server.clone())))]
            }
            RecordType::A | RecordType::AAAA if *name == self.name_server => {
                let addresses = self.addresses.iter().map(|address| RData::from(*address));
                let of_kind = addresses.filter(|data| data.record_type() == kind);
                of_kind.map(|data| record(STABLE_TTL_S, data)).collect()
            }
            RecordType::TXT => {
                self.texts(name).iter().map(|value| record(CHALLENGE_TTL_S, RData::TXT(text(value)))).collect()
            }
            _ => Vec::new(),
        };
        Lookup::Records(records)
    }

    /// The SOA record of negative answers. Resolvers keep these for the lower of its TTL and its minimum (RFC 2308 §5).
    pub(super) fn negative_soa(&self) -> Record {
        Record::from_rdata(self.apex.clone(), CHALLENGE_TTL_S, self.soa())
    }

    fn soa(&self) -> RData {
        let mailbox = self.apex.prepend_label("hostmaster").unwrap_or_else(|_| self.apex.clone());
        RData::SOA(SOA::new(self.name_server.clone(), mailbox, self.serial, 3600, 600, 86_400, CHALLENGE_TTL_S))
    }

    /// Whether `name` has records, or a name below it does. Names of challenges exist between orders too: a resolver that
    /// minimizes names must not conclude that there is nothing below (RFC 8020).
    fn exists(&self, name: &Name) -> bool {
        let is_server = || self.apex.zone_of(&self.name_server) && name.zone_of(&self.name_server);
        *name == self.apex
            || is_server()
            || self.proof_label(name).is_some()
            || self.challenges.keys().any(|challenge| name.zone_of(challenge))
    }

    fn texts(&self, name: &Name) -> Vec<String> {
        if let Some(label) = self.proof_label(name) {
            return vec![self.proof_key.proof(label)];
        }
        self.challenges.get(&LowerName::new(name)).cloned().unwrap_or_default()
    }

    /// The first label of `name`, if the name is one of a proof: just below the apex.
    fn proof_label<'a>(&self, name: &'a Name) -> Option<&'a [u8]> {
        let is_child = name.num_labels() == self.apex.num_labels() + 1;
        let label = name.iter().next().filter(|_| is_child)?;
        let (prefix, nonce) = label.split_at_checked(PROOF_PREFIX.len())?;
        (prefix.eq_ignore_ascii_case(PROOF_PREFIX.as_bytes()) && !nonce.is_empty()).then_some(label)
    }
}

fn text(value: &str) -> TXT {
    TXT::from_bytes(value.as_bytes().chunks(LONGEST_STRING).collect())
}

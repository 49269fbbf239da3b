//! Signed (RFC 8945) UPDATE messages (RFC 2136), and the meaning of their answers. Time is an argument.

use std::net::SocketAddr;

use hickory_net::proto::ProtoError;
use hickory_net::proto::op::{Message, MessageType, OpCode, Query, ResponseCode, UpdateMessage};
use hickory_net::proto::rr::rdata::TXT;
use hickory_net::proto::rr::rdata::tsig::TsigError;
use hickory_net::proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigVerifier, TSigner};

use super::exchange::{self, LARGEST_DATAGRAM, over_tcp, over_udp};
use super::tsig_key::TsigKey;

/// The change that an update makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordChange {
    /// Adds the values to the existing ones.
    Add { ttl_s: u32 },
    /// Removes the values and nothing else.
    Remove,
}

/// Builds the message that changes the TXT records of `name` in `zone`, all at once.
pub(super) fn message(change: RecordChange, zone: &Name, name: &Name, values: &[String]) -> Message {
    let mut section = Query::query(zone.clone(), RecordType::SOA);
    section.set_query_class(DNSClass::IN);
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Update;
    message.metadata.recursion_desired = false;
    message.add_zone(section);
    for value in values {
        let text = RData::TXT(TXT::from_bytes(vec![value.as_bytes()]));
        message.add_update(match change {
            // "RRs are added to the Update Section whose NAME, TYPE, TTL, RDLENGTH and RDATA are those being added,
            // and CLASS is the same as the zone class. Any duplicate RRs will be silently ignored" (2.5.1)
            RecordChange::Add { ttl_s } => Record::from_rdata(name.clone(), ttl_s, text),
            // "The NAME, TYPE, RDLENGTH and RDATA must match the RR being deleted. TTL must be specified as zero (0)
            // […] CLASS must be specified as NONE […] If no such RRs exist, then this Update RR will be silently
            // ignored" (2.5.4)
            RecordChange::Remove => {
                let mut record = Record::from_rdata(name.clone(), 0, text);
                record.dns_class = DNSClass::NONE;
                record
            }
        });
    }
    message
}

/// Builds the message that changes nothing, and that the primary refuses with NXDOMAIN if no record has the name. No wildcard
/// record stands in for one.
pub(super) fn existence(zone: &Name, name: &Name) -> Message {
    let mut message = message(RecordChange::Remove, zone, name, &[]);
    // "Name Is In Use […] a single RR whose NAME is equal to that of the name whose ownership of an RR is required. RDLENGTH
    // is zero and RDATA is therefore empty. CLASS must be specified as ANY […] TYPE must be specified as ANY […] TTL is
    // specified as zero (0)" (2.4.4)
    let mut record = Record::update0(name.clone(), 0, RecordType::ANY);
    record.dns_class = DNSClass::ANY;
    message.add_pre_requisite(record);
    message
}

/// Signs `message` as of `now`, in seconds since 1970. Returns its bytes, and the verifier of the answer.
pub(super) fn sign(mut message: Message, signer: &TSigner, now: u64) -> Result<(Vec<u8>, Verifier), ProtoError> {
    let chain = message.finalize(signer, now)?.ok_or("this message was not signed")?;
    let verifier = Verifier { id: message.id, now, chain };
    Ok((message.to_vec()?, verifier))
}

/// A message that is to be signed and sent.
pub(super) struct Update<'a> {
    pub(super) message: Message,
    pub(super) key: &'a TsigKey,
}

/// Why an update was not made, or may not have been.
#[derive(Debug)]
pub(super) enum NotUpdated {
    /// The message cannot be encoded.
    Message(String),
    /// It does not fit into a datagram.
    TooLarge,
    /// This machine cannot send to the primary's address.
    NoRoute(String),
    /// The primary did not answer.
    Silent(String),
    /// The primary refused.
    Refused(Refusal),
}

impl Update<'_> {
    /// Sends it to `server`, signed as of `now`: by UDP if it fits, then by TCP. To make it twice changes nothing.
    ///
    /// By UDP, an answer that the primary did not sign may be forged. Then the answer by TCP counts, if there is one.
    pub(super) async fn send(&self, server: SocketAddr, now: u64) -> Result<(), NotUpdated> {
        let by_udp = match self.send_by_udp(server, now).await {
            Ok(()) => return Ok(()),
            Err(NotUpdated::Refused(refusal)) if refusal.is_proven() => return Err(NotUpdated::Refused(refusal)),
            Err(NotUpdated::NoRoute(reason)) => return Err(NotUpdated::NoRoute(reason)),
            Err(other) => other,
        };
        let (bytes, verifier) = self.sign(now)?;
        match (over_tcp(server, &bytes).await, by_udp) {
            (Ok(answer), _) => verifier.judge(&answer).map_err(NotUpdated::Refused),
            (Err(_), NotUpdated::Refused(refusal)) => Err(NotUpdated::Refused(refusal)),
            (Err(error), by_udp) => {
                let by_tcp = exchange::reason(server, &error);
                Err(NotUpdated::Silent(match by_udp {
                    NotUpdated::Silent(by_udp) if by_udp != by_tcp => format!("{by_udp} by UDP, and by TCP {by_tcp}"),
                    _ => by_tcp,
                }))
            }
        }
    }

    async fn send_by_udp(&self, server: SocketAddr, now: u64) -> Result<(), NotUpdated> {
        let (bytes, verifier) = self.sign(now)?;
        // "An update transaction may be carried in a UDP datagram, if the request fits" (RFC 2136 §2.1)
        if bytes.len() > LARGEST_DATAGRAM {
            return Err(NotUpdated::TooLarge);
        }
        let id = verifier.id;
        let accept = |datagram: &[u8]| is_answer(datagram, id).then(|| datagram.to_vec());
        let answer = over_udp(server, &bytes, accept).await.map_err(|error| {
            let reason = exchange::reason(server, &error);
            if exchange::is_no_route(&error) { NotUpdated::NoRoute(reason) } else { NotUpdated::Silent(reason) }
        })?;
        verifier.judge(&answer).map_err(NotUpdated::Refused)
    }

    /// Signs it with an ID of its own.
    fn sign(&self, now: u64) -> Result<(Vec<u8>, Verifier), NotUpdated> {
        let mut message = self.message.clone();
        message.metadata.id = Message::query().id;
        sign(message, self.key.signer(), now).map_err(|error| NotUpdated::Message(error.to_string()))
    }
}

/// Whether a datagram answers the UPDATE with this ID.
fn is_answer(datagram: &[u8], id: u16) -> bool {
    Message::from_vec(datagram).is_ok_and(|answer| {
        answer.id == id && answer.message_type == MessageType::Response && answer.op_code == OpCode::Update
    })
}

/// Verifies the answer to an UPDATE.
pub(super) struct Verifier {
    id: u16,
    now: u64,
    chain: TSigVerifier,
}

/// Why the primary did not apply an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has another secret for the key.
    BadSig,
    /// It does not accept the key.
    BadKey,
    /// Its clock and ours differ too much. Seconds since 1970; `theirs` only if the answer is authentic.
    BadTime {
        /// Our clock.
        ours: i64,
        /// Its clock.
        theirs: Option<i64>,
    },
    /// Another TSIG error.
    OtherTsig(u16),
    /// A signed answer with this response code.
    Code(ResponseCode),
    /// An unsigned answer with this response code.
    Unsigned(ResponseCode),
    /// An answer whose signature is wrong.
    Forged,
    /// Not an answer to our message.
    Garbled,
}

impl Refusal {
    /// Whether only the primary can have said so.
    fn is_proven(self) -> bool {
        matches!(self, Self::Code(_) | Self::BadTime { theirs: Some(_), .. })
    }
}

impl Verifier {
    /// Verifies `answer`. A success must be signed.
    pub(super) fn judge(mut self, answer: &[u8]) -> Result<(), Refusal> {
        let message = Message::from_vec(answer).map_err(|_| Refusal::Garbled)?;
        let is_answer = message.message_type == MessageType::Response && message.op_code == OpCode::Update;
        if !is_answer || message.id != self.id {
            return Err(Refusal::Garbled);
        }
        let tag = &message.signature().ok_or(Refusal::Unsigned(message.response_code))?.data;
        match tag.error {
            // "the response MUST be unsigned" (RFC 8945, 5.2.1 and 5.2.2), so these errors are accepted without a
            // signature.
            Some(TsigError::BadKey) => return Err(Refusal::BadKey),
            Some(TsigError::BadSig) => return Err(Refusal::BadSig),
            Some(TsigError::BadTime) | None => {}
            Some(other) => return Err(Refusal::OtherTsig(other.into())),
        }
        // hickory subtracts the fudge from the time, which must not underflow.
        let is_time_sane = tag.time >= u64::from(tag.fudge);
        let is_proven = is_time_sane && self.chain.verify(answer).is_ok();
        match (tag.error, message.response_code) {
            (Some(_), _) => Err(Refusal::BadTime {
                ours: i64::try_from(self.now).unwrap_or(i64::MAX),
                theirs: is_proven.then(|| server_time(&tag.other)).flatten(),
            }),
            _ if !is_proven => Err(Refusal::Forged),
            (None, ResponseCode::NoError) => Ok(()),
            (None, code) => Err(Refusal::Code(code)),
        }
    }
}

/// "it will be a 48-bit unsigned integer containing the server's current time as the number of seconds since 00:00 on
/// 1970-01-01 UTC" (RFC 8945, 4.2)
fn server_time(other: &[u8]) -> Option<i64> {
    let other: [u8; 6] = other.try_into().ok()?;
    Some(other.iter().fold(0, |time, byte| (time << 8) | i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::rr::TSigResponseContext;
    use hickory_net::proto::rr::rdata::tsig::TsigAlgorithm;

    use super::super::name;
    use super::*;

    const NOW: u64 = 1_790_000_000;

    fn signer(secret: &[u8]) -> TSigner {
        let name = name::parse("provost").unwrap();
        TSigner::new(secret.to_vec(), TsigAlgorithm::HmacSha256, name, 300).unwrap()
    }

    fn update(change: RecordChange) -> Message {
        let (zone, at) = (name::parse("example.com").unwrap(), name::parse("_acme-challenge.example.com").unwrap());
        message(change, &zone, &at, &["one".to_owned(), "two".to_owned()])
    }

    /// The result for an answer that a server signs with `secret` at `time`.
    fn answered(secret: &[u8], time: u64, change: impl FnOnce(&mut Message)) -> Result<(), Refusal> {
        let mut request = update(RecordChange::Add { ttl_s: 60 });
        let chain = request.finalize(&signer(b"ours"), NOW).unwrap().unwrap();
        let tag = request.signature().unwrap().data.mac.clone();
        let mut answer = Message::response(request.id, OpCode::Update);
        change(&mut answer);
        let context = TSigResponseContext::new(request.id, time, signer(secret), tag, None);
        let signature = context.sign(&answer.to_vec().unwrap()).unwrap();
        answer.set_signature(signature);
        Verifier { id: request.id, now: NOW, chain }.judge(&answer.to_vec().unwrap())
    }

    #[test]
    fn one_update_message_carries_all_values() {
        let added = update(RecordChange::Add { ttl_s: 60 });
        let of = |message: &Message| {
            message.updates().iter().map(|record| (record.dns_class, record.ttl)).collect::<Vec<_>>()
        };
        assert_eq!(of(&added), [(DNSClass::IN, 60), (DNSClass::IN, 60)]);
        assert_eq!(of(&update(RecordChange::Remove)), [(DNSClass::NONE, 0), (DNSClass::NONE, 0)]);
        assert_eq!((added.op_code, added.zones().len(), added.prerequisites().len()), (OpCode::Update, 1, 0));
    }

    #[test]
    fn response_with_a_wrong_tsig_is_rejected() {
        let refuse = |answer: &mut Message| answer.metadata.response_code = ResponseCode::Refused;
        assert_eq!(answered(b"ours", NOW, |_| ()), Ok(()));
        assert_eq!(answered(b"ours", NOW, refuse), Err(Refusal::Code(ResponseCode::Refused)));
        assert_eq!(answered(b"other", NOW, |_| ()), Err(Refusal::Forged));
        assert_eq!(answered(b"ours", NOW + 3_600, |_| ()), Err(Refusal::Forged), "an answer of another hour");
        assert_eq!(answered(b"ours", 10, |_| ()), Err(Refusal::Forged), "a time before the fudge");
        assert_eq!(answered(b"ours", NOW, |answer| answer.metadata.id ^= 1), Err(Refusal::Garbled));
        assert_eq!(answered(b"ours", NOW, |answer| answer.metadata.op_code = OpCode::Query), Err(Refusal::Garbled));
    }

    #[test]
    fn unsigned_success_is_rejected() {
        let (_, verifier) = sign(update(RecordChange::Remove), &signer(b"ours"), NOW).unwrap();
        let answer = Message::response(verifier.id, OpCode::Update).to_vec().unwrap();
        assert_eq!(verifier.judge(&answer), Err(Refusal::Unsigned(ResponseCode::NoError)));
    }

    #[test]
    fn txt_value_over_255_bytes_is_an_error() {
        let at = name::parse("example.com").unwrap();
        let long = message(RecordChange::Remove, &at, &at, &["x".repeat(256)]);
        assert!(sign(long, &signer(b"ours"), NOW).is_err());
    }

    #[test]
    fn server_time_of_badtime_has_48_bits() {
        assert_eq!(server_time(&[0, 0, 0x6a, 0xb1, 0x3b, 0x80]), Some(0x6ab1_3b80));
        assert_eq!(server_time(&[0; 5]), None);
    }

    proptest::proptest! {
        #[test]
        fn update_response_parser_rejects_any_garbage(tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let (_, verifier) = sign(update(RecordChange::Remove), &signer(b"ours"), NOW).unwrap();
            let mut answer = verifier.id.to_be_bytes().to_vec();
            answer.extend([0xa8, 0]);
            answer.extend(tail);
            proptest::prop_assert!(verifier.judge(&answer).is_err());
        }
    }
}

//! Answers one query: bytes in, bytes out. Pure.
//!
//! 1. Responses and what is shorter than a header get no answer, so that two servers cannot answer one another for ever.
//! 2. Only standard queries with one question are answered. A query without a question asks for a DNS cookie.
//! 3. The [zone](super::zone) has the records, or not. Queries about other names are refused.
//! 4. The answer to a query with an OPT record has one, also if it is an error.
//! 5. An answer that is too large for UDP is empty and truncated; the client asks again by TCP.
//!
//! The parser reads a query once, from front to back. It follows no compression pointer: a question needs none, and of
//! other names it needs only the end.

use std::net::IpAddr;

use aws_lc_rs::hmac;
use hickory_net::proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_net::proto::rr::rdata::TSIG;
use hickory_net::proto::rr::rdata::opt::EdnsOption;
use hickory_net::proto::rr::rdata::tsig::{TsigAlgorithm, TsigError, make_tsig_record};
use hickory_net::proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_net::proto::serialize::binary::{BinDecodable, BinDecoder};

use super::client::{Client, Transport};
use super::query_counts::QueryOutcome;
use super::zone::{Lookup, Zone};

/// The largest UDP answer: it passes every path unfragmented (DNS flag day 2020).
const LARGEST_UDP: usize = 1232;
/// What a client without EDNS can take (RFC 1035 §2.3.4).
const SMALLEST_UDP: usize = 512;
/// An answer over UDP has at most this many times the bytes of its query. So a forged source address gains an attacker
/// little. The two values of a certificate fit, if the query has EDNS; else the client asks by TCP.
const MAX_AMPLIFICATION: usize = 3;

/// The code of the cookie option (RFC 7873 §4).
const COOKIE: u16 = 10;
const CLIENT_COOKIE_LEN: usize = 8;
/// The length of a server's cookie in a query, at least and at most (RFC 7873 §4).
const SERVER_COOKIE_LENS: std::ops::RangeInclusive<usize> = 8..=32;

/// The key of our DNS cookies. A new one at each start costs a client one more query.
#[derive(Debug, Clone)]
pub(super) struct CookieKey(hmac::Key);

impl CookieKey {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The client's cookie and ours, laid out as in RFC 9018 §4.
    fn cookies(&self, client: &[u8], address: IpAddr, now: u32) -> Vec<u8> {
        let mut cookies = client.to_vec();
        cookies.extend([1, 0, 0, 0]);
        cookies.extend(now.to_be_bytes());
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let tag = hmac::sign(&self.0, &[&cookies[..], &octets].concat());
        cookies.extend(tag.as_ref().iter().take(8));
        cookies
    }
}

/// The parts of a query that its answer depends on, as far as they could be read.
#[derive(Default)]
struct ParsedQuery {
    question: Option<Query>,
    edns: Option<QueryEdns>,
    tsig: Option<QueryTsig>,
}

/// The OPT record of a query (RFC 6891).
struct QueryEdns {
    version: u8,
    payload: u16,
    dnssec_ok: bool,
    client_cookie: Option<Vec<u8>>,
}

/// The TSIG record of a query (RFC 8945), without its MAC.
struct QueryTsig {
    key: Name,
    algorithm: Name,
    time: u64,
    fudge: u16,
    original_id: u16,
}

/// The query is malformed: FORMERR.
struct FormatError;

/// An answer, and what became of the query. Without bytes, it gets no answer.
pub(super) struct Answer {
    pub(super) outcome: QueryOutcome,
    pub(super) bytes: Option<Vec<u8>>,
}

/// Answers `query`, which `client` sent at `now`, in Unix seconds.
pub(super) fn answer(query: &[u8], client: Client, zone: &Zone, cookies: &CookieKey, now: u32) -> Answer {
    let header = match Header::read(&mut BinDecoder::new(query)) {
        Ok(header) if header.message_type == MessageType::Query => header,
        _ => return Answer { outcome: QueryOutcome::Ignored, bytes: None },
    };
    let mut parsed = ParsedQuery::default();
    let is_well_formed = parsed.read(query, &header).is_ok();
    let mut response = Message::response(header.id, header.op_code);
    response.metadata = Metadata::response_from_request(&header.metadata);
    let mut limit = SMALLEST_UDP;
    // "If an OPT record is present in a received request, compliant responders MUST include an OPT record in their respective
    // responses." (RFC 6891 §6.1.1)
    if let Some(edns) = &parsed.edns {
        limit = usize::from(edns.payload).clamp(SMALLEST_UDP, LARGEST_UDP);
        response.set_edns(edns.response(client.address, cookies, now));
    }
    // Messages with other opcodes may have another form.
    if header.op_code == OpCode::Query && !is_well_formed {
        response.metadata.response_code = ResponseCode::FormErr;
    } else {
        fill(&mut response, &parsed, zone);
    }
    let outcome = QueryOutcome::of(&response);
    if client.transport == Transport::UdpOverLimit {
        let bytes = if outcome == QueryOutcome::Refused { None } else { response.truncate().to_vec().ok() };
        return Answer { outcome: QueryOutcome::RateLimited, bytes };
    }
    let bytes = response.to_vec().ok();
    let largest = limit.min(MAX_AMPLIFICATION * query.len());
    if client.transport == Transport::Udp && bytes.as_ref().is_some_and(|bytes| bytes.len() > largest) {
        return Answer { outcome: QueryOutcome::Truncated, bytes: response.truncate().to_vec().ok() };
    }
    Answer { outcome, bytes }
}

/// Fills in what the zone says, or why the query is not answered: in BIND's order.
fn fill(response: &mut Message, parsed: &ParsedQuery, zone: &Zone) {
    response.queries.extend(parsed.question.clone());
    let edns = parsed.edns.as_ref();
    if edns.is_some_and(|edns| edns.version > 0) {
        response.metadata.response_code = ResponseCode::BADVERS;
        return;
    }
    // "If a non-forwarding server does not recognize the key or algorithm used by the client […], the server MUST generate an
    // error response with RCODE 9 (NOTAUTH) and TSIG ERROR 17 (BADKEY)." (RFC 8945 §5.2.1) We have no keys.
    if let Some(tsig) = &parsed.tsig {
        response.metadata.response_code = ResponseCode::NotAuth;
        response.set_signature(Box::new(tsig.bad_key()));
        return;
    }
    if response.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return;
    }
    let Some(question) = &parsed.question else {
        // "a query with a QDCOUNT of zero [and] a COOKIE option" asks for a server's cookie (RFC 7873 §5.4).
        if edns.is_none_or(|edns| edns.client_cookie.is_none()) {
            response.metadata.response_code = ResponseCode::FormErr;
        }
        return;
    };
    let is_transfer = matches!(question.query_type, RecordType::AXFR | RecordType::IXFR);
    let lookup = if question.query_class == DNSClass::IN && !is_transfer {
        zone.look_up(&question.name, question.query_type)
    } else {
        Lookup::Outside
    };
    response.metadata.authoritative = lookup != Lookup::Outside;
    match lookup {
        Lookup::Outside => response.metadata.response_code = ResponseCode::Refused,
        Lookup::Missing => {
            response.metadata.response_code = ResponseCode::NXDomain;
            response.add_authority(zone.negative_soa());
        }
        Lookup::Records(records) if records.is_empty() => {
            response.add_authority(zone.negative_soa());
        }
        Lookup::Records(records) => response.insert_answers(records),
    }
}

impl ParsedQuery {
    /// Reads `query` to its end where its form permits: a query that is malformed may have a valid OPT record.
    fn read(&mut self, query: &[u8], header: &Header) -> Result<(), FormatError> {
        let counts = &header.counts;
        let mut rest = Bytes(query.get(12..).ok_or(FormatError)?);
        // "a DNS message with OPCODE = 0 and QDCOUNT > 1 MUST be treated as an incorrectly formatted message" (RFC 9619 §4)
        let mut result = if counts.queries > 1 { Err(FormatError) } else { Ok(()) };
        for _ in 0..counts.queries {
            match rest.question()? {
                Ok(question) if counts.queries == 1 => self.question = Some(question),
                Ok(_) => {}
                Err(error) => result = Err(error),
            }
        }
        for _ in 0..u32::from(counts.answers) + u32::from(counts.authorities) {
            if matches!(rest.record()?.kind, RecordType::OPT | RecordType::TSIG) {
                result = Err(FormatError);
            }
        }
        for _ in 0..counts.additionals {
            let record = rest.record()?;
            // "If […] the TSIG RR is not the last record in the additional section […], a FORMERR (RCODE 1) error MUST be
            // returned." (RFC 8945 §5.1)
            if self.tsig.is_some() {
                result = Err(FormatError);
            }
            match record.kind {
                // "If a query message with more than one OPT RR is received, a FORMERR MUST be returned." (RFC 6891 §6.1.1)
                RecordType::OPT if self.edns.is_some() || record.name.bytes != [0] => result = Err(FormatError),
                RecordType::OPT => {
                    let (edns, is_valid) = QueryEdns::read(&record);
                    self.edns = Some(edns);
                    result = result.and(is_valid);
                }
                RecordType::TSIG => match QueryTsig::parse(&record) {
                    Ok(tsig) => self.tsig = Some(tsig),
                    Err(error) => result = Err(error),
                },
                _ => {}
            }
        }
        result
    }
}

impl QueryEdns {
    /// Reads the record; the second value says whether its options are valid.
    fn read(record: &RawRecord<'_>) -> (Self, Result<(), FormatError>) {
        let [_, version, flags, _] = record.ttl.to_be_bytes();
        let mut edns = Self { version, payload: record.class, dnssec_ok: flags & 0x80 != 0, client_cookie: None };
        // Another version may have other options.
        let is_valid = if version == 0 { edns.read_options(record.data) } else { Ok(()) };
        (edns, is_valid)
    }

    fn read_options(&mut self, data: &[u8]) -> Result<(), FormatError> {
        let mut options = Bytes(data);
        while !options.0.is_empty() {
            let (code, length) = (options.u16()?, options.u16()?);
            let data = options.take(usize::from(length))?;
            if code == COOKIE && self.client_cookie.is_none() {
                let (client, server) = data.split_at_checked(CLIENT_COOKIE_LEN).ok_or(FormatError)?;
                if !server.is_empty() && !SERVER_COOKIE_LENS.contains(&server.len()) {
                    return Err(FormatError);
                }
                self.client_cookie = Some(client.to_vec());
            }
        }
        Ok(())
    }

    /// The OPT record of the answer.
    fn response(&self, address: IpAddr, cookies: &CookieKey, now: u32) -> Edns {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(LARGEST_UDP).unwrap_or(u16::MAX));
        // "The DO bit of the query MUST be copied in the response." (RFC 3225 §3)
        edns.set_dnssec_ok(self.dnssec_ok);
        if let Some(client) = &self.client_cookie {
            edns.options_mut().insert(EdnsOption::Unknown(COOKIE, cookies.cookies(client, address, now)));
        }
        edns
    }
}

impl QueryTsig {
    fn parse(record: &RawRecord<'_>) -> Result<Self, FormatError> {
        let mut data = Bytes(record.data);
        let key = record.name.parse()?;
        let algorithm = data.name()?.parse()?;
        let (time, fudge) = (data.uint(6)?, data.u16()?);
        let mac = data.u16()?;
        data.take(usize::from(mac))?;
        let (original_id, _error, other) = (data.u16()?, data.u16()?, data.u16()?);
        data.take(usize::from(other))?;
        if data.0.is_empty() { Ok(Self { key, algorithm, time, fudge, original_id }) } else { Err(FormatError) }
    }

    /// The record of an answer that is not signed because the key is unknown.
    fn bad_key(&self) -> Record<TSIG> {
        let algorithm = TsigAlgorithm::from_name(self.algorithm.clone());
        let error = Some(TsigError::BadKey);
        let tsig = TSIG::new(algorithm, self.time, self.fudge, Vec::new(), self.original_id, error, Vec::new());
        make_tsig_record(self.key.clone(), tsig)
    }
}

/// The bytes of a query that are not read yet.
struct Bytes<'a>(&'a [u8]);

/// A name, not interpreted. A compression pointer ends it (RFC 1035 §4.1.4).
struct RawName<'a> {
    bytes: &'a [u8],
    has_pointer: bool,
}

/// A record, not interpreted.
struct RawRecord<'a> {
    name: RawName<'a>,
    kind: RecordType,
    class: u16,
    ttl: u32,
    data: &'a [u8],
}

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(FormatError)?;
        self.0 = rest;
        Ok(taken)
    }

    /// An unsigned integer of `count` bytes.
    fn uint(&mut self, count: usize) -> Result<u64, FormatError> {
        Ok(self.take(count)?.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn u8(&mut self) -> Result<u8, FormatError> {
        self.take(1).map(|taken| taken[0])
    }

    /// Takes a question. The inner error: its form is right, and its name is not.
    fn question(&mut self) -> Result<Result<Query, FormatError>, FormatError> {
        let whole = self.0;
        let name = self.name()?;
        self.take(4)?;
        let question = &whole[..whole.len() - self.0.len()];
        // A pointer in the first name could lead only into the header.
        if name.has_pointer {
            return Ok(Err(FormatError));
        }
        Ok(Query::read(&mut BinDecoder::new(question)).map_err(|_| FormatError))
    }

    fn record(&mut self) -> Result<RawRecord<'a>, FormatError> {
        let name = self.name()?;
        let (kind, class) = (RecordType::from(self.u16()?), self.u16()?);
        let ttl = u32::from_be_bytes([self.u8()?, self.u8()?, self.u8()?, self.u8()?]);
        let length = self.u16()?;
        Ok(RawRecord { name, kind, class, ttl, data: self.take(usize::from(length))? })
    }

    fn name(&mut self) -> Result<RawName<'a>, FormatError> {
        let whole = self.0;
        let has_pointer = loop {
            match self.u8()? {
                0 => break false,
                length @ 1..=63 => {
                    self.take(usize::from(length))?;
                }
                0xc0.. => {
                    self.u8()?;
                    break true;
                }
                _ => return Err(FormatError),
            }
        };
        Ok(RawName { bytes: &whole[..whole.len() - self.0.len()], has_pointer })
    }
}

impl RawName<'_> {
    fn parse(&self) -> Result<Name, FormatError> {
        if self.has_pointer {
            return Err(FormatError);
        }
        Name::read(&mut BinDecoder::new(self.bytes)).map_err(|_| FormatError)
    }
}

#[cfg(test)]
mod tests;

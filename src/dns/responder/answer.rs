//! Answers one query: bytes in, bytes out. Pure.
//!
//! 1. Responses and what is shorter than a header get no answer, so that two servers cannot answer one another for ever.
//! 2. Only standard queries with one question are answered. A question without a name is one for a DNS cookie.
//! 3. The [zone](super::zone) has the records, or not. Queries about other names are refused.
//! 4. An answer that is too large for UDP is empty and truncated; the client asks again by TCP.
//!
//! The parser reads a query once, from front to back. It follows no compression pointer: a question needs none, and of
//! other names it needs only the end.

use std::net::IpAddr;

use aws_lc_rs::hmac;
use hickory_net::proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_net::proto::rr::rdata::opt::EdnsOption;
use hickory_net::proto::rr::{DNSClass, RecordType};
use hickory_net::proto::serialize::binary::{BinDecodable, BinDecoder};

use super::client::{Client, Transport};
use super::query_counts::QueryOutcome;
use super::zone::{Lookup, Zone};

/// The largest UDP answer: it passes every path unfragmented (DNS flag day 2020).
const LARGEST_UDP: usize = 1232;
/// What a client without EDNS can take (RFC 1035 §2.3.4).
const SMALLEST_UDP: usize = 512;
/// An answer over UDP has at most three times the bytes of its query, and this many: room for a second value of a
/// challenge. Then a forged source address gains an attacker nothing.
const AMPLIFICATION_ALLOWANCE: usize = 64;

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

/// The parts of a query that its answer depends on.
struct ParsedQuery {
    question: Option<Query>,
    edns: Option<QueryEdns>,
}

/// The OPT record of a query (RFC 6891).
struct QueryEdns {
    version: u8,
    payload: u16,
    dnssec_ok: bool,
    client_cookie: Option<Vec<u8>>,
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
    let mut response = Message::response(header.id, header.op_code);
    response.metadata = Metadata::response_from_request(&header.metadata);
    let parsed = ParsedQuery::parse(query, &header);
    let mut limit = SMALLEST_UDP;
    match parsed {
        _ if header.op_code != OpCode::Query => {
            response.metadata.response_code = ResponseCode::NotImp;
            response.queries.extend(parsed.ok().and_then(|parsed| parsed.question));
        }
        Err(FormatError) => response.metadata.response_code = ResponseCode::FormErr,
        Ok(parsed) => {
            if let Some(edns) = &parsed.edns {
                limit = usize::from(edns.payload).clamp(SMALLEST_UDP, LARGEST_UDP);
                response.set_edns(edns.response(client.address, cookies, now));
            }
            fill(&mut response, &parsed, zone);
        }
    }
    let outcome = QueryOutcome::of(&response);
    if client.transport == Transport::UdpOverLimit {
        let bytes = if outcome == QueryOutcome::Refused { None } else { response.truncate().to_vec().ok() };
        return Answer { outcome: QueryOutcome::RateLimited, bytes };
    }
    let bytes = response.to_vec().ok();
    let largest = limit.min(3 * query.len() + AMPLIFICATION_ALLOWANCE);
    if client.transport == Transport::Udp && bytes.as_ref().is_some_and(|bytes| bytes.len() > largest) {
        return Answer { outcome: QueryOutcome::Truncated, bytes: response.truncate().to_vec().ok() };
    }
    Answer { outcome, bytes }
}

/// Fills in what the zone says.
fn fill(response: &mut Message, parsed: &ParsedQuery, zone: &Zone) {
    response.queries.extend(parsed.question.clone());
    let edns = parsed.edns.as_ref();
    if edns.is_some_and(|edns| edns.version > 0) {
        response.metadata.response_code = ResponseCode::BADVERS;
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
    fn parse(query: &[u8], header: &Header) -> Result<Self, FormatError> {
        let counts = &header.counts;
        let mut rest = Bytes(query.get(12..).ok_or(FormatError)?);
        let question = match counts.queries {
            0 => None,
            1 => Some(rest.question()?),
            // "a DNS message with OPCODE = 0 and QDCOUNT > 1 MUST be treated as an incorrectly formatted message" (RFC 9619 §4)
            _ => return Err(FormatError),
        };
        for _ in 0..u32::from(counts.answers) + u32::from(counts.authorities) {
            if rest.record()?.kind == u16::from(RecordType::OPT) {
                return Err(FormatError);
            }
        }
        let mut edns = None;
        for _ in 0..counts.additionals {
            let record = rest.record()?;
            if record.kind == u16::from(RecordType::OPT) {
                // "If a query message with more than one OPT RR is received, a FORMERR MUST be returned." (RFC 6891 §6.1.1)
                if edns.is_some() || !record.is_of_root {
                    return Err(FormatError);
                }
                edns = Some(QueryEdns::parse(&record)?);
            }
        }
        Ok(Self { question, edns })
    }
}

impl QueryEdns {
    fn parse(record: &RawRecord<'_>) -> Result<Self, FormatError> {
        let [_, version, flags, _] = record.ttl.to_be_bytes();
        let mut edns = Self { version, payload: record.class, dnssec_ok: flags & 0x80 != 0, client_cookie: None };
        let mut options = Bytes(record.data);
        while !options.0.is_empty() {
            let (code, length) = (options.u16()?, options.u16()?);
            let data = options.take(usize::from(length))?;
            if code == COOKIE && edns.client_cookie.is_none() {
                let (client, server) = data.split_at_checked(CLIENT_COOKIE_LEN).ok_or(FormatError)?;
                if !server.is_empty() && !SERVER_COOKIE_LENS.contains(&server.len()) {
                    return Err(FormatError);
                }
                edns.client_cookie = Some(client.to_vec());
            }
        }
        Ok(edns)
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

/// The bytes of a query that are not read yet.
struct Bytes<'a>(&'a [u8]);

/// A record, not interpreted.
struct RawRecord<'a> {
    is_of_root: bool,
    kind: u16,
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

    fn u8(&mut self) -> Result<u8, FormatError> {
        self.take(1).map(|taken| taken[0])
    }

    fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn question(&mut self) -> Result<Query, FormatError> {
        let whole = self.0;
        // A pointer in the first name could lead only into the header.
        if self.skip_name()?.has_pointer {
            return Err(FormatError);
        }
        self.take(4)?;
        let question = whole.len() - self.0.len();
        Query::read(&mut BinDecoder::new(&whole[..question])).map_err(|_| FormatError)
    }

    fn record(&mut self) -> Result<RawRecord<'a>, FormatError> {
        let is_of_root = self.skip_name()?.is_root;
        let (kind, class) = (self.u16()?, self.u16()?);
        let ttl = u32::from_be_bytes([self.u8()?, self.u8()?, self.u8()?, self.u8()?]);
        let length = self.u16()?;
        Ok(RawRecord { is_of_root, kind, class, ttl, data: self.take(usize::from(length))? })
    }

    /// Skips a name. A pointer ends it (RFC 1035 §4.1.4).
    fn skip_name(&mut self) -> Result<SkippedName, FormatError> {
        let mut is_root = true;
        loop {
            match self.u8()? {
                0 => return Ok(SkippedName { is_root, has_pointer: false }),
                length @ 1..=63 => {
                    self.take(usize::from(length))?;
                    is_root = false;
                }
                0xc0.. => {
                    self.u8()?;
                    return Ok(SkippedName { is_root: false, has_pointer: true });
                }
                _ => return Err(FormatError),
            }
        }
    }
}

struct SkippedName {
    is_root: bool,
    has_pointer: bool,
}

#[cfg(test)]
mod tests;

use hickory_net::proto::rr::{LowerName, Name, RData, Record, TSigner};
use proptest::prelude::*;

use super::*;
use crate::dns::name;
use crate::dns::responder::zone::{ProofKey, proof_label};

const APEX: &str = "_acme-challenge.phones.example.com";
/// What `queries.txt` holds.
const CAPTURED: usize = 12;
const NOW: u32 = 1_800_000_000;

fn parsed(text: &str) -> Name {
    name::parse(text).unwrap()
}

/// A zone with these values at its apex, and challenges at `ote` and `deep.er`, between orders.
fn zone_of(apex: &str, name_server: &str, values: &[&str]) -> Zone {
    let apex = parsed(apex);
    let relative = |text: &str| {
        let mut name = Name::from_ascii(text).unwrap();
        name.set_fqdn(false);
        LowerName::new(&name.append_domain(&apex).unwrap().to_lowercase())
    };
    let challenges = [
        (LowerName::new(&apex), values.iter().map(|value| (*value).to_owned()).collect()),
        (relative("ote"), Vec::new()),
        (relative("deep.er"), Vec::new()),
    ];
    Zone {
        name_server: parsed(name_server),
        addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        serial: 7,
        proof_key: ProofKey::new(b"proof"),
        challenges: challenges.into_iter().collect(),
        apex,
    }
}

fn zone() -> Zone {
    zone_of(APEX, "ns.phones.example.com", &["one", "two"])
}

fn cookies() -> CookieKey {
    CookieKey::new(b"cookie")
}

fn from(transport: Transport) -> Client {
    Client { address: "198.51.100.7".parse().unwrap(), transport }
}

/// The raw answer over `transport`.
fn raw(query: &[u8], transport: Transport, zone: &Zone) -> Option<Vec<u8>> {
    answer(query, from(transport), zone, &cookies(), NOW).bytes
}

fn query(owner: &str, kind: RecordType) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(owner).unwrap();
    name.set_fqdn(true);
    query.add_query(Query::query(name, kind));
    query
}

fn with_edns(mut query: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    query.set_edns(edns);
    query
}

/// The answer over UDP to a query with EDNS.
fn ask_in(zone: &Zone, owner: &str, kind: RecordType) -> Message {
    let bytes = with_edns(query(owner, kind), 1232).to_vec().unwrap();
    Message::from_vec(&raw(&bytes, Transport::Udp, zone).unwrap()).unwrap()
}

fn ask(owner: &str, kind: RecordType) -> Message {
    ask_in(&zone(), owner, kind)
}

/// The kinds of the answer's records, and the owners of its authority's SOA.
fn shape(answer: &Message) -> (ResponseCode, bool, Vec<RecordType>, usize) {
    let kinds = answer.answers.iter().map(Record::record_type).collect();
    (answer.response_code, answer.authoritative, kinds, answer.authorities.len())
}

fn captured() -> Vec<(&'static str, Vec<u8>)> {
    let text = include_str!("queries.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_once(": ").unwrap());
    let bytes =
        |hex: &str| (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let found: Vec<_> = lines.map(|(what, hex)| (what, bytes(hex))).collect();
    assert_eq!(found.len(), CAPTURED);
    found
}

/// Response code, AA, types of the answer, and the number of SOA records in the authority section.
type Expected = (ResponseCode, bool, Vec<RecordType>, usize);

#[test]
fn each_kind_of_question_gets_the_answer_of_its_rfc() {
    use RecordType as T;
    use ResponseCode::{NXDomain, NoError, Refused};
    let below = |label: &str| format!("{label}.{APEX}");
    let apex = || APEX.to_owned();
    let rows: Vec<(&str, String, T, Expected)> = vec![
        ("RFC 1035: TXT", apex(), T::TXT, (NoError, true, vec![T::TXT, T::TXT], 0)),
        ("RFC 1035: SOA of the apex", apex(), T::SOA, (NoError, true, vec![T::SOA], 0)),
        ("RFC 1035: NS of the apex", apex(), T::NS, (NoError, true, vec![T::NS], 0)),
        ("RFC 2308: NODATA", apex(), T::A, (NoError, true, vec![], 1)),
        ("RFC 4035: DS of the apex", apex(), T::DS, (NoError, true, vec![], 1)),
        ("RFC 4035: DNSKEY", apex(), T::DNSKEY, (NoError, true, vec![], 1)),
        ("RFC 8659: CAA", apex(), T::CAA, (NoError, true, vec![], 1)),
        ("RFC 3597: an unknown type", apex(), T::Unknown(65_280), (NoError, true, vec![], 1)),
        ("RFC 8482: ANY", apex(), T::ANY, (NoError, true, vec![T::HINFO], 0)),
        ("RFC 8020: a challenge between orders", below("ote"), T::TXT, (NoError, true, vec![], 1)),
        ("RFC 8020: an ancestor of a challenge", below("er"), T::A, (NoError, true, vec![], 1)),
        ("RFC 8020: another ancestor type", below("er"), T::NS, (NoError, true, vec![], 1)),
        ("RFC 2308: NXDOMAIN", below("absent"), T::TXT, (NXDomain, true, vec![], 1)),
        ("RFC 2308: NXDOMAIN below a name", below("x.ote"), T::TXT, (NXDomain, true, vec![], 1)),
        ("RFC 8482: ANY of no name", below("absent"), T::ANY, (NXDomain, true, vec![], 1)),
        ("no wildcard", below("*"), T::TXT, (NXDomain, true, vec![], 1)),
        ("a name outside", "phones.example.com".to_owned(), T::A, (Refused, false, vec![], 0)),
        ("a name beside", "x_acme-challenge.phones.example.com".to_owned(), T::TXT, (Refused, false, vec![], 0)),
        ("the root", ".".to_owned(), T::NS, (Refused, false, vec![], 0)),
        ("RFC 5936: AXFR", apex(), T::AXFR, (Refused, false, vec![], 0)),
        ("RFC 1995: IXFR", apex(), T::IXFR, (Refused, false, vec![], 0)),
    ];
    for (what, owner, kind, expected) in &rows {
        assert_eq!(shape(&ask(owner, *kind)), *expected, "{what}");
    }
    assert_eq!(rows.len(), 21);
}

#[test]
fn ttls_and_the_minimum_are_as_documented() {
    let ttl = |owner: &str, kind| ask(owner, kind).answers[0].ttl;
    assert_eq!((ttl(APEX, RecordType::TXT), ttl(APEX, RecordType::SOA), ttl(APEX, RecordType::NS)), (1, 3600, 3600));
    for negative in [ask(APEX, RecordType::A), ask("absent._acme-challenge.phones.example.com", RecordType::TXT)] {
        let soa = &negative.authorities[0];
        let RData::SOA(data) = &soa.data else { panic!("{soa}") };
        assert_eq!((soa.ttl, data.minimum, &soa.name), (1, 1, &parsed(APEX)));
        assert_eq!((data.mname.to_ascii(), data.serial), ("ns.phones.example.com.".to_owned(), 7));
    }
}

#[test]
fn a_name_server_inside_the_zone_has_its_addresses_there() {
    let zone = zone_of("acme.example.com", "ns1.sub.acme.example.com", &[]);
    let a = ask_in(&zone, "NS1.sub.acme.example.com", RecordType::A);
    assert_eq!((a.answers.len(), a.answers[0].ttl), (1, 3600));
    assert_eq!(a.answers[0].data.ip_addr(), Some("192.0.2.10".parse().unwrap()));
    let aaaa = ask_in(&zone, "ns1.sub.acme.example.com", RecordType::AAAA);
    assert_eq!(aaaa.answers[0].data.ip_addr(), Some("2001:db8::10".parse().unwrap()));
    assert_eq!(ask_in(&zone, "sub.acme.example.com", RecordType::A).response_code, ResponseCode::NoError);
    // The default server is outside, where the wildcard's address record covers it.
    assert_eq!(ask("ns.phones.example.com", RecordType::A).response_code, ResponseCode::Refused);
}

#[test]
fn other_classes_are_refused() {
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::NONE, DNSClass::ANY] {
        let mut message = query(APEX, RecordType::TXT);
        message.queries[0].query_class = class;
        let answer = raw(&message.to_vec().unwrap(), Transport::Udp, &zone()).unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().response_code, ResponseCode::Refused, "{class}");
    }
}

#[test]
fn other_opcodes_are_not_implemented() {
    for code in (1..16_u8).map(OpCode::from_u8) {
        let mut message = query(APEX, RecordType::SOA);
        message.metadata.op_code = code;
        let answer = raw(&message.to_vec().unwrap(), Transport::Udp, &zone()).unwrap();
        let header = Header::read(&mut BinDecoder::new(&answer)).unwrap();
        assert_eq!((header.response_code, header.op_code, header.id), (ResponseCode::NotImp, code, 4711));
        assert_eq!(header.message_type, MessageType::Response);
    }
}

#[test]
fn responses_and_fragments_of_headers_get_no_answer() {
    let mut message = query(APEX, RecordType::TXT).to_vec().unwrap();
    for length in 0..12 {
        assert_eq!(raw(&message[..length], Transport::Udp, &zone()), None, "{length}");
    }
    message[2] |= 0x80;
    assert_eq!(raw(&message, Transport::Udp, &zone()), None);
    assert_eq!(raw(&message, Transport::Tcp, &zone()), None);
}

#[test]
fn malformed_queries_get_a_format_error() {
    let good = query(APEX, RecordType::TXT).to_vec().unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let cookie = |length: u8| {
        let mut bytes = with(&|it| it[11] = 1);
        bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4 + length, 0, 10, 0, length]);
        bytes.extend(vec![7; usize::from(length)]);
        bytes
    };
    let pointer = [&good[..12], &[0xc0, 4, 0, 16, 0, 1]].concat();
    let label_and_pointer = [&good[..12], &[1, b'a', 0xc0, 2, 0, 16, 0, 1]].concat();
    let endless = [&good[..12], &[63][..], &[b'a'; 40]].concat();
    let too_long = [&good[..12], &[[3, b'a', b'b', b'c']; 70].concat()[..], &[0, 0, 16, 0, 1]].concat();
    let rows = [
        ("a pointer", pointer),
        ("a label and a pointer", label_and_pointer),
        ("a label without an end", endless),
        ("a name of 280 bytes", too_long),
        ("an unknown kind of label", with(&|it| it[12] = 0x41)),
        ("RFC 9619: two questions", [&with(&|it| it[5] = 2)[..], &good[12..]].concat()),
        (
            "no question and no cookie",
            with(&|it| {
                it[5] = 0;
                it.truncate(12);
            }),
        ),
        ("a question that is not there", good[..12].to_vec()),
        ("half a question", good[..good.len() - 1].to_vec()),
        ("an additional record that is not there", with(&|it| it[11] = 1)),
        ("an OPT record among the answers", [&with(&|it| it[7] = 1)[..], &opt].concat()),
        ("an OPT record with a name", [&with(&|it| it[11] = 1)[..], &[1, b'a'], &opt].concat()),
        ("half an OPT record", [&with(&|it| it[11] = 1)[..], &opt[..9]].concat()),
    ];
    let with_opt = |query: &[u8]| {
        let mut query = query.to_vec();
        query[11] += 1;
        [&query[..], &opt].concat()
    };
    // "compliant responders MUST include an OPT record in their respective responses" (RFC 6891 §6.1.1)
    let rows_with_opt = [
        ("RFC 6891: two OPT records", with_opt(&with_opt(&good))),
        ("a pointer", with_opt(&[&good[..12], &[0xc0, 4, 0, 16, 0, 1]].concat())),
        ("RFC 9619: two questions", with_opt(&[&with(&|it| it[5] = 2)[..], &good[12..]].concat())),
        ("a truncated record after it", [&with_opt(&with(&|it| it[11] = 1))[..], &[0, 0, 1]].concat()),
        (
            "no question and no cookie",
            with_opt(&with(&|it| {
                it[5] = 0;
                it.truncate(12);
            })),
        ),
        (
            "an option without an end",
            [&with(&|it| it[11] = 1)[..], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4, 0, 3, 0, 1]].concat(),
        ),
        ("RFC 7873: a cookie of 7 bytes", cookie(7)),
        ("RFC 7873: a cookie of 12 bytes", cookie(12)),
        ("RFC 7873: a cookie of 41 bytes", cookie(41)),
        ("RFC 8945: a TSIG record that is not the last", with_opt(&signed(&query(APEX, RecordType::TXT)))),
        ("RFC 8945: two TSIG records", {
            let signed = signed(&with_edns(query(APEX, RecordType::TXT), 1232));
            let mut twice = [&signed[..], &signed[good.len() + opt.len()..]].concat();
            twice[11] += 1;
            twice
        }),
        ("half a TSIG record", {
            let mut signed = signed(&with_edns(query(APEX, RecordType::TXT), 1232));
            signed.pop();
            signed
        }),
    ];
    assert_eq!((rows.len(), rows_with_opt.len()), (13, 12));
    let rows = rows.iter().map(|row| (row, 12)).chain(rows_with_opt.iter().map(|row| (row, 12 + opt.len())));
    for ((what, bytes), length) in rows {
        let answer = raw(bytes, Transport::Udp, &zone()).unwrap();
        let header = Header::read(&mut BinDecoder::new(&answer)).unwrap();
        assert_eq!((header.response_code, header.id, answer.len()), (ResponseCode::FormErr, 4711, length), "{what}");
        assert_eq!(Message::from_vec(&answer).unwrap().edns.is_some(), length > 12, "{what}");
    }
    for length in [8, 16, 40] {
        assert_eq!(
            Message::from_vec(&raw(&cookie(length), Transport::Udp, &zone()).unwrap()).unwrap().answers.len(),
            2
        );
    }
}

#[test]
fn edns_is_answered_with_edns_and_only_then() {
    let without = raw(&query(APEX, RecordType::TXT).to_vec().unwrap(), Transport::Udp, &zone()).unwrap();
    assert_eq!(Message::from_vec(&without).unwrap().edns, None);
    let mut message = with_edns(query(APEX, RecordType::TXT), 4096);
    let edns = message.edns.as_mut().unwrap();
    edns.set_dnssec_ok(true);
    edns.options_mut().insert(EdnsOption::Unknown(65_001, vec![1, 2, 3]));
    let answer = raw(&message.to_vec().unwrap(), Transport::Udp, &zone()).unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    let edns = answer.edns.as_ref().unwrap();
    assert_eq!((answer.response_code, edns.version(), edns.max_payload()), (ResponseCode::NoError, 0, 1232));
    assert!(edns.flags().dnssec_ok && edns.options().as_ref().is_empty(), "{edns}");

    message.edns.as_mut().unwrap().set_version(1);
    let answer = Message::from_vec(&raw(&message.to_vec().unwrap(), Transport::Udp, &zone()).unwrap()).unwrap();
    // BADSIG of TSIG has the same number.
    assert_eq!((u16::from(answer.response_code), answer.answers.len()), (16, 0));
    assert_eq!(answer.edns.unwrap().version(), 0);
}

/// `message`, signed with a key that the responder does not have.
fn signed(message: &Message) -> Vec<u8> {
    let signer = TSigner::new(b"secret".to_vec(), TsigAlgorithm::HmacSha256, parsed("key.example"), 300).unwrap();
    let mut message = message.clone();
    message.finalize(&signer, u64::from(NOW)).unwrap();
    message.to_vec().unwrap()
}

#[test]
fn query_signed_with_an_unknown_key_gets_badkey() {
    for message in [query(APEX, RecordType::TXT), query("example.net", RecordType::A), {
        let mut notify = query(APEX, RecordType::SOA);
        notify.metadata.op_code = OpCode::Notify;
        notify
    }] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let answer = raw(&signed(&message), transport, &zone()).unwrap();
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!((answer.response_code, answer.authoritative), (ResponseCode::NotAuth, false), "{answer}");
            assert_eq!((&answer.queries, answer.answers.len()), (&message.queries, 0));
            let tsig = answer.signature().unwrap();
            assert_eq!((&tsig.name, tsig.dns_class), (&parsed("key.example"), DNSClass::ANY));
            let TSIG { algorithm, time, mac, oid, error, .. } = &tsig.data;
            assert_eq!((algorithm, *time, *oid), (&TsigAlgorithm::HmacSha256, u64::from(NOW), 4711));
            assert_eq!((mac.len(), *error), (0, Some(TsigError::BadKey)), "the response MUST be unsigned");
        }
    }
    let with_edns = signed(&with_edns(query(APEX, RecordType::TXT), 1232));
    assert!(Message::from_vec(&raw(&with_edns, Transport::Udp, &zone()).unwrap()).unwrap().edns.is_some());
    assert_eq!(raw(&with_edns, Transport::UdpOverLimit, &zone()), None, "as a refusal");
}

#[test]
fn each_answer_to_edns_has_an_opt_record() {
    let mut seen = 0;
    for code in (0..16_u8).map(OpCode::from_u8) {
        for version in [0, 1] {
            for owner in [APEX, "absent._acme-challenge.phones.example.com", "example.net"] {
                let mut message = with_edns(query(owner, RecordType::TXT), 1232);
                message.metadata.op_code = code;
                message.edns.as_mut().unwrap().set_version(version);
                for transport in [Transport::Udp, Transport::UdpOverLimit, Transport::Tcp] {
                    let Some(answer) = raw(&message.to_vec().unwrap(), transport, &zone()) else {
                        assert_eq!((transport, owner), (Transport::UdpOverLimit, "example.net"));
                        continue;
                    };
                    // The root's name, type 41, our payload size, and the version that we know.
                    let at = answer.windows(5).position(|bytes| bytes == [0, 0, 41, 4, 208]).unwrap();
                    assert_eq!(answer[at + 6], 0, "{code:?}");
                    let is_bad_version = (answer[at + 5], answer[3] & 15) == (1, 0);
                    assert_eq!(is_bad_version, version == 1, "{code:?}");
                    assert_eq!(answer[3] & 15 == 4, version == 0 && code != OpCode::Query, "{code:?}");
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 280, "{seen}");
}

#[test]
fn a_query_without_a_question_gets_a_server_cookie() {
    let mut message = with_edns(Message::new(1, MessageType::Query, OpCode::Query), 1232);
    message.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Unknown(COOKIE, b"client!!".to_vec()));
    let bytes = message.to_vec().unwrap();
    let cookie = |address: &str| {
        let client = Client { address: address.parse().unwrap(), transport: Transport::Udp };
        let answer = answer(&bytes, client, &zone(), &cookies(), NOW).bytes.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.response_code, answer.queries.len()), (ResponseCode::NoError, 0));
        let option = answer.edns.unwrap().options().as_ref().first().cloned();
        let Some((_, EdnsOption::Unknown(COOKIE, cookie))) = option else { panic!("{option:?}") };
        cookie
    };
    let first = cookie("198.51.100.7");
    assert!(first.len() == 24 && first.starts_with(b"client!!\x01\0\0\0"), "{first:?}");
    assert_eq!(first[12..16], NOW.to_be_bytes());
    assert_ne!(first, cookie("198.51.100.8"));
}

#[test]
fn the_case_of_the_question_is_kept() {
    let mixed = "_aCMe-ChALLengE.pHOnes.eXAmple.cOM.";
    let answer = ask(mixed, RecordType::TXT);
    assert_eq!(answer.queries[0].name.to_ascii(), mixed);
    assert!(answer.answers.len() == 2 && answer.answers.iter().all(|it| it.name.to_ascii() == mixed));
    assert_eq!(
        ask("ABSENT._aCMe-ChALLengE.pHOnes.eXAmple.cOM.", RecordType::TXT).response_code,
        ResponseCode::NXDomain
    );
}

#[test]
fn large_answers_are_truncated_over_udp_alone() {
    let values: Vec<String> = (0..40).map(|index| format!("{index:043}")).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let zone = zone_of(APEX, "ns.phones.example.com", &values);
    for (payload, most) in [(None, 512), (Some(100), 512), (Some(600), 600), (Some(65_535), 1232)] {
        let message = query(APEX, RecordType::TXT);
        let message = payload.map_or(message.clone(), |payload| with_edns(message, payload));
        let answer = raw(&message.to_vec().unwrap(), Transport::Udp, &zone).unwrap();
        let parsed = Message::from_vec(&answer).unwrap();
        assert!(answer.len() <= most, "{payload:?}: {}", answer.len());
        assert!(parsed.truncation && parsed.answers.is_empty() && parsed.authoritative, "{parsed}");
        assert_eq!(parsed.queries, message.queries);
    }
    let message = query(APEX, RecordType::TXT).to_vec().unwrap();
    let whole = Message::from_vec(&raw(&message, Transport::Tcp, &zone).unwrap()).unwrap();
    assert!(!whole.truncation && whole.answers.len() == 40, "{whole}");
}

#[test]
fn two_values_of_a_certificate_fit_into_udp() {
    let value = "0123456789012345678901234567890123456789012";
    let zone = zone_of(APEX, "ns.phones.example.com", &[value, &value.replace('0', "a")]);
    assert_eq!(ask_in(&zone, APEX, RecordType::TXT).answers.len(), 2);
}

#[test]
fn over_the_limit_an_answer_is_truncated_and_a_refusal_dropped() {
    let over = |message: &Message| raw(&message.to_vec().unwrap(), Transport::UdpOverLimit, &zone());
    let answer = Message::from_vec(&over(&query(APEX, RecordType::TXT)).unwrap()).unwrap();
    assert!(answer.truncation && answer.answers.is_empty() && answer.queries.len() == 1, "{answer}");
    assert_eq!(answer.response_code, ResponseCode::NoError);
    assert_eq!(over(&query("example.com", RecordType::TXT)), None);
    assert_eq!(over(&query(APEX, RecordType::AXFR)), None);
}

#[test]
fn a_proof_is_the_hmac_of_its_label() {
    let key = ProofKey::new(b"proof");
    let text = |answer: &Message| match &answer.answers[0].data {
        RData::TXT(text) => String::from_utf8(text.txt_data.concat()).unwrap(),
        other => panic!("{other}"),
    };
    let name = format!("{}.{APEX}", proof_label("4f2a"));
    let answer = ask(&name, RecordType::TXT);
    assert_eq!(text(&answer), key.proof(b"_provost-4f2a"));
    assert_eq!(answer.answers[0].ttl, 1);
    assert_eq!(text(&ask(&name.to_uppercase(), RecordType::TXT)), text(&answer), "resolvers mix the case");
    assert_ne!(text(&ask(&format!("_provost-4f2b.{APEX}"), RecordType::TXT)), text(&answer));
    assert_eq!(shape(&ask(&name, RecordType::A)), (ResponseCode::NoError, true, vec![], 1));
    for none in ["_provost-", "_provost", "_provost-a.b"] {
        assert_eq!(ask(&format!("{none}.{APEX}"), RecordType::TXT).response_code, ResponseCode::NXDomain, "{none}");
    }
}

#[test]
fn captured_queries_are_answered() {
    for (what, bytes) in captured() {
        let answer = raw(&bytes, Transport::Udp, &zone()).unwrap();
        let code = Message::from_vec(&answer).unwrap().response_code;
        let expected = match what {
            "SOA with EDNS version 1" => ResponseCode::BADVERS,
            "NOTIFY" => ResponseCode::NotImp,
            "NS with TSIG" => ResponseCode::NotAuth,
            "version.bind in class CH" | "IXFR" => ResponseCode::Refused,
            _ => ResponseCode::NoError,
        };
        assert_eq!(u16::from(code), u16::from(expected), "{what}");
    }
}

/// Asserts what holds for every query over UDP.
fn check_invariants(query: &[u8]) {
    let zone = zone();
    for transport in [Transport::Udp, Transport::UdpOverLimit, Transport::Tcp] {
        let answer = raw(query, transport, &zone);
        if query.len() < 12 || query[2] & 0x80 != 0 {
            assert_eq!(answer, None);
            continue;
        }
        let Some(answer) = answer else {
            assert_eq!(transport, Transport::UdpOverLimit);
            continue;
        };
        assert!(answer.len() >= 12 && answer[..2] == query[..2] && answer[2] & 0x80 != 0);
        if transport != Transport::Tcp {
            assert!(answer.len() <= MAX_AMPLIFICATION * query.len(), "{} for {}", answer.len(), query.len());
            assert!(answer.len() <= LARGEST_UDP);
        }
        // NOTIMP copies the opcode, whose messages may have another form.
        if query[2] & 0b0111_1000 == 0 {
            Message::from_vec(&answer).unwrap();
        }
    }
}

/// The relative name of a query in a zone: its apex, a challenge, a proof, or another name.
fn any_relative_name() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just("ote.".to_owned()), "_provost-[0-9a-f]{1,20}\\.", "[a-z]{1,3}\\."]
}

fn any_kind() -> impl Strategy<Value = RecordType> {
    use RecordType::{A, ANY, CAA, DS, NS, SOA, TXT};
    prop::sample::select(vec![A, ANY, CAA, DS, NS, SOA, TXT])
}

proptest! {
    #[test]
    fn short_names_do_not_amplify_and_tcp_has_the_whole_answer(
        apex in "[a-z]{1,2}(\\.[a-z]{1,2}){0,2}",
        name_server in "[a-z]{1,2}(\\.[a-z]{1,9}){0,4}",
        relative in any_relative_name(),
        kind in any_kind(),
        values in proptest::collection::vec("[a-z0-9]{43}", 0..5),
        payload in proptest::option::of(any::<u16>()),
        has_cookie in any::<bool>(),
    ) {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let zone = zone_of(&apex, &name_server, &values);
        let mut message = query(&format!("{relative}{apex}"), kind);
        if let Some(payload) = payload {
            message = with_edns(message, payload);
            if has_cookie {
                let cookie = EdnsOption::Unknown(COOKIE, b"client!!".to_vec());
                message.edns.as_mut().unwrap().options_mut().insert(cookie);
            }
        }
        let query = message.to_vec().unwrap();
        let over_udp = raw(&query, Transport::Udp, &zone).unwrap();
        prop_assert!(over_udp.len() <= 3 * query.len(), "{} for {}", over_udp.len(), query.len());
        let over_tcp = raw(&query, Transport::Tcp, &zone).unwrap();
        let is_truncated = Message::from_vec(&over_udp).unwrap().truncation;
        prop_assert!(is_truncated || over_udp == over_tcp);
        prop_assert!(!Message::from_vec(&over_tcp).unwrap().truncation);
    }

    #[test]
    fn no_bytes_panic_or_amplify(query in proptest::collection::vec(any::<u8>(), 0..600)) {
        check_invariants(&query);
    }

    #[test]
    fn no_body_panics_or_amplifies(
        id in any::<u16>(),
        counts in proptest::array::uniform4(0..3_u16),
        body in proptest::collection::vec(prop_oneof![Just(0_u8), Just(41), Just(0xc0), 0..64_u8, any::<u8>()], 0..120),
    ) {
        let mut query = [id.to_be_bytes(), [1, 0]].concat();
        query.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        query.extend(body);
        check_invariants(&query);
    }

    #[test]
    fn no_mutation_of_a_captured_query_panics_or_amplifies(
        which in 0..CAPTURED,
        other in 0..CAPTURED,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        splice in any::<bool>(),
    ) {
        let queries = captured();
        let mut query = queries[which].1.clone();
        if splice {
            let second = &queries[other].1;
            query.truncate(cut.index(query.len()));
            query.extend(&second[cut.index(second.len())..]);
        }
        for (at, byte) in edits {
            let at = at.index(query.len().max(1));
            if let Some(place) = query.get_mut(at) {
                *place = byte;
            }
        }
        check_invariants(&query);
    }
}

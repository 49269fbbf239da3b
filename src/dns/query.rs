//! One question to one server: by UDP, then by TCP.
//!
//! A forger of an answer by UDP must guess the port, the message ID, and the case of each letter of the name ("0x20").
//! A server that does not return the letters as they were asked is asked by TCP.

use std::borrow::Cow;
use std::net::SocketAddr;

use hickory_net::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_net::proto::rr::{Name, RecordType};

use super::exchange::{self, over_tcp, over_udp};

/// What an answer by UDP may take: it passes every network unfragmented (<https://www.dnsflagday.net/2020/>).
const LARGEST_EDNS_DATAGRAM: u16 = 1232;

/// A question about the records of one kind that a name has.
#[derive(Debug, Clone)]
pub(super) struct Question {
    name: Name,
    kind: RecordType,
    is_recursive: bool,
}

/// One way to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    UdpWithEdns,
    /// Some servers and firewalls drop what has EDNS.
    Udp,
    Tcp,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// This machine cannot send to the server's address.
    NoRoute(String),
    /// The server did not answer, or not this question.
    Silent(String),
    /// The server's answer does not fit into a datagram, and it does not answer by TCP.
    Truncated(String),
}

impl Attempt {
    /// The order in which they are tried.
    pub(super) const ORDER: [Self; 3] = [Self::UdpWithEdns, Self::Udp, Self::Tcp];
}

impl NoAnswer {
    pub(super) fn reason(&self) -> &str {
        let (Self::NoRoute(reason) | Self::Silent(reason) | Self::Truncated(reason)) = self;
        reason
    }
}

impl Question {
    /// A question to a resolver.
    pub(super) fn to_resolver(name: &Name, kind: RecordType) -> Self {
        Self { name: name.clone(), kind, is_recursive: true }
    }

    /// A question to an authoritative server. A server that is a resolver too asks no other, and caches nothing.
    pub(super) fn to_authority(name: &Name, kind: RecordType) -> Self {
        Self { name: name.clone(), kind, is_recursive: false }
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    /// A message that asks it, with an ID and a spelling of its own.
    fn message(&self, attempt: Attempt) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = self.is_recursive;
        let mut name = self.name.clone();
        name.randomize_label_case();
        message.add_query(Query::query(name, self.kind));
        if attempt == Attempt::UdpWithEdns {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_EDNS_DATAGRAM);
            message.set_edns(edns);
        }
        message
    }

    /// Asks `server` in every way until it answers.
    pub(super) async fn ask(&self, server: SocketAddr) -> Result<Message, NoAnswer> {
        let mut by_udp = String::new();
        for attempt in Attempt::ORDER {
            match self.ask_by(attempt, server).await {
                Ok(answer) => return Ok(answer),
                // No other attempt can succeed.
                Err(last @ (NoAnswer::NoRoute(_) | NoAnswer::Truncated(_))) => return Err(last),
                Err(NoAnswer::Silent(reason)) if attempt == Attempt::Tcp => {
                    let both = || format!("{by_udp} by UDP, and by TCP {reason}");
                    return Err(NoAnswer::Silent(if by_udp == reason { reason } else { both() }));
                }
                Err(NoAnswer::Silent(reason)) => by_udp = reason,
            }
        }
        Err(NoAnswer::Silent(by_udp))
    }

    /// Asks `server` once. If the answer does not fit into a datagram, asks by TCP.
    pub(super) async fn ask_by(&self, attempt: Attempt, server: SocketAddr) -> Result<Message, NoAnswer> {
        let message = self.message(attempt);
        let bytes = message.to_vec().map_err(|error| NoAnswer::Silent(error.to_string()))?;
        let failed = |error: std::io::Error| {
            let reason = exchange::reason(server, &error);
            if exchange::is_no_route(&error) { NoAnswer::NoRoute(reason) } else { NoAnswer::Silent(reason) }
        };
        if attempt != Attempt::Tcp {
            let answer = over_udp(server, &bytes, |datagram| {
                let answer = Message::from_vec(datagram).ok()?;
                is_exact_answer(&answer, &message).then_some(answer)
            });
            let answer = answer.await.map_err(failed)?;
            // "Responders that choose not to implement the protocol extensions […] MUST respond with a return code
            // (RCODE) of FORMERR" (RFC 6891 §7)
            let is_about_edns = matches!(answer.response_code, ResponseCode::FormErr | ResponseCode::NotImp);
            if attempt == Attempt::UdpWithEdns && is_about_edns {
                return Err(NoAnswer::Silent(format!("it answers {}", mnemonic(answer.response_code))));
            }
            if !answer.truncation {
                return Ok(answer);
            }
        }
        let answer = over_tcp(server, &bytes).await.map_err(failed);
        let answer = answer.and_then(|bytes| answer_to(&message, &bytes).map_err(NoAnswer::Silent));
        if attempt == Attempt::Tcp {
            return answer;
        }
        answer.map_err(|by_tcp| {
            NoAnswer::Truncated(format!("its answer by UDP is truncated, and by TCP {}", by_tcp.reason()))
        })
    }
}

/// Whether a datagram is the answer to `question`: its ID, and its name in the same letters.
fn is_exact_answer(answer: &Message, question: &Message) -> bool {
    let is_same = |(ours, theirs): (&Query, &Query)| ours == theirs && ours.name().eq_case(theirs.name());
    is_response(answer, question)
        && answer.queries.len() == question.queries.len()
        && question.queries.iter().zip(&answer.queries).all(is_same)
}

/// Parses `bytes` as the answer to `question` on a connection.
fn answer_to(question: &Message, bytes: &[u8]) -> Result<Message, String> {
    let answer = Message::from_vec(bytes).map_err(|_| "its answer is malformed".to_owned())?;
    // Some servers leave the question out of an error.
    let is_ours = answer.queries == question.queries
        || (answer.queries.is_empty() && answer.response_code != ResponseCode::NoError);
    if is_response(&answer, question) && is_ours {
        Ok(answer)
    } else {
        Err("its answer is to another question".to_owned())
    }
}

fn is_response(answer: &Message, question: &Message) -> bool {
    answer.id == question.id && answer.message_type == MessageType::Response && answer.op_code == OpCode::Query
}

/// The name of a response code, as `dig` shows it.
pub(super) fn mnemonic(code: ResponseCode) -> Cow<'static, str> {
    Cow::Borrowed(match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::NotAuth => "NOTAUTH",
        ResponseCode::NotZone => "NOTZONE",
        ResponseCode::YXDomain => "YXDOMAIN",
        ResponseCode::YXRRSet => "YXRRSET",
        ResponseCode::NXRRSet => "NXRRSET",
        ResponseCode::BADVERS => "BADVERS",
        ResponseCode::BADCOOKIE => "BADCOOKIE",
        other => return Cow::Owned(other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::name;
    use super::*;

    fn asked() -> Message {
        let name = name::parse("_acme-challenge.phones-of-the-museum.example").unwrap();
        Question::to_authority(&name, RecordType::TXT).message(Attempt::UdpWithEdns)
    }

    fn changed(change: &dyn Fn(&mut Message)) -> (bool, bool) {
        let asked = asked();
        let mut answer = asked.clone().into_response();
        change(&mut answer);
        let bytes = answer.to_vec().unwrap();
        (is_exact_answer(&Message::from_vec(&bytes).unwrap(), &asked), answer_to(&asked, &bytes).is_ok())
    }

    #[test]
    fn udp_answer_must_match_id_and_question() {
        let other = name::parse("b.example").unwrap();
        assert_eq!(changed(&|_| ()), (true, true));
        assert_eq!(changed(&|it| it.metadata.id ^= 1), (false, false));
        assert_eq!(changed(&|it| it.metadata.message_type = MessageType::Query), (false, false));
        assert_eq!(changed(&|it| it.metadata.op_code = OpCode::Update), (false, false));
        assert_eq!(changed(&|it| _ = it.queries[0].set_name(other.clone())), (false, false));
        assert_eq!(changed(&|it| _ = it.queries[0].set_query_type(RecordType::A)), (false, false));
        assert_eq!(changed(&|it| it.queries.clear()), (false, false));
        let refuse_without_question = |it: &mut Message| {
            it.queries.clear();
            it.metadata.response_code = ResponseCode::Refused;
        };
        assert_eq!(changed(&refuse_without_question), (false, true), "whose answer it is, only TCP proves");
    }

    #[test]
    fn udp_answer_must_repeat_the_case_of_the_question() {
        let lower = |it: &mut Message| {
            let name = it.queries[0].name().to_lowercase();
            it.queries[0].set_name(name);
        };
        let spellings: Vec<String> = (0..20).map(|_| asked().queries[0].name().to_ascii()).collect();
        let is_mixed = |name: &String| name.contains(char::is_uppercase) && name.contains(char::is_lowercase);
        assert_eq!(spellings.iter().filter(|name| is_mixed(name)).count(), 20);
        assert!(spellings.iter().any(|name| *name != spellings[0]));
        assert_eq!(changed(&lower), (false, true));
    }

    #[test]
    fn short_and_malformed_answers_are_rejected() {
        assert!(answer_to(&asked(), &[0; 11]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn response_parser_accepts_any_bytes_without_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = answer_to(&asked(), &bytes);
        }
    }
}

//! The built-in responder as the solver. The CA asks it by real queries.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_net::proto::op::{Message, MessageType, OpCode, Query};
use hickory_net::proto::rr::{Name, RData, RecordType};
use provost::acme::AcmeFailure;
use provost::acme::ports::{ChallengeDns, PortFuture, StepReporter};
use provost::dns::responder::{Client, Transport};
use provost::dns::{DnsMethod, RecordLocation, Responder};

use super::ca::ScriptedCa;

const ZONE: &str = "_acme-challenge.phones.example.com";

/// The responder of one life of the process, at the names to which the CNAME records of exact names lead.
pub struct ServedDns {
    responder: Arc<Responder>,
    ca: Arc<ScriptedCa>,
}

impl ServedDns {
    /// Starts a responder, which the CA asks from now on.
    pub fn start(ca: &Arc<ScriptedCa>, state: &Path) -> Self {
        let text = format!(r#"{{ "responder": {{ "listen": ["192.0.2.10:53"] }}, "zone": "{ZONE}" }}"#);
        let DnsMethod::Responder(settings) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        let responder = Arc::new(Responder::open(&settings, "phones.example.com", state).unwrap());
        *ca.responder.lock().unwrap() = Some(Arc::clone(&responder));
        Self { responder, ca: Arc::clone(ca) }
    }
}

/// Where the challenge of `domain` leads.
fn owner(domain: &str) -> String {
    match domain.strip_suffix(".phones.example.com") {
        Some(label) => format!("{label}.{ZONE}"),
        None => ZONE.to_owned(),
    }
}

/// The values that the CA's resolver sees for `domain`.
pub fn texts(responder: &Responder, domain: &str) -> Vec<String> {
    let mut query = Message::new(1, MessageType::Query, OpCode::Query);
    let mut name = Name::from_ascii(owner(domain)).unwrap();
    name.set_fqdn(true);
    query.add_query(Query::query(name, RecordType::TXT));
    let client = Client { address: "198.51.100.1".parse().unwrap(), transport: Transport::Tcp };
    let answer = responder.answer(&query.to_vec().unwrap(), client).unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    let text = |data: &RData| match data {
        RData::TXT(text) => Some(String::from_utf8(text.txt_data.concat()).unwrap()),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| text(&record.data)).collect()
}

impl ChallengeDns for ServedDns {
    fn locate<'a>(&'a self, challenge_name: &'a str) -> PortFuture<'a, RecordLocation> {
        Box::pin(async move {
            self.ca.maybe_die().await;
            let name = owner(challenge_name.strip_prefix("_acme-challenge.").unwrap());
            Ok(RecordLocation { name, zone: ZONE.to_owned(), via: Vec::new() })
        })
    }

    fn stands_alone<'a>(&'a self, _: &'a str) -> PortFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn account_binding<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> PortFuture<'a, Vec<String>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn add<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async move {
            self.ca.maybe_die().await;
            self.responder.add(location, values).map_err(|error| AcmeFailure::retry(error.to_string()))
        })
    }

    fn remove<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async move {
            self.ca.maybe_die().await;
            self.responder.remove(location, values).map_err(|error| AcmeFailure::retry(error.to_string()))
        })
    }

    /// There is no delegation that could be checked.
    fn wait_until_visible<'a>(
        &'a self,
        _: &'a RecordLocation,
        _: &'a [String],
        _: StepReporter<'a>,
    ) -> PortFuture<'a, ()> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(())
        })
    }
}

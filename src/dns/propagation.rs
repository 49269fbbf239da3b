//! Waits until every address of every authoritative server has the values, or no longer has them.
//!
//! A server with another answer blocks. A silent server is reported. Once the others agree, the wait for silent ones is
//! limited, since the CA may not reach them either.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::exchange::{self, over_tcp};
use super::failure::DnsError;
use super::name;
use super::resolve::{Resolver, answer_to, question};
use super::settings::PORT;

/// The timeouts of the wait for authoritative servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PropagationTimeouts {
    /// The pause between two queries to one server.
    pub between_looks: Duration,
    /// How long to wait for servers with another answer.
    pub for_lagging: Duration,
    /// How long to wait for silent servers, once the others agree.
    pub for_silent: Duration,
    /// The pause after all agree.
    pub to_settle: Duration,
}

/// The state to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// All values are there.
    Published,
    /// None of them is there any more.
    Removed,
}

/// The query, and the values to wait for.
pub(super) struct Sought {
    pub(super) name: Name,
    pub(super) zone: Name,
    pub(super) values: Vec<String>,
    pub(super) goal: Goal,
}

/// One address of an authoritative server, or a server without an address.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    label: String,
    address: Result<SocketAddr, String>,
}

/// The last answer of an authoritative server.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AuthorityAnswer {
    /// It has the state that we wait for.
    Agrees,
    /// It has another state.
    Differs(String),
    /// It did not answer.
    Silent(String),
}

/// Whether the servers agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agreement {
    /// All agree.
    Agreed,
    /// All that answer agree.
    AgreedButSilent,
    /// Some have another state, or none answers.
    Open,
}

/// The authoritative servers of `zone`: the `configured` ones, or its name servers, each with all its addresses.
pub(super) async fn authorities(
    resolver: &Resolver,
    zone: &Name,
    configured: &[String],
) -> Result<Vec<Authority>, DnsError> {
    let mut found = Vec::new();
    for text in configured {
        let addresses = resolver.server(text, "authorities").await;
        found.extend(Authority::each(text, addresses));
    }
    if configured.is_empty() {
        for server in resolver.name_servers(zone).await? {
            let addresses = resolver.addresses(&server).await;
            let addresses = addresses.map(|found| found.into_iter().map(|it| SocketAddr::new(it, PORT)).collect());
            found.extend(Authority::each(&name::text(&server), addresses));
        }
    }
    if found.is_empty() {
        return Err(DnsError::NoAuthorities { zone: name::text(zone) });
    }
    // No server has an address, and waiting does not change that.
    if found.iter().all(|authority| authority.address.is_err()) {
        let silent = found.iter().map(|authority| match &authority.address {
            Err(reason) => format!("{}: {reason}", authority.label),
            Ok(_) => authority.label.clone(),
        });
        return Err(DnsError::AuthoritiesSilent { zone: name::text(zone), silent: silent.collect() });
    }
    Ok(found)
}

impl Authority {
    fn each(named: &str, addresses: Result<Vec<SocketAddr>, DnsError>) -> Vec<Self> {
        let nowhere = |reason: String| vec![Self { label: named.to_owned(), address: Err(reason) }];
        match addresses {
            Ok(addresses) if addresses.is_empty() => nowhere("it has no address".to_owned()),
            Ok(addresses) => addresses.into_iter().map(|address| Self::at(named, address)).collect(),
            Err(error) => nowhere(error.to_string()),
        }
    }

    fn at(named: &str, address: SocketAddr) -> Self {
        let is_same = named == address.to_string() || named == address.ip().to_string();
        let label = if is_same { address.to_string() } else { format!("{named} ({address})") };
        Self { label, address: Ok(address) }
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, String> {
        let address = self.address.clone()?;
        let question = question(name, kind, false);
        let bytes = question.to_vec().map_err(|error| error.to_string())?;
        let answer = over_tcp(address, &bytes).await.map_err(|error| exchange::reason(&error))?;
        answer_to(&question, &answer)
    }

    async fn query(&self, sought: &Sought) -> AuthorityAnswer {
        match self.ask(&sought.name, RecordType::TXT).await {
            Ok(answer) => compare(&answer, sought),
            Err(reason) => AuthorityAnswer::Silent(reason),
        }
    }

    async fn serial(&self, zone: &Name) -> Option<u32> {
        let answer = self.ask(zone, RecordType::SOA).await.ok()?;
        answer
            .answers
            .iter()
            .find_map(|record| if let RData::SOA(soa) = &record.data { Some(soa.serial) } else { None })
    }
}

/// Compares an answer with the state that we wait for.
fn compare(answer: &Message, sought: &Sought) -> AuthorityAnswer {
    let own = || answer.answers.iter().filter(|record| record.name == sought.name);
    let texts: Vec<Vec<u8>> = own()
        .filter_map(|record| if let RData::TXT(text) = &record.data { Some(text.txt_data.concat()) } else { None })
        .collect();
    let all = sought.values.len();
    let found = sought.values.iter().filter(|value| texts.iter().any(|text| text == value.as_bytes())).count();
    let cname = own().find_map(|record| if let RData::CNAME(target) = &record.data { Some(&target.0) } else { None });
    match (sought.goal, answer.response_code, cname) {
        (Goal::Removed, ResponseCode::NoError | ResponseCode::NXDomain, _) if found == 0 => AuthorityAnswer::Agrees,
        (Goal::Removed, ResponseCode::NoError, _) => AuthorityAnswer::Differs(format!("has {found} of {all} values")),
        (Goal::Published, ResponseCode::NoError, None) if found == all => AuthorityAnswer::Agrees,
        (Goal::Published, ResponseCode::NoError, None) => {
            AuthorityAnswer::Differs(format!("lacks {} of {all} values", all - found))
        }
        (Goal::Published, ResponseCode::NoError, Some(target)) => {
            AuthorityAnswer::Differs(format!("has a CNAME record to {} instead", name::text(target)))
        }
        (_, ResponseCode::NXDomain, _) => AuthorityAnswer::Differs("has no such name".to_owned()),
        (_, code, _) => AuthorityAnswer::Differs(format!("answers {code}")),
    }
}

/// Waits until all `authorities` are as `sought`, or a timeout passes. Returns those that did not answer.
pub(super) async fn wait(
    authorities: Vec<Authority>,
    sought: Sought,
    timeouts: PropagationTimeouts,
    say: &(dyn Fn(String) + Send + Sync),
) -> Result<Vec<String>, DnsError> {
    let sought = Arc::new(sought);
    let (sender, mut receiver) = mpsc::channel(authorities.len().max(1));
    // Aborts its tasks when it is dropped.
    let mut queries = JoinSet::new();
    for (index, authority) in authorities.iter().cloned().enumerate() {
        queries.spawn(poll(index, authority, Arc::clone(&sought), timeouts.between_looks, sender.clone()));
    }
    let mut answers: Vec<AuthorityAnswer> =
        authorities.iter().map(|_| AuthorityAnswer::Silent("it has not answered yet".to_owned())).collect();
    let end = Instant::now() + timeouts.for_lagging;
    let mut agreed_since = None;
    loop {
        let deadline = match agreement(&answers) {
            Agreement::Agreed => break,
            Agreement::AgreedButSilent => *agreed_since.get_or_insert_with(Instant::now) + timeouts.for_silent,
            Agreement::Open => {
                agreed_since = None;
                end
            }
        };
        let Ok(Some((index, answer))) = timeout_at(deadline, receiver.recv()).await else { break };
        if answers[index] != answer {
            say(line(&authorities[index].label, sought.goal, &answer));
            answers[index] = answer;
        }
    }
    drop(queries);
    if agreement(&answers) == Agreement::Open {
        return Err(failure(&authorities, &answers, &sought, timeouts).await);
    }
    let skipped = authorities.iter().zip(&answers).filter(|(_, answer)| **answer != AuthorityAnswer::Agrees);
    let mut silent = Vec::new();
    for (authority, answer) in skipped {
        say(format!("{}: went on without it", authority.label));
        silent.push(line(&authority.label, sought.goal, answer));
    }
    sleep(timeouts.to_settle).await;
    Ok(silent)
}

/// Queries one server repeatedly, until it agrees or the receiver is gone.
async fn poll(
    index: usize,
    authority: Authority,
    sought: Arc<Sought>,
    pause: Duration,
    sender: mpsc::Sender<(usize, AuthorityAnswer)>,
) {
    loop {
        let answer = authority.query(&sought).await;
        let agrees = answer == AuthorityAnswer::Agrees;
        if sender.send((index, answer)).await.is_err() || agrees {
            return;
        }
        sleep(pause).await;
    }
}

fn agreement(answers: &[AuthorityAnswer]) -> Agreement {
    let count = |is_it: fn(&AuthorityAnswer) -> bool| answers.iter().filter(|answer| is_it(answer)).count();
    let (agree, differ) = (
        count(|answer| *answer == AuthorityAnswer::Agrees),
        count(|answer| matches!(answer, AuthorityAnswer::Differs(_))),
    );
    match (agree, differ) {
        (agree, 0) if agree == answers.len() => Agreement::Agreed,
        (1.., 0) => Agreement::AgreedButSilent,
        _ => Agreement::Open,
    }
}

fn line(label: &str, goal: Goal, answer: &AuthorityAnswer) -> String {
    match (answer, goal) {
        (AuthorityAnswer::Agrees, Goal::Published) => format!("{label}: has the records"),
        (AuthorityAnswer::Agrees, Goal::Removed) => format!("{label}: has the records no more"),
        (AuthorityAnswer::Differs(what), Goal::Published) => format!("{label}: {what} yet"),
        (AuthorityAnswer::Differs(what), Goal::Removed) => format!("{label}: {what} still"),
        (AuthorityAnswer::Silent(reason), _) => format!("{label}: does not answer: {reason}"),
    }
}

/// The error that names the servers that lag behind, with the zone's serials as explanation.
async fn failure(
    authorities: &[Authority],
    answers: &[AuthorityAnswer],
    sought: &Sought,
    timeouts: PropagationTimeouts,
) -> DnsError {
    let zone = name::text(&sought.zone);
    let each = || authorities.iter().zip(answers).enumerate();
    if answers.iter().all(|answer| matches!(answer, AuthorityAnswer::Silent(_))) {
        let silent = each().map(|(_, (authority, answer))| line(&authority.label, sought.goal, answer)).collect();
        return DnsError::AuthoritiesSilent { zone, silent };
    }
    let mut serials = JoinSet::new();
    for (index, authority) in authorities.iter().cloned().enumerate() {
        let zone = sought.zone.clone();
        serials.spawn(async move { (index, authority.serial(&zone).await) });
    }
    let serials = serials.join_all().await;
    let serial = |index: usize| serials.iter().find(|(at, _)| *at == index).and_then(|(_, serial)| *serial);
    let lagging = each().filter_map(|(index, (authority, answer))| {
        let what = match answer {
            AuthorityAnswer::Agrees => return None,
            AuthorityAnswer::Differs(what) => what.clone(),
            AuthorityAnswer::Silent(reason) => format!("does not answer ({reason})"),
        };
        let serial = serial(index).map_or_else(String::new, |serial| format!(", serial {serial}"));
        Some(format!("{} {what}{serial}", authority.label))
    });
    let mut lagging: Vec<String> = lagging.collect();
    lagging.extend(each().find_map(|(index, (authority, answer))| {
        let serial = serial(index).filter(|_| *answer == AuthorityAnswer::Agrees)?;
        let line = line(&authority.label, sought.goal, answer).replacen(": ", " ", 1);
        Some(format!("({line}, serial {serial})"))
    }));
    let (name, waited_s) = (name::text(&sought.name), timeouts.for_lagging.as_secs());
    match sought.goal {
        Goal::Published => DnsError::NotVisible { name, waited_s, lagging },
        Goal::Removed => DnsError::NotGone { name, waited_s, lagging },
    }
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::rr::Record;
    use hickory_net::proto::rr::rdata::{self, TXT};

    use super::*;

    fn silent() -> AuthorityAnswer {
        AuthorityAnswer::Silent("x".to_owned())
    }

    fn lacks() -> AuthorityAnswer {
        AuthorityAnswer::Differs("x".to_owned())
    }

    #[test]
    fn stale_answer_blocks_agreement_but_silence_does_not() {
        assert_eq!(agreement(&[AuthorityAnswer::Agrees, AuthorityAnswer::Agrees]), Agreement::Agreed);
        assert_eq!(agreement(&[AuthorityAnswer::Agrees, silent()]), Agreement::AgreedButSilent);
        assert_eq!(agreement(&[AuthorityAnswer::Agrees, lacks()]), Agreement::Open);
        assert_eq!(agreement(&[AuthorityAnswer::Agrees, silent(), lacks()]), Agreement::Open);
        assert_eq!(agreement(&[silent(), silent()]), Agreement::Open, "at least one must answer");
    }

    #[test]
    fn txt_values_are_compared_whole_beside_foreign_values() {
        let name = name::parse("_acme-challenge.example.com").unwrap();
        let mut answer = question(&name, RecordType::TXT, false).into_response();
        let sought = |goal: Goal, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            Sought { name: name.clone(), zone: name.base_name(), values, goal }
        };
        let look = |answer: &Message, values: &[&str]| compare(answer, &sought(Goal::Published, values));
        let gone = |answer: &Message, values: &[&str]| compare(answer, &sought(Goal::Removed, values));
        let text = |strings: &[&str]| {
            let strings = strings.iter().map(|it| (*it).to_owned()).collect();
            Record::from_rdata(name.clone(), 60, RData::TXT(TXT::new(strings)))
        };
        answer.answers = vec![text(&["one"]), text(&["tw", "o"]), text(&["somebody else's"])];
        assert_eq!(look(&answer, &["one", "two"]), AuthorityAnswer::Agrees);
        assert_eq!(look(&answer, &["one", "three"]), AuthorityAnswer::Differs("lacks 1 of 2 values".to_owned()));
        assert_eq!(look(&answer, &["somebody"]), AuthorityAnswer::Differs("lacks 1 of 1 values".to_owned()));
        assert_eq!(gone(&answer, &["one", "three"]), AuthorityAnswer::Differs("has 1 of 2 values".to_owned()));
        assert_eq!(gone(&answer, &["three"]), AuthorityAnswer::Agrees);
        answer.metadata.response_code = ResponseCode::Refused;
        assert!(matches!(look(&answer, &["one"]), AuthorityAnswer::Differs(_)));
        assert!(matches!(gone(&answer, &["three"]), AuthorityAnswer::Differs(_)));
        answer.metadata.response_code = ResponseCode::NXDomain;
        answer.answers.clear();
        assert_eq!(
            (look(&answer, &["one"]), gone(&answer, &["one"])),
            (AuthorityAnswer::Differs("has no such name".to_owned()), AuthorityAnswer::Agrees)
        );
        answer.metadata.response_code = ResponseCode::NoError;
        let elsewhere = RData::CNAME(rdata::CNAME(name::parse("elsewhere.example").unwrap()));
        answer.answers = vec![Record::from_rdata(name.clone(), 60, elsewhere)];
        assert!(
            matches!(look(&answer, &["one"]), AuthorityAnswer::Differs(what) if what.contains("elsewhere.example"))
        );
    }
}

//! Waiting until every address of every authority has the values, or has them no more.
//!
//! A server that answers otherwise blocks. One that does not answer is named, and once the others have agreed it is
//! waited for a while longer, no more: the CA may not reach it either.

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

/// How long authorities are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PropagationTimeouts {
    /// Between two looks at one server.
    pub between_looks: Duration,
    /// For those that answer otherwise.
    pub for_lagging: Duration,
    /// For those that do not answer, once the others have agreed.
    pub for_silent: Duration,
    /// After all have agreed.
    pub to_settle: Duration,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// All values are there.
    Published,
    /// None of them is there any more.
    Removed,
}

/// What is looked for.
pub(super) struct Sought {
    pub(super) name: Name,
    pub(super) zone: Name,
    pub(super) values: Vec<String>,
    pub(super) goal: Goal,
}

/// One address of one authority, or an authority without any.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    label: String,
    address: Result<SocketAddr, String>,
}

/// What an authority said last.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AuthorityAnswer {
    /// It is as it shall be.
    Agrees,
    /// It answered otherwise.
    Differs(String),
    /// It did not answer.
    Silent(String),
}

/// Where the waiting stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agreement {
    /// All agree.
    Agreed,
    /// All that answer agree.
    AgreedButSilent,
    /// Some answer otherwise, or nobody answers.
    Open,
}

/// The authorities of `zone`: the `configured` ones, or its name servers, each with all its addresses.
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
    // Nobody to ask now, and asking will not change that.
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

    async fn look(&self, sought: &Sought) -> AuthorityAnswer {
        match self.ask(&sought.name, RecordType::TXT).await {
            Ok(answer) => judge(&answer, sought),
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

/// Whether an answer is as it shall be, and what it has instead.
fn judge(answer: &Message, sought: &Sought) -> AuthorityAnswer {
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

/// Waits until all `authorities` are as `sought`, as far as `patience` goes; gives those that did not answer.
pub(super) async fn wait(
    authorities: Vec<Authority>,
    sought: Sought,
    patience: PropagationTimeouts,
    say: &(dyn Fn(String) + Send + Sync),
) -> Result<Vec<String>, DnsError> {
    let sought = Arc::new(sought);
    let (tell, mut told) = mpsc::channel(authorities.len().max(1));
    // Dropped with this function, and everything that it runs with it.
    let mut lookers = JoinSet::new();
    for (index, authority) in authorities.iter().cloned().enumerate() {
        lookers.spawn(keep_looking(index, authority, Arc::clone(&sought), patience.between_looks, tell.clone()));
    }
    let mut looks: Vec<AuthorityAnswer> =
        authorities.iter().map(|_| AuthorityAnswer::Silent("it has not answered yet".to_owned())).collect();
    let end = Instant::now() + patience.for_lagging;
    let mut agreed_since = None;
    loop {
        let deadline = match standing(&looks) {
            Agreement::Agreed => break,
            Agreement::AgreedButSilent => *agreed_since.get_or_insert_with(Instant::now) + patience.for_silent,
            Agreement::Open => {
                agreed_since = None;
                end
            }
        };
        let Ok(Some((index, look))) = timeout_at(deadline, told.recv()).await else { break };
        if looks[index] != look {
            say(line(&authorities[index].label, sought.goal, &look));
            looks[index] = look;
        }
    }
    drop(lookers);
    if standing(&looks) == Agreement::Open {
        return Err(failure(&authorities, &looks, &sought, patience).await);
    }
    let left_out = authorities.iter().zip(&looks).filter(|(_, look)| **look != AuthorityAnswer::Agrees);
    let mut silent = Vec::new();
    for (authority, look) in left_out {
        say(format!("{}: went on without it", authority.label));
        silent.push(line(&authority.label, sought.goal, look));
    }
    sleep(patience.to_settle).await;
    Ok(silent)
}

/// Looks at one authority again and again, until it agrees or nobody listens any more.
async fn keep_looking(
    index: usize,
    authority: Authority,
    sought: Arc<Sought>,
    pause: Duration,
    tell: mpsc::Sender<(usize, AuthorityAnswer)>,
) {
    loop {
        let look = authority.look(&sought).await;
        let agrees = look == AuthorityAnswer::Agrees;
        if tell.send((index, look)).await.is_err() || agrees {
            return;
        }
        sleep(pause).await;
    }
}

fn standing(looks: &[AuthorityAnswer]) -> Agreement {
    let count = |is_it: fn(&AuthorityAnswer) -> bool| looks.iter().filter(|look| is_it(look)).count();
    let (agree, differ) =
        (count(|look| *look == AuthorityAnswer::Agrees), count(|look| matches!(look, AuthorityAnswer::Differs(_))));
    match (agree, differ) {
        (agree, 0) if agree == looks.len() => Agreement::Agreed,
        (1.., 0) => Agreement::AgreedButSilent,
        _ => Agreement::Open,
    }
}

fn line(label: &str, goal: Goal, look: &AuthorityAnswer) -> String {
    match (look, goal) {
        (AuthorityAnswer::Agrees, Goal::Published) => format!("{label}: has the records"),
        (AuthorityAnswer::Agrees, Goal::Removed) => format!("{label}: has the records no more"),
        (AuthorityAnswer::Differs(what), Goal::Published) => format!("{label}: {what} yet"),
        (AuthorityAnswer::Differs(what), Goal::Removed) => format!("{label}: {what} still"),
        (AuthorityAnswer::Silent(reason), _) => format!("{label}: does not answer: {reason}"),
    }
}

/// Says who is behind, with the serials as the explanation.
async fn failure(
    authorities: &[Authority],
    looks: &[AuthorityAnswer],
    sought: &Sought,
    patience: PropagationTimeouts,
) -> DnsError {
    let zone = name::text(&sought.zone);
    let each = || authorities.iter().zip(looks).enumerate();
    if looks.iter().all(|look| matches!(look, AuthorityAnswer::Silent(_))) {
        let silent = each().map(|(_, (authority, look))| line(&authority.label, sought.goal, look)).collect();
        return DnsError::AuthoritiesSilent { zone, silent };
    }
    let mut serials = JoinSet::new();
    for (index, authority) in authorities.iter().cloned().enumerate() {
        let zone = sought.zone.clone();
        serials.spawn(async move { (index, authority.serial(&zone).await) });
    }
    let serials = serials.join_all().await;
    let serial = |index: usize| serials.iter().find(|(at, _)| *at == index).and_then(|(_, serial)| *serial);
    let lagging = each().filter_map(|(index, (authority, look))| {
        let what = match look {
            AuthorityAnswer::Agrees => return None,
            AuthorityAnswer::Differs(what) => what.clone(),
            AuthorityAnswer::Silent(reason) => format!("does not answer ({reason})"),
        };
        let serial = serial(index).map_or_else(String::new, |serial| format!(", serial {serial}"));
        Some(format!("{} {what}{serial}", authority.label))
    });
    let mut lagging: Vec<String> = lagging.collect();
    lagging.extend(each().find_map(|(index, (authority, look))| {
        let serial = serial(index).filter(|_| *look == AuthorityAnswer::Agrees)?;
        let line = line(&authority.label, sought.goal, look).replacen(": ", " ", 1);
        Some(format!("({line}, serial {serial})"))
    }));
    let (name, waited_s) = (name::text(&sought.name), patience.for_lagging.as_secs());
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
    fn who_answers_without_the_values_blocks_and_who_is_silent_does_not() {
        assert_eq!(standing(&[AuthorityAnswer::Agrees, AuthorityAnswer::Agrees]), Agreement::Agreed);
        assert_eq!(standing(&[AuthorityAnswer::Agrees, silent()]), Agreement::AgreedButSilent);
        assert_eq!(standing(&[AuthorityAnswer::Agrees, lacks()]), Agreement::Open);
        assert_eq!(standing(&[AuthorityAnswer::Agrees, silent(), lacks()]), Agreement::Open);
        assert_eq!(standing(&[silent(), silent()]), Agreement::Open, "at least one must answer");
    }

    #[test]
    fn values_are_compared_whole_and_among_others() {
        let name = name::parse("_acme-challenge.example.com").unwrap();
        let mut answer = question(&name, RecordType::TXT, false).into_response();
        let sought = |goal: Goal, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            Sought { name: name.clone(), zone: name.base_name(), values, goal }
        };
        let look = |answer: &Message, values: &[&str]| judge(answer, &sought(Goal::Published, values));
        let gone = |answer: &Message, values: &[&str]| judge(answer, &sought(Goal::Removed, values));
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

//! Waits until every address of every authoritative server has the values, or no longer has them.
//!
//! A server that answers without the values blocks, since a CA may ask it. A server that does not serve the zone, or that
//! this machine cannot reach, is passed over, as resolvers mostly pass over it. A silent server is waited for a limited time, once
//! the others agree. Several servers may share an address, and one of them may lag. So each is asked again and again over
//! the settling time, from a new port each time, and one answer without the values starts that anew.

use std::sync::Arc;
use std::time::Duration;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::authority::{Authority, NoReply, Reply};
use super::failure::{DnsError, MAY_TIME_OUT};
use super::lookup::ZoneServers;
use super::name;

/// How many answers in a row a server must give, even without time to settle.
const FEWEST_ANSWERS: u32 = 3;
/// How many answers of a server there are to be in the time to settle.
const ANSWERS_WHILE_SETTLING: u32 = 10;
/// The shortest pause between two queries to one server.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// The timeouts of the wait for authoritative servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PropagationTimeouts {
    /// The pause between two queries to one server.
    pub between_looks: Duration,
    /// How long to wait for servers with another answer.
    pub for_lagging: Duration,
    /// How long to wait for silent servers.
    pub for_silent: Duration,
    /// How long all must go on agreeing.
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

/// The last answer of an authoritative server.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AuthorityAnswer {
    /// It has the state that we wait for.
    Agrees,
    /// It has another state.
    Differs(String),
    /// It did not answer.
    Silent(String),
    /// It does not serve the zone.
    Useless(String),
    /// It cannot be reached from here.
    Unreachable(String),
}

/// What is known of one server.
#[derive(Debug, Clone)]
struct ServerState {
    answer: AuthorityAnswer,
    /// Since when each of its answers agrees, and how many did.
    agrees: Option<(Instant, u32)>,
    has_agreed_before: bool,
}

/// Whether the servers agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agreement {
    /// All that count agree, for long enough.
    Agreed,
    /// Not yet; if nothing changes until then, see again.
    Open(Instant),
    /// The time is up.
    Failed,
}

/// The moments that limit a wait.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    start: Instant,
    timeouts: PropagationTimeouts,
    goal: Goal,
}

impl Authority {
    async fn query(&self, sought: &Sought) -> AuthorityAnswer {
        match self.ask(&sought.name, RecordType::TXT).await {
            Ok(Reply::Authoritative(answer)) => compare(&answer, sought),
            Ok(Reply::Referral { zone, .. }) => {
                AuthorityAnswer::Useless(format!("it delegates {} to other servers", name::text(&zone)))
            }
            Err(NoReply::Silent(reason)) => AuthorityAnswer::Silent(reason),
            Err(NoReply::Useless(reason)) => AuthorityAnswer::Useless(reason),
            Err(NoReply::Unreachable(reason)) => AuthorityAnswer::Unreachable(reason),
        }
    }
}

impl ServerState {
    fn new() -> Self {
        let answer = AuthorityAnswer::Silent("it has not answered yet".to_owned());
        Self { answer, agrees: None, has_agreed_before: false }
    }

    fn note(&mut self, answer: AuthorityAnswer, now: Instant) {
        self.agrees = match (&answer, self.agrees) {
            (AuthorityAnswer::Agrees, Some((since, count))) => Some((since, count + 1)),
            (AuthorityAnswer::Agrees, None) => Some((now, 1)),
            _ => None,
        };
        self.has_agreed_before |= answer == AuthorityAnswer::Agrees;
        self.answer = answer;
    }
}

impl Schedule {
    /// How long a server must go on agreeing, and in how many answers. No CA queries removed records, so one is enough.
    fn settling(&self) -> (Duration, u32) {
        match self.goal {
            Goal::Published => (self.timeouts.to_settle, FEWEST_ANSWERS),
            Goal::Removed => (Duration::ZERO, 1),
        }
    }

    /// The pause after an answer.
    fn pause(&self, answer: &AuthorityAnswer) -> Duration {
        let settling = (self.timeouts.to_settle / ANSWERS_WHILE_SETTLING).max(SHORTEST_PAUSE);
        match answer {
            AuthorityAnswer::Agrees => settling.min(self.timeouts.between_looks),
            _ => self.timeouts.between_looks,
        }
    }

    fn agreement(&self, servers: &[ServerState], now: Instant) -> Agreement {
        let (duration, fewest) = self.settling();
        let has_settled = |(since, count): (Instant, u32)| now >= since + duration && count >= fewest;
        let count = |is_it: fn(&AuthorityAnswer) -> bool| servers.iter().filter(|it| is_it(&it.answer)).count();
        let (end, patience) = (self.start + self.timeouts.for_lagging, self.timeouts.for_silent);
        let until = |deadline: Instant| if now < deadline { Agreement::Open(deadline) } else { Agreement::Failed };
        if count(|it| matches!(it, AuthorityAnswer::Differs(_))) > 0 {
            return until(end);
        }
        let agreeing = || servers.iter().filter_map(|server| server.agrees);
        // The first moment at which all that answer agreed.
        let Some(agreed) = agreeing().map(|(since, _)| since).max() else {
            return until(self.start + patience.min(self.timeouts.for_lagging));
        };
        let is_any_silent = count(|it| matches!(it, AuthorityAnswer::Silent(_))) > 0;
        let without_silent = (agreed + patience).min(end);
        if is_any_silent && now < without_silent {
            return Agreement::Open(without_silent);
        }
        if agreeing().all(has_settled) {
            return Agreement::Agreed;
        }
        // After that, only further answers are missing, and each is seen as it comes.
        let settled = agreed + duration;
        Agreement::Open(if now < settled { settled } else { now + patience })
    }
}

/// Waits until the servers agree, and settles. Returns what may still fail at a CA: the servers that it went on without, and
/// a delegation that differs from the zone.
pub(super) async fn wait(
    zone_servers: ZoneServers,
    sought: Sought,
    timeouts: PropagationTimeouts,
    say: &(dyn Fn(String) + Send + Sync),
) -> Result<Vec<String>, DnsError> {
    let ZoneServers { servers: authorities, mismatch, not_compared } = zone_servers;
    mismatch.iter().chain(&not_compared).for_each(|remark| say(remark.clone()));
    let sought = Arc::new(sought);
    let schedule = Schedule { start: Instant::now(), timeouts, goal: sought.goal };
    let (sender, mut receiver) = mpsc::channel(authorities.len().max(1));
    // Aborts its tasks when it is dropped.
    let mut queries = JoinSet::new();
    for (index, authority) in authorities.iter().cloned().enumerate() {
        queries.spawn(poll(index, authority, Arc::clone(&sought), schedule, sender.clone()));
    }
    let mut servers = vec![ServerState::new(); authorities.len()];
    let is_agreed = loop {
        let deadline = match schedule.agreement(&servers, Instant::now()) {
            Agreement::Agreed => break true,
            Agreement::Failed => break false,
            Agreement::Open(deadline) => deadline,
        };
        if let Ok(Some((index, answer))) = timeout_at(deadline, receiver.recv()).await {
            if servers[index].answer != answer {
                say(line(&authorities[index].label, sought.goal, &answer));
            }
            servers[index].note(answer, Instant::now());
        }
    };
    drop(queries);
    if !is_agreed {
        return Err(failure(&authorities, &servers, &sought, timeouts, mismatch).await);
    }
    let mut remarks = Vec::new();
    for (authority, server) in authorities.iter().zip(&servers) {
        if server.answer != AuthorityAnswer::Agrees {
            say(format!("{}: went on without it", authority.label));
            remarks.push(remark(&authority.label, sought.goal, &server.answer));
        }
    }
    remarks.extend(mismatch);
    Ok(remarks)
}

/// Asks each server once. Returns those that do not agree, and a delegation that differs from the zone.
pub(super) async fn disagreements(zone_servers: ZoneServers, sought: Sought) -> Vec<String> {
    let ZoneServers { servers, mismatch, .. } = zone_servers;
    let sought = Arc::new(sought);
    let mut queries = JoinSet::new();
    for server in servers {
        let sought = Arc::clone(&sought);
        queries.spawn(async move {
            let answer = server.query(&sought).await;
            (answer != AuthorityAnswer::Agrees).then(|| remark(&server.label, sought.goal, &answer))
        });
    }
    let mut lines: Vec<String> = queries.join_all().await.into_iter().flatten().collect();
    lines.sort();
    lines.extend(mismatch);
    lines
}

/// Queries one server repeatedly, until the receiver is gone.
async fn poll(
    index: usize,
    authority: Authority,
    sought: Arc<Sought>,
    schedule: Schedule,
    sender: mpsc::Sender<(usize, AuthorityAnswer)>,
) {
    loop {
        let answer = authority.query(&sought).await;
        let pause = schedule.pause(&answer);
        if sender.send((index, answer)).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

fn line(label: &str, goal: Goal, answer: &AuthorityAnswer) -> String {
    match (answer, goal) {
        (AuthorityAnswer::Agrees, Goal::Published) => format!("{label}: has the records"),
        (AuthorityAnswer::Agrees, Goal::Removed) => format!("{label}: has the records no more"),
        (AuthorityAnswer::Differs(what), Goal::Published) => format!("{label}: {what} yet"),
        (AuthorityAnswer::Differs(what), Goal::Removed) => format!("{label}: {what} still"),
        (AuthorityAnswer::Silent(reason), _) => format!("{label}: does not answer: {reason}"),
        (AuthorityAnswer::Useless(reason) | AuthorityAnswer::Unreachable(reason), _) => {
            format!("{label}: passed over: {reason}")
        }
    }
}

/// The same, with what a server that does not help does to validations.
fn remark(label: &str, goal: Goal, answer: &AuthorityAnswer) -> String {
    let costs_time = matches!(answer, AuthorityAnswer::Silent(_) | AuthorityAnswer::Useless(_));
    let note = if costs_time && goal == Goal::Published { MAY_TIME_OUT } else { "" };
    format!("{}{note}", line(label, goal, answer))
}

/// The error that names the servers that lag behind, with the zone's serials as explanation.
async fn failure(
    authorities: &[Authority],
    servers: &[ServerState],
    sought: &Sought,
    timeouts: PropagationTimeouts,
    mismatch: Option<String>,
) -> DnsError {
    let zone = name::text(&sought.zone);
    let each = || authorities.iter().zip(servers).enumerate();
    let says_nothing = |it: &AuthorityAnswer| {
        use AuthorityAnswer::{Silent, Unreachable, Useless};
        matches!(it, Silent(_) | Useless(_) | Unreachable(_))
    };
    if servers.iter().all(|server| says_nothing(&server.answer)) {
        let silent = each().map(|(_, (authority, server))| line(&authority.label, sought.goal, &server.answer));
        return DnsError::AuthoritiesSilent { zone, silent: silent.chain(mismatch).collect() };
    }
    let mut serials = JoinSet::new();
    for (index, authority) in authorities.iter().cloned().enumerate() {
        let zone = sought.zone.clone();
        serials.spawn(async move { (index, authority.serial(&zone).await) });
    }
    let serials = serials.join_all().await;
    let serial = |index: usize| serials.iter().find(|(at, _)| *at == index).and_then(|(_, serial)| *serial);
    let lagging = each().filter_map(|(index, (authority, server))| {
        let what = match &server.answer {
            AuthorityAnswer::Agrees => return None,
            AuthorityAnswer::Differs(what) if server.has_agreed_before => {
                format!("{what} in some answers, so several servers share the address and one of them lags")
            }
            AuthorityAnswer::Differs(what) => what.clone(),
            AuthorityAnswer::Silent(reason) => format!("does not answer ({reason})"),
            AuthorityAnswer::Useless(reason) | AuthorityAnswer::Unreachable(reason) => {
                format!("is passed over ({reason})")
            }
        };
        let serial = serial(index).map_or_else(String::new, |serial| format!(", serial {serial}"));
        Some(format!("{} {what}{serial}", authority.label))
    });
    let mut lagging: Vec<String> = lagging.collect();
    lagging.extend(each().find_map(|(index, (authority, server))| {
        let serial = serial(index).filter(|_| server.answer == AuthorityAnswer::Agrees)?;
        let line = line(&authority.label, sought.goal, &server.answer).replacen(": ", " ", 1);
        Some(format!("({line}, serial {serial})"))
    }));
    lagging.extend(mismatch);
    let (name, waited_s) = (name::text(&sought.name), timeouts.for_lagging.as_secs());
    match sought.goal {
        Goal::Published => DnsError::NotVisible { name, waited_s, lagging },
        Goal::Removed => DnsError::NotGone { name, waited_s, lagging },
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
    let has_no_name = answer.response_code == ResponseCode::NXDomain;
    match (sought.goal, cname) {
        (Goal::Removed, _) if found == 0 => AuthorityAnswer::Agrees,
        (Goal::Removed, _) => AuthorityAnswer::Differs(format!("has {found} of {all} values")),
        (Goal::Published, None) if has_no_name => AuthorityAnswer::Differs("has no such name".to_owned()),
        (Goal::Published, None) if found == all => AuthorityAnswer::Agrees,
        (Goal::Published, None) => AuthorityAnswer::Differs(format!("lacks {} of {all} values", all - found)),
        (Goal::Published, Some(target)) => {
            AuthorityAnswer::Differs(format!("has a CNAME record to {} instead", name::text(target)))
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::rr::Record;
    use hickory_net::proto::rr::rdata::{self, TXT};

    use super::*;

    const TIMEOUTS: PropagationTimeouts = PropagationTimeouts {
        between_looks: Duration::from_secs(2),
        for_lagging: Duration::from_mins(2),
        for_silent: Duration::from_secs(30),
        to_settle: Duration::from_secs(5),
    };

    fn silent() -> AuthorityAnswer {
        AuthorityAnswer::Silent("x".to_owned())
    }

    fn useless() -> AuthorityAnswer {
        AuthorityAnswer::Useless("x".to_owned())
    }

    fn lacks() -> AuthorityAnswer {
        AuthorityAnswer::Differs("x".to_owned())
    }

    /// The agreement after each server has given its answers, one a second, and `seconds` have passed.
    fn after(seconds: u64, answers: &[&[AuthorityAnswer]]) -> Agreement {
        let schedule = Schedule { start: Instant::now(), timeouts: TIMEOUTS, goal: Goal::Published };
        let mut servers = vec![ServerState::new(); answers.len()];
        for (server, answers) in servers.iter_mut().zip(answers) {
            for (second, answer) in (0..).zip(*answers) {
                server.note(answer.clone(), schedule.start + Duration::from_secs(second));
            }
        }
        match schedule.agreement(&servers, schedule.start + Duration::from_secs(seconds)) {
            Agreement::Open(_) => Agreement::Open(schedule.start),
            known => known,
        }
    }

    fn is_open(agreement: Agreement) -> bool {
        matches!(agreement, Agreement::Open(_))
    }

    const YES: [AuthorityAnswer; 6] = [const { AuthorityAnswer::Agrees }; 6];

    #[test]
    fn only_an_answer_without_the_values_blocks() {
        assert_eq!(after(6, &[&YES, &YES]), Agreement::Agreed);
        assert_eq!(after(6, &[&YES, &[useless()]]), Agreement::Agreed, "passed over at once");
        assert!(is_open(after(29, &[&YES, &[silent()]])));
        assert_eq!(after(30, &[&YES, &[silent()]]), Agreement::Agreed, "passed over after a while");
        assert!(is_open(after(119, &[&YES, &[lacks()]])));
        assert_eq!(after(120, &[&YES, &[lacks()], &[silent()]]), Agreement::Failed);
    }

    #[test]
    fn at_least_one_server_must_answer() {
        for nothing in [silent(), useless()] {
            assert!(is_open(after(29, &[std::slice::from_ref(&nothing), &[silent()]])));
            assert_eq!(after(30, &[&[nothing], &[useless()]]), Agreement::Failed);
        }
    }

    #[test]
    fn one_answer_without_the_values_starts_settling_anew() {
        assert!(is_open(after(4, &[&YES[..4]])));
        assert!(is_open(after(60, &[&YES[..2]])), "two answers may come from one of two servers");
        assert_eq!(after(5, &[&YES]), Agreement::Agreed);
        let [first, second, third] = [YES[0].clone(), lacks(), YES[0].clone()];
        let flapping = [first, second, third.clone(), third.clone(), third.clone(), third];
        assert!(is_open(after(6, &[&flapping])));
        assert_eq!(after(7, &[&flapping]), Agreement::Agreed);
    }

    #[test]
    fn txt_values_are_compared_whole_beside_foreign_values() {
        let name = name::parse("_acme-challenge.example.com").unwrap();
        let mut answer = Message::query().into_response();
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

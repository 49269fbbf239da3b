//! The pages of the list of phones.
//!
//! Phones come from two places. The index in the phone history has those that were seen, with what they are sorted by. The
//! policies have the others, in memory. How many each place has is known, so that a page reads what it shows, and not what
//! comes before it. Only a search looks at every phone.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::admin::AllNumbers;
use crate::admin::operators::Scope;
use crate::admin::snapshot::{PhoneNumbers, PhonePage, PhoneQuery, PhoneSort, PhoneView};
use crate::constituency::{Constituency, ConstituencyName, Listing, MacAddress, Registry};
use crate::phone_history::summary::PhoneSummary;
use crate::phone_history::{HistoryReader, IndexFilter, IndexKey, IndexMatch, IndexOrder, PhoneState, ReadError};

/// Up to this number, the results of a search are sorted here. More are sorted by the database.
const FEW: usize = 5_000;

/// All phones at one moment.
pub(super) struct PhoneList<'a> {
    /// The constituencies whose phones these are.
    pub(super) scope: &'a Scope,
    /// `None` if there is no history yet.
    pub(super) reader: Option<&'a HistoryReader>,
    pub(super) registry: &'a Registry,
    pub(super) numbers: &'a AllNumbers,
    /// In Unix seconds.
    pub(super) now: i64,
}

/// A query for one page.
struct Request<'a> {
    query: &'a PhoneQuery,
    /// The states that are wanted; `None`: all.
    states: Option<Vec<PhoneState>>,
    search: Search,
    /// The only constituencies whose phones are wanted; `None`: all.
    within: Option<&'a BTreeSet<ConstituencyName>>,
}

/// Phones that were never seen.
enum Unseen {
    /// All of the policies.
    Listed,
    /// Those that a search has found, sorted by name.
    Found(Vec<(IndexKey, Listing)>),
}

/// A phone that a search has found.
struct Found {
    is_unseen: bool,
    of: IndexMatch,
}

/// A part of a sorted list.
enum Block {
    /// Phones of the index.
    Seen(Option<Vec<PhoneState>>, IndexOrder),
    /// Phones that were never seen, by name.
    Unseen(Vec<Listing>),
}

/// A part of a page: how many phones to skip, and how many to take.
type Range = (usize, usize);

impl PhoneList<'_> {
    /// The numbers of all phones.
    pub(super) fn count(&self) -> Result<AllNumbers, ReadError> {
        let counts = self.reader.map(HistoryReader::index_counts).transpose()?.unwrap_or_default();
        let mut numbers = super::phones::numbers(self.registry, &counts);
        numbers.retain(|name, _| self.scope.includes(name.as_str()));
        Ok(numbers)
    }

    /// The phones that match `query`.
    pub(super) fn page(&self, query: &PhoneQuery) -> Result<PhonePage, ReadError> {
        let states = query.state.map(|filter| PhoneState::ALL.into_iter().filter(|it| filter.takes(*it)).collect());
        let request =
            Request { query, states, search: Search::new(&query.search), within: self.scope.constituencies() };
        let (matching, keys) = if request.search.text.is_empty() {
            let matching = self.of_query(query).flat_map(|(_, numbers)| numbers.counts.by_state());
            let matching = matching.filter(|(state, _)| request.takes(*state)).map(|(_, count)| count).sum();
            (matching, self.keys(&request, &Unseen::Listed, None)?)
        } else {
            self.found(&request)?
        };
        let total = self.numbers.values().flat_map(|it| it.counts.by_state()).map(|(_, count)| count).sum();
        let phones = keys.into_iter().map(|key| self.view(key)).collect::<Result<_, _>>()?;
        Ok(PhonePage { total, matching, phones })
    }

    /// The phones that wait for approval, the newest first.
    pub(super) fn waiting(&self) -> Result<Vec<PhoneView>, ReadError> {
        let states: &[PhoneState] = &[PhoneState::Waiting];
        let filter =
            IndexFilter { states: Some(states), within: self.scope.constituencies(), ..IndexFilter::default() };
        let page =
            |reader: &HistoryReader| reader.index_page(&filter, IndexOrder::LastSeen, false, (0, super::phones::SHOWN));
        let keys = self.reader.map(page).transpose()?.unwrap_or_default();
        keys.into_iter().map(|key| self.view(key)).collect()
    }

    /// A phone within the scope of which more is known than its name: it was seen, or a list names it.
    pub(super) fn find(&self, key: IndexKey) -> Result<Option<PhoneView>, ReadError> {
        if !self.scope.includes(key.0.as_str()) {
            return Ok(None);
        }
        let summary = self.summary(&key)?;
        let listing = self.registry.by_folder(key.0.as_str()).and_then(|served| served.listing(key.1));
        let is_there = summary.seen.is_some() || listing.is_some();
        Ok(is_there.then(|| super::phones::phone(key, summary, self.now)))
    }

    /// The phone as it is now, by the policies and the history, whatever the index says.
    pub(super) fn view(&self, key: IndexKey) -> Result<PhoneView, ReadError> {
        let summary = self.summary(&key)?;
        Ok(super::phones::phone(key, summary, self.now))
    }

    fn summary(&self, (name, mac): &IndexKey) -> Result<PhoneSummary, ReadError> {
        let (seen, claim) = self.reader.map(|reader| reader.phone(name, *mac)).transpose()?.unwrap_or_default();
        let served = self.registry.by_folder(name.as_str()).map(AsRef::as_ref);
        Ok(PhoneSummary { seen, claim, ..PhoneSummary::of(served, *mac) })
    }

    /// The phones that a search finds: their number, and those of the page.
    fn found(&self, request: &Request<'_>) -> Result<(usize, Vec<IndexKey>), ReadError> {
        let filter = request.filter(None);
        let seen = self.reader.map(|reader| reader.index_matches(&filter, FEW + 1)).transpose()?.unwrap_or_default();
        let unseen = self.unseen_found(request)?;
        if seen.len() > FEW {
            let counts = self.reader.map(|reader| reader.count_matches(&filter)).transpose()?.unwrap_or_default();
            let matching = counts.iter().map(|(_, count)| count).sum::<usize>() + unseen.len();
            return Ok((matching, self.keys(request, &Unseen::Found(unseen), Some(&counts))?));
        }
        let unseen = unseen.into_iter().map(|(key, listing)| {
            let state = PhoneState::of_unseen(listing);
            Found { is_unseen: true, of: IndexMatch { key, state, last_seen: None, model: None, firmware: None } }
        });
        let seen = seen.into_iter().map(|of| Found { is_unseen: false, of });
        let mut all: Vec<Found> = seen.chain(unseen).collect();
        request.sort(&mut all);
        let matching = all.len();
        let page = all.into_iter().skip(request.query.offset).take(request.query.limit);
        Ok((matching, page.map(|found| found.of.key).collect()))
    }

    /// The phones of the page. `counts` are the numbers of phones in the index that a search finds.
    fn keys(
        &self,
        request: &Request<'_>,
        unseen: &Unseen,
        counts: Option<&[(PhoneState, usize)]>,
    ) -> Result<Vec<IndexKey>, ReadError> {
        let order = match request.query.sort {
            PhoneSort::Name => return self.by_name(request, unseen),
            PhoneSort::State => None,
            PhoneSort::LastSeen => Some(IndexOrder::LastSeen),
            PhoneSort::Model => Some(IndexOrder::Model),
        };
        let listings = |states: &[PhoneState]| -> Vec<Listing> {
            let listings = [Listing::Known, Listing::Denied].into_iter();
            listings.filter(|listing| states.contains(&PhoneState::of_unseen(*listing))).collect()
        };
        let states = request.states.clone().unwrap_or_else(|| PhoneState::ALL.to_vec());
        let mut blocks: Vec<Block> = match order {
            Some(order) => {
                let unseen = listings(&states).into_iter().map(|listing| Block::Unseen(vec![listing]));
                std::iter::once(Block::Seen(request.states.clone(), order)).chain(unseen).collect()
            }
            // In each state, the phone that was seen last comes first.
            None => {
                let of_state = |state: &PhoneState| {
                    [Block::Seen(Some(vec![*state]), IndexOrder::LastSeen), Block::Unseen(listings(&[*state]))]
                };
                states.iter().flat_map(of_state).collect()
            }
        };
        let (mut skip, mut left) = (request.query.offset, request.query.limit);
        let mut keys = Vec::new();
        if request.query.is_reversed {
            blocks.reverse();
        }
        for block in blocks {
            let count = match &block {
                Block::Seen(states, _) => self.count_seen(request, states.as_deref(), counts),
                Block::Unseen(listings) => self.count_unseen(request, listings, unseen),
            };
            if skip >= count {
                skip -= count;
                continue;
            }
            let found = match (&block, self.reader) {
                (Block::Seen(..), None) => Vec::new(),
                (Block::Seen(states, order), Some(reader)) => {
                    let filter = IndexFilter { states: states.as_deref(), matching: count, ..request.filter(None) };
                    reader.index_page(&filter, *order, request.query.is_reversed, (skip, left))?
                }
                (Block::Unseen(listings), _) => self.unseen_page(request, listings, unseen, (skip, left))?,
            };
            skip = 0;
            left = left.saturating_sub(found.len());
            keys.extend(found);
            if left == 0 {
                break;
            }
        }
        Ok(keys)
    }

    /// The phones of the page, sorted by constituency and MAC address.
    fn by_name(&self, request: &Request<'_>, unseen: &Unseen) -> Result<Vec<IndexKey>, ReadError> {
        let (is_reversed, mut skip, mut left) = (request.query.is_reversed, request.query.offset, request.query.limit);
        let seen = |name: Option<&ConstituencyName>, matching, range| {
            let filter = IndexFilter { matching, ..request.filter(name) };
            let page = |reader: &HistoryReader| reader.index_page(&filter, IndexOrder::Name, is_reversed, range);
            self.reader.map_or(Ok(Vec::new()), page)
        };
        let merged = |mut one: Vec<IndexKey>, other: Vec<IndexKey>| {
            one.extend(other);
            one.sort_unstable();
            if is_reversed {
                one.reverse();
            }
            one
        };
        let all = [Listing::Known, Listing::Denied];
        let listings: Vec<Listing> = all.into_iter().filter(|it| request.takes(PhoneState::of_unseen(*it))).collect();
        if let Unseen::Found(_) = unseen {
            // SQLite takes no larger number.
            let range = (0, skip.saturating_add(left).min(isize::MAX.unsigned_abs()));
            let all = merged(seen(None, usize::MAX, range)?, self.unseen_page(request, &listings, unseen, range)?);
            return Ok(all.into_iter().skip(skip).take(left).collect());
        }
        let mut keys = Vec::new();
        let mut names: Vec<_> = self.of_query(request.query).collect();
        if is_reversed {
            names.reverse();
        }
        for (name, numbers) in names {
            let counts = numbers.counts.by_state().filter(|(state, _)| request.takes(*state));
            let count: usize = counts.map(|(_, count)| count).sum();
            if skip >= count {
                skip -= count;
                continue;
            }
            let count_unseen: usize = listings.iter().map(|it| numbers.unseen(*it)).sum();
            let found: Vec<IndexKey> = if count_unseen == 0 {
                seen(Some(name), count, (skip, left))?
            } else {
                // The first of both together are among the first of each.
                let count_seen = count.saturating_sub(count_unseen);
                let seen = if count_seen == 0 { Vec::new() } else { seen(Some(name), count_seen, (0, skip + left))? };
                merged(seen, self.unseen_of(name, &listings)?).into_iter().skip(skip).take(left).collect()
            };
            skip = 0;
            left = left.saturating_sub(found.len());
            keys.extend(found);
            if left == 0 {
                break;
            }
        }
        Ok(keys)
    }

    /// The constituencies that may have phones for `query`, sorted by name.
    fn of_query<'a>(
        &'a self,
        query: &'a PhoneQuery,
    ) -> impl DoubleEndedIterator<Item = (&'a ConstituencyName, &'a PhoneNumbers)> {
        let wanted = query.constituency.as_deref();
        self.numbers.iter().filter(move |(name, _)| wanted.is_none_or(|wanted| name.as_str() == wanted))
    }

    fn count_seen(
        &self,
        request: &Request<'_>,
        states: Option<&[PhoneState]>,
        counts: Option<&[(PhoneState, usize)]>,
    ) -> usize {
        let is_wanted = |state: PhoneState| states.is_none_or(|states| states.contains(&state));
        let sum = |(state, count): (PhoneState, usize)| if is_wanted(state) { count } else { 0 };
        match counts {
            Some(counts) => counts.iter().copied().map(sum).sum(),
            None => self.of_query(request.query).flat_map(|(_, numbers)| numbers.seen_by_state()).map(sum).sum(),
        }
    }

    fn count_unseen(&self, request: &Request<'_>, listings: &[Listing], unseen: &Unseen) -> usize {
        match unseen {
            Unseen::Found(found) => found.iter().filter(|(_, listing)| listings.contains(listing)).count(),
            Unseen::Listed => {
                let numbers = self.of_query(request.query);
                numbers.flat_map(|(_, numbers)| listings.iter().map(|it| numbers.unseen(*it))).sum()
            }
        }
    }

    /// A part of the phones that were never seen, by name.
    fn unseen_page(
        &self,
        request: &Request<'_>,
        listings: &[Listing],
        unseen: &Unseen,
        (mut skip, limit): Range,
    ) -> Result<Vec<IndexKey>, ReadError> {
        let is_reversed = request.query.is_reversed;
        if let Unseen::Found(found) = unseen {
            let found = found.iter().filter(|(_, listing)| listings.contains(listing)).map(|(key, _)| key.clone());
            return Ok(if is_reversed {
                found.rev().skip(skip).take(limit).collect()
            } else {
                found.skip(skip).take(limit).collect()
            });
        }
        let mut keys = Vec::new();
        let mut names: Vec<_> = self.of_query(request.query).collect();
        if is_reversed {
            names.reverse();
        }
        for (name, numbers) in names {
            let count: usize = listings.iter().map(|it| numbers.unseen(*it)).sum();
            if skip >= count {
                skip -= count;
                continue;
            }
            let mut own = self.unseen_of(name, listings)?;
            if is_reversed {
                own.reverse();
            }
            keys.extend(own.into_iter().skip(skip).take(limit - keys.len()));
            skip = 0;
            if keys.len() == limit {
                break;
            }
        }
        Ok(keys)
    }

    /// The phones of one constituency that were never seen, sorted.
    fn unseen_of(&self, name: &ConstituencyName, listings: &[Listing]) -> Result<Vec<IndexKey>, ReadError> {
        let Some(list) = self.registry.by_folder(name.as_str()) else { return Ok(Vec::new()) };
        let wanted = list.listed_phones().filter(|mac| list.listing(*mac).is_some_and(|it| listings.contains(&it)));
        let mut wanted: Vec<MacAddress> = wanted.collect();
        self.remove_seen(list, &mut wanted)?;
        wanted.sort_unstable();
        Ok(wanted.into_iter().map(|mac| (name.clone(), mac)).collect())
    }

    /// The phones that were never seen and match the search, sorted by name.
    fn unseen_found(&self, request: &Request<'_>) -> Result<Vec<(IndexKey, Listing)>, ReadError> {
        let mut found = Vec::new();
        for (name, numbers) in self.of_query(request.query) {
            let all = [Listing::Known, Listing::Denied];
            if all.into_iter().all(|it| numbers.unseen(it) == 0 || !request.takes(PhoneState::of_unseen(it))) {
                continue;
            }
            let Some(list) = self.registry.by_folder(name.as_str()) else { continue };
            let has_name = name.as_str().contains(&request.search.text);
            let is_found = |mac: &MacAddress| has_name || request.search.finds(*mac, list.note(*mac));
            let is_wanted = |mac: &MacAddress| {
                is_found(mac) && list.listing(*mac).is_some_and(|it| request.takes(PhoneState::of_unseen(it)))
            };
            let mut macs: Vec<MacAddress> = list.listed_phones().filter(is_wanted).collect();
            self.remove_seen(list, &mut macs)?;
            macs.sort_unstable();
            found.extend(macs.into_iter().filter_map(|mac| Some(((name.clone(), mac), list.listing(mac)?))));
        }
        Ok(found)
    }

    fn remove_seen(&self, list: &Constituency, macs: &mut Vec<MacAddress>) -> Result<(), ReadError> {
        if let Some(reader) = self.reader.filter(|_| !macs.is_empty()) {
            let seen = reader.indexed(&list.name)?;
            macs.retain(|mac| !seen.contains(mac));
        }
        Ok(())
    }
}

impl Request<'_> {
    fn takes(&self, state: PhoneState) -> bool {
        self.states.as_ref().is_none_or(|states| states.contains(&state))
    }

    /// The filter for the index: of the query's constituency, or of `name`.
    fn filter<'a>(&'a self, name: Option<&'a ConstituencyName>) -> IndexFilter<'a> {
        IndexFilter {
            constituency: name.map(ConstituencyName::as_str).or(self.query.constituency.as_deref()),
            within: self.within,
            states: self.states.as_deref(),
            text: Some(self.search.text.as_str()).filter(|text| !text.is_empty()),
            digits: self.search.digits.as_deref(),
            matching: 0,
        }
    }

    /// Sorts as the database does.
    fn sort(&self, found: &mut [Found]) {
        // By constituency and MAC address first, because the other sorts are stable.
        found.sort_unstable_by(|one, other| one.of.key.cmp(&other.of.key));
        match self.query.sort {
            PhoneSort::Name => {}
            PhoneSort::State => {
                found.sort_by_key(|it| (it.of.state.rank(), Reverse(it.of.last_seen), it.is_unseen));
            }
            PhoneSort::LastSeen => {
                found.sort_by_key(|it| (Reverse(it.of.last_seen), it.is_unseen, it.of.state.rank()));
            }
            PhoneSort::Model => found.sort_by(|one, other| {
                let key = |it: &Found| {
                    let (model, firmware) = (it.of.model.clone(), it.of.firmware.clone());
                    (model.is_none(), model, firmware, it.is_unseen, it.of.state.rank())
                };
                key(one).cmp(&key(other))
            }),
        }
        if self.query.is_reversed {
            found.reverse();
        }
    }
}

/// A search text.
struct Search {
    /// In lower case. It never spans two fields, which the index separates by line breaks.
    text: String,
    /// A MAC address or a part of one, without separators.
    digits: Option<String>,
}

impl Search {
    fn new(text: &str) -> Self {
        let text = text.to_lowercase().replace('\n', " ");
        let digits: String = text.chars().filter(|it| !matches!(it, ':' | '-' | '.' | ' ')).collect();
        let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        Self { digits: is_hex.then_some(digits), text }
    }

    /// Whether it finds a phone that was never seen.
    fn finds(&self, mac: MacAddress, note: &str) -> bool {
        self.digits.as_ref().is_some_and(|digits| mac.to_string().contains(digits))
            || note.to_lowercase().contains(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use http::{Method, StatusCode};
    use serde_json::json;

    use super::*;
    use crate::app::admin_data::phones::{self, SHOWN};
    use crate::background::BackgroundThread;
    use crate::clock;
    use crate::constituency::scan::Scanner;
    use crate::constituency::{ServerDenial, ServerDenials, VISITED, denials};
    use crate::phone_history::summary::summarize;
    use crate::phone_history::{FOLDER, PhoneEvent, PhoneHistory, Proof, STEPS};
    use crate::state;

    const HOUR: i64 = 3600;

    /// Constituencies, and a phone history that is written as in a server.
    struct Bench {
        folder: tempfile::TempDir,
        history: PhoneHistory,
        _writer: BackgroundThread,
        registry: Registry,
    }

    fn mac(number: u64) -> MacAddress {
        "00005e005300".parse::<MacAddress>().unwrap().plus(number)
    }

    fn now() -> i64 {
        clock::unix_seconds(clock::now())
    }

    /// A request of a phone, `ago` seconds before now.
    fn event(constituency: &str, number: u64, ago: i64) -> PhoneEvent {
        PhoneEvent {
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(now() - ago).unwrap()),
            address: [192, 0, 2, u8::try_from(number % 200).unwrap()].into(),
            network: "192.0.2.0/24".parse().unwrap(),
            constituency: constituency.parse().unwrap(),
            mac: mac(number),
            proof: Proof::Certificate { not_after: 2_000_000_000 },
            request: Some((Method::GET, "/site.cfg".into())),
            status: Some(StatusCode::OK),
            bytes: 100,
            duration: Duration::ZERO,
            user_agent: (!number.is_multiple_of(3)).then(|| {
                let model = ["VVX_500", "VVX_411"][usize::from(number.is_multiple_of(2))];
                format!("FileTransport PolycomVVX-{model}-UA/5.9.{}.4477 Type/Application", number % 5)
                    .into_bytes()
                    .into()
            }),
            reason: None,
            tls: Some(("TLSv1.3", "TLS13_AES_128_GCM_SHA256")),
        }
    }

    fn refused(constituency: &str, number: u64, ago: i64, reason: &str) -> PhoneEvent {
        let reason = Some(reason.replace("MAC", &mac(number).to_string()));
        PhoneEvent { status: Some(StatusCode::FORBIDDEN), reason, ..event(constituency, number, ago) }
    }

    fn claimed(constituency: &str, number: u64, ago: i64) -> PhoneEvent {
        let proof = Proof::Claimed { fingerprint: Some([7; 32]) };
        let reason = Some("self-signed".to_owned());
        PhoneEvent { proof, request: None, status: None, reason, ..event(constituency, number, ago) }
    }

    fn write_policies(root: &Path, policies: &[(&str, serde_json::Value)]) {
        for (name, policy) in policies {
            std::fs::create_dir_all(root.join(name)).unwrap();
            state::write_private(&root.join(name).join("constituency.json"), policy.to_string().as_bytes()).unwrap();
        }
    }

    impl Bench {
        fn new(policies: &[(&str, serde_json::Value)], denied: &[u64], events: Vec<PhoneEvent>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (root, state) = (folder.path().join("constituencies"), folder.path().join("state"));
            std::fs::create_dir_all(state.join(FOLDER)).unwrap();
            write_policies(&root, policies);
            for number in denied {
                let denial = ServerDenial { by: "a test".to_owned(), at: None, note: String::new() };
                denials::deny(&state, [(mac(*number), denial)].into(), &|_| ()).unwrap();
            }
            let denials = Arc::new(ServerDenials::read(&state).unwrap());
            let registry = Scanner::new(root, Vec::new()).with_denials(Arc::clone(&denials)).scan(clock::now());
            let (history, writer) = PhoneHistory::start(&state.join(FOLDER)).unwrap();
            history.health().set_policies(registry.snapshot(), denials);
            for event in events {
                history.record(event);
            }
            let bench = Self { folder, history, _writer: writer, registry };
            bench.settle();
            bench
        }

        /// Waits until everything is written and the index is corrected.
        fn settle(&self) {
            for _ in 0..5 {
                assert_eq!(self.history.health().flush().blocking_recv(), Ok(true));
            }
        }

        fn reader(&self) -> HistoryReader {
            HistoryReader::open(&self.folder.path().join("state")).unwrap().unwrap()
        }

        fn numbers(&self) -> AllNumbers {
            phones::numbers(&self.registry, &self.reader().index_counts().unwrap())
        }

        fn page(&self, query: &str) -> PhonePage {
            let (reader, numbers) = (self.reader(), self.numbers());
            let list = PhoneList {
                reader: Some(&reader),
                scope: &Scope::All,
                registry: &self.registry,
                numbers: &numbers,
                now: now(),
            };
            list.page(&PhoneQuery::parse(query).unwrap()).unwrap()
        }
    }

    impl Bench {
        /// Compares the page of `query` with what [`oracle`] finds. Returns how many phones match.
        fn assert_is_as_if_read(&self, all: &[PhoneView], query: &str) -> usize {
            let found = self.page(query);
            let keys = found.phones.iter().map(|it| (it.constituency.clone(), it.mac)).collect();
            assert_eq!((found.total, found.matching, keys), oracle(self, all, query), "{query}");
            found.matching
        }
    }

    fn listed(numbers: impl IntoIterator<Item = u64>) -> serde_json::Map<String, serde_json::Value> {
        numbers.into_iter().map(|number| (mac(number).to_string(), format!("Room {number}").into())).collect()
    }

    /// Phones in every state, seen and never seen, in four constituencies of which one is not served.
    fn every_state() -> Bench {
        let ote = json!({ "phones": listed(0..30), "denied": [mac(3).to_string(), mac(31).to_string(), mac(26).to_string()] });
        let any = json!({ "phones": "any", "denied": [mac(1).to_string(), mac(50).to_string()] });
        let home = json!({ "phones": listed(60..64) });
        let mut events: Vec<PhoneEvent> =
            (0..12).map(|number| event("ote", number, i64::try_from(number).unwrap() * 600)).collect();
        events.extend((12..16).map(|number| event("ote", number, 72 * HOUR)));
        events.extend([40, 41, 42].map(|number| refused("ote", number, 60, "MAC is not known to ote")));
        events.extend([16, 17].map(|number| refused("ote", number, 60, "MAC is not known to ote")));
        events.extend([18, 19].map(|number| refused("ote", number, 60, "another phone's file")));
        events.extend([43].map(|number| event("ote", number, 60)));
        events.extend([1, 2, 45].map(|number| event("any", number, 120)));
        events.extend([46, 47].map(|number| event("gone", number, 180)));
        // Of a phone that was seen, of two that were never seen, of a denied one, and of two that no list names.
        events.extend([5, 20, 21, 26, 70].map(|number| claimed("ote", number, 30)));
        events.push(claimed("any", 71, 30));
        Bench::new(&[("ote", ote), ("any", any), ("home", home)], &[7, 22, 62, 80], events)
    }

    /// Every phone, without index and pages.
    fn all_phones(bench: &Bench) -> Vec<PhoneView> {
        let reader = bench.reader();
        let all = summarize(&bench.registry, reader.phones().unwrap(), &reader.claims().unwrap());
        all.into_iter().map(|(key, known)| phones::phone(key, known, now())).collect()
    }

    /// What a list of `all` phones is if every phone is looked at: their number, how many match, and the page.
    fn oracle(bench: &Bench, all: &[PhoneView], text: &str) -> (usize, usize, Vec<IndexKey>) {
        let query = PhoneQuery::parse(text).unwrap();
        let total = all.len();
        let search = Search::new(&query.search);
        let has = |it: &PhoneView| {
            let texts =
                [Some(it.constituency.as_str()), it.address.as_deref(), it.model.as_deref(), it.firmware.as_deref()];
            search.finds(it.mac, &it.note)
                || texts.into_iter().flatten().any(|text| text.to_lowercase().contains(&search.text))
        };
        let mut wanted: Vec<&PhoneView> = all
            .iter()
            .filter(|it| query.constituency.as_ref().is_none_or(|name| it.constituency.as_str() == name))
            .filter(|it| query.state.is_none_or(|filter| filter.takes(it.state)))
            .filter(|it| search.text.is_empty() || has(it))
            .collect();
        let is_unseen = |it: &PhoneView| {
            let listing = bench.registry.by_folder(it.constituency.as_str()).and_then(|served| served.listing(it.mac));
            it.last_seen.is_none() && listing.is_some_and(|listing| PhoneState::of_unseen(listing) == it.state)
        };
        match query.sort {
            PhoneSort::Name => {}
            PhoneSort::State => {
                wanted.sort_by_key(|it| (it.state.rank(), Reverse(it.last_seen), is_unseen(it)));
            }
            PhoneSort::LastSeen => wanted.sort_by_key(|it| (Reverse(it.last_seen), is_unseen(it), it.state.rank())),
            PhoneSort::Model => wanted.sort_by_key(|it| {
                (it.model.is_none(), it.model.clone(), it.firmware.clone(), is_unseen(it), it.state.rank())
            }),
        }
        if query.is_reversed {
            wanted.reverse();
        }
        let matching = wanted.len();
        let page = wanted.into_iter().skip(query.offset).take(query.limit);
        let page = page.map(|it| (it.constituency.clone(), it.mac));
        (total, matching, page.collect())
    }

    #[test]
    fn every_page_is_as_if_every_phone_were_read() {
        let bench = every_state();
        let all = all_phones(&bench);
        let mut states = vec![String::new()];
        states.extend(crate::admin::snapshot::StateFilter::all().map(|filter| format!("&state={}", filter.name())));
        let mut compared = 0;
        let mut shown = 0;
        for state in &states {
            for sort in ["state", "name", "last_seen", "model"] {
                for rest in [
                    "",
                    "&constituency=ote",
                    "&constituency=any",
                    "&constituency=none",
                    "&search=room+1",
                    "&search=5e:00:53",
                    "&search=VVX_4",
                    "&search=ote",
                    "&search=192.0.2.4",
                    "&search=nothing",
                ] {
                    for page in ["", "&reverse=1", "&offset=3&limit=4", "&offset=14&limit=9&reverse=1", "&offset=90"] {
                        let query = format!("sort={sort}{state}{rest}{page}");
                        shown += bench.assert_is_as_if_read(&all, &query);
                        compared += 1;
                    }
                }
            }
        }
        assert_eq!((compared, states.len()), (12 * 4 * 10 * 5, 12));
        assert!(shown > 10_000, "only {shown} phones were compared");
        // Every state was there.
        let counts = bench.page("").phones.iter().fold(BTreeMap::<&str, usize>::new(), |mut all, phone| {
            *all.entry(phone.state.name()).or_default() += 1;
            all
        });
        assert_eq!(counts.len(), PhoneState::ALL.len(), "{counts:?}");
    }

    #[test]
    fn list_follows_a_changed_policy_and_a_lifted_denial() {
        let bench = every_state();
        let of = |bench: &Bench, number| {
            let (reader, numbers) = (bench.reader(), bench.numbers());
            let list = PhoneList {
                reader: Some(&reader),
                scope: &Scope::All,
                registry: &bench.registry,
                numbers: &numbers,
                now: now(),
            };
            list.find(("ote".parse().unwrap(), mac(number))).unwrap().map(|phone| phone.state)
        };
        assert_eq!(
            [7, 22, 40, 0].map(|number| of(&bench, number).unwrap()),
            [PhoneState::Denied, PhoneState::Denied, PhoneState::Waiting, PhoneState::Well]
        );
        assert_eq!(of(&bench, 99), None);
        // Allow a waiting phone, deny and remove others, and remove a constituency; lift a denial.
        let root = bench.folder.path().join("constituencies");
        let ote = json!({ "phones": listed((1..30).chain([40])), "denied": [mac(4).to_string()] });
        write_policies(&root, &[("ote", ote)]);
        std::fs::remove_dir_all(root.join("any")).unwrap();
        let state = bench.folder.path().join("state");
        denials::lift(&state, &[mac(7)], &|_| ()).unwrap();
        let denials = Arc::new(ServerDenials::read(&state).unwrap());
        let registry = Scanner::new(root, Vec::new()).with_denials(Arc::clone(&denials)).scan(clock::now());
        let bench = Bench { registry, ..bench };
        bench.history.health().set_policies(bench.registry.snapshot(), denials);
        bench.settle();
        let all = all_phones(&bench);
        for query in
            ["limit=1000", "sort=name", "state=denied", "state=gone", "state=removed", "state=allowed", "state=never"]
        {
            let matching = bench.assert_is_as_if_read(&all, query);
            assert_ne!(matching, 0, "{query}");
        }
    }

    #[test]
    fn counting_visits_no_phone_that_was_never_seen() {
        /// How many phones and constituencies are visited to count `listed` phones, of which one was seen.
        fn visited(listed_phones: u64) -> usize {
            let events = vec![event("ote", 3, HOUR), claimed("ote", 4, 60)];
            let bench = Bench::new(&[("ote", json!({ "phones": listed(0..listed_phones) }))], &[], events);
            let before = VISITED.get();
            let numbers = bench.numbers();
            let visited = VISITED.get() - before;
            let counts = numbers.values().next().unwrap().counts;
            let all = usize::try_from(listed_phones).unwrap();
            assert_eq!((counts.known, counts.well, counts.locked_out, counts.never), (all, 1, 1, all - 2));
            assert_eq!(bench.page("state=never").matching, counts.never);
            visited
        }
        assert_eq!(visited(10), visited(5000));
    }

    #[test]
    fn page_cost_is_constant_and_search_cost_linear_in_phones() {
        /// What is done for each view among `count` phones that were seen: steps of SQLite, visits of policies.
        fn costs(count: u64) -> Vec<(String, (i32, usize))> {
            let minutes = |number: u64| i64::try_from(number % 1000).unwrap() * 60;
            let mut events: Vec<PhoneEvent> = (0..count).map(|number| event("ote", number, minutes(number))).collect();
            events.extend((0..12).map(|number| refused("ote", count + number, 60, "MAC is not known to ote")));
            let policies =
                [("home", json!({ "phones": listed(90_000..90_020) })), ("ote", json!({ "phones": listed(0..count) }))];
            let bench = Bench::new(&policies, &[], events);
            let (reader, numbers) = (bench.reader(), bench.numbers());
            let list = PhoneList {
                reader: Some(&reader),
                scope: &Scope::All,
                registry: &bench.registry,
                numbers: &numbers,
                now: now(),
            };
            let measured = |work: &dyn Fn() -> usize| {
                let before = (STEPS.get(), VISITED.get());
                assert_ne!(work(), 0);
                (STEPS.get() - before.0, VISITED.get() - before.1)
            };
            let overview = || {
                let silences = phones::silences(&reader, now(), 0).unwrap().len();
                let (claims, tls) =
                    (reader.newest_claims(None, SHOWN).unwrap().len(), reader.tls_counts().unwrap().len());
                list.count().unwrap().len() + list.waiting().unwrap().len() + silences + claims + tls
            };
            let mut all = vec![("overview".to_owned(), measured(&overview))];
            let phone = || usize::from(list.find(("ote".parse().unwrap(), mac(7))).unwrap().is_some());
            all.push(("a phone".to_owned(), measured(&phone)));
            for sort in ["state", "last_seen", "model", "name"] {
                for rest in
                    ["", "&reverse=1", "&state=well", "&state=known&reverse=1", "&state=never", "&constituency=ote"]
                {
                    let query = format!("limit=10&offset=5&sort={sort}{rest}");
                    let page = || list.page(&PhoneQuery::parse(&query).unwrap()).unwrap().phones.len();
                    all.push((query.clone(), measured(&page)));
                }
            }
            assert_eq!(all.len(), 2 + 4 * 6);
            let search = || list.page(&PhoneQuery::parse("limit=10&search=vvx_4").unwrap()).unwrap().phones.len();
            all.push(("search".to_owned(), measured(&search)));
            all
        }
        let [few, more, many] = [600, 1800, 5400].map(costs);
        for (((what, few), (_, more)), (_, many)) in few.into_iter().zip(more).zip(many) {
            assert!(few.0 > 0, "{what}");
            if what == "search" {
                // A few steps for each phone of the index, and those of the page.
                assert!(many.0 > 5400 && many.0 < few.0 + 5400 * 30, "{what}: {few:?} {more:?} {many:?}");
            } else {
                let is_constant = |it: (i32, usize)| it.0 <= few.0 + few.0 / 5 && it.1 == few.1;
                assert!(is_constant(more) && is_constant(many), "{what}: {few:?} {more:?} {many:?}");
            }
        }
    }

    #[test]
    fn many_results_of_a_search_are_sorted_and_paged_by_the_database() {
        let count = u64::try_from(FEW).unwrap() + 500;
        let events = (0..count).map(|number| event("ote", number, i64::try_from(number % 1000).unwrap())).collect();
        let bench = Bench::new(&[("ote", json!({ "phones": listed(0..count + 40) }))], &[], events);
        let all = all_phones(&bench);
        for query in [
            "search=room",
            "search=room&sort=name&offset=5530",
            "search=room&sort=last_seen&reverse=1",
            "search=room&sort=model&offset=5490&limit=20",
            "search=room&state=never",
            "search=room&state=known&offset=300",
        ] {
            bench.assert_is_as_if_read(&all, query);
        }
        assert_eq!(bench.page("search=room").matching, FEW + 540);
    }

    #[test]
    fn silence_is_per_constituency_and_counts_known_phones() {
        let hourly = |name: &'static str, phone: u64, ago: i64| {
            (0..8).map(move |visit| event(name, phone, ago + (8 - visit) * HOUR)).collect::<Vec<_>>()
        };
        let of = |name: &'static str, ago: i64| (0..5).flat_map(move |phone| hourly(name, phone, ago));
        let events = of("down", 5 * HOUR)
            .chain(of("here", HOUR / 2))
            .chain(of("strangers", 5 * HOUR))
            .chain(of("denied", 5 * HOUR));
        let policies = [
            ("down", json!({ "phones": listed(0..5) })),
            ("here", json!({ "phones": listed(0..5) })),
            ("strangers", json!({ "phones": {} })),
            ("denied", json!({ "phones": listed(0..5), "denied": listed(0..5).keys().collect::<Vec<_>>() })),
        ];
        let bench = Bench::new(&policies, &[], events.collect());
        let found = phones::silences(&bench.reader(), now(), 0).unwrap();
        let found: Vec<_> = found.iter().map(|it| (it.constituency.as_str(), it.silent, it.of)).collect();
        assert_eq!(found, [("down", 5, 5)]);
        assert!(phones::silences(&bench.reader(), now(), now() - HOUR).unwrap().is_empty(), "the server was down");
    }
}

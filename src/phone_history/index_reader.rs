//! Reads the index of phones: counts that are kept, and pages by index. Nothing here reads all phones, except a search.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rusqlite::Row;
use rusqlite::types::ToSql;

use super::phone_state::PhoneState;
use super::reader::{self, HistoryReader, ReadError};
use super::silence::{MIN_SILENT, VisitPattern};
use super::{StoredClaim, StoredPhone, index};
use crate::constituency::{ConstituencyName, Listing, MacAddress};

/// A phone of a constituency.
pub type IndexKey = (ConstituencyName, MacAddress);

/// How many phones of a constituency are in one state and on one list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexCount {
    pub constituency: ConstituencyName,
    pub state: PhoneState,
    pub listing: Option<Listing>,
    pub phones: usize,
    /// How many of them were seen during the last day.
    pub recent: usize,
}

/// The phones that are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct IndexFilter<'a> {
    pub constituency: Option<&'a str>,
    /// Phones of one of these constituencies. `None`: of any.
    pub within: Option<&'a BTreeSet<ConstituencyName>>,
    /// Phones in one of these states. `None`: in any.
    pub states: Option<&'a [PhoneState]>,
    /// Phones whose texts contain this, in lower case.
    pub text: Option<&'a str>,
    /// With `text`: also phones whose MAC address contains these digits.
    pub digits: Option<&'a str>,
    /// How many phones match. Few are sorted for a page; of many, the index of the order is walked.
    pub matching: usize,
}

/// Up to this number, phones are sorted for a page.
const SORTED: usize = 500;

/// An order of phones. What is equal is sorted by state, constituency and MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexOrder {
    /// Last seen, the newest first.
    LastSeen,
    /// Constituency, then MAC address.
    Name,
    /// Model, then firmware. Phones without a model come last.
    Model,
}

/// A phone that a search has found, with what it is sorted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexMatch {
    pub key: IndexKey,
    pub state: PhoneState,
    pub last_seen: Option<i64>,
    pub model: Option<String>,
    pub firmware: Option<String>,
}

impl IndexOrder {
    fn sql(self, is_reversed: bool) -> String {
        let terms: &[(&str, bool)] = match self {
            Self::LastSeen => &[("last_seen", true), ("state", false), ("constituency", false), ("mac", false)],
            Self::Name => &[("constituency", false), ("mac", false)],
            Self::Model => &[
                ("model IS NULL", false),
                ("model", false),
                ("firmware", false),
                ("state", false),
                ("constituency", false),
                ("mac", false),
            ],
        };
        let direction = |is_descending: bool| if is_descending == is_reversed { "ASC" } else { "DESC" };
        let terms = terms.iter().map(|(term, is_descending)| format!("{term} {}", direction(*is_descending)));
        terms.collect::<Vec<_>>().join(", ")
    }
}

impl IndexFilter<'_> {
    /// The table for a search: in its own order, because its texts are not in the other indexes.
    fn table(&self) -> &'static str {
        if self.constituency.is_some() { "phone_index" } else { "phone_index NOT INDEXED" }
    }

    /// The condition for phones in `order`. A plus sign keeps SQLite from using a column for a look-up: it then walks the
    /// index of the order.
    fn condition(&self, order: Option<IndexOrder>) -> String {
        let is_walked = self.matching > SORTED;
        let plus = |is_in_way: bool| if is_walked && is_in_way { "+" } else { "" };
        let mut conditions = vec!["TRUE".to_owned()];
        if self.constituency.is_some() {
            conditions.push(format!("{}constituency = :constituency", plus(order == Some(IndexOrder::Model))));
        }
        if let Some(names) = self.within {
            conditions.push(format!("{}{}", plus(order.is_some()), within(names)));
        }
        if let Some(states) = self.states {
            let ranks: Vec<String> = states.iter().map(|state| state.rank().to_string()).collect();
            let plus = plus(matches!(order, Some(IndexOrder::Model | IndexOrder::Name)));
            conditions.push(format!("{plus}state IN ({})", ranks.join(", ")));
        }
        if self.text.is_some() {
            conditions.push("(instr(text, :text) OR instr(mac, :digits))".to_owned());
        }
        conditions.join(" AND ")
    }

    /// The values of the condition.
    fn values(&self) -> Vec<(&'static str, &dyn ToSql)> {
        let mut values: Vec<(&'static str, &dyn ToSql)> = Vec::new();
        if let Some(constituency) = &self.constituency {
            values.push((":constituency", constituency));
        }
        if let Some(text) = &self.text {
            values.extend([(":text", text as &dyn ToSql), (":digits", &self.digits)]);
        }
        values
    }
}

impl HistoryReader {
    /// Does `work`, whose queries all see the database as it is now.
    ///
    /// # Errors
    /// If the database cannot be read, or `work` fails.
    pub fn at_one_moment<T>(&self, work: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
        self.run(|connection| connection.execute_batch("BEGIN"))?;
        let done = work();
        self.run(|connection| connection.execute_batch("ROLLBACK"))?;
        done
    }

    /// The numbers of phones in the index, sorted by constituency.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn index_counts(&self) -> Result<Vec<IndexCount>, ReadError> {
        self.query(
            "SELECT constituency, state, listing, phones, recent FROM phone_count ORDER BY constituency",
            [],
            |row| {
                let listing: i64 = row.get(2)?;
                let listings = [None, Some(Listing::Known), Some(Listing::Denied)];
                Ok(IndexCount {
                    constituency: row.get(0)?,
                    state: state(row, 1)?,
                    listing: listings.into_iter().find(|it| index::number_of(*it) == listing).flatten(),
                    phones: row.get(3)?,
                    recent: row.get(4)?,
                })
            },
        )
    }

    /// A number that changes whenever [`HistoryReader::index_counts`] does.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn index_version(&self) -> Result<i64, ReadError> {
        let version: Vec<i64> = self.query("SELECT number FROM index_version", [], |row| row.get(0))?;
        Ok(version.into_iter().sum())
    }

    /// The numbers of phones by constituency, and by TLS version and cipher suite, joined by a slash.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn tls_counts(&self) -> Result<Vec<(ConstituencyName, String, usize)>, ReadError> {
        let sql = "SELECT constituency, name, phones FROM tls_count JOIN negotiated_tls ON id = tls";
        self.query(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
    }

    /// A page of the phones that match `filter`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn index_page(
        &self,
        filter: &IndexFilter<'_>,
        order: IndexOrder,
        is_reversed: bool,
        (offset, limit): (usize, usize),
    ) -> Result<Vec<IndexKey>, ReadError> {
        let terms = order.sql(is_reversed);
        let reach = offset.saturating_add(limit);
        let mut values = filter.values();
        values.extend([(":limit", &limit as &dyn ToSql), (":offset", &offset)]);
        let sorted = match (order, filter.states) {
            // An index has the phones of one state by time. Those of several are merged: the first of all are among the
            // first of each.
            (IndexOrder::LastSeen, states) if states.is_none_or(|states| states.len() > 1) => {
                values.push((":reach", &reach));
                let of_state = |state: &PhoneState| {
                    let filter = IndexFilter { states: Some(std::slice::from_ref(state)), ..*filter };
                    let condition = filter.condition(Some(order));
                    format!(
                        "SELECT * FROM (SELECT constituency, mac, state, last_seen FROM phone_index
                         WHERE {condition} ORDER BY {terms} LIMIT :reach)"
                    )
                };
                states.unwrap_or(&PhoneState::ALL).iter().map(of_state).collect::<Vec<_>>().join(" UNION ALL ")
            }
            _ => format!("SELECT constituency, mac FROM phone_index WHERE {}", filter.condition(Some(order))),
        };
        let sql = format!("{sorted} ORDER BY {terms} LIMIT :limit OFFSET :offset");
        self.query(&sql, values.as_slice(), |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// The first `limit` phones that match `filter`, in no order.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn index_matches(&self, filter: &IndexFilter<'_>, limit: usize) -> Result<Vec<IndexMatch>, ReadError> {
        let (condition, mut values) = (filter.condition(None), filter.values());
        let table = filter.table();
        let sql = format!(
            "SELECT constituency, mac, state, last_seen, model, firmware FROM {table} WHERE {condition} LIMIT :limit"
        );
        values.push((":limit", &limit));
        self.query(&sql, values.as_slice(), |row| {
            Ok(IndexMatch {
                key: (row.get(0)?, row.get(1)?),
                state: state(row, 2)?,
                last_seen: row.get(3)?,
                model: row.get(4)?,
                firmware: row.get(5)?,
            })
        })
    }

    /// How many phones match `filter`, by state. Reads the index of one constituency, or all of it.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn count_matches(&self, filter: &IndexFilter<'_>) -> Result<Vec<(PhoneState, usize)>, ReadError> {
        let (condition, values) = (filter.condition(None), filter.values());
        // Without GROUP BY, which would sort.
        let sums = PhoneState::ALL.map(|state| format!("count(*) FILTER (WHERE state = {})", state.rank()));
        let sql = format!("SELECT {} FROM {} WHERE {condition}", sums.join(", "), filter.table());
        let counts = self.query(&sql, values.as_slice(), |row| {
            let count = |(position, state)| Ok((state, row.get(position)?));
            (0..).zip(PhoneState::ALL).map(count).collect::<rusqlite::Result<Vec<(PhoneState, usize)>>>()
        })?;
        Ok(counts.into_iter().flatten().collect())
    }

    /// The phones of a constituency that are in the index.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn indexed(&self, constituency: &ConstituencyName) -> Result<HashSet<MacAddress>, ReadError> {
        let sql = "SELECT mac FROM phone_index WHERE constituency = ?";
        let macs = self.query(sql, [constituency.as_str()], |row| row.get(0))?;
        Ok(macs.into_iter().collect())
    }

    /// A phone as it was seen, and the last claim to be it.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn phone(
        &self,
        constituency: &ConstituencyName,
        mac: MacAddress,
    ) -> Result<(Option<StoredPhone>, Option<StoredClaim>), ReadError> {
        self.run(|connection| index::of_phone(connection, constituency, mac))
    }

    /// The newest claims, of the constituencies `names` if there are any.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn newest_claims(
        &self,
        names: Option<&BTreeSet<ConstituencyName>>,
        limit: usize,
    ) -> Result<Vec<StoredClaim>, ReadError> {
        let condition = names.map_or_else(|| "TRUE".to_owned(), within);
        let newest = format!("SELECT * FROM claim WHERE {condition} ORDER BY last_seen DESC LIMIT ?");
        let claims = self.query(&newest, [limit], reader::claim)?;
        let sql = format!(
            "SELECT claim_address.* FROM ({newest}) CROSS JOIN claim_address USING (constituency, mac, fingerprint)
             ORDER BY claim_address.last_seen DESC, claim_address.address"
        );
        Ok(reader::with_addresses(claims, self.query(&sql, [limit], reader::claim_address)?))
    }

    /// The visits of all phones that come regularly, of each constituency in which several are overdue.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn visits_where_overdue(&self) -> Result<BTreeMap<ConstituencyName, Vec<VisitPattern>>, ReadError> {
        let sql = "SELECT constituency FROM phone_index INDEXED BY phone_index_overdue WHERE is_overdue = 1
                   GROUP BY constituency HAVING count(*) >= ?";
        let overdue: Vec<ConstituencyName> = self.query(sql, [MIN_SILENT], |row| row.get(0))?;
        let sql = "SELECT last_seen, usual_pause FROM phone_index WHERE constituency = ? AND usual_pause IS NOT NULL";
        let visits = |name: ConstituencyName| {
            let row = |row: &Row<'_>| Ok(VisitPattern::regular(row.get(0)?, row.get(1)?));
            Ok((name.clone(), self.query(sql, [name.as_str()], row)?))
        };
        overdue.into_iter().map(visits).collect()
    }
}

/// The condition that the constituency is one of `names`. A name is a DNS label, so it needs no escaping.
fn within(names: &BTreeSet<ConstituencyName>) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    format!("constituency IN ({})", names.join(", "))
}

fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<PhoneState> {
    let number: i64 = row.get(column)?;
    index::state_of(number).ok_or(rusqlite::Error::IntegralValueOutOfRange(column, number))
}

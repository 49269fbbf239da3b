//! Keeps the database in order beside the traffic: corrects the index of phones when policies or the time change it,
//! deletes expired rows, and returns free pages to the file system. Each slice is one short transaction, so that events
//! never wait long, however much there is to do.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, params};

use super::activity::STEP_S;
use super::index::{self, PhoneKey};
use super::phone_event::milliseconds;
use crate::constituency::denials::DeniedPhones;
use crate::constituency::{Constituency, ConstituencyName, MacAddress, Phones, Registry, ServerDenials};

/// How many rows a slice visits or deletes at most.
pub(super) const SLICE: usize = 2_000;
/// How many pages a slice returns to the file system at most.
const VACUUM_SLICE: u32 = 500;
/// How many free pages stay for new rows.
const SPARE_PAGES: i64 = 1_000;
/// How long requests are kept.
const RETENTION: Duration = Duration::from_hours(30 * 24);
/// How long the activity is kept.
const ACTIVITY_RETENTION: Duration = Duration::from_hours(2 * 24);
/// By how much a clock is set back as a matter of course.
const CLOCK_TOLERANCE: Duration = Duration::from_mins(1);
/// How often expired rows are deleted.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);

/// What decides the states of phones besides the phone history.
#[derive(Debug, Clone)]
pub(super) struct Policies {
    pub(super) registry: Arc<Registry>,
    pub(super) denials: Arc<ServerDenials>,
}

/// What a slice has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    /// How many rows it changed or deleted.
    pub(super) changed: usize,
    /// Whether there is more to do now.
    pub(super) has_more: bool,
}

/// A walk along a table, to correct the index. It goes on after the last row that was visited.
#[derive(Debug)]
enum Walk {
    /// All phones that were seen, by row ID.
    Phones(i64),
    /// The rows of the index that have no phone: some may have lost it. The others are visited with their phones.
    Index(String, String),
    /// All claims.
    Claims(i64),
    /// The rows of one constituency.
    Constituency(ConstituencyName, String),
}

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    policies: Option<Policies>,
    /// The server-wide denials that the index knows.
    denied: Arc<DeniedPhones>,
    /// Phones whose row may be wrong.
    keys: VecDeque<PhoneKey>,
    walks: VecDeque<Walk>,
    /// When the last slice ran.
    last: Option<SystemTime>,
    swept: Option<SystemTime>,
    has_freed: bool,
    is_indexing: bool,
}

impl Upkeep {
    /// Takes over `policies`: what differs from those before is corrected by later slices.
    pub(super) fn follow(&mut self, policies: Policies) {
        match self.policies.take() {
            None => self.walk_all(),
            Some(before) => {
                let names: BTreeSet<&ConstituencyName> =
                    before.registry.served().chain(policies.registry.served()).map(|it| &it.name).collect();
                for name in names {
                    let of = |registry: &Registry| registry.by_folder(name.as_str()).cloned();
                    self.follow_one(name, of(&before.registry).as_deref(), of(&policies.registry).as_deref());
                }
            }
        }
        self.policies = Some(policies);
    }

    /// Whether many phones are not in the index yet, as after an update.
    pub(super) fn is_indexing(&self) -> bool {
        self.is_indexing
    }

    /// Everything may be wrong: the process before this one, or a clock, may have left anything.
    fn walk_all(&mut self) {
        self.denied = Arc::default();
        self.walks = [Walk::Claims(0), Walk::Phones(0), Walk::Index(String::new(), String::new())].into();
    }

    fn follow_one(&mut self, name: &ConstituencyName, before: Option<&Constituency>, after: Option<&Constituency>) {
        let (Some(before), Some(after)) = (before, after) else {
            self.walks.push_back(Walk::Constituency(name.clone(), String::new()));
            return;
        };
        if std::ptr::eq(before, after) {
            return;
        }
        let is_any = |it: &Constituency| it.policy.phones == Phones::Any;
        let is_changed =
            |mac: &MacAddress| before.listing(*mac) != after.listing(*mac) || before.note(*mac) != after.note(*mac);
        let added = after.listed_phones().filter(is_changed);
        let removed = before.listed_phones().filter(|mac| !after.lists(*mac));
        // Of many changes, most are of phones that were never seen, which have no row.
        let changed: Vec<MacAddress> = added.chain(removed).take(SLICE + 1).collect();
        if is_any(before) != is_any(after) || changed.len() > SLICE {
            self.walks.push_back(Walk::Constituency(name.clone(), String::new()));
        } else {
            self.keys.extend(changed.into_iter().map(|mac| (name.clone(), mac)));
        }
    }

    /// The phones of which server-wide denials were added or lifted since the last slice.
    fn follow_denials(&mut self, policies: &Policies, connection: &Connection) -> rusqlite::Result<()> {
        let now = policies.denials.phones();
        if Arc::ptr_eq(&now, &self.denied) {
            return Ok(());
        }
        let mut keys: Vec<PhoneKey> = Vec::new();
        let lifted = self.denied.keys().filter(|mac| !now.contains_key(mac));
        let added = now.keys().filter(|mac| !self.denied.contains_key(mac));
        for mac in lifted.chain(added).copied() {
            let sql = "SELECT constituency FROM phone WHERE mac = ?";
            let mut statement = connection.prepare_cached(sql)?;
            let seen = statement.query_map([mac.to_string()], |row| row.get(0))?;
            keys.extend(seen.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().map(|name| (name, mac)));
            // Whether a list names it is known at once. Which one, only the lists know.
            if policies.registry.listed().is_in_a_constituency(mac) {
                let listing = policies.registry.served().filter(|it| it.listing(mac).is_some());
                keys.extend(listing.map(|it| (it.name.clone(), mac)));
            }
        }
        // After the queries: if one fails, the next slice compares again.
        self.denied = now;
        self.keys.extend(keys);
        Ok(())
    }

    /// Corrects the rows of `keys`, whose phones or claims have just been written.
    pub(super) fn refresh<'a>(
        &self,
        connection: &Connection,
        keys: impl IntoIterator<Item = (&'a ConstituencyName, MacAddress)>,
        now: SystemTime,
    ) -> rusqlite::Result<usize> {
        let Some(policies) = &self.policies else { return Ok(0) };
        index::refresh(connection, &policies.registry, keys, milliseconds(now))
    }

    /// Does the most urgent part of the work in one transaction.
    pub(super) fn run_slice(&mut self, connection: &mut Connection, now: SystemTime) -> rusqlite::Result<Slice> {
        // Before the clock was set back, phones may have been taken for silent.
        let is_set_back = |last: SystemTime| last.duration_since(now).is_ok_and(|step| step > CLOCK_TOLERANCE);
        if self.last.is_some_and(is_set_back) && self.policies.is_some() {
            self.walk_all();
        }
        self.last = Some(now);
        if let Some(policies) = self.policies.clone() {
            self.follow_denials(&policies, connection)?;
            if let Some(slice) = self.correct(connection, &policies.registry, milliseconds(now))? {
                return Ok(slice);
            }
        }
        if self.swept.is_none_or(|swept| !now.duration_since(swept).is_ok_and(|age| age <= SWEEP_INTERVAL)) {
            return self.sweep(connection, now);
        }
        if self.has_freed {
            return self.return_pages(connection);
        }
        Ok(Slice { changed: 0, has_more: false })
    }

    /// Corrects some rows of the index. `None` if there are none to correct.
    fn correct(
        &mut self,
        connection: &mut Connection,
        registry: &Registry,
        now: i64,
    ) -> rusqlite::Result<Option<Slice>> {
        let transaction = connection.transaction()?;
        let mut next_walk = None;
        let is_walk = self.keys.is_empty();
        let keys: Vec<PhoneKey> = if is_walk {
            let due = due(&transaction, now)?;
            match self.walks.front() {
                _ if !due.is_empty() => due,
                Some(walk) => {
                    let (keys, next) = walk.step(&transaction)?;
                    next_walk = Some(next);
                    keys
                }
                None => return Ok(None),
            }
        } else {
            self.keys.iter().take(SLICE).cloned().collect()
        };
        let changed = index::refresh(&transaction, registry, keys.iter().map(|(name, mac)| (name, *mac)), now)?;
        transaction.commit()?;
        // After the commit: a slice that failed is done again.
        if !is_walk {
            self.keys.drain(..keys.len());
        }
        if let Some(next) = next_walk {
            if let Some(Walk::Phones(_)) = self.walks.pop_front() {
                self.is_indexing = next.is_some() && changed == SLICE;
            }
            if let Some(next) = next {
                self.walks.push_front(next);
            }
        }
        Ok(Some(Slice { changed, has_more: true }))
    }

    fn sweep(&mut self, connection: &mut Connection, now: SystemTime) -> rusqlite::Result<Slice> {
        let oldest = milliseconds(now - RETENTION);
        let transaction = connection.transaction()?;
        let changed = transaction
            .prepare_cached(
                "DELETE FROM request WHERE (phone, number) IN
                 (SELECT phone, number FROM request WHERE time < ? ORDER BY time LIMIT ?)",
            )?
            .execute(params![oldest, SLICE])?;
        let is_done = changed < SLICE;
        if is_done {
            let oldest_step = milliseconds(now - ACTIVITY_RETENTION) / 1000 / STEP_S;
            transaction.execute("DELETE FROM activity WHERE step < ?", [oldest_step])?;
        }
        transaction.commit()?;
        if is_done {
            self.swept = Some(now);
            // Rows are deleted by other work too.
            self.has_freed = true;
        }
        Ok(Slice { changed, has_more: true })
    }

    /// Shrinks the file by free pages, if it was made so that it can.
    fn return_pages(&mut self, connection: &Connection) -> rusqlite::Result<Slice> {
        let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        let mode: i64 = connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?;
        self.has_freed = mode == INCREMENTAL && free > SPARE_PAGES;
        if self.has_freed {
            let mut statement = connection.prepare_cached(&format!("PRAGMA incremental_vacuum({VACUUM_SLICE})"))?;
            let mut rows = statement.query([])?;
            // Each step returns a page.
            while rows.next()?.is_some() {}
        }
        Ok(Slice { changed: 0, has_more: self.has_freed })
    }
}

/// `PRAGMA auto_vacuum`: free pages are returned by `PRAGMA incremental_vacuum`.
pub(super) const INCREMENTAL: i64 = 2;

/// The phones whose state changes with the time alone, until `now`.
fn due(connection: &Connection, now: i64) -> rusqlite::Result<Vec<PhoneKey>> {
    let sql = "SELECT constituency, mac FROM phone_index WHERE due <= ? ORDER BY due LIMIT ?";
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_map(params![now, SLICE], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

impl Walk {
    /// The next phones of the walk, and how it goes on; `None` at its end.
    fn step(&self, connection: &Connection) -> rusqlite::Result<(Vec<PhoneKey>, Option<Self>)> {
        let by_id = |sql: &str, after: i64| -> rusqlite::Result<(Vec<PhoneKey>, Option<i64>)> {
            let mut statement = connection.prepare_cached(sql)?;
            let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, (row.get(1)?, row.get(2)?)));
            let rows: Vec<(i64, PhoneKey)> =
                statement.query_map(params![after, SLICE], row)?.collect::<rusqlite::Result<_>>()?;
            let last = rows.last().map(|(id, _)| *id);
            Ok((rows.into_iter().map(|(_, key)| key).collect(), last))
        };
        match self {
            Self::Phones(after) => {
                let sql = "SELECT id, constituency, mac FROM phone WHERE id > ? ORDER BY id LIMIT ?";
                let (keys, last) = by_id(sql, *after)?;
                Ok((keys, last.map(Self::Phones)))
            }
            Self::Claims(after) => {
                let sql = "SELECT rowid, constituency, mac FROM claim WHERE rowid > ? ORDER BY rowid LIMIT ?";
                let (keys, last) = by_id(sql, *after)?;
                Ok((keys, last.map(Self::Claims)))
            }
            Self::Index(constituency, mac) => {
                let sql = "SELECT constituency, mac, EXISTS (SELECT TRUE FROM phone
                               WHERE (constituency, mac) = (phone_index.constituency, phone_index.mac))
                           FROM phone_index WHERE (constituency, mac) > (?, ?) ORDER BY constituency, mac LIMIT ?";
                let mut statement = connection.prepare_cached(sql)?;
                let row = |row: &rusqlite::Row<'_>| Ok(((row.get(0)?, row.get(1)?), row.get(2)?));
                let visited: Vec<(PhoneKey, bool)> =
                    statement.query_map(params![constituency, mac, SLICE], row)?.collect::<rusqlite::Result<_>>()?;
                let next = visited.last().map(|((name, mac), _)| Self::Index(name.to_string(), mac.to_string()));
                Ok((visited.into_iter().filter(|(_, has_phone)| !has_phone).map(|(key, _)| key).collect(), next))
            }
            Self::Constituency(name, after) => {
                let sql = "SELECT mac FROM phone WHERE constituency = ?1 AND mac > ?2
                           UNION SELECT mac FROM phone_index WHERE constituency = ?1 AND mac > ?2
                           UNION SELECT mac FROM claim WHERE constituency = ?1 AND mac > ?2
                           ORDER BY mac LIMIT ?3";
                let mut statement = connection.prepare_cached(sql)?;
                let macs: Vec<MacAddress> = statement
                    .query_map(params![name.as_str(), after, SLICE], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                let next = macs.last().map(|mac| Self::Constituency(name.clone(), mac.to_string()));
                Ok((macs.into_iter().map(|mac| (name.clone(), mac)).collect(), next))
            }
        }
    }
}

/// Lets a small database that is older than this setting return free pages from now on. A large one would lock the
/// history for too long: it keeps its size, and uses the free pages again.
pub(super) fn make_shrinkable(connection: &Connection) -> rusqlite::Result<()> {
    /// The size of a database that is rewritten within about a second.
    const MAX_REWRITTEN: i64 = 64 << 20;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if number("auto_vacuum")? == INCREMENTAL
        || number("page_count")?.saturating_mul(number("page_size")?) > MAX_REWRITTEN
    {
        return Ok(());
    }
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.execute_batch("VACUUM")
}

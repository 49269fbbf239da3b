//! The index of phones: one row per phone with what lists are counted, sorted and searched by. It derives from the phone,
//! its last claim and the policies. It decides nothing: access control never reads it.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::phone_state::PhoneState;
use super::reader;
use super::silence::VisitPattern;
use super::summary::{PhoneSummary, SILENT_AFTER};
use super::{StoredClaim, StoredPhone};
use crate::constituency::{ConstituencyName, Listing, MacAddress, PhoneStanding, Registry};

/// A phone of a constituency.
pub(super) type PhoneKey = (ConstituencyName, MacAddress);

/// For how long after its last request a phone counts as seen lately, in milliseconds.
const RECENT: i64 = 86_400_000;

/// A row of the index, without its key.
#[derive(Debug, PartialEq, Eq)]
struct IndexRow {
    state: i64,
    listing: i64,
    is_recent: bool,
    last_seen: Option<i64>,
    model: Option<String>,
    firmware: Option<String>,
    tls: Option<String>,
    /// The usual pause, if the phone is known and comes regularly.
    usual_pause: Option<i64>,
    is_overdue: bool,
    /// When the row must be derived again although nothing has changed.
    due: Option<i64>,
    /// The text that searches look at, in lower case.
    text: String,
}

/// The stored form of what a list says.
pub(super) fn number_of(listing: Option<Listing>) -> i64 {
    match listing {
        None => 0,
        Some(Listing::Known) => 1,
        Some(Listing::Denied) => 2,
    }
}

/// The stored form of a state.
pub(super) fn number_of_state(state: PhoneState) -> i64 {
    i64::try_from(state.rank()).unwrap_or(i64::MAX)
}

/// The state of a stored number. `None` if a newer provost wrote it.
pub(super) fn state_of(number: i64) -> Option<PhoneState> {
    PhoneState::ALL.get(usize::try_from(number).ok()?).copied()
}

/// Derives the rows of `keys` again, by the policies of `registry` at `now`, in Unix milliseconds. Returns how many
/// changed. Writes nothing else.
pub(super) fn refresh<'a>(
    connection: &Connection,
    registry: &Registry,
    keys: impl IntoIterator<Item = (&'a ConstituencyName, MacAddress)>,
    now: i64,
) -> rusqlite::Result<usize> {
    let mut changed = 0;
    for (constituency, mac) in keys {
        let before = stored(connection, constituency, mac)?;
        let after = derive(connection, registry, constituency, mac, now)?;
        if before == after {
            continue;
        }
        changed += 1;
        match after {
            Some(row) => write(connection, constituency, mac, &row)?,
            None => {
                let sql = "DELETE FROM phone_index WHERE (constituency, mac) = (?, ?)";
                connection.prepare_cached(sql)?.execute(params![constituency.as_str(), mac.to_string()])?;
            }
        }
    }
    Ok(changed)
}

fn derive(
    connection: &Connection,
    registry: &Registry,
    constituency: &ConstituencyName,
    mac: MacAddress,
    now: i64,
) -> rusqlite::Result<Option<IndexRow>> {
    let served = registry.by_folder(constituency.as_str()).map(AsRef::as_ref);
    let (seen, claim) = of_phone(connection, constituency, mac)?;
    let listing = served.and_then(|served| served.listing(mac));
    let phone = PhoneSummary { seen, claim, ..PhoneSummary::of(served, mac) };
    let state = PhoneState::of(&phone, now);
    if phone.seen.is_none() && listing.is_none_or(|listing| state == PhoneState::of_unseen(listing)) {
        return Ok(None);
    }
    let seen = phone.seen.as_ref();
    let last_seen = seen.map(|seen| seen.last_seen);
    let is_recent = last_seen.is_some_and(|last_seen| now.saturating_sub(last_seen) < RECENT);
    let claimed = phone.claim.as_ref().map(|claim| claim.last_seen);
    let changes = [(last_seen, RECENT), (last_seen, SILENT_AFTER), (claimed, SILENT_AFTER)];
    let rhythm = seen.filter(|_| phone.standing == Some(PhoneStanding::Known));
    let rhythm = rhythm.map(|seen| VisitPattern { last_seen: seen.last_seen, visits: seen.visits });
    let overdue_at = rhythm.and_then(VisitPattern::overdue_at);
    let changes = changes.into_iter().filter_map(|(at, after)| Some(at?.saturating_add(after))).chain(overdue_at);
    let text = |it: &Option<String>| it.as_deref().unwrap_or_default().to_lowercase();
    Ok(Some(IndexRow {
        state: number_of_state(state),
        listing: number_of(listing),
        is_recent,
        last_seen,
        model: seen.and_then(|seen| seen.model.clone()),
        firmware: seen.and_then(|seen| seen.firmware.clone()),
        tls: seen.and_then(|seen| seen.tls.as_ref()).map(|(version, suite)| format!("{version}/{suite}")),
        usual_pause: rhythm.filter(|_| overdue_at.is_some()).and_then(|it| it.visits.usual_pause),
        is_overdue: overdue_at.is_some_and(|at| at <= now),
        due: changes.filter(|at| *at > now).min(),
        text: [
            constituency.to_string(),
            phone.note.to_lowercase(),
            seen.map(|seen| seen.address.to_lowercase()).unwrap_or_default(),
            seen.map(|seen| text(&seen.model)).unwrap_or_default(),
            seen.map(|seen| text(&seen.firmware)).unwrap_or_default(),
        ]
        .join("\n"),
    }))
}

/// The phone as it was seen, and the last claim to be it.
pub(super) fn of_phone(
    connection: &Connection,
    constituency: &ConstituencyName,
    mac: MacAddress,
) -> rusqlite::Result<(Option<StoredPhone>, Option<StoredClaim>)> {
    let key = params![constituency.as_str(), mac.to_string()];
    let mut statement = connection.prepare_cached(reader::PHONE_BY_KEY)?;
    let seen = statement.query_one(key, reader::phone).optional()?;
    #[cfg(test)]
    reader::count_steps(&statement);
    let sql = "SELECT * FROM claim WHERE (constituency, mac) = (?, ?) ORDER BY last_seen DESC LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let claim = statement.query_one(key, reader::claim).optional()?;
    #[cfg(test)]
    reader::count_steps(&statement);
    Ok((seen, claim))
}

fn stored(
    connection: &Connection,
    constituency: &ConstituencyName,
    mac: MacAddress,
) -> rusqlite::Result<Option<IndexRow>> {
    // By position: to look up a column by its name costs more than to read it.
    let sql = "SELECT state, listing, is_recent, last_seen, model, firmware,
                   (SELECT name FROM negotiated_tls WHERE id = tls), usual_pause, is_overdue, due, text
               FROM phone_index WHERE (constituency, mac) = (?, ?)";
    let row = |row: &Row<'_>| {
        Ok(IndexRow {
            state: row.get(0)?,
            listing: row.get(1)?,
            is_recent: row.get(2)?,
            last_seen: row.get(3)?,
            model: row.get(4)?,
            firmware: row.get(5)?,
            tls: row.get(6)?,
            usual_pause: row.get(7)?,
            is_overdue: row.get(8)?,
            due: row.get(9)?,
            text: row.get(10)?,
        })
    };
    connection.prepare_cached(sql)?.query_one(params![constituency.as_str(), mac.to_string()], row).optional()
}

fn write(
    connection: &Connection,
    constituency: &ConstituencyName,
    mac: MacAddress,
    row: &IndexRow,
) -> rusqlite::Result<()> {
    if row.tls.is_some() {
        let sql = "INSERT INTO negotiated_tls (name) VALUES (?) ON CONFLICT DO NOTHING";
        connection.prepare_cached(sql)?.execute([&row.tls])?;
    }
    let mut statement = connection.prepare_cached(
        "INSERT INTO phone_index (constituency, mac, state, listing, is_recent, last_seen, model, firmware, tls,
             usual_pause, is_overdue, due, text)
         VALUES (:constituency, :mac, :state, :listing, :is_recent, :last_seen, :model, :firmware,
             (SELECT id FROM negotiated_tls WHERE name = :tls), :usual_pause, :is_overdue, :due, :text)
         ON CONFLICT (constituency, mac) DO UPDATE SET
             state = excluded.state, listing = excluded.listing, is_recent = excluded.is_recent,
             last_seen = excluded.last_seen, model = excluded.model, firmware = excluded.firmware, tls = excluded.tls,
             usual_pause = excluded.usual_pause, is_overdue = excluded.is_overdue, due = excluded.due,
             text = excluded.text",
    )?;
    let values = named_params! {
        ":constituency": constituency.as_str(), ":mac": mac.to_string(), ":state": row.state, ":listing": row.listing,
        ":is_recent": row.is_recent, ":last_seen": row.last_seen, ":model": row.model, ":firmware": row.firmware,
        ":tls": row.tls, ":usual_pause": row.usual_pause, ":is_overdue": row.is_overdue, ":due": row.due,
        ":text": row.text,
    };
    statement.execute(values).map(drop)
}

//! The content of `phones.csv`: known phones beside those of the policy, for lists of up to a million.
//!
//! The first line names the columns: `mac`, perhaps `note`, and any others, which are ignored. The separator is a comma or
//! a semicolon, whichever the first line has. Each further line is one phone. So a quote that is not closed, which would
//! hide all phones behind it, is an error. Pure.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder, Terminator, WriterBuilder};

use super::edit::{AllowedPhone, PhoneEffect};
use super::policy_file::UnreadablePolicy;
use super::{MacAddress, NotAPhone};
use crate::settings::SettingsError;

/// The name of the phone list, which is never served.
pub const PHONES_FILE: &str = "phones.csv";

/// The column of MAC addresses.
const MAC: &str = "mac";
/// The column of notes.
const NOTE: &str = "note";
/// The longest first line, in bytes.
const MAX_HEADER: u64 = 64 << 10;
/// The largest list that is read, in bytes: a million phones of 67 bytes each.
pub(super) const MAX_LIST_BYTES: u64 = 64 << 20;
/// What Excel and others write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Known phones with their notes, sorted. A phone takes ten bytes and its note.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PhoneList {
    macs: Box<[MacAddress]>,
    /// The end of each phone's note in `notes`.
    ends: Box<[u32]>,
    notes: Box<str>,
}

/// A list in the same format that a command reads, with the lines of its phones.
pub struct PhoneFile(Rows);

/// Why a list is not read.
#[derive(Debug)]
pub(super) enum ListError {
    /// A line is invalid.
    Line(usize, String),
    Unreadable(UnreadablePolicy),
}

/// A change of the text of a list: `with` replaces the bytes at `at`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Splice {
    pub(super) at: Range<usize>,
    pub(super) with: Vec<u8>,
}

impl PhoneList {
    /// Reads a list as a stream.
    pub(super) fn read(file: impl Read) -> Result<Self, ListError> {
        let Rows { phones: rows, notes, .. } = Rows::read(file)?;
        let mut sorted = String::with_capacity(notes.len());
        let mut ends = Vec::with_capacity(rows.len());
        for row in &rows {
            sorted.push_str(notes.get(row.note()).unwrap_or_default());
            ends.push(offset(sorted.len(), row.line)?);
        }
        Ok(Self { macs: rows.iter().map(|row| row.mac).collect(), ends: ends.into(), notes: sorted.into_boxed_str() })
    }

    /// Writes the list, without further columns.
    pub(super) fn write(&self, file: impl Write) -> io::Result<()> {
        let mut writer = WriterBuilder::new().from_writer(file);
        writer.write_record([MAC, NOTE])?;
        for mac in self.phones() {
            writer.write_record([mac.to_string().as_str(), self.note(mac)])?;
        }
        writer.flush()
    }

    #[must_use]
    pub fn contains(&self, mac: MacAddress) -> bool {
        self.macs.binary_search(&mac).is_ok()
    }

    /// The note on `mac`; empty if there is none.
    #[must_use]
    pub fn note(&self, mac: MacAddress) -> &str {
        let Ok(at) = self.macs.binary_search(&mac) else { return "" };
        let end = |at: usize| self.ends.get(at).map_or(0, |end| *end as usize);
        let start = at.checked_sub(1).map_or(0, end);
        self.notes.get(start..end(at)).unwrap_or_default()
    }

    /// The phones, sorted.
    pub fn phones(&self) -> impl Iterator<Item = MacAddress> {
        self.macs.iter().copied()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.macs.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.macs.is_empty()
    }

    /// The phones that only one of the two lists has.
    pub(super) fn difference(&self, other: &Self) -> impl Iterator<Item = MacAddress> {
        let (mut mine, mut theirs) = (self.phones().peekable(), other.phones().peekable());
        std::iter::from_fn(move || {
            loop {
                return match (mine.peek(), theirs.peek()) {
                    (Some(one), Some(two)) if one == two => {
                        mine.next();
                        theirs.next();
                        continue;
                    }
                    (Some(one), Some(two)) if one > two => theirs.next(),
                    (None, _) => theirs.next(),
                    _ => mine.next(),
                };
            }
        })
    }
}

impl PhoneFile {
    /// Reads a list. `name` names it in errors.
    ///
    /// # Errors
    /// The line that is invalid, and why; or that the list cannot be read.
    pub fn read(file: impl Read, name: &Path) -> Result<Self, SettingsError> {
        Self::read_within(file, name, MAX_LIST_BYTES)
    }

    fn read_within(file: impl Read, name: &Path, limit: u64) -> Result<Self, SettingsError> {
        let mut file = file.take(limit + 1);
        let rows = Rows::read(&mut file);
        if file.limit() == 0 {
            return Err(SettingsError::of_file(name, too_large()));
        }
        let rows = rows.map_err(|error| error.in_file(name))?;
        let invalid = rows.phones.iter().filter_map(|row| Some((row.line, row.mac.check_phone().err()?)));
        match invalid.min_by_key(|(line, _)| *line) {
            None => Ok(Self(rows)),
            Some((line, reason)) => Err(ListError::Line(line, reason.to_string()).in_file(name)),
        }
    }

    /// The phones, sorted. One without a note keeps the note that it has.
    pub fn phones(&self) -> impl Iterator<Item = AllowedPhone<'_>> {
        let note = |row: &Row| self.0.notes.get(row.note()).filter(|note| !note.is_empty());
        self.0.phones.iter().map(move |row| AllowedPhone { mac: row.mac, note: note(row) })
    }

    /// The number of the line that names `mac`.
    #[must_use]
    pub fn line(&self, mac: MacAddress) -> Option<usize> {
        let at = self.0.phones.binary_search_by_key(&mac, |row| row.mac).ok()?;
        Some(self.0.phones.get(at)?.line)
    }
}

/// The changes that put `phones` on the list `text`, or change their notes, by offset; and the effect on each phone. All
/// other bytes stay.
pub(super) fn allow(text: &[u8], phones: &[AllowedPhone<'_>]) -> Result<(Vec<Splice>, Vec<PhoneEffect>), ListError> {
    let Rows { phones: rows, notes, columns } = Rows::read(text)?;
    let in_header = |reason: &str| ListError::Line(1, reason.to_owned());
    let (mut added, mut changed, mut effects) = (Vec::new(), Vec::new(), Vec::with_capacity(phones.len()));
    for AllowedPhone { mac, note } in phones {
        let note = note.map(str::trim);
        if note.is_some_and(|note| note.contains(['\n', '\r'])) {
            return Err(in_header("a note is one line"));
        }
        if note.is_some_and(|note| !note.is_empty()) && columns.note.is_none() {
            return Err(in_header("no column \"note\"; add it, or allow the phone without a note"));
        }
        let row = rows.binary_search_by_key(mac, |row| row.mac).ok().and_then(|at| rows.get(at));
        let before = row.and_then(|row| notes.get(row.note())).unwrap_or_default();
        effects.push(match (row, note, columns.note) {
            (None, _, _) => {
                added.push((*mac, note.unwrap_or_default()));
                PhoneEffect::Added
            }
            (Some(row), Some(note), Some(column)) if before != note => {
                let end = text.len().min(row.end as usize);
                changed.push(columns.replace(text, row.line, end, column, note)?);
                PhoneEffect::Noted { before: before.to_owned() }
            }
            _ => PhoneEffect::Unchanged,
        });
    }
    changed.sort_by_key(|change| change.splice.at.start);
    columns.check_others(text, &changed)?;
    let mut splices: Vec<Splice> = changed.into_iter().map(|change| change.splice).collect();
    if !added.is_empty() {
        splices.push(columns.append(text, &added)?);
    }
    Ok((splices, effects))
}

impl ListError {
    /// The error in the words of a setting's, with `file` as its name.
    pub(super) fn in_file(self, file: &Path) -> SettingsError {
        match self {
            Self::Line(line, reason) => SettingsError::of_line(file, line, reason),
            Self::Unreadable(error) => SettingsError::of_file(file, error),
        }
    }
}

impl From<csv::Error> for ListError {
    /// With any number of fields in a line, and bytes of any encoding, only reading itself fails.
    fn from(error: csv::Error) -> Self {
        io::Error::from(error).into()
    }
}

impl From<io::Error> for ListError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(UnreadablePolicy::Io(error))
    }
}

impl From<UnreadablePolicy> for ListError {
    fn from(error: UnreadablePolicy) -> Self {
        Self::Unreadable(error)
    }
}

pub(super) fn too_large() -> UnreadablePolicy {
    UnreadablePolicy::TooLarge { limit: MAX_LIST_BYTES, remedy: "remove columns that provost does not read" }
}

/// The phones of a list, sorted and without duplicates.
struct Rows {
    phones: Vec<Row>,
    notes: String,
    columns: Columns,
}

/// A change of the note in a line.
struct NoteChange {
    number: usize,
    /// The line, without its end.
    line: Range<usize>,
    splice: Splice,
}

struct Row {
    mac: MacAddress,
    line: usize,
    /// The note in [`Rows::notes`].
    note: (u32, u32),
    /// The offset behind the line, with its line end.
    end: u32,
}

/// The columns that the first line names.
struct Columns {
    separator: u8,
    mac: usize,
    note: Option<usize>,
    count: usize,
    line_end: &'static [u8],
}

impl Row {
    fn note(&self) -> Range<usize> {
        self.note.0 as usize..self.note.1 as usize
    }
}

impl Rows {
    fn read(file: impl Read) -> Result<Self, ListError> {
        let mut file = BufReader::with_capacity(1 << 16, file);
        let mut header = Vec::new();
        let length = (&mut file).take(MAX_HEADER).read_until(b'\n', &mut header)?;
        let columns = Columns::parse(&header).map_err(|reason| ListError::Line(1, reason))?;
        // The last line may have no line end. With one, each record ends behind its line.
        let mut reader = columns.reader(file.chain(b"\n".as_slice()));
        let (mut rows, mut notes, mut record) = (Vec::new(), String::new(), ByteRecord::new());
        while reader.read_byte_record(&mut record)? {
            let after = reader.position();
            let breaks = record.iter().flatten().filter(|byte| **byte == b'\n').count();
            // The reader has not seen the first line, and is behind the line end, unless a quote hides that.
            let is_open = record.iter().next_back().is_some_and(|field| field.ends_with(b"\n"));
            let line =
                usize::try_from(after.line()).unwrap_or(usize::MAX).saturating_sub(breaks) + usize::from(is_open);
            let end = offset(length + usize::try_from(after.byte()).unwrap_or(usize::MAX), line)?;
            let invalid = |reason: String| ListError::Line(line, reason);
            if breaks > 0 {
                return Err(invalid(
                    "a field has a line break (is a quote not closed?); write each phone on one line".to_owned(),
                ));
            }
            if let Some((mac, note)) = columns.phone(&record).map_err(invalid)? {
                let start = offset(notes.len(), line)?;
                notes.push_str(note);
                rows.push(Row { mac, line, note: (start, offset(notes.len(), line)?), end });
            }
        }
        check_unique(&mut rows)?;
        Ok(Self { phones: rows, notes, columns })
    }
}

/// Sorts `rows` by MAC address, and finds the first one that is listed before.
fn check_unique(rows: &mut [Row]) -> Result<(), ListError> {
    // Stable, so that of two equal ones the earlier comes first.
    rows.sort_by_key(|row| row.mac);
    let twice = rows.windows(2).filter_map(|pair| match pair {
        [first, second] if first.mac == second.mac => Some((second.line, first)),
        _ => None,
    });
    match twice.min_by_key(|(line, _)| *line) {
        None => Ok(()),
        Some((line, Row { mac, line: first, .. })) => {
            let reason = format!("{mac} is listed twice, first in line {first}; remove one of the two lines");
            Err(ListError::Line(line, reason))
        }
    }
}

impl Columns {
    /// The columns that the line `header` names.
    fn parse(header: &[u8]) -> Result<Self, String> {
        const REMEDY: &str = "the first line names the columns, for example mac,note";
        let text = header.strip_prefix(BYTE_ORDER_MARK).unwrap_or(header);
        let text = std::str::from_utf8(text).map_err(|_| "is not UTF-8 text".to_owned())?;
        if header.len() as u64 == MAX_HEADER && !text.ends_with('\n') {
            return Err(format!("is longer than {} KiB; {REMEDY}", MAX_HEADER >> 10));
        }
        let separator = text.bytes().find(|byte| matches!(byte, b',' | b';')).unwrap_or(b',');
        let line_end: &[u8] = if text.ends_with("\r\n") { b"\r\n" } else { b"\n" };
        let mut columns = Self { separator, mac: 0, note: None, count: 0, line_end };
        let names = columns.fields(text.trim_end().as_bytes());
        columns.count = names.len();
        let mut found = BTreeMap::new();
        for (number, name) in names.iter().enumerate() {
            let name = String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase();
            if found.insert(name.clone(), number).is_some() && [MAC, NOTE].contains(&name.as_str()) {
                return Err(format!("two columns have the name \"{name}\"; remove one of the two"));
            }
        }
        columns.mac = *found.get(MAC).ok_or_else(|| format!("no column \"{MAC}\"; {REMEDY}"))?;
        columns.note = found.get(NOTE).copied();
        Ok(columns)
    }

    /// A reader of the lines behind the first.
    fn reader<R: Read>(&self, lines: R) -> csv::Reader<R> {
        ReaderBuilder::new()
            .delimiter(self.separator)
            .terminator(Terminator::Any(b'\n'))
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(1 << 16)
            .from_reader(lines)
    }

    /// The fields of one line.
    fn fields(&self, line: &[u8]) -> ByteRecord {
        let mut record = ByteRecord::new();
        // A slice can be read, and an empty line has no fields.
        let _ = self.reader(line).read_byte_record(&mut record);
        record
    }

    /// The phone of a line, and its note; `None` if all fields are empty, as in a spreadsheet's last lines.
    fn phone<'a>(&self, record: &'a ByteRecord) -> Result<Option<(MacAddress, &'a str)>, String> {
        let field = |number: usize| record.get(number).unwrap_or_default().trim_ascii();
        if (0..record.len()).all(|number| field(number).is_empty()) {
            return Ok(None);
        }
        if (self.count..record.len()).any(|number| !field(number).is_empty()) {
            return Err(format!(
                "{} fields, but the first line names {}; put a text that holds the separator into quotes",
                record.len(),
                self.count
            ));
        }
        let text = String::from_utf8_lossy(field(self.mac));
        let mac: MacAddress = text.parse().map_err(|error: super::InvalidMacAddress| error.to_string())?;
        if mac == MacAddress::ZERO {
            return Err(NotAPhone::Fallback.to_string());
        }
        let note = self.note.map(field).unwrap_or_default();
        let note =
            std::str::from_utf8(note).map_err(|_| "the note is not UTF-8 text; save the file as UTF-8".to_owned())?;
        Ok(Some((mac, note)))
    }

    /// The change that adds a line for each of `phones`, with its note, to the list `text`.
    fn append(&self, text: &[u8], phones: &[(MacAddress, &str)]) -> Result<Splice, ListError> {
        let line_end = if self.line_end == b"\r\n" { Terminator::CRLF } else { Terminator::Any(b'\n') };
        let mut writer = WriterBuilder::new().delimiter(self.separator).terminator(line_end).from_writer(Vec::new());
        for (mac, note) in phones {
            let mac = mac.to_string();
            writer.write_record((0..self.count).map(|number| match number {
                _ if number == self.mac => mac.as_str(),
                _ if Some(number) == self.note => note,
                _ => "",
            }))?;
        }
        let mut with = writer.into_inner().map_err(csv::IntoInnerError::into_error)?;
        // A last line without a line end stays one.
        if !text.ends_with(b"\n") {
            with.truncate(with.len().saturating_sub(self.line_end.len()));
            with.splice(0..0, self.line_end.iter().copied());
        }
        Ok(Splice { at: text.len()..text.len(), with })
    }

    /// The change of the field `column` in the line that ends at `end`.
    fn replace(
        &self,
        text: &[u8],
        number: usize,
        end: usize,
        column: usize,
        value: &str,
    ) -> Result<NoteChange, ListError> {
        let before = text.get(..end).unwrap_or_default();
        let before = before.strip_suffix(b"\n").unwrap_or(before);
        let before = before.strip_suffix(b"\r").unwrap_or(before);
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = before.get(start..).unwrap_or_default();
        let spans = self.spans(line);
        let value = if value.is_empty() { Vec::new() } else { self.line([value].into_iter())? };
        let (span, with) = match spans.get(column) {
            Some(span) => (span.clone(), value),
            // A line may have fewer fields than the first one.
            None => {
                let missing = vec![self.separator; (column + 1).saturating_sub(spans.len())];
                (line.len()..line.len(), [missing, value].concat())
            }
        };
        let splice = Splice { at: start + span.start..start + span.end, with };
        Ok(NoteChange { number, line: start..before.len(), splice })
    }

    /// Checks that in the lines of `changes`, all fields but the notes stay the same: a quote within a field may change the
    /// meaning of the others.
    fn check_others(&self, text: &[u8], changes: &[NoteChange]) -> Result<(), ListError> {
        let part = |span: Range<usize>| text.get(span).unwrap_or_default();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for NoteChange { line, splice, .. } in changes {
            before.extend_from_slice(part(line.clone()));
            after.extend_from_slice(part(line.start..splice.at.start));
            after.extend_from_slice(&splice.with);
            after.extend_from_slice(part(splice.at.end..line.end));
            before.push(b'\n');
            after.push(b'\n');
        }
        let (mut readers, mut records) =
            ([before, after].map(|lines| self.reader(io::Cursor::new(lines))), [(); 2].map(|()| ByteRecord::new()));
        for NoteChange { number, .. } in changes {
            let mut are_read = true;
            for (reader, record) in readers.iter_mut().zip(&mut records) {
                are_read &= reader.read_byte_record(record)?;
            }
            let [before, after] = &records;
            let count = before.len().max(after.len());
            let mut others = (0..count).filter(|column| Some(*column) != self.note);
            if !are_read
                || !others.all(|column| before.get(column).unwrap_or_default() == after.get(column).unwrap_or_default())
            {
                return Err(ListError::Line(*number, "its note cannot be changed; change it in an editor".to_owned()));
            }
        }
        Ok(())
    }

    /// A line of `fields`, with quotes where they are needed, without a line end.
    fn line<'a>(&self, fields: impl Iterator<Item = &'a str>) -> Result<Vec<u8>, ListError> {
        let mut writer = WriterBuilder::new().delimiter(self.separator).buffer_capacity(256).from_writer(Vec::new());
        writer.write_record(fields)?;
        let mut line = writer.into_inner().map_err(csv::IntoInnerError::into_error)?;
        line.pop();
        Ok(line)
    }

    /// Where the fields of `line` are, with their quotes.
    fn spans(&self, line: &[u8]) -> Vec<Range<usize>> {
        let (mut spans, mut start, mut at) = (Vec::new(), 0, 0);
        loop {
            if line.get(at) == Some(&b'"') {
                // To the quote that is not doubled.
                at += 1;
                while at < line.len() && (line.get(at) != Some(&b'"') || line.get(at + 1) == Some(&b'"')) {
                    at += if line.get(at) == Some(&b'"') { 2 } else { 1 };
                }
            }
            while line.get(at).is_some_and(|byte| *byte != self.separator) {
                at += 1;
            }
            spans.push(start..at.min(line.len()));
            if at >= line.len() {
                return spans;
            }
            at += 1;
            start = at;
        }
    }
}

/// An offset in a list, whose size is limited.
fn offset(at: usize, line: usize) -> Result<u32, ListError> {
    u32::try_from(at).map_err(|_| ListError::Line(line, "the file is too large".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(text: &str) -> MacAddress {
        text.parse().unwrap()
    }

    fn read(text: impl AsRef<[u8]>) -> Result<Vec<(String, String)>, String> {
        let list = PhoneList::read(text.as_ref()).map_err(|error| error.in_file(PHONES_FILE.as_ref()).to_string())?;
        Ok(list.phones().map(|mac| (mac.to_string(), list.note(mac).to_owned())).collect())
    }

    fn one(note: &str) -> Vec<(String, String)> {
        vec![("00005e00530c".to_owned(), note.to_owned())]
    }

    fn edited(text: &str, note: Option<&str>) -> String {
        all_edited(text, &[("00005e00530c", note)]).0
    }

    /// The list with these phones and notes, and the effect on each.
    fn all_edited(text: &str, phones: &[(&str, Option<&str>)]) -> (String, Vec<PhoneEffect>) {
        let phones: Vec<_> = phones.iter().map(|(phone, note)| AllowedPhone { mac: mac(phone), note: *note }).collect();
        let (splices, effects) = allow(text.as_bytes(), &phones).unwrap();
        assert!(splices.is_sorted_by_key(|splice| splice.at.start));
        let mut bytes = text.as_bytes().to_vec();
        for Splice { at, with } in splices.into_iter().rev() {
            bytes.splice(at, with);
        }
        (String::from_utf8(bytes).unwrap(), effects)
    }

    #[test]
    fn every_spelling_of_a_list_is_read() {
        let table = [
            ("mac\n00005e00530c\n", ""),
            ("mac,note\n00005e00530c,Lobby", "Lobby"),
            ("mac,note\n00:00:5E:00:53:0C,Lobby\n", "Lobby"),
            ("mac,note\n00-00-5e-00-53-0c,Lobby\n", "Lobby"),
            ("mac,note\n0000.5e00.530c,Lobby\n", "Lobby"),
            ("\u{feff}mac;note\r\n00005E00530C;Lobby, 2nd floor\r\n", "Lobby, 2nd floor"),
            ("\u{feff}\"mac\",\"note\"\r\n\"00005e00530c\",\"Lobby, 2nd \"\"floor\"\"\"\r\n", "Lobby, 2nd \"floor\""),
            ("serial;Note;site;MAC\n17;Empfang Süd;B;00005e00530c\n", "Empfang Süd"),
            ("mac , note\n 00005e00530c , Lobby \n", "Lobby"),
            ("mac,note,x\n00005e00530c,Lobby\n", "Lobby"),
            ("mac,note\n00005e00530c,Lobby,,\n", "Lobby"),
            ("mac,note\n\n00005e00530c,Lobby\n\r\n,\n \n", "Lobby"),
            ("mac,note\n00005e00530c,15\" screen\n", "15\" screen"),
        ];
        for (text, note) in table {
            assert_eq!(read(text), Ok(one(note)), "{text:?}");
        }
        assert_eq!(table.len(), 13);
        // Bytes of any encoding in a column that is not read.
        assert_eq!(read(b"mac,note,site\n00005e00530c,Lobby,\xfcber\n"), Ok(one("Lobby")));
        assert_eq!(read("mac,note\n"), Ok(Vec::new()), "an empty list");
    }

    #[test]
    fn bad_line_is_an_error_with_its_number() {
        let table: [(&[u8], &str); 18] = [
            (b"", "1: no column \"mac\"; the first line names the columns, for example mac,note"),
            (b"\xef\xbb\xbf", "1: no column \"mac\""),
            (b"00005e00530c,Lobby\n", "1: no column \"mac\""),
            (b"mac\tnote\n00005e00530c\tLobby\n", "1: no column \"mac\""),
            (b"mac\r00005e00530c\r", "1: no column \"mac\""),
            (b"mac,MAC\n", "1: two columns have the name \"mac\""),
            (b"mac,note,Note\n", "1: two columns have the name \"note\""),
            (b"\xff\xfem\0a\0c\0", "1: is not UTF-8 text"),
            (b"mac,note\n00005e00530c,a\nvvx500,b\n", "3: invalid MAC address \"vvx500\""),
            (b"mac,note\r\n\r\n00005e00530c,a\r\n5.3E+11,b\r\n", "4: invalid MAC address \"5.3E+11\""),
            (b"mac,note\n,Lobby\n", "2: invalid MAC address \"\""),
            (b"mac,note\n000000000000,Lobby\n", "2: 000000000000 is the name of the fallback files"),
            (b"mac,note\n00005e00530c,Lobby, 2nd floor\n", "2: 3 fields, but the first line names 2"),
            (b"mac,note\n00005e00530c,L\xfcbeck\n", "2: the note is not UTF-8 text"),
            (
                b"mac,note\n00005e0053c7,a\n00005e00530c,b\n00:00:5E:00:53:0C,c\n00005e0053c7,d\n",
                "4: 00005e00530c is listed twice, first in line 3; remove one of the two lines",
            ),
            (
                b"mac,note\n00005e00530c,\"Lobby\n00005e0053c7,b\n",
                "2: a field has a line break (is a quote not closed?)",
            ),
            (b"mac,note\n00005e00530c,\"Lobby\n00005e0053c7,\"b\"\n", "2: a field has a line break"),
            (b"mac,note\n00005e0053c7,b\n00005e00530c,\"Lobby", "3: a field has a line break"),
        ];
        for (text, expected) in table {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(&format!("phones.csv:{expected}")), "{}: {error}", text.escape_ascii());
        }
        let error = read(format!("mac,{}\n", "x".repeat(70_000))).unwrap_err();
        assert!(error.contains("1: is longer than 64 KiB"), "{error}");
    }

    #[test]
    fn allow_adds_a_line_in_the_style_of_the_list() {
        let table = [
            ("mac,note\n", "mac,note\n00005e00530c,Lobby\n"),
            ("mac,note", "mac,note\n00005e00530c,Lobby"),
            ("mac;note\r\n00005e0053c7;b\r\n", "mac;note\r\n00005e0053c7;b\r\n00005e00530c;Lobby\r\n"),
            ("mac;note\r\n00005e0053c7;b", "mac;note\r\n00005e0053c7;b\r\n00005e00530c;Lobby"),
            ("\u{feff}site,note,mac,x\n,,,\n", "\u{feff}site,note,mac,x\n,,,\n,Lobby,00005e00530c,\n"),
        ];
        for (before, after) in table {
            assert_eq!(edited(before, Some("Lobby")), after);
        }
        assert_eq!(edited("mac\n", None), "mac\n00005e00530c\n");
        assert_eq!(edited("mac,note\n", None), "mac,note\n00005e00530c,\n");
        assert_eq!(edited("mac;note\n", Some("a;b")), "mac;note\n00005e00530c;\"a;b\"\n");
        assert_eq!(edited("mac,note\n", Some("the \"attic\"")), "mac,note\n00005e00530c,\"the \"\"attic\"\"\"\n");
    }

    #[test]
    fn allow_changes_only_the_note_of_a_listed_phone() {
        let text = "\u{feff}mac;x;note;y\r\n00005e0053c7;\"a;\"\"b\";c;d\r\n00:00:5E:00:53:0C;\"1;\"\"2\";\"old \"\"note\"\"; x\";\"3;\"\r\n00005e0053aa\r\n";
        assert_eq!(read(text).unwrap().len(), 3);
        assert_eq!(edited(text, None), text);
        assert_eq!(edited(text, Some("old \"note\"; x")), text);
        assert_eq!(edited(text, Some("new")), text.replace("\"old \"\"note\"\"; x\"", "new"));
        assert_eq!(edited(text, Some("")), text.replace("\"old \"\"note\"\"; x\"", ""));
        // A line without the field, and the last one without a line end.
        assert_eq!(edited("mac,x,note\n00005e00530c", Some("a")), "mac,x,note\n00005e00530c,,a");
        assert_eq!(edited("mac,note\r\n00005e00530c,old\r\n", Some("a,b")), "mac,note\r\n00005e00530c,\"a,b\"\r\n");
    }

    #[test]
    fn several_phones_are_added_and_noted_at_once() {
        let before = "mac;x;note\r\n00005e005303;\"a;b\";old\r\n00:00:5E:00:53:01;c\r\n00005e005302;d;same";
        let phones = [
            ("00005e005301", Some("one;")),
            ("00005e005302", Some("same")),
            ("00005e005303", Some("three")),
            ("00005e005304", None),
            ("00005e005305", Some("five")),
        ];
        let after = "mac;x;note\r\n00005e005303;\"a;b\";three\r\n00:00:5E:00:53:01;c;\"one;\"\r\n00005e005302;d;same\r\n00005e005304;;\r\n00005e005305;;five";
        let noted = |before: &str| PhoneEffect::Noted { before: before.to_owned() };
        let effects = [noted(""), PhoneEffect::Unchanged, noted("old"), PhoneEffect::Added, PhoneEffect::Added];
        assert_eq!(all_edited(before, &phones), (after.to_owned(), effects.to_vec()));
        assert_eq!(all_edited(after, &phones), (after.to_owned(), vec![PhoneEffect::Unchanged; 5]));
    }

    #[test]
    fn note_change_that_would_change_another_field_is_refused() {
        // Not in quotes, so the quote stands for itself. A quoted note before it stays one.
        let text = "note,mac,x\na,00005e005301,b\nc,00005e005302,d\n";
        let phones = [AllowedPhone { mac: mac("00005e005301"), note: Some("e\"f") }];
        assert_eq!(allow(text.as_bytes(), &phones).unwrap().1, [PhoneEffect::Noted { before: "a".to_owned() }]);
        let columns = Columns::parse(b"note,mac,x").unwrap();
        let bad = NoteChange { number: 2, line: 11..27, splice: Splice { at: 11..12, with: b"\"e".to_vec() } };
        let error =
            columns.check_others(text.as_bytes(), &[bad]).unwrap_err().in_file(PHONES_FILE.as_ref()).to_string();
        assert!(error.contains("2: its note cannot be changed"), "{error}");
    }

    #[test]
    fn file_of_a_command_is_checked_and_its_empty_notes_are_none() {
        let read = |text: &str| PhoneFile::read(text.as_bytes(), "new.csv".as_ref());
        let file = read("\u{feff}note;mac\r\n;00005e005302\r\n\r\nhall;00:00:5E:00:53:01\r\n").unwrap();
        let phones: Vec<_> = file.phones().map(|phone| (phone.mac.to_string(), phone.note)).collect();
        assert_eq!(phones, [("00005e005301".to_owned(), Some("hall")), ("00005e005302".to_owned(), None)]);
        assert_eq!([1, 2, 3].map(|number| file.line(mac("00005e005300").plus(number))), [Some(4), Some(2), None]);
        let error = |text: &str| read(text).err().unwrap().to_string();
        assert!(
            error("mac\n00005e005301\nffffffffffff\n010000000000\n")
                .starts_with("new.csv:3: ffffffffffff is a multicast")
        );
        assert!(error("mac\n00005e005301\n00005E005301\n").starts_with("new.csv:3: 00005e005301 is listed twice"));
        let lines = b"mac\n".chain(io::repeat(b'\n'));
        let error = PhoneFile::read_within(lines, "new.csv".as_ref(), 100).err().unwrap().to_string();
        assert!(error.starts_with("new.csv: is larger than 64 MiB"), "{error}");
    }

    #[test]
    fn allow_that_the_list_cannot_hold_is_refused() {
        let error = |text: &str, note| {
            let phone = AllowedPhone { mac: mac("00005e00530c"), note: Some(note) };
            let refused = allow(text.as_bytes(), &[phone]).unwrap_err();
            refused.in_file(PHONES_FILE.as_ref()).to_string()
        };
        assert!(error("mac,site\n", "Lobby").contains("1: no column \"note\"; add it"));
        assert!(error("mac,note\n", "a\nb").contains("a note is one line"));
        assert!(error("mac,note\n00005e0053\n", "a").contains("2: invalid MAC address"));
    }

    #[test]
    fn written_list_reads_as_the_same_one() {
        let text = "mac;note\n00005e00530c;a\n00005e0053c7;\n00005e0053aa;\"b, \"\"c\"\"; d\"\n";
        let list = PhoneList::read(text.as_bytes()).unwrap();
        let mut written = Vec::new();
        list.write(&mut written).unwrap();
        assert_eq!(PhoneList::read(written.as_slice()).unwrap(), list);
        assert_eq!((list.len(), list.note(mac("00005e0053aa"))), (3, "b, \"c\"; d"));
        assert!(list.contains(mac("00005e0053c7")) && !list.contains(mac("00005e0053c8")));
    }

    #[test]
    fn difference_has_the_phones_of_one_list_only() {
        let list = |phones: &[u64]| PhoneList {
            macs: phones.iter().map(|number| MacAddress::ZERO.plus(*number)).collect(),
            ..PhoneList::default()
        };
        let difference = |one: &[u64], two: &[u64]| -> Vec<MacAddress> { list(one).difference(&list(two)).collect() };
        let expected = |phones: &[u64]| -> Vec<MacAddress> { list(phones).phones().collect() };
        assert_eq!(difference(&[1, 2, 3, 5], &[2, 4, 5, 6]), expected(&[1, 3, 4, 6]));
        assert_eq!(difference(&[], &[1, 2]), expected(&[1, 2]));
        assert_eq!(difference(&[1, 2], &[]), expected(&[1, 2]));
        assert_eq!(difference(&[1, 2], &[1, 2]), expected(&[]));
    }

    proptest::proptest! {
        #[test]
        fn edit_keeps_every_other_field(
            rows in proptest::collection::btree_map("[0-9a-f]{12}", ["\\PC{0,8}", "\\PC{0,8}"], 0..5),
            note in "\\PC{0,12}",
            semicolon: bool,
        ) {
            let columns = Columns { separator: if semicolon { b';' } else { b',' }, mac: 1, note: Some(2), count: 3, line_end: b"\n" };
            let mut text = columns.line(["x", "mac", "note"].into_iter()).unwrap();
            for (mac, [other, note]) in &rows {
                text.push(b'\n');
                text.extend(columns.line([other.as_str(), mac, note.trim()].into_iter()).unwrap());
            }
            text.push(b'\n');
            proptest::prop_assume!(!rows.contains_key("000000000000"));
            let before = read(&text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let after = edited(&text, Some(&note));
            let mut expected: BTreeMap<String, String> = before.into_iter().collect();
            expected.insert("00005e00530c".to_owned(), note.trim().to_owned());
            proptest::prop_assert_eq!(read(&after).unwrap(), expected.into_iter().collect::<Vec<_>>());
            proptest::prop_assert!(after.lines().count() <= rows.len() + 2);
        }

        #[test]
        fn no_text_panics(text: Vec<u8>) {
            let _ = read(&text);
            let _ = read([b"mac,note\n".as_slice(), &text].concat());
        }
    }
}

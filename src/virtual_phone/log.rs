//! The log that a phone uploads: one line per event, `MMDDhhmmss|component|level|missed|text`. Pure.

use std::fmt::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use time::OffsetDateTime;

use super::model::{Program, VirtualPhone};
use super::report::RequestReport;

/// The first line of each program's log.
pub(super) fn opening(at: SystemTime, phone: &VirtualPhone, program: Program) -> String {
    let VirtualPhone { model, firmware, part_number, mac } = phone;
    line(at, "so", &format!("{} {firmware} starts on {model} {part_number} {mac}", program.name()))
}

/// The application's line about one request.
pub(super) fn request(at: SystemTime, exchange: &RequestReport) -> String {
    let RequestReport { method, path, status, received, .. } = exchange;
    let status = status.map_or_else(|| "no answer".to_owned(), |status| status.as_u16().to_string());
    line(at, "cfg", &format!("{method} {path} {status} {received} bytes"))
}

/// The log that consists of `lines`.
pub(super) fn whole(lines: impl IntoIterator<Item = String>) -> Bytes {
    lines.into_iter().collect::<String>().into()
}

fn line(at: SystemTime, component: &str, text: &str) -> String {
    let at = OffsetDateTime::from(at);
    let mut line = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        line,
        "{:02}{:02}{:02}{:02}{:02}|{component:<5}|4|00|{text}",
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    );
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_line_has_the_polycom_format() {
        let phone = VirtualPhone::new("00005e00530c".parse().unwrap());
        assert_eq!(
            opening(SystemTime::UNIX_EPOCH, &phone, Program::Updater),
            "0101000000|so   |4|00|Updater 5.9.7.4477 starts on VVX_500 3111-44500-001 00005e00530c\n"
        );
    }
}

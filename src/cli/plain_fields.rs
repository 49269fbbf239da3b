//! Formats an event's fields for people: the message, then the fields whose values the message does not contain.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

#[derive(Debug)]
pub(super) struct PlainFields;

#[derive(Default)]
struct FieldText {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl<'writer> FormatFields<'writer> for PlainFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut found = FieldText::default();
        fields.record(&mut found);
        writer.write_str(&found.message)?;
        let extra = found.others.iter().filter(|(_, value)| !found.message.contains(value));
        for (name, value) in extra {
            write!(writer, " {name}={value}")?;
        }
        Ok(())
    }
}

impl Visit for FieldText {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

impl FieldText {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.others.push((name, value)),
        }
    }
}

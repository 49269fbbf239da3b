//! Collects a ClientHello from a stream, in little memory.

use super::ClientHelloFacts;
use super::wire::{self, HELLO_LIMIT, NoClientHello, RECORD_LIMIT};

const RECORD_HEADER_BYTES: usize = 5;
const MESSAGE_HEADER_BYTES: usize = 4;
/// The buffer grows by at least this many bytes, so that most hellos need one allocation.
const GROWTH: usize = 1024;

/// Collects the first handshake message of a connection, from any number of reads and records.
///
/// The message is stored as one record, so that a client cannot inflate it by sending small records. TLS allows this:
/// record boundaries are not part of the handshake transcript. Nothing is allocated before the first byte.
#[derive(Debug, Default)]
pub struct HelloReader {
    /// The header of the first record, and the payloads of all records so far.
    record: Vec<u8>,
    /// The header of the next record, as far as received.
    header: [u8; RECORD_HEADER_BYTES],
    header_bytes: usize,
    /// How many payload bytes of the current record are missing.
    missing: usize,
    /// How many bytes came from the stream.
    received: usize,
    /// The bytes received after the last record of the message.
    rest: Vec<u8>,
}

impl HelloReader {
    /// Consumes the next `bytes` of the stream. Returns whether the ClientHello is complete.
    ///
    /// # Errors
    /// If this is not a ClientHello, or one that is too long. The record then holds all received bytes, so that rustls
    /// can choose its alert.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<bool, NoClientHello> {
        self.received += bytes.len();
        while !bytes.is_empty() {
            if self.missing == 0 {
                bytes = self.push_header(bytes)?;
                continue;
            }
            let (payload, rest) = bytes.split_at(self.missing.min(bytes.len()));
            append(&mut self.record, payload);
            self.missing -= payload.len();
            bytes = rest;
            let is_complete = self.check_message()?;
            if self.missing == 0 {
                self.set_length();
                if is_complete {
                    self.rest = rest.to_vec();
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Consumes the bytes of a record header, and returns the bytes after it.
    fn push_header<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], NoClientHello> {
        let (part, rest) = bytes.split_at((RECORD_HEADER_BYTES - self.header_bytes).min(bytes.len()));
        for byte in part {
            if let Some(place) = self.header.get_mut(self.header_bytes) {
                *place = *byte;
                self.header_bytes += 1;
            }
        }
        let [kind, major, _, high, low] = self.header;
        if self.header_bytes < RECORD_HEADER_BYTES {
            return Ok(rest);
        }
        let length = u16::from_be_bytes([high, low]);
        // RFC 8446 §5.1: "Implementations MUST NOT send zero-length fragments of Handshake types".
        if (kind, major) != (0x16, 0x03) || length == 0 || length > RECORD_LIMIT {
            return Err(self.refuse(rest));
        }
        let length = usize::from(length);
        if self.record.is_empty() {
            append(&mut self.record, &self.header);
        }
        self.header_bytes = 0;
        self.missing = length;
        let total = self.payload().len() + length;
        if total > HELLO_LIMIT { Err(NoClientHello::TooLong(total)) } else { Ok(rest) }
    }

    /// Whether the message is complete.
    fn check_message(&self) -> Result<bool, NoClientHello> {
        let (kind, length) = match self.payload() {
            [kind, high, middle, low, ..] => (*kind, Some(u32::from_be_bytes([0, *high, *middle, *low]))),
            [kind, ..] => (*kind, None),
            [] => return Ok(false),
        };
        if kind != 1 {
            return Err(NoClientHello::Handshake(kind));
        }
        let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else { return Ok(false) };
        let total = length + MESSAGE_HEADER_BYTES;
        if total > HELLO_LIMIT { Err(NoClientHello::TooLong(total)) } else { Ok(self.payload().len() >= total) }
    }

    /// Sets the length of the stored record to that of all payloads so far.
    fn set_length(&mut self) {
        let [high, low] = u16::try_from(self.payload().len()).unwrap_or(u16::MAX).to_be_bytes();
        if let [_, _, _, length_high, length_low, ..] = self.record.as_mut_slice() {
            (*length_high, *length_low) = (high, low);
        }
    }

    /// The error for a record header that is not a handshake's; `rest` is what follows it.
    fn refuse(&mut self, rest: &[u8]) -> NoClientHello {
        let is_first = self.record.is_empty();
        let header = self.header;
        append(&mut self.record, header.get(..self.header_bytes).unwrap_or(&header));
        append(&mut self.record, rest);
        if is_first { wire::not_tls(&self.record) } else { NoClientHello::Malformed }
    }

    /// The error if the stream ends here.
    pub fn interrupted(&mut self) -> NoClientHello {
        let is_begin = match self.header.get(..self.header_bytes) {
            Some([0x16] | [0x16, 0x03, ..] | []) | None => true,
            Some(_) => false,
        };
        match self.received {
            0 => NoClientHello::Nothing,
            _ if !is_begin => self.refuse(&[]),
            received => NoClientHello::Truncated(received),
        }
    }

    /// Parses a complete hello.
    ///
    /// # Errors
    /// If its lengths are inconsistent.
    pub fn facts(&self) -> Result<ClientHelloFacts, NoClientHello> {
        let length = |bytes: &[u8]| match bytes {
            [_, high, middle, low, ..] => usize::try_from(u32::from_be_bytes([0, *high, *middle, *low])).ok(),
            _ => None,
        };
        let message = self.payload();
        let body = length(message).and_then(|length| message.get(MESSAGE_HEADER_BYTES..MESSAGE_HEADER_BYTES + length));
        body.and_then(wire::facts).ok_or(NoClientHello::Malformed)
    }

    /// The ClientHello as one record.
    #[must_use]
    pub fn into_record(self) -> Vec<u8> {
        self.record
    }

    /// Takes what was received behind the ClientHello.
    #[must_use]
    pub fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest)
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.record.capacity() + self.rest.capacity()
    }

    fn payload(&self) -> &[u8] {
        self.record.get(RECORD_HEADER_BYTES..).unwrap_or_default()
    }
}

/// Appends without doubling the buffer: clients could make us hold thousands of them.
fn append(buffer: &mut Vec<u8>, bytes: &[u8]) {
    if buffer.capacity() - buffer.len() < bytes.len() {
        buffer.reserve_exact(bytes.len().max(GROWTH));
    }
    buffer.extend_from_slice(bytes);
}

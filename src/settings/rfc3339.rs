//! Unix seconds as RFC 3339, for `#[serde(with = …)]`.

use serde::{Deserialize, Deserializer, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock;

#[expect(clippy::ref_option, reason = "serde's signature")]
pub(crate) fn serialize<S: Serializer>(at: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.serialize_str(&clock::rfc3339(*at)),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let time = |text: String| {
        let time = OffsetDateTime::parse(&text, &Rfc3339);
        time.map(OffsetDateTime::unix_timestamp)
            .map_err(|_| serde::de::Error::custom(format_args!("{text:?} is not a time such as 2026-11-30T22:14:05Z")))
    };
    text.map(time).transpose()
}

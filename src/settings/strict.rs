//! A deserializer that takes a value only in its documented form, and finds where a wrong one stands.
//!
//! serde takes a list for an object, by position, and an object for a name (`{"none": null}`). Neither is documented, and a
//! list changes its meaning when a key is added. [`Strict`] wraps `serde_json`'s deserializer and everything that it hands out,
//! so that this holds at every depth.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read};

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Reads values in their documented form.
pub(super) struct Strict<'a, D> {
    inner: D,
    locator: Option<&'a Locator<'a>>,
    /// Whether this is the whole text, which is an object.
    is_root: bool,
}

/// Finds where in a text the value stands that was refused.
struct Locator<'a> {
    text: &'a [u8],
    /// How many bytes `serde_json` has taken.
    taken: &'a Cell<usize>,
    found: Cell<Option<usize>>,
}

/// The byte at which the value or key stands that a `T` refuses, if the JSON `text` has one.
///
/// `serde_json` says where it stopped, which can be lines behind. This reads the text a second time, byte by byte, and so is
/// for errors alone.
pub(super) fn locate<T: DeserializeOwned>(text: &str) -> Option<usize> {
    let taken = Cell::new(0);
    let locator = Locator { text: text.as_bytes(), taken: &taken, found: Cell::new(None) };
    let mut json = serde_json::Deserializer::from_reader(Counted { rest: text.as_bytes(), taken: &taken });
    let root = Strict { inner: &mut json, locator: Some(&locator), is_root: true };
    let start = locator.next_value();
    T::deserialize(root).err().map(|_| locator.found.get().unwrap_or(start))
}

impl<D> Strict<'_, D> {
    /// The root of a text.
    pub(super) fn root(inner: D) -> Self {
        Self { inner, locator: None, is_root: true }
    }
}

impl Locator<'_> {
    /// Where the value stands that `serde_json` reads next. It has taken its first byte already, except behind a colon and at
    /// the beginning.
    fn next_value(&self) -> usize {
        let taken = self.taken.get();
        match taken.checked_sub(1).and_then(|last| Some((last, self.text.get(last)?))) {
            Some((last, byte)) if *byte != b':' => last,
            _ => {
                let rest = self.text.get(taken..).unwrap_or_default();
                taken + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
            }
        }
    }

    /// Notes that what stands at `at` was refused. The innermost comes first, and stays.
    fn note(&self, at: Option<usize>) {
        self.found.set(self.found.get().or(at));
    }
}

/// Counts the bytes that are taken.
struct Counted<'a> {
    rest: &'a [u8],
    taken: &'a Cell<usize>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (Some(place), Some((first, rest))) = (buffer.first_mut(), self.rest.split_first()) else { return Ok(0) };
        *place = *first;
        self.rest = rest;
        self.taken.set(self.taken.get() + 1);
        Ok(1)
    }
}

/// Passes a request for a value on, with a visitor that stays strict.
macro_rules! forward {
    ($($method:ident($($argument:ident: $kind:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $kind,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method($($argument,)* StrictVisitor { visitor, locator: self.locator })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        if self.is_root {
            self.deserialize_map(visitor)
        } else {
            self.inner.deserialize_any(StrictVisitor { visitor, locator: self.locator })
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_map(ObjectVisitor { visitor, locator: self.locator })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(NameVisitor { visitor, names })
    }

    forward! {
        deserialize_bool() deserialize_char() deserialize_str() deserialize_string() deserialize_bytes() deserialize_byte_buf()
        deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64() deserialize_i128()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64()
        deserialize_option() deserialize_unit() deserialize_seq() deserialize_identifier() deserialize_ignored_any()
        deserialize_unit_struct(name: &'static str) deserialize_newtype_struct(name: &'static str)
        deserialize_tuple(length: usize) deserialize_tuple_struct(name: &'static str, length: usize)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Takes what `visitor` takes, and reads what is inside strictly.
struct StrictVisitor<'a, V> {
    visitor: V,
    locator: Option<&'a Locator<'a>>,
}

macro_rules! visit {
    ($($method:ident($kind:ty))*) => {$(
        fn $method<E: Error>(self, value: $kind) -> Result<V::Value, E> {
            self.visitor.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for StrictVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    visit! {
        visit_bool(bool) visit_char(char) visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
        visit_i64(i64) visit_i128(i128) visit_u64(u64) visit_u128(u128) visit_f64(f64)
        visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Strict { inner, locator: self.locator, is_root: false })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Strict { inner, locator: self.locator, is_root: false })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let last = Cell::new(None);
        let result = self.visitor.visit_seq(StrictAccess { inner, locator: self.locator, last: &last });
        note_refused(self.locator, &result, last.get());
        result
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        ObjectVisitor { visitor: self.visitor, locator: self.locator }.visit_map(map)
    }
}

fn note_refused<T, E>(locator: Option<&Locator<'_>>, result: &Result<T, E>, at: Option<usize>) {
    if let Some(locator) = locator.filter(|_| result.is_err()) {
        locator.note(at);
    }
}

/// Takes an object alone.
struct ObjectVisitor<'a, V> {
    visitor: V,
    locator: Option<&'a Locator<'a>>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for ObjectVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let last = Cell::new(None);
        let result = self.visitor.visit_map(StrictAccess { inner, locator: self.locator, last: &last });
        note_refused(self.locator, &result, last.get());
        result
    }
}

/// Takes one of several names, as a string.
struct NameVisitor<V> {
    visitor: V,
    names: &'static [&'static str],
}

impl<'de, V: Visitor<'de>> Visitor<'de> for NameVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::one_of(self.names))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<V::Value, E> {
        self.visitor.visit_enum(StrDeserializer::new(name))
    }
}

/// The keys and values of an object, or the elements of a list.
struct StrictAccess<'a, A> {
    inner: A,
    locator: Option<&'a Locator<'a>>,
    /// Where the last key or element stands; none behind the end.
    last: &'a Cell<Option<usize>>,
}

impl<'a, A> StrictAccess<'a, A> {
    fn seed<S>(&self, seed: S) -> StrictSeed<'a, S> {
        StrictSeed { seed, locator: self.locator, start: None }
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for StrictAccess<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.last.set(None);
        let seed = StrictSeed { start: Some(self.last), ..self.seed(seed) };
        self.inner.next_element_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for StrictAccess<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.last.set(None);
        let seed = StrictSeed { start: Some(self.last), ..self.seed(seed) };
        self.inner.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.seed(seed);
        self.inner.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// Reads one key, value or element strictly.
struct StrictSeed<'a, S> {
    seed: S,
    locator: Option<&'a Locator<'a>>,
    /// Where to note its place.
    start: Option<&'a Cell<Option<usize>>>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for StrictSeed<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        let at = self.locator.map(Locator::next_value);
        if let Some(start) = self.start {
            start.set(at);
        }
        let result = self.seed.deserialize(Strict { inner, locator: self.locator, is_root: false });
        note_refused(self.locator, &result, at);
        result
    }
}

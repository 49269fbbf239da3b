//! A lenient XML reader: collects every attribute and every element's text.
//!
//! It accepts what occurs in public configuration trees: repeated attributes, undeclared prefixes, a lone `&`, values
//! without quotes, several root elements, end tags that do not match, and a DOCTYPE, from which nothing is resolved or
//! fetched. Errors are only a file without an element, binary data, and a truncated file. Time and memory are linear in
//! the length of the text.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use quick_xml::Reader;
use quick_xml::errors::{Error, SyntaxError};
use quick_xml::events::{BytesStart, Event};

use super::faults::{Deviation, DeviationKind, MAX_DEPTH, TextPosition, UnreadableXml, shown};
use super::strict;
use super::text::Text;

/// A file that was read.
#[derive(Debug)]
pub struct XmlFile<'t> {
    text: &'t str,
    /// The byte at which each line but the first begins.
    lines: Vec<usize>,
    /// Every attribute, in order.
    pub attributes: Vec<Attribute<'t>>,
    /// Every element text except white space, in order.
    pub texts: Vec<ElementText<'t>>,
    /// The constructs that strict XML readers refuse.
    pub deviations: Vec<Deviation>,
    /// Where and why reading stopped before the end. Everything before it was read.
    pub broken_off: Option<UnreadableXml>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute<'t> {
    /// Its name as written.
    pub name: &'t str,
    /// Its value with XML's own entities resolved.
    pub value: Cow<'t, str>,
    /// The byte at which it begins.
    pub at: usize,
}

/// Text directly inside an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementText<'t> {
    /// The element's name.
    pub element: &'t str,
    /// The element's attribute `name` or `para`: in some formats it names the text.
    pub label: Option<Cow<'t, str>>,
    pub text: Cow<'t, str>,
    /// The byte at which it begins.
    pub at: usize,
}

impl<'t> XmlFile<'t> {
    /// Reads `text`.
    ///
    /// # Errors
    /// If it contains no element. If the file breaks off later, the part before is read, see [`Self::broken_off`].
    pub fn read(text: &'t Text<'_>) -> Result<Self, UnreadableXml> {
        let of_encoding = text.deviation;
        let text = text.as_str();
        let lines = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        let file = Self { text, lines, attributes: vec![], texts: vec![], deviations: vec![], broken_off: None };
        let mut scan = Scan { file, open: Open::default(), pending: None, doctypes: vec![], has_element: false };
        scan.run();
        let Scan { mut file, doctypes, has_element, .. } = scan;
        if !has_element && file.broken_off.is_none() {
            return Err(if text.trim().is_empty() { UnreadableXml::Empty } else { UnreadableXml::NoElement });
        }
        if let (false, Some(unreadable)) = (has_element, &file.broken_off) {
            return Err(unreadable.clone());
        }
        let found = of_encoding.into_iter().chain(doctypes.iter().map(|range| (range.start, DeviationKind::Doctype)));
        file.deviations = found.map(|(at, kind)| Deviation::new(file.place(at), kind)).collect();
        if file.broken_off.is_none() {
            file.deviations.extend(strict::refusal(text, &doctypes));
        }
        Ok(file)
    }

    /// The position of the byte `at`.
    #[must_use]
    pub fn place(&self, at: usize) -> TextPosition {
        let line = self.lines.partition_point(|begin| *begin <= at);
        let begin = line.checked_sub(1).and_then(|before| self.lines.get(before)).copied().unwrap_or(0);
        let column = self.text.get(begin..at).map_or(0, |before| before.chars().count());
        let counted = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
        TextPosition { line: counted(line), column: counted(column) }
    }

    /// The line of the byte `at`.
    #[must_use]
    pub fn line(&self, at: usize) -> u32 {
        u32::try_from(self.lines.partition_point(|begin| *begin <= at) + 1).unwrap_or(u32::MAX)
    }
}

/// The state of one pass over the text.
struct Scan<'t> {
    file: XmlFile<'t>,
    open: Open<'t>,
    /// Text collected since the last markup.
    pending: Option<(usize, Cow<'t, str>)>,
    doctypes: Vec<Range<usize>>,
    has_element: bool,
}

struct OpenElement<'t> {
    name: &'t str,
    label: Option<Cow<'t, str>>,
    at: usize,
}

/// The open elements, and how many of them have each name.
#[derive(Default)]
struct Open<'t> {
    elements: Vec<OpenElement<'t>>,
    names: HashMap<&'t str, usize>,
}

impl<'t> Scan<'t> {
    fn run(&mut self) {
        let text = self.file.text;
        let mut base = 0;
        while let Some(rest) = text.get(base..) {
            let Some(stopped) = self.read_on(rest, base) else { break };
            // The reader stops at an unknown `<!`. Continue after its `>`.
            let end = text.get(stopped..).and_then(|rest| rest.find('>'));
            base = end.map_or(text.len(), |end| stopped + end + 1);
        }
        self.end_text();
        if let (None, Some(last)) = (&self.file.broken_off, self.open.elements.last()) {
            let element = shown(last.name);
            self.file.broken_off = Some(UnreadableXml::NotClosed { element, place: self.file.place(last.at) });
        }
    }

    /// Reads `rest`, which begins at the byte `base`. Returns the byte at which the reader stopped before the end.
    fn read_on(&mut self, rest: &'t str, base: usize) -> Option<usize> {
        let mut reader = Reader::from_str(rest);
        let config = reader.config_mut();
        config.check_end_names = false;
        config.allow_unmatched_ends = true;
        config.allow_dangling_amp = true;
        loop {
            let begin = base + offset(reader.buffer_position());
            match reader.read_event() {
                Ok(Event::Start(tag)) => {
                    self.end_text();
                    if self.open.elements.len() == MAX_DEPTH {
                        self.file.broken_off = Some(UnreadableXml::TooDeep(self.file.place(begin)));
                        return None;
                    }
                    let element = self.element(&tag, begin);
                    self.open.push(element);
                }
                Ok(Event::Empty(tag)) => {
                    self.end_text();
                    self.element(&tag, begin);
                }
                Ok(Event::End(tag)) => {
                    self.end_text();
                    self.open.close(tag.name().as_ref());
                }
                Ok(Event::DocType(_)) => self.doctypes.push(begin..base + offset(reader.buffer_position())),
                Ok(Event::Text(_) | Event::GeneralRef(_)) => {
                    let raw = self.file.text.get(begin..base + offset(reader.buffer_position())).unwrap_or_default();
                    self.add_text(begin, resolved(raw));
                }
                Ok(Event::CData(_)) => {
                    let raw = self.file.text.get(begin..base + offset(reader.buffer_position())).unwrap_or_default();
                    let raw = raw.strip_prefix("<![CDATA[").and_then(|raw| raw.strip_suffix("]]>")).unwrap_or(raw);
                    self.add_text(begin, Cow::Borrowed(raw));
                }
                Ok(Event::Comment(_) | Event::Decl(_) | Event::PI(_)) => self.end_text(),
                Err(Error::Syntax(SyntaxError::InvalidBangMarkup)) => {
                    return Some(base + offset(reader.error_position()));
                }
                Err(Error::Syntax(error)) => {
                    let place = self.file.place(base + offset(reader.error_position()));
                    self.file.broken_off = Some(UnreadableXml::EndsWithin { what: what(error), place });
                    return None;
                }
                // The reader continues after such an error.
                Err(Error::IllFormed(_)) => {}
                Ok(Event::Eof) | Err(_) => return None,
            }
        }
    }

    /// Records the attributes of an element that begins at the byte `at`.
    fn element(&mut self, tag: &BytesStart<'_>, at: usize) -> OpenElement<'t> {
        self.has_element = true;
        let text = self.file.text;
        let mut label = None;
        // Malformed attributes are skipped.
        for attribute in tag.html_attributes().with_checks(false).flatten() {
            let Some((at, name)) = part_of(text, attribute.key.as_ref()) else { continue };
            // For a name without a value, the reader's value is not a slice of the text.
            let value = part_of(text, &attribute.value).map_or("", |(_, value)| value);
            let value = resolved(value);
            if matches!(name, "name" | "para") {
                label = Some(value.clone());
            }
            self.file.attributes.push(Attribute { name, value, at });
        }
        let name = part_of(text, tag.name().as_ref()).map_or("", |(_, name)| name);
        OpenElement { name, label, at }
    }

    fn add_text(&mut self, at: usize, text: Cow<'t, str>) {
        match &mut self.pending {
            Some((_, pending)) => pending.to_mut().push_str(&text),
            None => self.pending = Some((at, text)),
        }
    }

    fn end_text(&mut self) {
        if let (Some((at, text)), Some(element)) = (self.pending.take(), self.open.elements.last())
            && !text.trim().is_empty()
        {
            // Report the position of the text itself, not of the line break before it.
            let at = at + (text.len() - text.trim_start().len());
            let (element, label) = (element.name, element.label.clone());
            self.file.texts.push(ElementText { element, label, text, at });
        }
    }
}

impl<'t> Open<'t> {
    fn push(&mut self, element: OpenElement<'t>) {
        *self.names.entry(element.name).or_default() += 1;
        self.elements.push(element);
    }

    /// Closes the innermost element with this name and all elements inside it. An end tag without a start tag is
    /// ignored.
    fn close(&mut self, name: &str) {
        if self.names.get(name).is_none_or(|count| *count == 0) {
            return;
        }
        while let Some(element) = self.elements.pop() {
            if let Some(count) = self.names.get_mut(element.name) {
                *count -= 1;
            }
            if element.name == name {
                return;
            }
        }
    }
}

fn what(error: SyntaxError) -> &'static str {
    match error {
        SyntaxError::UnclosedPI => "a processing instruction",
        SyntaxError::UnclosedXmlDecl => "the XML declaration",
        SyntaxError::UnclosedComment => "a comment",
        SyntaxError::UnclosedDoctype => "a DOCTYPE",
        SyntaxError::UnclosedCData => "a CDATA section",
        SyntaxError::UnclosedSingleQuotedAttributeValue | SyntaxError::UnclosedDoubleQuotedAttributeValue => {
            "a tag whose quotes do not pair"
        }
        SyntaxError::InvalidBangMarkup | SyntaxError::UnclosedTag => "a tag",
    }
}

fn offset(position: u64) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX)
}

/// The byte offset of `part` in `text`, if it is a slice of it.
fn part_of<'t>(text: &'t str, part: &str) -> Option<(usize, &'t str)> {
    let at = part.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    text.get(at..at.checked_add(part.len())?).map(|part| (at, part))
}

/// `raw` with XML's own entities and numeric character references resolved. Any other `&` stays.
fn resolved(raw: &str) -> Cow<'_, str> {
    if !raw.contains('&') {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, behind)) = rest.split_once('&') {
        text.push_str(before);
        let entity = entity(behind);
        text.push(entity.map_or('&', |(character, _)| character));
        rest = entity.map_or(behind, |(_, behind)| behind);
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// The character of the entity or character reference at the start of `text` (after `&`, up to `;`), and the rest.
fn entity(text: &str) -> Option<(char, &str)> {
    // The longest reference is that of U+10FFFF.
    let end = text.bytes().take("#x10FFFF;".len()).position(|byte| byte == b';')?;
    let (name, behind) = (text.get(..end)?, text.get(end + 1..)?);
    let character = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)?
        }
    };
    Some((character, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let text = Text::decode(text.as_bytes()).unwrap();
        let file = XmlFile::read(&text).unwrap();
        let attributes = file.attributes.iter().map(|it| format!("{}={}", it.name, it.value));
        let texts = file.texts.iter().map(|it| format!("<{}>{}", it.element, it.text));
        attributes.chain(texts).collect()
    }

    fn deviations(text: &str) -> Vec<String> {
        let text = Text::decode(text.as_bytes()).unwrap();
        let file = XmlFile::read(&text).unwrap();
        file.deviations
            .iter()
            .map(|it| format!("{} {}", it.place, it.message.split([':', ';']).next().unwrap()))
            .collect()
    }

    fn unreadable(text: &str) -> String {
        let text = Text::decode(text.as_bytes()).unwrap();
        match XmlFile::read(&text) {
            Err(unreadable) => unreadable.to_string(),
            Ok(file) => file.broken_off.expect("it is read").to_string(),
        }
    }

    #[test]
    fn well_formed_file_gives_no_deviation() {
        let text = "<?xml version=\"1.0\"?>\n<!-- x -->\n<a xmlns:p='u' p:b='1'>\n <c d=\"&lt;&#65;&#x42;&amp;\"/>x &amp; y<![CDATA[<z>]]>\n</a>\n";
        assert_eq!(read(text), ["xmlns:p=u", "p:b=1", "d=<AB&", "<a>x & y<z>\n"]);
        assert_eq!(deviations(text), [""; 0]);
        assert_eq!(deviations("\u{feff}<a/>"), [""; 0]);
        assert_eq!(deviations("\u{feff}<?xml version='1.0'?><a/>"), [""; 0]);
    }

    /// Each occurs in public configuration trees or templates.
    #[test]
    fn malformed_file_is_read_with_positioned_deviation() {
        for (text, expected, deviation) in [
            ("<a b='1'\n b='2'/>", vec!["b=1", "b=2"], "2:2 the attribute b is repeated in one element"),
            ("<a xsi:b='1'/>", vec!["xsi:b=1"], "1:4 the prefix xsi"),
            ("<a b='x & y'/>", vec!["b=x & y"], "1:9 an & without an entity name"),
            ("<a b='x &nbsp; y'/>", vec!["b=x &nbsp; y"], "1:9 the entity &nbsp"),
            (
                " \n<?xml version='1.0'?><a b='1'/>",
                vec!["b=1"],
                "2:1 the XML declaration (<?xml …?>) is not at the start of the file",
            ),
            ("<!DOCTYPE a SYSTEM 'x.dtd'>\n<a b='1'/>", vec!["b=1"], "1:1 a DOCTYPE"),
            ("<a b=1/>", vec!["b=1"], "1:6 found 1 instead of a quote"),
            ("<a b/>", vec!["b="], "1:5 found / instead of ="),
            ("<a b='1'c='2'/>", vec!["b=1", "c=2"], "1:9 found c instead of a whitespace"),
            ("<a b='<1'/>", vec!["b=<1"], "1:7 a < in an attribute's value"),
            ("<a><b c='1'></a>", vec!["c=1"], "1:13 found </a> instead of </b>"),
            ("<a b='1'/></c>", vec!["b=1"], "1:11 text or markup is not allowed here (perhaps after the root element)"),
            (
                "<a b='1'/><c d='2'/>",
                vec!["b=1", "d=2"],
                "1:11 text or markup is not allowed here (perhaps after the root element)",
            ),
            ("<!-- a -- b --><a b='1'/>", vec!["b=1"], "1:1 a comment contains --"),
            (
                "<a><!b c='0'><d e='1'/></a>",
                vec!["e=1"],
                "1:4 text or markup is not allowed here (perhaps after the root element)",
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
            assert_eq!(deviations(text), [deviation], "{text}");
        }
    }

    #[test]
    fn deviation_after_a_doctype_is_found() {
        let text = "<!DOCTYPE a [\n<!ENTITY b 'c'>]>\n<a d='&b;' d='2'/>";
        assert_eq!(read(text), ["d=&b;", "d=2"]);
        assert_eq!(deviations(text), ["1:1 a DOCTYPE", "3:7 the entity &b"]);
    }

    #[test]
    fn entities_are_neither_expanded_nor_fetched() {
        let bomb = "<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;'>]><a b='&b;'>&b;</a>";
        assert_eq!(read(bomb), ["b=&b;", "<a>&b;"]);
        let external = "<!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/hostname'>]><a>&a;</a>";
        assert_eq!(read(external), ["<a>&a;"]);
    }

    #[test]
    fn truncated_file_is_an_error_with_position() {
        for (text, error) in [
            ("", "the file is empty"),
            (" \n", "the file is empty"),
            ("#!version:1.0.0.1\na = 1", "the file holds no XML element"),
            ("<?xml version='1.0'?>", "the file holds no XML element"),
            ("<a", "the file ends within a tag that begins at 1:1"),
            ("<a>\n<b c='1'", "the file ends within a tag that begins at 2:1"),
            ("<a b=\"1 c=\"2\"/>\n", "the file ends within a tag whose quotes do not pair that begins at 1:1"),
            ("<a>\n <!-- b", "the file ends within a comment that begins at 2:2"),
            ("<a><![CDATA[", "the file ends within a CDATA section that begins at 1:4"),
            ("<!DOCTYPE a [", "the file ends within a DOCTYPE that begins at 1:1"),
            ("<a>\n<b>\n<c/>", "the file ends before </b>, which 2:1 opens"),
            ("<a/><", "the file ends within a tag that begins at 1:5"),
        ] {
            assert_eq!(unreadable(text), error, "{text:?}");
        }
    }

    #[test]
    fn content_before_truncation_is_read() {
        let text = Text::decode(b"<a b='1'><c d='2'/><e f='3").unwrap();
        let file = XmlFile::read(&text).unwrap();
        assert_eq!(file.attributes.len(), 2);
        assert!(file.broken_off.is_some());
    }

    #[test]
    fn positions_count_characters() {
        let text = Text::decode("<ä>\n ü<é b='1'/></ä>".as_bytes()).unwrap();
        let file = XmlFile::read(&text).unwrap();
        let at = file.attributes[0].at;
        assert_eq!((file.place(at).to_string(), file.line(at)), ("2:6".to_owned(), 2));
        assert_eq!(file.place(0).to_string(), "1:1");
    }

    #[test]
    fn element_text_comes_with_its_label() {
        let text = Text::decode(b"<c><item name='x.y'>\n z</item></c>").unwrap();
        let file = XmlFile::read(&text).unwrap();
        let [it] = file.texts.as_slice() else { panic!("{:?}", file.texts) };
        assert_eq!((it.element, it.label.as_deref(), it.text.trim()), ("item", Some("x.y"), "z"));
        assert_eq!(file.line(it.at), 2);
    }

    #[test]
    fn hostile_files_are_bounded() {
        let deep = "<a>".repeat(200_000);
        assert_eq!(unreadable(&deep), "elements are nested more than 1000 deep at 1:3001");
        let wide = format!("<a {}/>", (0..100_000).map(|number| format!("p{number}='' ")).collect::<String>());
        assert_eq!(read(&wide).len(), 100_000);
        assert_eq!(deviations(&wide), [""; 0]);
        let ends = "<b>".repeat(900) + &"</a>".repeat(200_000) + "<c d='1'/>";
        assert!(unreadable(&ends).starts_with("the file ends before </b>"));
        let bangs = "<a>".to_owned() + &"<!b>".repeat(200_000) + "</a>";
        assert_eq!(deviations(&bangs).len(), 1);
        let ampersands = format!("<a b='{}'/>", "&".repeat(500_000));
        assert_eq!(read(&ampersands)[0].len(), 500_002);
        let namespaces: String = (0..50_000).map(|number| format!("<a xmlns:p{number}='u'/>")).collect();
        assert_eq!(deviations(&format!("<r>{namespaces}</r>")), [""; 0]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(bytes: Vec<u8>, markup in "[<>&;/!?\\[\\]a-c =\"'\n-]{0,60}") {
            for bytes in [bytes.as_slice(), markup.as_bytes(), format!("<a>{markup}").as_bytes()] {
                if let Ok(text) = Text::decode(bytes) && let Ok(file) = XmlFile::read(&text) {
                    for attribute in &file.attributes {
                        let _ = file.place(attribute.at);
                    }
                }
            }
        }

        /// The strict reader and this one agree on all that the strict one accepts.
        #[test]
        fn lenient_reader_agrees_with_strict_reader(markup in "(<a( b=\"[a-z. ]{0,3}\")?( c='[a-z. ]{0,3}')?/?>|</a>|x|&amp;|<!-- y -->){0,12}") {
            let text = format!("<r>{markup}</r>");
            if let Ok(strict) = roxmltree::Document::parse(&text) {
                let strict: Vec<String> = strict.descendants().flat_map(|element| element.attributes())
                    .map(|it| format!("{}={}", it.name(), it.value())).collect();
                let text = Text::decode(text.as_bytes()).unwrap();
                let file = XmlFile::read(&text).unwrap();
                let lenient: Vec<String> = file.attributes.iter().map(|it| format!("{}={}", it.name, it.value)).collect();
                proptest::prop_assert_eq!(strict, lenient);
                proptest::prop_assert_eq!((&file.deviations, &file.broken_off), (&vec![], &None));
            }
        }
    }
}
